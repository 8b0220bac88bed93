"""Functions of what is live at cuts, run among the equations of three layers with a skip."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.network.cuts import cuts, equations
from jaxsim.network.stages import split
from jaxsim.network.taps import Tap, insert_taps, live_at
from tests.support.models import normal

PARAMS = {"a": normal(3, 4), "b": normal(4, 4), "c": normal(4, 2)}
X = normal(5, 3)
TABLE = np.arange(4.0, dtype=np.float32)


def layers(p, x):
    first = jnp.tanh(x @ p["a"])
    second = jnp.tanh(first @ p["b"])
    return (first * second) @ p["c"] + x[:, :2], first


def hidden():
    first = np.tanh(X @ PARAMS["a"])
    return first, np.tanh(first @ PARAMS["b"])


@functools.cache
def line():
    net = js.trace(layers, PARAMS, X)
    return equations(net, net.example)


def summed(params, live):
    """Two results, of which one is a constant's too, and a number."""
    return {"sum": (live[0] * TABLE).sum(1) * params["scale"], "w": live[-1] @ params["w"]}


def tap(cut, name, scale):
    params = {"scale": jnp.float32(scale), "w": jnp.full((4, 1), scale)}
    return Tap(cut, name, params, summed)


@functools.cache
def tapped(names):
    places = {cut.name: cut for cut in cuts(line())}
    cut, begins = line().cut_at([places[name] for name in names])
    taps = [tap(places[n], f"tap{i}", i + 2.0) for i, n in enumerate(names)]
    return cut, begins, insert_taps(cut, begins, list(zip(begins, taps, strict=True)))


def test_what_is_live_is_made_before_and_read_behind_in_order_of_its_making():
    """In front of c their product alone is read; but the first is returned. Inputs are no part."""
    for name, made in (("b", ["tanh"]), ("c", ["tanh", "mul"])):
        cut, (before,), _ = tapped((name,))
        live = live_at(cut, before)
        makers = {v: e.primitive.name for e in cut.plan.jaxpr.eqns for v in e.outvars}
        assert [makers[v] for v in live] == made
        assert [v.aval.shape for v in live] == [(5, 4)] * len(made)


def test_results_of_taps_come_before_the_outputs_and_their_parameters_behind_the_network_s():
    """Two taps that are alike but for their numbers, each of what is live where it stands."""
    _, _, found = tapped(("b", "c"))
    own = ("tap0/scale", "tap0/w", "tap1/scale", "tap1/w")
    assert found.line.paths == ("a", "b", "c", *own)
    plan = found.line.plan
    assert len(plan.entries) == len(plan.jaxpr.eqns)
    assert plan.known[:4] == (None,) * 4
    given = [*PARAMS.values(), 2.0, np.full((4, 1), 2.0), 3.0, np.full((4, 1), 3.0), X]
    given = [jnp.asarray(a, jnp.float32) for a in given]
    run = jax.jit(lambda *a: jax.core.eval_jaxpr(plan.jaxpr, plan.consts, *a))
    sum0, w0, sum1, w1, y, returned = run(*given)
    first, second = hidden()
    np.testing.assert_allclose(sum0, 2 * first @ TABLE, rtol=1e-5)
    np.testing.assert_allclose(w0, 2 * first.sum(1, keepdims=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sum1, 3 * first @ TABLE, rtol=1e-5)
    product = first * second
    np.testing.assert_allclose(w1, 3 * product.sum(1, keepdims=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y, product @ PARAMS["c"] + X[:, :2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returned, first, rtol=1e-5)


def test_places_are_counted_behind_the_taps_that_stand_there():
    """A tap multiplies twice, sums and contracts: four equations that an argument reaches."""
    cut, begins, found = tapped(("b", "c"))
    added = (len(found.line.active) - len(cut.active)) // 2
    assert added == 4
    assert found.begins == [begins[0] + added, begins[1] + 2 * added]
    for i, name in zip(found.begins, ("b", "c"), strict=True):
        eqn = found.line.plan.jaxpr.eqns[found.line.active[i]]
        weight = found.line.plan.jaxpr.invars[found.line.paths.index(name)]
        assert eqn.invars[1] is weight
    # what no argument reaches is the constant, spread over the rows
    eqns = found.line.plan.jaxpr.eqns
    rest = [eqns[i].primitive.name for i in range(len(eqns)) if i not in found.line.active]
    assert rest == ["broadcast_in_dim"] * 2


@pytest.mark.parametrize("names", [("b",), ("c",), ("b", "c")])
def test_a_tap_is_run_by_the_stage_that_ends_behind_it(names):
    places = {cut.name: cut for cut in cuts(line())}
    taps = [tap(places[n], f"tap{i}", i + 2.0) for i, n in enumerate(names)]
    stages = split(line(), [places["c"]], taps)
    assert len(stages.stages) == 2
    own = {name for name in stages.stages[0].names if name.startswith("tap")}
    assert own == {f"tap{i}/{p}" for i in range(len(names)) for p in ("scale", "w")}
    assert not any(name.startswith("tap") for name in stages.stages[1].names)
    # both results of each tap by the first stage, the product by the last, the first as it is
    assert [s for s, _ in stages.outputs] == [0] * 2 * len(names) + [1, 0]
    assert stages.paths == (*line().paths, *sorted(own))
    assert stages.equations is line()


def test_without_taps_stages_are_what_they_were():
    places = {cut.name: cut for cut in cuts(line())}
    plain = split(line(), [places["b"], places["c"]])
    assert [stage.names for stage in plain.stages] == [("a",), ("b",), ("c",)]
    # of 5 rows: [3, 4] and tanh; [4, 4], tanh and a product; [4, 2], and a sum
    products = [2 * 5 * 4 * 3 + 20, 2 * 5 * 4 * 4 + 20 + 20, 2 * 5 * 2 * 4 + 10]
    assert [stage.flops for stage in plain.stages] == products
