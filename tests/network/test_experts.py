"""Products with weights that integers choose are one site for the stack of experts."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

import jaxsim as js
from jaxsim import internals
from jaxsim.network.inlining import inline_slices
from jaxsim.network.routes import regroup
from tests.support.models import normal
from tests.support.variables import initial

T, D, F, G, K = 6, 8, 5, 3, 2
X = normal(T, D, seed=1)
IDS = jnp.array([0, 2, 1, 1, 0, 2])
PAIRS = jnp.stack([IDS, (IDS + 1) % G], 1)
SIZES = jnp.array([2, 0, 3])  # the last row is in no group
GROUP = np.array([0, 0, 2, 2, 2, -1])
PAIRED = normal(T, K, D, seed=2)
INPUTS = {"x": X, "ids": IDS, "pairs": PAIRS, "sizes": SIZES, "paired": PAIRED}
STACK = normal(G, D, F, seed=3)


@jax.jit
def select(w, ids):
    """A call of the model's own, with a call inside."""
    return jnp.take(w, ids, axis=0)


def gate_and_value(w, a):
    gate, value = jnp.split(w[a["ids"]], [2], axis=2)
    return jnp.concatenate(
        [jnp.einsum("td,tdf->tf", a["x"], gate), jnp.einsum("td,tdf->tf", a["x"], value)], 1
    )


FORMS = {
    "ragged": lambda w, a: lax.ragged_dot(a["x"], w, a["sizes"]),
    "index": lambda w, a: jnp.einsum("td,tdf->tf", a["x"], w[a["ids"]]),
    "take": lambda w, a: jnp.einsum("td,tdf->tf", a["x"], select(w, a["ids"])),
    "several": lambda w, a: jnp.einsum("td,tkdf->tkf", a["x"], jnp.take(w, a["pairs"], axis=0)),
    "summed": lambda w, a: jnp.einsum("tkd,tkdf->tf", a["paired"], w[a["pairs"]]),
    "one": lambda w, a: a["x"] @ w[a["ids"][1]],
    "slice": lambda w, a: (
        (
            lax.dynamic_index_in_dim(w, a["ids"][1] + 9, 0, keepdims=False).astype(jnp.float32).T
            @ a["x"].T
        ).T
    ),
    "turned": lambda w, a: jnp.einsum(
        "td,tfd->tf", a["x"], jnp.swapaxes(w, 1, 2)[a["ids"].reshape(2, 3)].reshape(T, F, D)
    ),
    "mapped": lambda w, a: jax.vmap(
        lambda x, i: x @ lax.dynamic_index_in_dim(w, i, 0, keepdims=False)
    )(a["x"], a["ids"]),
    "middle": lambda w, a: jnp.einsum(
        "td,dtf->tf", a["x"], jnp.take(jnp.moveaxis(w, 0, 1), a["ids"], axis=1)
    ),
    "clipped": lambda w, a: jnp.einsum(
        "td,tdf->tf", a["x"], jnp.take(w, 2 * a["ids"] - 1, axis=0, mode="clip")
    ),
    "permuted": lambda w, a: jnp.einsum(
        "td,ktfd->tkf", a["x"], jnp.transpose(w[a["pairs"]], (1, 0, 3, 2))
    ),
    "part": lambda w, a: jnp.einsum("td,tdf->tf", a["x"], w[a["ids"][:, None]][:, 0, :, 1:]),
    "spread": lambda w, a: jnp.einsum(
        "td,tdf->tf", a["x"], jnp.broadcast_to(w[a["ids"][1]], (T, D, F))
    ),
    "two integers": lambda w, a: jnp.einsum(
        "td,tdf->tf", a["x"], w[None][jnp.zeros_like(a["ids"]), a["ids"]]
    ),
    "branches": lambda w, a: a["x"] @ lax.switch(a["ids"][1], [lambda i=i: w[i] for i in range(G)]),
    "halves": gate_and_value,
}


def choose(products, name):
    """What a form gives, from the products of all rows with every expert, [G, ..., F]."""
    rows, ids, pairs = np.arange(T), np.asarray(IDS), np.asarray(PAIRS)
    if name == "ragged":
        return np.where(GROUP[:, None] >= 0, products[GROUP, rows], 0)
    if name == "clipped":
        return products[np.clip(2 * ids - 1, 0, G - 1), rows]
    if name == "part":
        return products[ids, rows, 1:]
    if name in ("several", "permuted"):
        return products[pairs, rows[:, None]]
    if name == "summed":
        return products[pairs, rows[:, None], np.arange(K)].sum(1)
    if name in ("one", "slice", "branches", "spread"):
        return products[ids[1]]
    return products[ids, rows]


