"""Experts in integers: each recomputed by hand, bit for bit, and rows that choose among them."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsim as js
from jaxsim.network.plan import contractions
from jaxsim.network.planner import trace_plan
from tests.integer.test_convert import ARITHMETICS, GRIDS, deployed, floats
from tests.network.test_experts import FORMS, INPUTS, network
from tests.oracles import integer_graph
from tests.support.models import normal
from tests.support.networks import run

T, D, F, G = 9, 7, 6, 3
X = normal(T, D, seed=1)
IDS = jnp.array([0, 2, 1, 1, 0, 2, 1, 1, 0])
PARAMS = {
    "up": normal(G, D, F, seed=2) * jnp.array([1.0, 0.1, 3.0])[:, None, None],
    "down": normal(G, F, D, seed=3),
}


def chosen(p, x, ids):
    h = jnp.maximum(jnp.einsum("td,tdf->tf", x, p["up"][ids]), 0)
    return jnp.einsum("tf,tfd->td", h, p["down"][ids])


def by_hand(layers_of, name, x):
    """What each row's expert gives, on the grid that all experts share."""
    values = [layers.site(name, x) for layers in layers_of]
    found, step = layers_of[0].fine(values)
    rows = np.stack([q for q, _, _ in found])[np.asarray(IDS), np.arange(T)]
    reach = max(np.maximum(-lo, hi).max() for _, lo, hi in found)
    return integer_graph.Value(rows, np.float64(step), np.float64(0), reach)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("grids", GRIDS)
def test_experts_are_products_in_integers_that_rows_choose_among(arithmetic, grids):
    net = js.trace(chosen, PARAMS, X, IDS)
    chip = deployed(net, (X, IDS), *GRIDS[grids])
    shapes = jax.eval_shape(lambda: (chip.params, chip.buffers))
    plan = trace_plan(chip.fn, *shapes, chip.example, chip.example).plan
    geometries = {c.site.name: c.op.geometry for c in contractions(plan)}
    experts = [
        integer_graph.Layers(
            SimpleNamespace(
                cores=chip.cores, states=jax.tree.map(lambda a, g=g: a[g], chip.states)
            ),
            geometries,
            ARITHMETICS[arithmetic],
        )
        for g in range(G)
    ]
    h = integer_graph.relu(by_hand(experts, "up", np.asarray(X)))
    y = by_hand(experts, "down", h)
    found = js.integer_only(chip)(X, IDS)
    np.testing.assert_array_equal(found, y.q.astype(np.float32) * np.float32(y.scale))


@pytest.mark.parametrize("name", FORMS)
def test_every_form_answers_as_its_simulation_does(name):
    chip = js.deploy(js.quantize(8, 8)(network(name)), calibrate=(INPUTS,))
    integers = js.integer_only(chip)
    expected = np.asarray(chip(INPUTS))
    np.testing.assert_allclose(
        integers(INPUTS), expected, atol=2.0**-14 * np.abs(expected).max(), rtol=0
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(integers.states)} == {jnp.dtype(jnp.int8)}
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(integers.constants)]
    assert max(sizes) < network(name).params["w"].size  # no float weights are left


def routed(p, x):
    """Tokens sorted by the expert that a router finds, and put back, beside a shortcut."""
    ids = jnp.argmax(x @ p["router"], -1)
    order = jnp.argsort(ids)
    h = jnp.maximum(x @ p["in"], 0)
    sizes = (ids[:, None] == jnp.arange(G)).astype(jnp.int32).sum(0)
    y = lax.ragged_dot(jnp.maximum(lax.ragged_dot(h[order], p["up"], sizes), 0), p["down"], sizes)
    return h + y[jnp.argsort(order)]


def test_a_router_compares_integers_and_rows_are_sorted_and_put_back():
    params = {**PARAMS, "router": normal(D, G, seed=4), "in": normal(D, D, seed=5)}
    x = normal(40, D, seed=6)
    chip = deployed(js.trace(routed, params, x), x)
    integers = js.integer_only(chip)
    found, simulated = (np.asarray(run(net, x)) for net in (integers, chip))
    exact = np.asarray(routed(params, x))
    far = np.abs(simulated - exact).max()
    assert np.abs(found - simulated).max() < 0.3 * far
    # and not because every row has the same expert
    ids = np.asarray(jnp.argmax(x @ params["router"], -1))
    assert len(set(ids.tolist())) == G
    np.testing.assert_array_equal(integers(x[:5]), found[:5])  # another batch, the same integers


