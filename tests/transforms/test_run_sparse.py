import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.compressed import compressed, places, stored
from jaxsim.transforms.run_sparse import alternatives
from tests.support.models import normal
from tests.support.networks import X, cnn, run
from tests.support.sites import CONV, DENSE, operands, read, read_deployed

WHOLE = dataclasses.replace(CONV, groups=1, w_shape=(4, 6, 3, 2))
LAYOUTS = {"rows": (1, 1), "blocks": (4, 2), "large blocks": (32, 32)}


def sparse(geometry, w, layout, block):
    """The wrapper that holds what of a weight is not zero."""
    (matrix,) = np.asarray(geometry.as_matmul().w(jnp.asarray(w)))
    where = places(matrix != 0, layout, block)
    return where, (
        compressed,
        {"index": where.inputs, "begins": where.begins, "layout": layout, "block": block},
    )


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_product_is_the_dense_one(kind, name):
    geometry = {"dense": DENSE, "conv": WHOLE}[kind]
    x, w = operands(geometry, x_shape=None if kind == "dense" else (2, 6, 7, 5))
    w = w * (np.random.default_rng(1).random(w.shape) < 0.3)
    layout = name.split()[-1]
    where, wrapper = sparse(geometry, w, layout, LAYOUTS[name])
    expected = np.asarray(geometry.apply(jnp.asarray(x), jnp.asarray(w), None))
    for found in (read([wrapper], geometry, x, w), read_deployed([wrapper], geometry, x, w)):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    if layout == "rows":
        assert stored(where, layout, LAYOUTS[name]) == np.count_nonzero(w)


@pytest.mark.parametrize("name", ["rows", "blocks"])
def test_gradients_are_those_of_the_masked_network(name):
    net = js.prune(0.7, sites="Dense*")(cnn())
    fast = js.run_sparse(name, block=(2, 2), break_even=0.0, sites="Dense*")(net)

    def loss(params, net, x):
        return (dataclasses.replace(net, params=params)(x) ** 2).sum()

    slope = jax.jit(jax.grad(loss, (0, 2)))
    found, expected = slope(net.params, fast, X), slope(net.params, net, X)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert np.abs(found[1]).max() > 0


@pytest.mark.parametrize("name", ["rows", "blocks"])
def test_a_whole_network_runs_sparse_and_deploys_and_counts(name):
    net = js.prune(0.7)(cnn())
    fast = js.run_sparse(name, block=(2, 2), break_even=0.0)(net)
    expected = run(net, X)
    for made in (fast, js.deploy(fast)):
        np.testing.assert_allclose(run(made, X), expected, rtol=1e-4, atol=1e-5)
    before, after = net.cost().total("macs"), fast.cost().total("macs")
    nonzero = sum(int(m.sum()) for m in net.masks.values())
    if name == "rows":
        assert after < 0.5 * before
        assert fast.cost().total("cells") == nonzero


def test_it_is_refused_where_it_would_be_slower():
    net = js.prune(0.8)(js.trace(lambda p, x: x @ p["w"], {"w": normal(64, 64)}, normal(128, 64)))
    with pytest.raises(ValueError, match=r"80.0% of the products .* below 85.0%"):
        js.run_sparse("rows")(net)
    assert js.run_sparse("rows", break_even=0.75)(net).cores
    with pytest.raises(ValueError, match=r"w: 0\.0% of the products"):
        js.run_sparse("blocks")(net)
    assert js.run_sparse("rows")(js.prune(0.95)(net)).cores
    with pytest.raises(ValueError, match="8 rows of inputs are few"):
        js.run_sparse("rows", sites="Dense*")(
            js.prune(0.95, distribution=js.sparsity.uniform(), sites="Dense*")(cnn())
        )


def test_what_cannot_run_sparse_says_why():
    with pytest.raises(ValueError, match="no mask"):
        js.run_sparse()(cnn())
    with pytest.raises(ValueError, match="layout"):
        js.run_sparse("csr")
    with pytest.raises(ValueError, match="block"):
        js.run_sparse(block=(0, 4))
    with pytest.raises(ValueError, match="break_even"):
        js.run_sparse(break_even=1.5)
    grouped = js.trace(
        lambda p, x: jnp.einsum("bgk,gkn->bgn", x, p["w"]), {"w": normal(3, 4, 5)}, normal(2, 3, 4)
    )
    with pytest.raises(ValueError, match="in 3 groups"):
        js.run_sparse("rows", break_even=0)(js.prune(0.5)(grouped))


