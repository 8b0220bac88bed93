"""Layers that a loop walks by its counter are to every transform what scanned layers are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsim as js
from jaxsim import internals
from jaxsim.cores.core import Core
from jaxsim.network.loops import as_scans
from jaxsim.network.plan import Provenance
from tests.support.models import normal

W, X = normal(4, 4, 4), normal(2, 4)


def fori(read, turns=4):
    """Layers of a `fori_loop` whose weight is what `read` takes at a turn."""
    return lambda p, x: lax.fori_loop(0, turns, lambda i, x: jnp.tanh(x @ read(p["w"], i)), x)


def loop(goes_on, step, start):
    """The same of a `while` whose counter starts, steps and ends as is said."""

    def body(carry, w):
        i, x = carry
        return step(i), jnp.tanh(x @ w[i])

    return lambda p, x: lax.while_loop(
        lambda c: goes_on(c[0]), lambda c: body(c, p["w"]), (start, x)
    )[1]


def by_places(p, x):
    return lax.scan(lambda x, i: (jnp.tanh(x @ p["w"][i]), None), x, jnp.arange(4))[0]


def backwards(p, x):
    def body(carry, _):
        return (carry[0] + 1, jnp.tanh(carry[1] @ p["w"][carry[0]])), None

    return lax.scan(body, (0, x), length=4, reverse=True)[0][1]


def carried(p, x):
    return lax.fori_loop(0, 4, lambda i, c: (c[0], jnp.tanh(c[1] @ c[0]["w"][i])), (p, x))[1]


def nested(read):
    def fn(p, x):
        def outer(i, x):
            return lax.fori_loop(0, 2, lambda j, x: jnp.tanh(x @ read(p["w"], i, j)), x)

        return lax.fori_loop(0, 2, outer, x)

    return fn


def while_in_fori(p, x):
    """A `while` that goes on from where the loop around it stands, two turns each time."""

    def outer(i, x):
        step = lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"][c[0]]))  # noqa: E731
        return lax.while_loop(lambda c: c[0] < 2 * i + 2, step, (2 * i, x))[1]

    return lax.fori_loop(0, 2, outer, x)


def scanned(order):
    return lambda p, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"][order])[0]


ALL, BACK = slice(None), slice(None, None, -1)

WALKS = {
    "index": (fori(lambda w, i: w[i]), ALL),
    "take": (fori(lambda w, i: jnp.take(w, i, axis=0)), ALL),
    "take clipped": (fori(lambda w, i: jnp.take(w, i + 1, axis=0, mode="clip")), [1, 2, 3, 3]),
    "dynamic index": (fori(lambda w, i: lax.dynamic_index_in_dim(w, i, keepdims=False)), ALL),
    "dynamic slice": (fori(lambda w, i: lax.dynamic_slice(w, (i, 0, 0), (1, 4, 4))[0]), ALL),
    "cut of rows": (
        fori(lambda w, i: lax.dynamic_slice_in_dim(w.reshape(16, 4), 4 * i, 4)),
        ALL,
    ),
    "moved and cast": (
        fori(lambda w, i: jnp.take(jnp.moveaxis(w.astype(jnp.float16), 0, 1), i, 1).astype("f4")),
        ALL,
    ),
    "from the end": (fori(lambda w, i: w[3 - i]), BACK),
    "negative": (fori(lambda w, i: w[-1 - i]), BACK),
    "every other": (fori(lambda w, i: w[2 * i], turns=2), [0, 2]),
    "next": (fori(lambda w, i: w[i + 1], turns=3), [1, 2, 3]),
    "twice": (fori(lambda w, i: w[i // 2]), [0, 0, 1, 1]),
    "by a table": (fori(lambda w, i: w[jnp.array([2, 0, 3, 1])[i]]), [2, 0, 3, 1]),
    "one layer": (fori(lambda w, i: w[i], turns=1), [0]),
    "one of a stack of one": (fori(lambda w, i: w[:1][i], turns=1), slice(1)),
    "until": (loop(lambda i: i < 4, lambda i: i + 1, 0), ALL),
    "down": (loop(lambda i: i >= 0, lambda i: i - 1, 3), BACK),
    "steps of two": (loop(lambda i: i != 4, lambda i: 2 + i, 0), [0, 2]),
    "scan over places": (by_places, ALL),
    "last slice first": (backwards, BACK),
    "parameters carried": (carried, ALL),
    "rematerialized": (fori(jax.checkpoint(lambda w, i: w[i])), ALL),
    "jitted": (jax.jit(fori(jax.jit(lambda w, i: w[i]))), ALL),
    "mapped": (lambda p, x: jax.vmap(lambda x: fori(lambda w, i: w[i])(p, x))(x), ALL),
}


@functools.cache
def network(walk):
    return js.trace(WALKS[walk][0], {"w": W}, X)


@pytest.mark.parametrize("walk", WALKS)
def test_a_weight_read_by_a_counter_is_a_slice_of_a_stack(walk):
    """The site is that of a scan over the slices in the order in which they are read."""
    (site,) = network(walk).sites
    (expected,) = js.trace(scanned(np.arange(4)[WALKS[walk][1]]), {"w": W}, X).sites
    assert site == expected


def test_slices_are_read_in_their_order():
    names = ("last slice first", "down", "by a table", "cut of rows")
    nets = [network(name).wrap(["w"], js.Wrapper.of(identity)) for name in names]
    fns = [WALKS[name][0] for name in names]
    found = jax.jit(lambda nets, p: [(n(X), f(p, X)) for n, f in zip(nets, fns, strict=True)])
    for name, (mine, theirs) in zip(names, found(nets, {"w": W}), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6, err_msg=name)


NESTED = {
    "one index": (nested(lambda w, i, j: w[2 * i + j]), (4, 4, 4)),
    "two indices": (nested(lambda w, i, j: w[i, j]), (2, 2, 4, 4)),
    "index of an index": (nested(lambda w, i, j: w[i][j]), (2, 2, 4, 4)),
    "a while": (while_in_fori, (4, 4, 4)),
}


@pytest.mark.parametrize("walk", NESTED)
def test_nested_loops_have_both_axes(walk):
    fn, shape = NESTED[walk]
    (site,) = js.trace(fn, {"w": W.reshape(shape)}, X).sites
    assert (site.lengths, site.stack, site.w_shape) == ((2, 2), (2, 2), (4, 4))


def unrolled(order):
    def fn(p, x):
        for i in order:
            x = jnp.tanh(x @ p["w"][i])
        return x

    return fn


@jax.jit
def answers(chips):
    return [chip(X) for chip in chips]


def programmed(fn):
    return js.deploy(js.quantize(4, 8)(js.trace(fn, {"w": W}, X)), calibrate=X)


@pytest.mark.parametrize(("walk", "order"), [("index", [0, 1, 2, 3]), ("twice", [0, 0, 1, 1])])
def test_codes_ranges_and_outputs_are_those_of_a_scan_and_of_layers_written_out(walk, order):
    by_counter = programmed(WALKS[walk][0])
    by_scan, by_hand = programmed(scanned(np.array(order))), programmed(unrolled(order))
    found = jax.tree.leaves(by_counter.states)
    for a, b in zip(found, jax.tree.leaves(by_scan.states), strict=True):
        np.testing.assert_array_equal(a, b)
    names = ["w", "w#2", "w#3", "w#4"]
    for turn, name in enumerate(names):
        each = jax.tree.leaves(by_hand.states[name])
        for a, b in zip(found, each, strict=True):
            np.testing.assert_allclose(a[turn], b, rtol=1e-6)
    first, second, third = answers([by_counter, by_scan, by_hand])
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, third, atol=1e-6)
    assert np.abs(first - WALKS[walk][0]({"w": W}, X)).max() > 0.01


INDICES = {
    "shifted": lambda i: i + 3 - 3,
    "around": lambda i: (i + 7) % 4,
    "times": lambda i: (3 * i) & 3,
    "flipped": lambda i: i ^ 1,
    "halved down": lambda i: (i - 4) // 3 + 2,
    "halved to zero": lambda i: lax.div(i - 4, 3) + 2,
    "rest": lambda i: lax.rem(i - 4, 3) + 2,
    "chosen": lambda i: jnp.where(i > 1, i - 1, 3),
    "of three": lambda i: lax.select_n(jnp.minimum(i, 2), i, 2 * i, i - 2),
    "bounded": lambda i: jnp.clip(2 * i, 1, 3),
    "sign": lambda i: jnp.sign(i - 2) + jnp.abs(i - 2),
    "of a window": lambda i: lax.dynamic_slice(jnp.arange(4)[::-1], (i + 1,), (2,))[1],
    "of a join": lambda i: jnp.concatenate([jnp.array([2, 1]), jnp.stack([i, 3 - i])])[i],
    "of a matrix": lambda i: jnp.broadcast_to(jnp.arange(2)[:, None], (2, 3)).reshape(6)[2 * i % 5],
}


def test_indices_made_of_a_counter_are_evaluated_as_jax_does():
    """A wrong one would take another slice: the walk's products are the model's, to the bit."""

    def fn(p, x):
        def body(i, c):
            reads = [x @ p["w"][index(i)] for index in INDICES.values()]
            return c + jnp.stack(reads) * (i + 1)

        return lax.fori_loop(0, 4, body, jnp.zeros((len(INDICES), 2, 4)))

    net = js.trace(fn, {"w": W}, X)
    assert len(net.sites) == len(INDICES)
    assert {site.stack for site in net.sites} == {(4,)}
    walked = net.wrap([s.name for s in net.sites], js.Wrapper.of(identity))
    mine, theirs = jax.jit(lambda net, p: (net(X), fn(p, X)))(walked, {"w": W})
    for name, a, b in zip(INDICES, mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)


def identity(core):
    return Core(core.write, core.calibrate, core.read)


def test_gradients_reach_the_slices_that_are_read():
    def losses(net, p):
        walked = net.wrap(["w"], js.Wrapper.of(identity))
        mine = lambda p: jnp.sum(walked.with_params(p)(X) ** 2)  # noqa: E731
        theirs = lambda p: jnp.sum(WALKS["every other"][0](p, X) ** 2)  # noqa: E731
        return jax.grad(mine)(p)["w"], jax.grad(theirs)(p)["w"]

    mine, theirs = jax.jit(losses)(network("every other"), {"w": W})
    np.testing.assert_allclose(mine, theirs, atol=1e-6)
    assert np.asarray(theirs).any((1, 2)).tolist() == [True, False, True, False]


def test_a_loop_costs_its_turns():
    net = js.quantize(4, 8)(network("until"))
    cost = net.cost()
    assert cost.total("macs") == 4 * 2 * 4 * 4
    assert cost.total("weight_bits") == 4 * W.size
    assert net.coverage().share("transformed") == 1


UNKNOWN = {
    "starts from an input": lambda p, x: loop(
        lambda i: i < 4, lambda i: i + 1, jnp.abs(x[0, 0]).astype(int)
    )(p, x),
    "steps by an input": lambda p, x: loop(
        lambda i: i < 4, lambda i: i + 1 + jnp.abs(x[0, 0]).astype(int), 0
    )(p, x),
    "ends by an activation": lambda p, x: lax.while_loop(
        lambda c: (c[0] < 4) & (jnp.sum(c[1]) < 9),
        lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"][c[0]])),
        (0, x),
    )[1],
    "multiplies": lambda p, x: loop(lambda i: i < 4, lambda i: 2 * i + 1, 0)(p, x),
    "beyond the end": fori(lambda w, i: jnp.take(w, i + 1, axis=0)),
    "a triangle": lambda p, x: lax.fori_loop(
        0,
        3,
        lambda i, x: lax.fori_loop(0, i + 1, lambda j, x: jnp.tanh(x @ p["w"][j]), x),
        x,
    ),
    "too many copies": lambda p, x: lax.fori_loop(
        0, 65 * 4, lambda i, x: jnp.tanh(x @ p["w"][i % 4]), x
    ),
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_a_slice_that_a_counter_does_not_tell_is_one_that_integers_choose(why):
    net = js.trace(lambda p, x: UNKNOWN[why](p, x) @ p["out"], {"w": W, "out": W[0]}, X)
    assert {s.kind for s in net.sites if s.param == "w"} == {"routed"}
    assert net.coverage().rows[-1].name == "w"


def test_a_stack_read_by_its_layers_and_whole_and_leaves_of_a_tree():
    def fn(p, x):
        def layer(i, x):
            q = jax.tree.map(lambda a: a[i], p["layers"])
            wide = jnp.tanh(x @ q["up"] + q["bias"])
            return wide @ q["down"] + jnp.einsum("bi,lio->bo", x, p["layers"]["up"])[:, :4]

        return lax.fori_loop(0, 3, layer, x)

    params = {"layers": {"up": normal(3, 4, 6), "down": normal(3, 6, 4), "bias": normal(3, 6)}}
    net = js.trace(fn, params, X)
    up, down, again = net.sites
    assert (up.name, up.stack, up.w_shape) == ("layers/up", (3,), (4, 6))
    assert (down.name, down.stack, down.w_shape) == ("layers/down", (3,), (6, 4))
    assert (again.name, again.stack, up.shared) == ("layers/up#2", (), ("layers/up#2",))
    reasons = {row.name: row.reason for row in net.coverage().rows}
    assert reasons["layers/bias"].startswith("add at ")


def test_layers_that_no_turn_reads_are_pruned_as_the_others_and_never_solved_for():
    net = network("every other")
    mask = np.asarray(js.prune(0.5)(net).masks["w"])
    assert mask.shape == W.shape
    assert mask.mean() == pytest.approx(0.5)
    solved = js.prune_layers(X, 0.5)(net)
    kept = np.asarray(solved.masks["w"]).mean((1, 2))
    np.testing.assert_array_equal(kept, [0.5, 1, 0.5, 1])
    np.testing.assert_array_equal(solved.params["w"][1::2], W[1::2])


def test_a_pattern_is_of_each_layer_however_a_loop_reads_it():
    """Two axes of turns on one axis of the parameter; a layer a turn; a layer of several axes."""
    pattern = js.sparsity.n_of_m(2, 4)
    expected = np.asarray(js.prune(pattern=pattern)(network("index")).masks["w"])
    for fn in (NESTED["one index"][0], WALKS["twice"][0]):
        mask = js.prune(pattern=pattern)(js.trace(fn, {"w": W}, X)).masks["w"]
        np.testing.assert_array_equal(mask, expected)
    flat = fori(lambda w, i: lax.dynamic_slice_in_dim(w, 4 * i, 4))
    net = js.trace(flat, {"w": W.reshape(16, 4)}, X)
    with pytest.raises(ValueError, match=r"prune at w \[16, 4\]: a loop stacks it along an axis"):
        js.prune(0.5)(net)


def rewritten(fn, tag=None):
    """What stands for the loop that a function of a weight and an input is; None for itself."""
    jaxpr = jax.make_jaxpr(fn)({"w": W}, X).jaxpr
    (eqn,) = [e for e in jaxpr.eqns if e.primitive.name in ("scan", "while", "tanh")]
    known = {jaxpr.invars[0]: tag or Provenance("w", W.size)}

    def provenance(v):
        value = getattr(v, "val", None)
        return known.get(v) if value is None else Provenance(integers=np.asarray(value))

    return as_scans(eqn, [provenance(v) for v in eqn.invars])


def test_a_loop_is_rewritten_where_it_reads_by_its_counter_or_its_turns_are_known():
    assert rewritten(WALKS["index"][0]) is not None
    whole = loop(lambda i: i < 4, lambda i: i + 1, 0)
    assert rewritten(whole) is not None
    scans = scanned(np.arange(4))
    assert rewritten(lambda p, x: scans({"w": p["w"]}, x)) is None
    by_input = lambda p, x: lax.while_loop(  # noqa: E731
        lambda x: x.sum() < 9, lambda x: jnp.tanh(x @ p["w"][0]), x
    )
    assert rewritten(by_input) is None
    assert rewritten(lambda p, x: jnp.tanh(p["w"] * x[0, 0])) is None
    # what reads no parameter stays what the model says
    assert rewritten(WALKS["index"][0], Provenance(sources=frozenset(["buffers/w"]))) is None


def test_on_explicit_axes_only_what_is_read_in_order_is_rewritten(monkeypatch):
    """One operand that lies on them is enough, and one that is no value at all."""
    names = ("index", "from the end", "twice")
    for explicit, expected in (((), [True] * 3), ((W.shape,), [True, False, False])):
        monkeypatch.setattr(
            internals, "on_explicit_axes", lambda v, given=explicit: v.aval.shape in given
        )
        assert [rewritten(WALKS[name][0]) is not None for name in names] == expected
    monkeypatch.setattr(internals, "is_value", lambda v: v.aval.shape != X.shape)
    assert rewritten(WALKS["index"][0]) is None
