import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.bit_sliced import bit_sliced
from jaxsim.cores.blocked import blocked
from jaxsim.cores.mapping import differential, offset
from jaxsim.cores.quantized import quantized
from tests.support import models
from tests.support.networks import X, answer, attention, cnn, run, stack

PAIRS = [(0, 1), (1, 0)]


def chip(*transforms, net=None):
    net = cnn() if net is None else net
    return js.compose(js.quantize(8, 8), *transforms)(net)


def test_all_blocks_leave_every_bit_as_it_was():
    plain = run(chip(), X)
    for K in (1, 2, 5):
        np.testing.assert_array_equal(run(chip(js.block(K, mode="exact")), X), plain)


@pytest.mark.parametrize("mode", ["static", "dynamic", ("dynamic", "static")])
def test_deployed_networks_equal_composed_ones(mode):
    net = chip(js.block(3, 2, 1, mode, rounding="rounded"))
    np.testing.assert_array_equal(answer(net, X), run(net, X))
    assert not np.array_equal(run(net, X), run(chip(), X))


def test_cut_codes_are_codes_to_slices_and_crossbars():
    """Ideal cells hold what the blocks left, whatever holds it."""
    net = chip(js.block(3, 2, 2, rounding="rounded"))
    expected = run(net, X)
    holdings = {
        "slices": (js.slice_bits(2),),
        "pairs": (js.analog(),),
        "sliced pairs": (js.slice_bits(2), js.analog(rows=16)),
        "sliced, offset": (js.slice_bits(2), js.analog(mapping="offset")),
    }
    for name, holding in holdings.items():
        np.testing.assert_array_equal(run(js.compose(*holding)(net), X), expected, name)
    order = js.compose(js.slice_bits(2), js.analog(mapping="offset"))(net).cores["Dense_0/kernel"]
    assert [w.factory for w in order][:4] == [quantized, blocked, offset, bit_sliced]
    assert differential in [w.factory for w in js.analog()(net).cores["Dense_0/kernel"]]


def test_noisy_crossbars_train_through_blocks():
    net = chip(js.block(4, 1, 1), js.analog(adc=8, cells=js.cells.proportional(0.05)))

    def loss(params, key):
        return jnp.sum(dataclasses.replace(net, params=params)(X, key=key) ** 2)

    grads = jax.jit(jax.grad(loss))(net.params, jax.random.key(0))
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(grads))


def test_pruned_weights_stay_out():
    net = js.compose(js.prune(0.5), js.quantize(8, 8), js.block(3, 2, 2, rounding="unbiased"))(
        cnn()
    )
    states = js.deploy(net, calibrate=X).states
    for name, mask in net.masks.items():
        (held,) = states[name].inner.inner
        assert not np.any(np.asarray(held)[~np.asarray(mask)])


