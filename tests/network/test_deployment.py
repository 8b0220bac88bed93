"""Ranges of a chip: what is refused, and what each further batch adds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.models import normal

AFFINE = js.Grid(8, symmetric=False)


def linear(*grids):
    net = js.trace(lambda p, x, y=0.0: x @ p["w"] + y, {"w": normal(4, 3)}, normal(2, 4))
    return js.quantize(*grids)(net)


def ends(chip):
    return tuple(float(end) for end in chip.states["w"].inputs)


X = np.float32([[1, -2, 3, 0], [0, 5, -1, 1]])


def test_ranges_hold_every_batch_given_at_once_or_later():
    chip = js.deploy(linear(8, AFFINE), calibrate=X)
    assert (chip.deployed, chip.calibrated, ends(chip)) == (True, True, (-2, 5))
    assert ends(js.widen_ranges(chip, 2 * X[:1])) == (-4, 6)
    assert ends(js.widen_ranges(chip, X / 2)) == (-2, 5)
    several = js.deploy(linear(8, AFFINE), calibrate=[X[:1], 3 * X[:1], X[1:]])
    assert ends(several) == (-6, 9)
    assert ends(js.deploy(linear(8, AFFINE), calibrate={"x": X, "y": 1.0})) == (-2, 5)
    by_name = js.widen_ranges(chip, x=7 * X)
    assert ends(by_name) == (-14, 35)
    assert ends(js.widen_ranges(chip, 7 * X, 1.0)) == (-14, 35)


@pytest.mark.parametrize(("at", "bad"), [(0, -np.inf), (1, np.inf), (2, np.nan)])
def test_one_end_that_is_not_finite_is_enough_to_refuse(at, bad):
    x = X.copy()
    x[0, at] = bad
    with pytest.raises(ValueError, match="NaN or infinite values reach w"):
        js.deploy(linear(8, AFFINE), calibrate=x)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: js.deploy(X), "net: a ndarray is no Network"),
        (lambda: js.deploy(js.deploy(linear(8, None))), "net is deployed already"),
        (
            lambda: js.deploy(js.trace(lambda w, x: x @ w, normal(4, 3), X)),
            "no transformed sites to deploy",
        ),
        (lambda: js.deploy(linear(8, None), y=1.0), "expected the inputs that go with y"),
        (lambda: js.widen_ranges(linear(8, 8), X), "chip is not deployed"),
        (lambda: js.deploy(linear(8, 8))(X), r"calibrate=None: quantize\(inputs=…\) needs"),
    ],
)
def test_what_cannot_be_deployed_is_refused_by_reason(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_site_that_no_batch_reached_is_named():
    def fn(p, x):
        return jax.lax.cond(x.sum() > 0, lambda: x @ p["a"], lambda: x @ p["b"])

    net = js.trace(fn, {"a": normal(4, 4), "b": normal(4, 4)}, X)
    with pytest.raises(ValueError, match="calibrate: b did not run"):
        js.deploy(js.quantize(8, 8)(net), calibrate=jnp.abs(X))
    both = js.deploy(js.quantize(8, 8)(net), calibrate=[jnp.abs(X), -jnp.abs(X)])
    assert both.calibrated


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_a_weight_that_a_call_hands_on_beside_activations_is_written(wrap):
    both = wrap(lambda w, x: (2 * w, jnp.tanh(x)))

    def fn(p, x):
        w, x = both(p["w"], x)
        return x @ w

    params = {"w": normal(4, 3)}
    chip = js.deploy(js.quantize(8, None)(js.trace(fn, params, X)))
    scale = np.abs(2 * params["w"]).max(0) / 127
    rounded = np.round(2 * params["w"] / scale) * scale
    np.testing.assert_allclose(chip(X), np.tanh(X) @ rounded, rtol=1e-4, atol=1e-5)


def small_memory(a):
    """Whether an array's entries are one number in one place."""
    return isinstance(a, np.ndarray) and not any(a.strides)


def test_floats_that_nothing_reads_are_not_held():
    """The biases and the head that is read beside its site stay; masks and ranges are as before."""
    params = {"a": normal(4, 6), "b": normal(6), "head": normal(6, 4), "n": jnp.arange(3)}

    def fn(p, x, more=False):
        y = jnp.tanh(x @ p["a"] + p["b"]) @ p["head"] + p["head"].sum()
        return y + p["n"].sum() + p["a"].sum() if more else y

    net = js.quantize(8, 8)(js.prune(0.5, sites="a")(js.trace(fn, params, X)))
    whole = js.deploy(net, calibrate=X)
    chip = js.deploy(net, calibrate=X, keep_floats=False)
    assert whole.unheld == ()
    assert chip.unheld == ("a", "n")
    assert [small_memory(chip.params[k]) for k in params] == [True, False, False, True]
    assert np.isnan(chip.params["a"]).all()
    assert (chip.params["n"] == 0).all()
    for one, other in (
        (chip, whole),
        (js.widen_ranges(chip, 3 * X), js.widen_ranges(whole, 3 * X)),
    ):
        np.testing.assert_array_equal(jax.jit(lambda n, x: n(x))(one, X), other(X))
        jax.tree.map(np.testing.assert_array_equal, one.states, other.states)
    with pytest.raises(ValueError, match="keep_floats=False: this call reads a, n, which the call"):
        chip(X, more=True)
    assert whole(X, more=True).shape == (2, 4)