def test_no_float_lies_between_codes_and_outputs():
    chip = deployed(js.trace(chosen, PARAMS, X, IDS), (X, IDS))
    closed = jax.make_jaxpr(js.integer_only(chip))(X, IDS)
    kinds = []

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            inner = [p for p in eqn.params.values() if hasattr(p, "jaxpr") or hasattr(p, "eqns")]
            for p in inner:
                walk(getattr(p, "jaxpr", p))
            if not inner:
                kinds.append((eqn.primitive.name, floats(eqn.invars), floats(eqn.outvars)))

    walk(closed.jaxpr)
    at = [i for i, (name, *_) in enumerate(kinds) if name == "dot_general"]
    assert len(at) == 2
    between = kinds[at[0] : at[-1] + 1]
    assert not any(before or after for _, before, after in between)


@pytest.mark.parametrize("inner", ["block", "slice_bits"])
def test_blocks_and_slices_of_experts_are_integers_too(inner):
    hardware = {"block": js.block(4, 2, 1), "slice_bits": js.slice_bits(2)}[inner]
    net = js.compose(js.quantize(8, 8), hardware)(js.trace(chosen, PARAMS, X, IDS))
    chip = js.deploy(net, calibrate=(X, IDS))
    expected = np.asarray(chip(X, IDS))
    tolerance = 2e-2 * np.abs(expected).max()  # a code of the second site may be one off
    np.testing.assert_allclose(js.integer_only(chip)(X, IDS), expected, atol=tolerance)


def test_experts_that_code_rows_each_in_their_way_are_refused_by_name():
    chip = deployed(js.trace(chosen, PARAMS, X, IDS), (X, IDS))
    state = chip.states["up"]
    own = jax.tree.map(lambda end: end * jnp.array([1.0, 1.5, 1.0]), state.inputs)
    states = {**chip.states, "up": state._replace(inputs=own)}
    with pytest.raises(ValueError, match=r"scan at .* \(up\) has experts that read a row on grids"):
        js.integer_only(dataclasses.replace(chip, states=states))


def test_what_is_computed_beside_experts_is_refused_by_name():
    net = js.trace(chosen, PARAMS, X, IDS)
    chip = js.deploy(js.compose(js.quantize(8, 8), js.smooth((X, IDS)))(net), calibrate=(X, IDS))
    with pytest.raises(ValueError, match=r"\(up\) has experts beside which smooth_scaling"):
        js.integer_only(chip)


def test_rows_that_choose_no_expert_are_zero():
    def fn(p, x, sizes):
        return lax.ragged_dot(x, p["up"], sizes), jnp.einsum(
            "td,tdf->tf", x, jnp.take(p["up"], sizes, axis=0)
        )

    sizes = jnp.array([1, 5, 0])
    net = js.trace(fn, {"up": PARAMS["up"]}, X[:3], sizes)
    chip = js.deploy(js.quantize(8, 8)(net), calibrate=(X[:3], sizes))
    ragged, taken = js.integer_only(chip)(X[:3], jnp.array([1, 0, 1]))
    assert (np.asarray(ragged)[2:] == 0).all()
    assert (np.asarray(ragged)[:2] != 0).any(1).all()
    _, taken = js.integer_only(chip)(X[:3], sizes)
    assert (np.asarray(taken)[1] == 0).all()
    assert np.isnan(chip(X[:3], sizes)[1][1]).all()


def test_slices_of_integers_are_taken_along_rows_and_channels():
    """Channels have scales and shifts of their own; what is not there is zero."""

    def fn(p, x, rows, channels):
        h = x @ p["w"] + p["b"]
        taken = (jnp.take(h, ids, axis=at, fill_value=0) for at, ids in ((0, rows), (1, channels)))
        return *taken, jnp.maximum(h, 1.0)[rows]

    params = {"w": normal(D, 4, seed=7) * jnp.array([1.0, 0.1, 4.0, 0.5]), "b": normal(4, seed=8)}
    rows, channels = jnp.array([3, 0, 3]), jnp.array([2, 0, 1, 1])
    net = js.trace(fn, params, X, rows, channels)
    chip = js.deploy(js.quantize(8, 8)(net), calibrate=(X, rows, channels))
    integers = js.integer_only(chip)
    for found, expected in zip(integers(X, rows, channels), chip(X, rows, channels), strict=True):
        np.testing.assert_allclose(found, expected, atol=2.0**-14 * np.abs(expected).max())
    some_rows, some_channels, _ = map(
        np.asarray, integers(X, rows.at[1].set(99), channels.at[1].set(99))
    )
    for absent, present in (
        (some_rows[1], some_rows[0]),
        (some_channels[:, 1], some_channels[:, 0]),
    ):
        assert (absent == 0).all()
        assert (present != 0).all()