@functools.cache
def network(name):
    def fn(p, a):
        return FORMS[name](p["w"], a)

    return js.trace(fn, {"w": STACK}, INPUTS)


@functools.cache
def products(paired):
    """All rows times every expert, by a network of one matrix: its grid, and that of all rows."""
    x = PAIRED if paired else X
    net = js.quantize(8, 8)(js.trace(lambda p, x: x @ p["w"], {"w": STACK[0]}, x))
    return np.stack([net.with_params({"w": w})(x) for w in STACK])


@pytest.mark.parametrize("name", FORMS)
def test_an_int8_expert_computes_what_a_network_of_it_alone_does(name):
    net = js.quantize(8, 8)(network(name))
    expected = choose(products(name == "summed"), name)
    found = net(INPUTS)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
    exact = np.asarray(FORMS[name](STACK, INPUTS))
    assert 1e-3 < np.abs(found - exact).max() / np.abs(exact).max() < 0.03


@pytest.mark.parametrize("name", FORMS)
def test_the_stack_is_one_site_and_counts_what_the_model_multiplies(name):
    net = network(name)
    first = net.sites[0]
    kind = "ragged" if name == "ragged" else "routed"
    assert {s.kind for s in net.sites} == {kind}
    assert (first.name, first.stack, first.runs, first.multiplies) == ("w", (G,), 1, True)
    assert not net.unreached
    assert net.coverage().share("float") == 1
    times = 2 if name in ("several", "permuted", "summed") else 1
    width = F - 1 if name == "part" else F
    assert sum(site.macs for site in net.sites) == times * T * D * width
    spent = [site.spent for site in js.quantize(8, 8)(net).cost().sites]
    assert sum(one["macs"] for one in spent) == times * T * D * width
    assert sum(one["weight_bits"] for one in spent) == 8 * G * D * width
    assert f"{G} · " in str(net)


def test_each_expert_sees_the_range_of_all_rows():
    """A network of one expert and its own rows alone has another range: the control differs."""
    mine = np.asarray(IDS) == 1
    net = js.quantize(8, 8)(js.trace(lambda p, x: x @ p["w"], {"w": STACK[1]}, X[mine]))
    alone = np.asarray(net(X[mine]))
    shared = choose(products(False), "index")[mine]
    assert np.abs(alone - shared).max() > 1e-4


def test_an_untouched_product_stays_the_models_own_equation():
    """Its result is the model's to the bit, and its experts are not multiplied one by one."""

    def fn(p, x, ids, sizes):
        h = jnp.einsum("td,tdf->tf", x, p["w"][ids])
        return h, lax.ragged_dot(x, p["w"], sizes), h @ p["v"]

    params = {"w": STACK, "v": normal(F, 2)}
    net = js.quantize(8, 8, sites="v")(js.trace(fn, params, X, IDS, SIZES))
    run = jax.jit(lambda params: net.with_params(params)(X, IDS, SIZES))
    routed, ragged, _ = run(params)
    expected = jax.jit(fn)(params, X, IDS, SIZES)
    np.testing.assert_array_equal(routed, expected[0])
    np.testing.assert_array_equal(ragged, expected[1])
    assert "while" not in run.lower(params).as_text()


def test_experts_of_several_axes_are_one_stack():
    def fn(p, x, ids):
        taken = jnp.einsum("td,tdf->tf", x, p["w"][ids % 2, ids])
        return taken, x @ p["w"][ids[1] - 1, ids[0] + 1]

    params = {"w": normal(2, G, D, F, seed=5)}
    net = js.trace(fn, params, X, IDS)
    assert [(s.kind, s.stack) for s in net.sites] == [("routed", (2 * G,))] * 2
    found = net.wrap(["w", "w#2"], js.Wrapper.of(lambda core: core))(X, IDS)
    for y, expected in zip(found, fn(params, X, IDS), strict=True):
        np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("missing", [jnp.nan, 0.0])