def test_settings_that_only_writing_reads_are_not_held(tmp_path):
    """Ranges of groups and scales of a file; what calls or calibration read stays as it was."""
    params = {"up": normal(64, 96), "down": normal(96, 80)}
    net = js.trace(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, normal(2, 64))
    given = js.BlockGrid("Q4_0", scale=np.linspace(0.1, 0.2, 2 * 96).reshape(2, 96))
    ranges = js.clipping.fixed(-jnp.ones(80), jnp.ones(80))
    coded = js.rules(
        {
            "up": js.quantize(given, None),
            "down": js.quantize(js.Grid(4, per="channel", clip=ranges), 8),
        }
    )(net)
    x = normal(8, 64)
    whole = js.deploy(coded, calibrate=x)
    chip = js.deploy(coded, calibrate=x, keep_floats=False)
    assert not any(map(small_memory, jax.tree.leaves(whole.cores)))
    left = [a for a in jax.tree.leaves(chip.cores) if np.size(a) > 64]
    assert left
    assert all(map(small_memory, left))
    weights, scales, ends = 4 * 96 * (64 + 80), 2 * (2 * 96), 4 * (2 * 80)
    one_of_each = 2 * 4 + 2 + 2 * 4
    assert whole.nbytes - chip.nbytes == weights + scales + ends - one_of_each
    js.save(tmp_path / "chip", whole)
    js.save(tmp_path / "small", chip)
    call = jax.jit(lambda net, x: net(x))
    for name in ("chip", "small"):
        again = js.load(tmp_path / name, coded)
        assert again.nbytes == chip.nbytes
        np.testing.assert_array_equal(call(again, x), call(whole, x))
    slopes = [
        jax.grad(lambda net, x: jnp.sum(net(x) ** 2), (0, 1), allow_int=True)(net, x)
        for net in (whole, chip)
    ]
    np.testing.assert_array_equal(slopes[0][1], slopes[1][1])
    assert np.isfinite(slopes[1][1]).all()
    wide = [js.widen_ranges(net, 3 * x) for net in (whole, chip)]
    np.testing.assert_array_equal(call(wide[0], x), call(wide[1], x))
    assert call._cache_size() == 2


def test_a_setting_that_calls_read_stays():
    gains = jnp.linspace(1, 2, 96)

    def scaled(core, gains):
        return core._replace(read=lambda *args: gains * core.read(*args))

    net = js.trace(lambda p, x: x @ p["up"], {"up": normal(64, 96)}, normal(2, 64))
    chip = js.deploy(js.wrap(scaled, gains=gains)(net), keep_floats=False)
    assert not any(map(small_memory, jax.tree.leaves(chip.cores)))


def test_a_model_of_groups_of_few_bits_takes_one_more_a_weight():
    """In arrays that are held, codes, scales and all; a known-wrong control is a byte a code."""
    params = {"up": normal(64, 96), "down": normal(96, 64)}
    net = js.trace(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, normal(2, 64))
    held = {}
    grids = {f"{bits}": js.Grid(bits, per="group", rows=32) for bits in (2, 3, 4, 5)}
    grids["affine"] = js.Grid(4, symmetric=False, per="group", rows=32)
    grids["affine, 2"] = js.Grid(2, symmetric=False, per="group", rows=32)
    grids["table"] = js.nf4(per="group", rows=32)
    grids["table of 4"] = js.Codebook((-1.0, -0.3, 0.3, 1.0), per="group", rows=32)
    for name, grid in grids.items():
        chip = js.deploy(js.quantize(grid, None)(net), keep_floats=False)
        arrays = [a for a in jax.tree.leaves(chip) if not small_memory(a)]
        held[name] = 8 * sum(a.nbytes for a in arrays) / (2 * 64 * 96)
    assert held["2"] <= 3.0
    assert held["affine, 2"] <= 3.2
    assert held["table of 4"] <= 3.2
    assert held["3"] == held["4"] <= 5.0
    assert held["affine"] <= 5.2
    assert held["table"] <= 5.2
    assert held["5"] > 8
