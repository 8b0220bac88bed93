"""Each rule of conversion against numpy, on accumulators that are known whole numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsim as js
from jaxsim.integer.steps import Apply, AsIs, Rescaled

RNG = np.random.default_rng(3)
X = RNG.integers(-127, 128, (2, 3, 4, 6)).astype(np.float32)
PARAMS = {name: RNG.integers(-127, 128, (6, 5)).astype(np.float32) for name in ("first", "second")}
Y, Z = (X @ PARAMS[name] for name in ("first", "second"))
FACTOR = np.float32([2, -3, 0, 0.5, 1])
DIVISOR = np.float32([2, -4, 0.5, 8, 3])
TERM = np.float32([9_000, -7_000, 500, 0, -60_000])
FAR = 30_000.0
WINDOW = {"window_dimensions": (1, 2, 3, 1), "window_strides": (1, 1, 2, 1)}


def grid(bits=8, **settings):
    """Codes that are the numbers themselves: a step of one."""
    most = 2.0 ** (bits - 1) - 1
    return js.Grid(bits, clip=js.clipping.fixed(-most, most), **settings)


def summed(a, padding):
    return lax.reduce_window(a, 0.0, lax.add, padding=padding, **WINDOW)


def highest(a, padding):
    return lax.reduce_window(a, -np.inf, lax.max, padding=padding, **WINDOW)


def lowest(a, padding):
    return lax.reduce_window(a, np.inf, lax.min, padding=padding, **WINDOW)


RULES = {
    "an accumulator": lambda y, z: y,
    "plus a constant": lambda y, z: y + TERM,
    "minus a constant": lambda y, z: y - TERM,
    "a constant minus it": lambda y, z: TERM - y,
    "two": lambda y, z: y + z,
    "two of other scales": lambda y, z: 5 * y + z,
    "one minus another": lambda y, z: y - 3 * z,
    "times a constant": lambda y, z: y * FACTOR,
    "a constant times it": lambda y, z: FACTOR * y,
    "over a constant": lambda y, z: y / DIVISOR,
    "negated": lambda y, z: -y,
    "no less": lambda y, z: jnp.maximum(y, TERM),
    "no more": lambda y, z: jnp.minimum(FAR, y),
    "between": lambda y, z: lax.clamp(-FAR, y, FAR / 3),
    "the larger of two": lambda y, z: jnp.maximum(y, z),
    "the smaller of two": lambda y, z: jnp.minimum(y, 2 * z),
    "a chain": lambda y, z: jnp.minimum(jnp.maximum(-2 * y + TERM, 0) * FACTOR, FAR),
    "a residual of a ReLU": lambda y, z: jnp.maximum(y, 0) + z * FACTOR,
    "stopped": lambda y, z: lax.stop_gradient(y + 1),
    "placed": lambda y, z: jax.device_put(y * FACTOR, jax.devices()[0]),
    "held together": lambda y, z: lax.optimization_barrier([y * FACTOR, 3 * z]),
    "transposed": lambda y, z: jnp.transpose(y * FACTOR, (0, 3, 2, 1)),
    "the batch moved": lambda y, z: jnp.transpose(y * FACTOR + TERM, (3, 0, 1, 2)),
    "reversed": lambda y, z: lax.rev(y * FACTOR, (1, 3)),
    "cut": lambda y, z: (y * FACTOR)[:, 1:, ::2, 1:4],
    "cut to one": lambda y, z: (y * FACTOR)[..., 1],
    "broadcast": lambda y, z: jnp.broadcast_to((y * FACTOR)[:, None], (2, 2, 3, 4, 5)),
    "flat": lambda y, z: (y * FACTOR + TERM).reshape(2, -1),
    "joined": lambda y, z: jnp.concatenate([y, 3 * z, jnp.maximum(-y, 0)], -1),
    "stacked": lambda y, z: jnp.stack([y * FACTOR, 3 * z], 2),
    "stacked first": lambda y, z: jnp.stack([y * FACTOR, 3 * z]).transpose(1, 0, 2, 3, 4),
    "taken apart": lambda y, z: [*jnp.unstack(y * FACTOR + TERM, axis=3)],
    "taken apart by rows": lambda y, z: [*jnp.unstack(y * FACTOR, axis=0)],
    "divided": lambda y, z: jnp.split(y * FACTOR + TERM, [1, 4], -1),
    "repeated": lambda y, z: jnp.tile(y * FACTOR, (1, 1, 2, 2)),
    "a window": lambda y, z: lax.dynamic_slice(y * FACTOR, (0, 1, 0, 2), (2, 1, 4, 3)),
    "a window beyond the end": lambda y, z: lax.dynamic_slice_in_dim(y * FACTOR, 4, 3, 3),
    "taken by number": lambda y, z: jnp.take(y * 2 + 7, jnp.array([4, -5, 2]), axis=-1),
    "its magnitude": lambda y, z: jnp.abs(y * FACTOR + TERM),
    "the magnitude of what is low": lambda y, z: jnp.abs(jnp.minimum(y * 3, FAR / 9)) + z * FACTOR,
    "above a bound": lambda y, z: y * 2 + TERM > 3,
    "at least one": lambda y, z: y >= 2.5,
    "at most one": lambda y, z: y * FACTOR <= FAR,
    "below one": lambda y, z: jnp.maximum(y, 0) < TERM,
    "above another": lambda y, z: y > 2 * z,
    "leaky": lambda y, z: jax.nn.leaky_relu(y * 0.5 + TERM, 0.125),
    "a ReLU that chooses": lambda y, z: jnp.where(y > 0, y, 0),
    "a choice of two": lambda y, z: jnp.where(y <= z, y * FACTOR, z),
    "a choice beside another": lambda y, z: jnp.where(y <= z, y / 512, z) + y * FACTOR,
    "a choice of the larger": lambda y, z: jnp.where(y > z, 3 * y, FAR / 9) + z * FACTOR,
    "another choice": lambda y, z: jnp.where(y <= z, z, FAR * 9) - y * FACTOR,
    "a choice of a bound": lambda y, z: jnp.where(z >= y, TERM, 3 * z),
    "a known choice of two": lambda y, z: jnp.where(jnp.arange(5) > 1, y, -z),
    "a known choice of a bound": lambda y, z: jnp.where(jnp.arange(5) > 1, y * FACTOR, TERM),
    "a choice of truths": lambda y, z: jnp.where((y > 5) & ~(z > 7), y, -z),
    "masked": lambda y, z: jnp.where(jnp.arange(5) % 2 == 0, y * FACTOR, 0),
    "masked the other way": lambda y, z: jnp.where(jnp.arange(5) > 2, 0, -y),
    "padded": lambda y, z: lax.pad(y + TERM, 0.0, [(0, 0, 0), (1, 2, 0), (0, 1, 1), (0, 0, 0)]),
    "padded and turned": lambda y, z: -lax.pad(y * FACTOR, 0.0, [(0, 0, 0), *[(1, 0, 0)] * 3]),
    "summed": lambda y, z: y.sum((1, 2)),
    "summed with a term": lambda y, z: (y * FACTOR + TERM).sum((1, 2)),
    "summed over channels": lambda y, z: (y * FACTOR + TERM).sum(-1),
    "summed and clipped": lambda y, z: jnp.maximum(y, 0).sum((1, 2)),
    "a mean": lambda y, z: jnp.minimum(y, FAR).mean((1, 2)),
    "windows": lambda y, z: summed(y + TERM, "VALID"),
    "windows at a border": lambda y, z: summed(y + TERM, "SAME"),
    "the largest": lambda y, z: y.max((1, 2)),
    "the largest of falling ones": lambda y, z: (y * FACTOR + TERM).max((1, 2)),
    "the largest over channels": lambda y, z: (y * FACTOR + TERM).max(-1),
    "the smallest": lambda y, z: (y * FACTOR).min((1, 2)),
    "the largest of windows": lambda y, z: highest(y * FACTOR, "SAME"),
    "the smallest of windows": lambda y, z: lowest(y + TERM, "VALID"),
    "a bias behind a mean": lambda y, z: jnp.maximum((y.mean((1, 2)) - TERM) * FACTOR, -FAR),
}


def test_each_rule_answers_as_the_numbers_do():
    """Up to multipliers of 15 bits, and three of them in a row; all rules in one program."""

    def model(params, x):
        y, z = x @ params["first"], x @ params["second"]
        return {name: rule(y, z) for name, rule in RULES.items()}

    net = js.quantize(grid(), grid())(js.trace(model, PARAMS, X))
    chip = js.deploy(net, calibrate=X)
    found, simulated = js.integer_only(chip)(X), chip(X)
    for name, rule in RULES.items():
        whole = jax.tree.leaves(rule(jnp.asarray(Y), jnp.asarray(Z)))
        near = {"rtol": 1e-5, "atol": 1e-2, "err_msg": name}
        parts = zip(*map(jax.tree.leaves, (simulated[name], found[name], whole)), strict=True)
        for floats, part, expected in parts:
            np.testing.assert_allclose(floats, expected, **near)
            assert part.shape == expected.shape
            within = 2.0**-13 * max(np.abs(a).max() for a in whole)
            np.testing.assert_allclose(part, expected, rtol=0, atol=within, err_msg=name)


W = np.ones((3, 4), np.float32)
REFUSED = {
    "divides by an activation": lambda y: (1 + 0 * y[:, :1]) / y,
    "multiplies two activations": lambda y: y * (y + 1),
    "scales by": lambda y: y * np.float32([1, 2, np.inf, 4]),
    "clips by an activation": lambda y: lax.clamp(0.0, y, y + 1),
    r"pads with .*, not with zeros": lambda y: lax.pad(y, 2.0, [(0, 0, 0), (1, 1, 0)]),
    "pads with": lambda y: lax.pad(y, y[0, 0], [(0, 0, 0), (1, 1, 0)]),
    "joins constants with activations": lambda y: jnp.concatenate([y, jnp.ones((2, 1))], 1),
    "has no integer": lambda y: (y == 1) * 1.0,
    "compares with what is no number": lambda y: y > jnp.array([1.0, jnp.nan, 0.0, 2.0]),
    "chooses numbers that are not finite": lambda y: jnp.where(y > 0, y, -jnp.inf),
    r"chooses 1e\+09 beside activations": lambda y: jnp.where(jnp.arange(4) > 1, y, -1e9),
    "joins a float input": lambda y: lax.dynamic_slice_in_dim(y, jnp.argmax(y[0]), 2, 1),
    "takes slices in a way": lambda y: jnp.take(y, jnp.array([0, 4]), axis=1),
    "has no integer form": lambda y: jnp.tanh(y),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_a_rule_cannot_convert_is_refused_with_its_reason(why):
    net = js.trace(lambda w, x: REFUSED[why](x @ w), W, X[:, 0, 0, :3])
    chip = js.deploy(js.quantize(grid(), grid())(net), calibrate=X[:, 0, 0, :3])
    with pytest.raises(ValueError, match=rf"integer_only: \w+ at .*test_rules.py:\d+ {why}"):
        js.integer_only(chip)


def test_a_raw_input_beside_integers_is_refused():
    net = js.trace(lambda w, x: x[:, :1] + x @ w, W, X[:, 0, 0, :3])
    chip = js.deploy(js.quantize(grid(), grid())(net), calibrate=X[:, 0, 0, :3])
    with pytest.raises(ValueError, match="joins a float input with integers"):
        js.integer_only(chip)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (js.Grid(1), "rounds inputs to int1"),
        (js.Grid(3, spacing="powers"), "powers of two, not to the nearest of even codes"),
        (js.Grid(4, rounding="stochastic"), "stochastic, not to the nearest of even codes"),
        (js.Grid(4, dynamic=True), "takes its input range from each batch"),
    ],
)
def test_inputs_that_are_no_even_codes_are_refused(inputs, told):
    x = X[:, 0, 0, :3]
    chip = js.deploy(js.quantize(8, inputs)(js.trace(lambda w, x: x @ w, W, x)), calibrate=x)
    with pytest.raises(ValueError, match=told):
        js.integer_only(chip)


def long(depth, *transforms):
    """Sums of so many products of the largest codes."""
    x, w = np.full((1, depth), 127, np.float32), np.full((depth, 1), -127, np.float32)
    net = js.compose(js.quantize(grid(), grid()), *transforms)(js.trace(lambda w, x: x @ w, w, x))
    chip = js.deploy(net, calibrate=x)
    return js.integer_only(chip)(x)


@pytest.mark.parametrize("transforms", [(), (js.slice_bits(4),)], ids=["whole", "sliced"])
def test_sums_fill_an_accumulator_of_32_bits_and_no_more(transforms):
    """2^31 / 127² is 133144.2."""
    np.testing.assert_allclose(long(133_144, *transforms), -(127.0**2) * 133_144, rtol=1e-4)
    with pytest.raises(ValueError, match="sums 133145 products, which may leave 32 bits"):
        long(133_145, *transforms)


def test_what_a_weight_holds_decides_whether_its_sums_fit():
    """Products of small weights may be more: 200 000 of 1 · 127, beside one of the largest."""
    x, w = np.full((1, 200_000), 127, np.float32), np.ones((200_000, 1), np.float32)
    w[0] = 127
    net = js.quantize(grid(), grid())(js.trace(lambda w, x: x @ w, w, x))
    found = js.integer_only(js.deploy(net, calibrate=x))(x)
    np.testing.assert_allclose(found, 127.0 * (199_999 + 127), rtol=1e-4)


def test_sums_of_other_lengths_than_converted_are_refused_by_their_counts():
    net = js.trace(lambda w, x: (x @ w).sum(1), W, X[:, 0, :, :3])
    chip = js.deploy(js.quantize(grid(), grid())(net), calibrate=X[:, 0, :, :3])
    found = js.integer_only(chip)
    exact = (X[:, 0, :, :3] @ W).sum(1)
    np.testing.assert_allclose(found(X[:, 0, :, :3]), exact, atol=2.0**-13 * np.abs(exact).max())
    with pytest.raises(ValueError, match="sums 3 numbers for these arguments and 4 when"):
        found(X[:, 0, :3, :3])


@pytest.mark.parametrize("scale", [1.0, -2.0], ids=["rising", "falling"])
@pytest.mark.parametrize("compare", [jnp.greater, jnp.greater_equal, jnp.less, jnp.less_equal])
def test_bounds_are_compared_with_on_both_sides_and_where_they_are_met(compare, scale):
    """Whole numbers from -6 to 6, and bounds that are one of them or lie between two."""
    bounds = np.float32([-3, -2.5, 0, 2, 2.5])

    def model(w, x):
        y = (x @ w) * scale
        return compare(y, scale * bounds), compare(scale * bounds, y), compare(y, y[::-1])

    x = np.tile(np.arange(-6, 7, dtype=np.float32)[:, None], (1, 5))
    w = np.eye(5, dtype=np.float32)
    chip = js.deploy(js.quantize(grid(), grid())(js.trace(model, w, x)), calibrate=x)
    found = js.integer_only(chip)(x)
    for part, expected in zip(found, model(w, x), strict=True):
        assert part.dtype == bool
        np.testing.assert_array_equal(part, expected)


def test_the_largest_is_found_of_integers_that_fall_as_numbers_rise():
    def model(w, x):
        y = x @ w
        return jnp.argmax(-2 * y, -1), jnp.argmin(-y, -1), jnp.argmax(y, -1), jnp.arange(5.0)

    x = RNG.permuted(np.tile(np.arange(-6, 7, dtype=np.float32), (5, 1)), axis=1).T[:, :5]
    w = np.eye(5, dtype=np.float32)
    chip = js.deploy(js.quantize(grid(), grid())(js.trace(model, w, x)), calibrate=x)
    found = js.integer_only(chip)(x)
    for part, expected in zip(found, model(w, x), strict=True):
        np.testing.assert_array_equal(part, expected)
    assert (found[0] != found[2]).any()


@pytest.mark.parametrize("times", [250.0, 262.0])
def test_a_constant_leaves_activations_fifteen_bits(times):
    """Sums of 5 codes are 635 at most; 256 times that is as far as a constant may go."""
    x = np.tile(np.float32([-127, 3, 127]), (5, 1)).T
    w = np.ones((5, 2), np.float32)
    net = js.trace(lambda w, x: jnp.where(x @ w > 0, x @ w, -times * 635), w, x)
    weights = js.Grid(2, clip=js.clipping.fixed(-1.0, 1.0))
    chip = js.deploy(js.quantize(weights, grid())(net), calibrate=x)
    if times > 256:
        with pytest.raises(ValueError, match=r"chooses 1663\d\d beside activations"):
            js.integer_only(chip)
    else:
        np.testing.assert_allclose(js.integer_only(chip)(x), chip(x), rtol=0, atol=0.05)


def test_choices_and_bounds_are_for_any_batch():
    def model(w, x):
        y = x @ w
        y = jnp.where(jnp.arange(5) > 1, y, -3 * y + TERM)
        return jnp.where(y * FACTOR > TERM, y, FAR)

    x = X[:, 0, 0]
    chip = js.deploy(js.quantize(grid(), grid())(js.trace(model, PARAMS["first"], x)), calibrate=x)
    integers, more = js.integer_only(chip), X[:, 1].reshape(-1, 6)
    np.testing.assert_allclose(integers(more), chip(more), rtol=0, atol=2.0**-12 * FAR)
    chosen = np.isclose(integers(more), FAR)
    assert chosen.any()
    assert not chosen.all()


def test_what_is_known_beforehand_is_computed_beforehand():
    """A weight made of parameters, and a term made of them, leave no float behind."""

    def model(p, x):
        return x @ (p["w"] * 2) + jnp.sin(p["b"]) * 1000

    params = {"w": np.full((3, 4), 2.0, np.float32), "b": np.float32([0, 1, 2, 3])}
    x = X[:, 0, 0, :3]
    chip = js.deploy(js.quantize(grid(), grid())(js.trace(model, params, x)), calibrate=x)
    found = js.integer_only(chip)
    expected = 4 * x.sum(1, keepdims=True) + 1000 * np.sin(params["b"])
    np.testing.assert_allclose(found(x), expected, atol=2.0**-13 * np.abs(expected).max())
    assert " sin " not in str(jax.make_jaxpr(found)(x))


def test_other_equations_than_converted_are_refused_by_primitive_and_line():
    """A batch of one runs another primitive, one of three a further one."""

    def model(w, x):
        y = x @ w
        if len(x) == 1:
            return jnp.minimum(y, 5.0)
        return jnp.maximum(y, 5.0) if len(x) == 2 else jnp.maximum(y, 5.0) + 1

    x = X[:, 0, 0, :3]
    chip = js.deploy(js.quantize(grid(), grid())(js.trace(model, W, x)), calibrate=x)
    found = js.integer_only(chip)
    np.testing.assert_allclose(found(x), np.maximum(x @ W, 5), atol=0.1)
    for batch, primitive in ((x[:1], "min"), (np.concatenate([x, x[:1]]), "add")):
        said = rf"args: {primitive} at .*test_rules.py:\d+ runs for these arguments and did not"
        with pytest.raises(ValueError, match=said):
            found(batch)


def test_integers_that_only_move_are_moved_as_they_are():
    """Unless the batch goes where channels were, whose scales would go with it."""

    def moved(fn, factor):
        x = X[:, 0, 0, :3]
        net = js.trace(lambda w, x: fn((x @ w) * factor), W, x)
        found = js.integer_only(js.deploy(js.quantize(grid(), grid())(net), calibrate=x))
        (step,) = [s for s in found.steps if isinstance(s, Apply)]
        return type(step.operands[0])

    scales = np.float32([1, 2, 3, 4])
    assert moved(lambda y: y[:, None], scales) is AsIs
    assert moved(lambda y: y.T, np.float32(2)) is AsIs
    assert moved(lambda y: y.T, scales) is Rescaled