@pytest.mark.parametrize("layout", ["rows", "blocks"])
def test_both_ways_of_a_measurement_compute_the_same(layout):
    dense, fast = alternatives(96, 64, 16, 0.75, layout, (16, 16))
    np.testing.assert_allclose(fast(), dense(), rtol=1e-4, atol=1e-4)


def test_a_measured_break_even_is_one_of_the_shares():
    found = js.measure_break_even(64, 64, 32)
    assert found == 1.0 or found in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
    with pytest.raises(ValueError, match="rows"):
        js.measure_break_even(64, 64, 0)


WEIGHT = normal(40, 24, seed=3)
ROWS = normal(6, 40, seed=4)
FORMATS = {
    "int8": js.quantize(8, 8),
    "4-bit weights": js.quantize(4, None),
    "affine inputs": js.quantize(js.Grid(4), js.Grid(8, symmetric=False)),
    "a table": js.quantize(js.nf4(), 8),
    "short floats": js.quantize(js.fp4(), 8),
    "inputs alone": js.quantize(None, 8),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("layout", ["rows", "blocks"])
def test_codes_run_sparse_in_either_order_and_compute_what_the_dense_ones_do(layout, name):
    net = js.prune(0.9)(js.trace(lambda w, x: x @ w, jnp.asarray(WEIGHT), ROWS))
    store, sparse = FORMATS[name], js.run_sparse(layout, block=(4, 4), break_even=0.0)
    before, behind = js.compose(store, sparse)(net), js.compose(sparse, store)(net)
    assert jax.tree.structure(before) == jax.tree.structure(behind)
    dense = store(net)
    for a, b in ((run(before, ROWS), run(dense, ROWS)), (deployed(before), deployed(dense))):
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())
    if name == "int8":  # exact sums, and 8 bits where a float has 32
        np.testing.assert_array_equal(deployed(before), deployed(dense))
        spent = [n.cost().sites[0].spent["weight_bits"] for n in (before, sparse(net))]
        held = before.cost().sites[0].spent["cells"]
        assert spent[1] - spent[0] == 24 * held


def doubled(core):
    """What a chain behind a sparse weight would lose without a word."""
    return core._replace(read=lambda op, state, x, key: 2 * core.read(op, state, x, key))


def deployed(net):
    chip = js.deploy(net, calibrate=ROWS)
    return np.asarray(run(chip, ROWS))


def test_codes_of_many_inputs_are_added_exactly():
    """1100 products of 127 by 127 are beyond the whole numbers of float32."""
    w = jnp.asarray(np.where(np.arange(1100)[:, None] % 2 == np.arange(2), 1, 0.9921), jnp.float32)
    net = js.prune(0.5)(js.trace(lambda w, x: x @ w, w, jnp.ones((3, 1100))))
    x = jnp.ones((3, 1100)).at[:, ::3].set(0.9921)
    store = js.quantize(8, 8)
    chips = [
        js.deploy(made(net), calibrate=x)
        for made in (js.compose(store, js.run_sparse("rows", break_even=0.0)), store)
    ]
    np.testing.assert_array_equal(*(run(chip, x) for chip in chips))