KINDS = {
    "transformer": ("*query/kernel", "dynamic/0", "*out/kernel", "Embed*"),
    "nested scans": "*",
    "experts": "*",
    "weight first": "*",
}
"""Models, and the sites of each whose geometry no other one has."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_blocks_go_wherever_codes_do(kind):
    """In scans, over heads and experts, with the weight on the left: as a straight truncation."""
    case, sites = models.CASES[kind](), KINDS[kind]
    net = js.trace(case.model, case.variables, *case.args, **case.kwargs)
    codes = js.quantize(8, 8, sites=sites)(net)
    some = js.block(3, 2, 2, rounding="rounded", sites=sites)(codes)
    whole = js.block(2, mode="exact", sites=sites)(codes)
    y, plain, exact = (run(n, *case.args) for n in (some, codes, whole))
    for a, b, c in zip(*map(jax.tree.leaves, (y, plain, exact)), strict=True):
        np.testing.assert_array_equal(b, c)
        assert 0 < np.abs(a - b).max() < 0.2 * np.abs(b).max()
    deployed = js.deploy(some, calibrate=tuple(case.args))
    for a, b in zip(*(jax.tree.leaves(run(n, *case.args)) for n in (some, deployed)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.1, atol=0.05)


def test_products_of_activations_can_be_blocked():
    """Both operands are cut at every call."""
    x = models.normal(2, 5, 4)
    rule = js.compose(js.quantize(8, 8), js.block(3, 1, 1))
    net = js.rules({"dynamic/0": rule})(attention())
    assert not np.array_equal(run(net, x), run(attention(), x))
    exact = js.rules({"dynamic/0": js.compose(js.quantize(8, 8), js.block(3, mode="exact"))})(
        attention()
    )
    plain = js.rules({"dynamic/0": js.quantize(8, 8)})(attention())
    np.testing.assert_array_equal(run(exact, x), run(plain, x))


def test_a_sweep_over_block_size_number_mode_and_rounding_compiles_once():
    traced = []

    @jax.jit
    def evaluate(net, x):
        traced.append(1)
        return net(x)

    settings = [
        (1, 3, 4, "dynamic"),
        (2, 2, 1, "static"),
        (3, 1, 2, ("static", "dynamic")),
        (4, 2, 1, "dynamic"),
    ]
    ys = [
        np.asarray(
            evaluate(
                chip(js.block(K, n_x, n_w, mode, rounding=r), net=stack()), models.normal(5, 4)
            )
        )
        for (K, n_x, n_w, mode) in settings
        for r in ("trunc", "rounded")
    ]
    assert len(traced) == 1
    assert len({y.tobytes() for y in ys}) == len(ys)


def test_blocks_composed_inside_jit_compile_once_and_vmap():
    net, x = stack(), models.normal(5, 4)

    @jax.jit
    def evaluate(K, n):
        return js.deploy(chip(js.block(K, n, n), net=net), calibrate=x)(x)

    ys = [evaluate(K, n) for K, n in ((2, 2), (3, 1))]
    assert evaluate._cache_size() == 1
    np.testing.assert_allclose(
        jax.vmap(evaluate)(jnp.array([2, 3]), jnp.array([2, 1])), ys, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        ys[0], run(js.deploy(chip(js.block(2, 2, 2), net=net), calibrate=x), x), rtol=1e-5
    )


def test_networks_show_their_blocks():
    assert "2 dynamic × 1 static blocks of 3 bits" in str(
        chip(js.block(3, 2, 1, ("dynamic", "static")))
    )
    assert "2 of 2 static × 2 static blocks of 4 bits" in str(
        chip(js.block(4, mode="static", pairs=PAIRS))
    )


def test_saved_networks_keep_their_blocks(tmp_path):
    made = js.deploy(chip(js.block(3, 2, 1, rounding="rounded")), calibrate=X)
    js.save(tmp_path / "chip", made)
    like = chip(js.block(2, 1, 1))  # the same but for what is traced
    np.testing.assert_array_equal(run(js.load(tmp_path / "chip", like), X), run(made, X))


B, Q = js.block, js.quantize
AFFINE = js.Grid(8, symmetric=False)

BAD_ARGUMENTS = {
    "K=0: must be an int from 1 to 7": lambda: B(0),
    "K=8: must": lambda: B(8),
    "K=2.0: must": lambda: B(2.0),
    "n_x=0: must": lambda: B(2, 0),
    "n_w=True: must": lambda: B(2, 1, True),
    "mode='both'": lambda: B(2, mode="both"),
    "mode=.*'static', 'static', 'static'": lambda: B(2, mode=("static",) * 3),
    "rounding='floor'": lambda: B(2, rounding="floor"),
    "n_w=1: mode='exact' keeps all": lambda: B(2, 1, 1, ("dynamic", "exact")),
    "n_x=1: pairs=": lambda: B(2, 1, mode="static", pairs=PAIRS),
    r"pairs=\(\)": lambda: B(2, mode="static", pairs=[]),
    "pairs=3: must be pairs": lambda: B(2, mode="static", pairs=3),
    "pairs=-1: must": lambda: B(2, mode="static", pairs=[(0, -1)]),
    "pairs with mode=.*'exact'": lambda: B(2, mode="exact", pairs=PAIRS),
    "rounding='rounded': chosen blocks": lambda: B(
        2, mode="static", rounding="rounded", pairs=PAIRS
    ),
    "K must be an int where pairs": lambda: jax.jit(lambda K: B(K, mode="static", pairs=PAIRS))(2),
}


@pytest.mark.parametrize("message", BAD_ARGUMENTS)
def test_bad_arguments_are_named_when_they_are_given(message):
    with pytest.raises(ValueError, match=message):
        BAD_ARGUMENTS[message]()


BAD_ORDERS = {
    "block at Conv_0/kernel: it holds floats; put quantize": lambda: B(2)(cnn()),
    "block at Conv_0/kernel: its inputs are floats": lambda: B(2)(Q(8, None)(cnn())),
    "block at Conv_0/kernel: its weights are floats": lambda: B(2)(Q(None, 8)(cnn())),
    r"affine grid.*put quantize\(inputs=8\)": lambda: B(2)(Q(8, AFFINE)(cnn())),
    r"affine grid.*put quantize\(weights=8\)": lambda: B(2)(Q(AFFINE, 8)(cnn())),
    "block cannot follow blocked at Conv_0": lambda: chip(B(2), B(2)),
    "block.pairs=…. cannot follow bit_sliced at Conv_0": lambda: chip(
        js.slice_bits(2), B(4, mode="static", pairs=PAIRS)
    ),
    "block.pairs=…. cannot follow tiled at Conv_0": lambda: chip(
        js.analog(), B(4, mode="static", pairs=PAIRS)
    ),
    "quantize cannot follow blocked": lambda: chip(B(2), Q()),
    "analog cannot follow block.pairs=…. at Conv_0": lambda: chip(
        B(4, mode="static", pairs=PAIRS), js.analog()
    ),
    "slice_bits cannot follow block.pairs=…. at Conv_0": lambda: chip(
        B(4, mode="static", pairs=PAIRS), js.slice_bits(2)
    ),
    "K=5: 5-bit codes at Conv_0/kernel take from 1 to 4": lambda: B(5)(Q(5, 8)(cnn())),
    "n_w=3: 5-bit codes at Conv_0/kernel have 2 blocks": lambda: B(2, 1, 3)(Q(5, 8)(cnn())),
    "pairs: 8-bit codes at Conv_0/kernel have blocks 0 to 1": lambda: chip(
        B(4, mode="static", pairs=[(0, 2)])
    ),
    "block cannot follow deploy": lambda: B(2)(js.deploy(chip(), calibrate=X)),
}


@pytest.mark.parametrize("message", BAD_ORDERS)
def test_impossible_compositions_are_named_when_they_are_composed(message):
    with pytest.raises(ValueError, match=message):
        BAD_ORDERS[message]()


def test_pairs_that_are_a_product_set_may_go_into_crossbars():
    net = chip(B(4, mode="static", pairs=[(1, 0), (1, 1)]))
    np.testing.assert_array_equal(run(js.analog()(net), X), run(net, X))