def test_rows_that_choose_no_expert_read_what_the_model_fills_in(missing):
    def fn(p, x, ids):
        w = p["w"].at[ids].get(mode="fill", fill_value=missing)
        return jnp.einsum("td,tdf->tf", x, w)

    net = js.trace(fn, {"w": STACK}, X, IDS)
    assert net.sites[0].kind == "routed"
    found = js.quantize(8, 8)(net)(X, jnp.where(IDS == 1, G, IDS))
    expected = np.where(np.asarray(IDS)[:, None] == 1, missing, choose(products(False), "index"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


FORMATS = {
    "ternary": 2,
    "affine": js.Grid(5, symmetric=False),
    "per tensor": js.Grid(6, per="tensor"),
    "groups": js.Grid(3, per="group", rows=4),
    "table": js.nf4(),
    "short floats": js.Floating("float8_e4m3fn"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_stores_an_expert_as_it_stores_a_matrix(name):
    """Deployed and calibrated; what is saved is tested with the formats of other stacks."""
    inputs = js.Grid(8, symmetric=False)

    def expert(p, x):
        return x @ p["w"]

    def written(fn, params, *args):
        transform = js.quantize(FORMATS[name], inputs if name != "short floats" else None)
        net = transform(js.trace(fn, params, *args))
        return js.deploy(net, calibrate=args)

    one = np.stack([written(expert, {"w": w}, X)(X) for w in STACK])
    chip = written(lambda p, x, s: lax.ragged_dot(x, p["w"], s), {"w": STACK}, X, SIZES)
    expected = choose(one, "ragged")
    np.testing.assert_allclose(chip(X, SIZES), expected, atol=1e-6 * np.abs(expected).max())


def test_a_chip_is_saved_and_loaded(tmp_path):
    net = js.quantize(4, 8)(network("take"))
    chip = js.deploy(net, calibrate=(INPUTS,))
    js.save(tmp_path / "chip", chip)
    np.testing.assert_array_equal(js.load(tmp_path / "chip", like=net)(INPUTS), chip(INPUTS))


def test_masks_are_those_of_the_parameter_and_patterns_lie_within_an_expert():
    net = js.prune(pattern=js.sparsity.n_of_m(2, 4))(network("index"))
    mask = np.asarray(net.masks["w"])
    assert mask.shape == STACK.shape
    assert (mask.reshape(G, D // 4, 4, F).sum(2) == 2).all()
    chip = js.deploy(js.quantize(js.nf4(), None)(net))
    assert (np.asarray(jnp.einsum("gdf,gdf->gdf", STACK, mask))[~mask] == 0).all()
    every = {**INPUTS, "x": jnp.tile(jnp.eye(D), (G, 1))[: G * D]}
    every["ids"] = jnp.repeat(jnp.arange(G), D)
    rows = np.asarray(chip(every)).reshape(STACK.shape)
    assert (rows[~mask] == 0).all()
    assert (rows[mask] != 0).mean() > 0.8


def test_each_expert_draws_its_own_noise():
    params = {"w": jnp.broadcast_to(STACK[:1], STACK.shape)}
    transform = js.compose(js.quantize(8, 8), js.analog(cells=js.cells.proportional(0.1), adc=8))
    net = transform(network("ragged").with_params(params))
    x = jnp.broadcast_to(X[:1], X.shape)
    run = jax.jit(lambda key: net({**INPUTS, "x": x, "sizes": jnp.array([2, 2, 2])}, key=key))
    rows = np.asarray(run(jax.random.key(0)))
    np.testing.assert_array_equal(rows[::2], rows[1::2])
    assert np.abs(np.diff(rows[::2], axis=0)).max(1).min() > 1e-3
    assert np.abs(run(jax.random.key(1)) - rows).max() > 1e-3


def test_gradients_are_those_of_a_scan_over_all_experts():
    """Of four bits; an expert that no row chose gets none."""

    def dense(p, a):
        _, every = lax.scan(lambda _, w: (None, a["x"] @ w), None, p["w"])
        return jnp.einsum("gtf,tg->tf", every, jnp.eye(G)[a["ids"]])

    inputs = {**INPUTS, "ids": jnp.where(IDS == 1, 0, IDS)}

    @jax.jit
    def slope(net):
        return jax.grad(lambda p: jnp.sum(jnp.sin(net.with_params(p)(inputs))))(net.params)["w"]

    quantize = js.quantize(4, None)
    found = np.asarray(slope(quantize(network("index"))))
    expected = slope(quantize(js.trace(dense, {"w": STACK}, INPUTS)))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert (found[1] == 0).all()


def test_other_weights_and_other_choices_compile_nothing_anew():
    net = js.quantize(8, 8)(network("index"))
    run = jax.jit(lambda net, inputs: net(inputs))
    for scale, shift in ((1.0, 0), (2.0, 1)):
        inputs = {**INPUTS, "ids": (IDS + shift) % G}
        run(net.with_params({"w": scale * STACK}), inputs)
    assert internals.compile_count(run) == 1


def test_experts_of_layers_that_a_scan_runs_are_a_stack_of_two_axes():
    layers = normal(2, G, D, D, seed=4)

    def fn(p, x, ids):
        def layer(h, w):
            return jnp.tanh(h + jnp.einsum("td,tdf->tf", h, jnp.take(w, ids, axis=0))), None

        return lax.scan(jax.checkpoint(layer), x, p["w"])[0]

    net = js.trace(fn, {"w": layers}, X, IDS)
    (site,) = net.sites
    assert (site.kind, site.stack, site.runs, site.macs) == ("routed", (2, G), 2, T * D * D)
    (row,) = net.coverage().rows
    assert (row.params, row.macs) == (layers.size, 2 * T * D * D)
    quantized = js.quantize(6, None)(net)
    w = np.asarray(layers, np.float64)
    scale = np.float32(np.abs(w).max(2, keepdims=True) / 31)
    h = np.asarray(X, np.float64)
    for rounded in np.round(w / scale) * scale:
        h = np.tanh(h + np.einsum("td,tdf->tf", h, rounded[np.asarray(IDS)]))
    np.testing.assert_allclose(quantized(X, IDS), h, atol=1e-5)


class Linen(nn.Module):
    """Experts by groups of sorted tokens."""

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal(batch_axis=(0,))
        up, down = (self.param(n, init, s) for n, s in (("up", (G, D, F)), ("down", (G, F, D))))
        _, ids = lax.top_k(nn.Dense(G, use_bias=False, name="router")(x), K)
        order = jnp.argsort(ids.reshape(-1))
        sizes = jnp.bincount(ids.reshape(-1), length=G)
        h = lax.ragged_dot(jnp.tanh(lax.ragged_dot(x[order // K], up, sizes)), down, sizes)
        return jnp.zeros_like(h).at[order].set(h).reshape(-1, K, D).sum(1)


class Nnx(nnx.Module):
    """Experts whose weights each token takes."""

    def __init__(self, rngs):
        init = nnx.initializers.lecun_normal(batch_axis=(0,))
        self.up = nnx.Param(init(rngs.params(), (G, D, F)))
        self.down = nnx.Param(init(rngs.params(), (G, F, D)))
        self.router = nnx.Linear(D, G, use_bias=False, rngs=rngs)

    def __call__(self, x):
        _, ids = lax.top_k(self.router(x), K)
        h = jnp.tanh(jnp.einsum("td,tkdf->tkf", x, self.up[...][ids]))
        return jnp.einsum("tkf,tkfd->td", h, jnp.take(self.down[...], ids, axis=0))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_all_parameters_of_a_mixture_of_experts_are_reached(kind):
    if kind == "linen":
        model = Linen()
        variables = initial(model, X)
        net, expected = js.trace(model, variables, X), model.apply(variables, X)
    else:
        model = Nnx(nnx.Rngs(0))
        net, expected = js.trace(model, X), model(X)
    quantized = js.quantize(8, 8, sites=["up", "down"])(net)
    rows = {row.name: row.reach for row in quantized.coverage().rows}
    assert (rows["up"], rows["down"]) == ("transformed", "transformed")
    assert js.quantize(8, 8)(net).coverage().share("transformed") == 1
    found = quantized(X)
    assert 1e-4 < np.abs(found - expected).max() / np.abs(expected).max() < 0.05


def test_slices_that_are_read_otherwise_too_are_also_looked_up():
    def fn(p, x, ids):
        w = p["w"][ids]
        return jnp.einsum("td,tdf->tf", x, w), w

    net = js.trace(fn, {"w": STACK}, X, IDS)
    assert [(s.name, s.kind) for s in net.sites] == [("w:lookup", "lookup"), ("w", "routed")]
    assert js.quantize(8, 8)(net).coverage().share("transformed") == 1


def test_vectors_of_a_table_that_meet_activations_are_looked_up():
    """A slice that is no matrix, as in relative positions, is no expert."""

    def fn(p, x, ids):
        return jnp.einsum("td,tsd->ts", x, p["table"][ids])

    net = js.trace(fn, {"table": normal(7, D)}, X, jnp.stack([IDS, IDS], 1))
    assert [s.kind for s in net.sites] == ["lookup", "dynamic"]


def test_branches_that_return_activations_too_leave_weights_told():
    """One branch computes: the choice is none among weights, and both that it reads are named."""

    def fn(p, x, i):
        return x @ lax.cond(i[0] > 0, lambda: p["a"], lambda: p["b"] * x[0, 0]) @ p["v"]

    params = {"a": normal(D, F), "b": normal(D, F, seed=1), "v": normal(F, 2)}
    rows = {row.name: row for row in js.trace(fn, params, X, IDS).coverage().rows}
    assert {name: row.reach for name, row in rows.items()} == {
        "a": "no site",
        "b": "no site",
        "v": "float",
        "dynamic/0": "float",
    }
    assert rows["a"].reason.startswith("cond at ")
    assert rows["b"].reason.startswith("mul at ")


@pytest.mark.parametrize("ragged", ["sum", "batch"])
def test_other_ragged_products_are_told(ragged):
    contract, batch = (((1,), (0,)), ((), ())) if ragged == "sum" else (((2,), (1,)), ((0,), (0,)))
    numbers = lax.RaggedDotDimensionNumbers((contract, batch), [1] if ragged == "sum" else [0], [])

    def fn(p, x, sizes):
        return lax.ragged_dot_general(x, p["w"], sizes, numbers), x[..., 0] @ p["v"]

    lead = (T,) if ragged == "sum" else (G, T)
    params = {"w": normal(*lead[:-1], D, F), "v": normal(T, 2)}
    net = js.trace(
        fn, params, jnp.ones((*lead, D)) if ragged == "batch" else jnp.ones((T, D)), SIZES
    )
    (line,) = net.unreached
    assert line == "w is contracted as no site is (ragged_dot_general)"


def test_groups_of_each_batch_have_their_own_sizes():
    numbers = lax.RaggedDotDimensionNumbers((((2,), (2,)), ((0,), (0,))), [1], [1])
    x, w, sizes = normal(2, T, D), normal(2, G, D, F), jnp.array([[1, 2, 3], [4, 0, 1]])

    def fn(p, x, sizes):
        return lax.ragged_dot_general(x, p["w"], sizes, numbers)

    net = js.trace(fn, {"w": w}, x, sizes)
    found = net.wrap(["w"], js.Wrapper.of(lambda core: core))(x, sizes)
    np.testing.assert_allclose(found, fn({"w": w}, x, sizes), atol=1e-5)


@given(st.data())
def test_axes_of_a_reshaped_value_are_followed(data):
    """What an entry stands for, an integer and a place in the slice, is known after a reshape."""
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4))
    along = data.draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
    total = int(np.prod(shape))
    after, left = [], total
    while left > 1:
        after.append(data.draw(st.sampled_from([n for n in range(2, left + 1) if left % n == 0])))
        left //= after[-1]
    after.insert(data.draw(st.integers(0, len(after))), 1)
    kinds = regroup(shape, along, after)
    ids = np.arange(np.prod([n for n, c in zip(shape, along, strict=True) if c], dtype=int))
    place = np.arange(np.prod([n for n, c in zip(shape, along, strict=True) if not c], dtype=int))

    def value(sizes, kinds):
        one = ids.reshape([n if c else 1 for n, c in zip(sizes, kinds, strict=True)])
        return 1000 * one + place.reshape(
            [1 if c else n for n, c in zip(sizes, kinds, strict=True)]
        )

    whole = value(shape, along).reshape(after)
    if kinds is not None:
        np.testing.assert_array_equal(whole, value(after, kinds))
    else:
        every = itertools.product([False, True], repeat=len(after))
        fitting = [k for k in every if _sizes(after, k) == (len(ids), len(place))]
        assert not any(np.array_equal(whole, value(after, k)) for k in fitting)


def _sizes(shape, kinds):
    chosen = [n for n, c in zip(shape, kinds, strict=True) if c]
    return int(np.prod(chosen, dtype=int)), int(
        np.prod(shape, dtype=int) // np.prod(chosen, dtype=int)
    )


def test_calls_are_inlined_where_they_take_slices_alone():
    w = normal(2, 3, 4)

    @jax.jit
    def twice(x):
        return 2 * x

    def fn(x, i):
        return twice(x) * (select(w, i) - select(3 * w, i)) + twice(x)

    closed = jax.make_jaxpr(fn)(w[0], jnp.int32(0))
    jaxpr, consts = inline_slices(closed.jaxpr, closed.consts)
    names = [eqn.params["name"] for eqn in jaxpr.eqns if "name" in eqn.params]
    assert names.count("twice") == 2
    assert "select" not in names
    assert "_take" not in names
    again = jax.core.eval_jaxpr(jaxpr, consts, w[0], jnp.int32(0))[0]
    np.testing.assert_allclose(again, fn(w[0], jnp.int32(0)))
    plain = jax.make_jaxpr(twice)(1.0)
    assert inline_slices(plain.jaxpr, plain.consts)[0] is plain.jaxpr