def test_codes_that_cannot_run_sparse_say_why():
    net = js.prune(0.9)(js.trace(lambda w, x: x @ w, jnp.asarray(WEIGHT), ROWS))
    sparse, affine = js.run_sparse(break_even=0.0), js.quantize(js.Grid(8, symmetric=False), 8)
    grouped = js.quantize(js.Grid(8, per="group", rows=8), 8)
    cases = {
        "run_sparse at params: its weights are on int8 affine": (affine, sparse),
        "quantize at params, which runs sparse: .* weights=8 is symmetric": (sparse, affine),
        "run_sparse at params: bit_sliced holds": (js.quantize(8, 8), js.slice_bits(2), sparse),
        "run_sparse at params: grouped holds or sums": (grouped, sparse),
        "slice_bits cannot follow compressed": (js.quantize(8, 8), sparse, js.slice_bits(2)),
        "analog cannot follow compressed": (js.quantize(8, 8), sparse, js.analog()),
        "block cannot follow compressed": (js.quantize(8, 8), sparse, js.block(2)),
        "it runs sparse already": (sparse, sparse),
        r"doubled\(\) cannot follow compressed at params": (sparse, js.wrap(doubled)),
    }
    for message, steps in cases.items():
        with pytest.raises(ValueError, match=message):
            js.compose(*steps)(net)


STACKED = normal(3, 24, 24, seed=5)


def layers(params, x):
    """Layers that a scan runs, the second of which is all but empty."""
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["w"])[0]


def experts(params, x):
    return jnp.einsum("td,tdf->tf", x, params["w"][jnp.argmax(x[:, :3], -1)])


def uneven(fn):
    net = js.prune(0.9)(js.trace(fn, {"w": STACKED}, normal(6, 24, seed=6)))
    mask = net.masks["w"].at[1, :, 2:].set(False).at[1, 0, -1].set(True)
    return dataclasses.replace(net, masks={"w": mask})


@pytest.mark.parametrize("fn", [layers, experts])
@pytest.mark.parametrize("layout", ["rows", "blocks"])
def test_slices_of_a_stack_run_sparse(layout, fn):
    """Floats and codes, not deployed and deployed; each slice holds what the fullest does."""
    net, x, block = uneven(fn), normal(6, 24, seed=7), (4, 4)
    sparse, quantize = js.run_sparse(layout, block=block, break_even=0.0), js.quantize(8, 8)
    fast = sparse(net)
    expected = run(net, x)
    for made in (fast, js.deploy(fast)):
        np.testing.assert_allclose(run(made, x), expected, rtol=1e-4, atol=1e-5)
    chips = [js.deploy(n, calibrate=x) for n in (sparse(quantize(net)), quantize(net))]
    np.testing.assert_array_equal(*(run(chip, x) for chip in chips))
    held = np.asarray(net.masks["w"])
    if layout == "rows":
        each = held.sum((1, 2))
    else:
        strips = held.reshape(3, 6, 4, 6, 4).any((2, 4)).sum(1)
        each = 6 * strips.max(1) * 16
    assert len(set(each.tolist())) > 1
    spent = fast.cost().sites[0].spent
    assert spent["cells"] == 3 * each.max()
    times = {"layers": 3 * 6, "experts": 6}[fn.__name__]
    assert spent["macs"] == times * each.max()
    inner = np.asarray(chips[0].states["w"].inner)
    assert inner.size == 3 * each.max()
    if layout == "rows":
        assert (inner[1, each[1] :] == 0).all()  # nothing of another output


@pytest.mark.parametrize("layout", ["rows", "blocks"])
def test_stacks_that_run_sparse_have_gradients_and_are_cut(layout):
    net, x = uneven(layers), normal(6, 24, seed=7)
    fast = js.run_sparse(layout, block=(4, 4), break_even=0.0)(net)

    @jax.jit
    def slope(net):
        return jax.grad(lambda p: (net.with_params(p)(x) ** 2).sum())(net.params)["w"]

    np.testing.assert_allclose(slope(fast), slope(net), rtol=1e-4, atol=1e-5)
    cut = js.pipeline_shard(3, 2, devices=jax.devices()[:1] * 3)(fast)
    np.testing.assert_allclose(cut(x), run(net, x), rtol=1e-4, atol=1e-5)


def test_the_fullest_slice_of_a_stack_must_pay():
    net = uneven(layers)
    most = np.asarray(net.masks["w"]).sum((1, 2)).max()
    share = 1 - most / 24**2
    assert js.run_sparse("rows", break_even=share - 1e-3)(net).cores
    with pytest.raises(ValueError, match=rf"{share:.1%} of the products would be left out"):
        js.run_sparse("rows", break_even=share + 1e-3)(net)
