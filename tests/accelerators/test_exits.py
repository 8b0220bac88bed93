"""Networks with exits on an accelerator: each stage for the rows that reach it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.accelerators.sites import site_work
from jaxsim.network.network import base_network
from tests.accelerators.test_estimate import CHIP

KEYS = jax.random.split(jax.random.key(0), 6)
X = jax.random.normal(KEYS[0], (9, 6))


def model(p, x):
    hidden = jnp.tanh(x @ p["a"])
    hidden = jnp.tanh(hidden @ p["b"]) + hidden
    return jnp.tanh(hidden @ p["c"]) @ p["d"]


def leaving(net, names, threshold):
    """Exits that say something: their classifiers have large kernels."""
    made = js.exit_early(names)(net)
    heads = tuple(
        {"kernel": 3 * jax.random.normal(key, h["kernel"].shape), "bias": h["bias"]}
        for key, h in zip(KEYS[4:], made.heads, strict=False)
    )
    return dataclasses.replace(made, heads=heads, threshold=jnp.float32(threshold))


@pytest.fixture(scope="module")
def exits():
    shapes = {"a": (6, 8), "b": (8, 8), "c": (8, 5), "d": (5, 3)}
    params = {n: jax.random.normal(k, s) for k, (n, s) in zip(KEYS, shapes.items(), strict=False)}
    return leaving(js.quantize(8, 8)(js.trace(model, params, X)), ["b", "c"], 0.03)


def reaching(net, x):
    """Rows that reach each stage."""
    layer = np.asarray(net.simulate(x).layer)
    return [int((layer > stage).sum()) for stage in range(len(net.exits) + 1)]


def test_each_stage_runs_for_the_rows_that_reach_it(exits):
    rows = reaching(exits, X)
    assert 9 == rows[0] > rows[1] > rows[2] > 0
    found, base = js.estimate(exits, CHIP, X), base_network(exits)
    for name, stage in (("a", 0), ("b", 1), ("c", 2), ("d", 2)):
        assert found.sites[name] == js.estimate(base, CHIP, X[: rows[stage]]).sites[name]
    assert f"rows in each stage: {', '.join(map(str, rows))}" in found.notes


def test_classifiers_are_sites_of_their_own(exits):
    rows, found = reaching(exits, X), js.estimate(exits, CHIP, X)
    for stage, name in enumerate(["b", "c"]):
        site = found.sites[f"exit before {name}"]
        macs = rows[stage] * 8 * 3
        assert site.part == "simd"
        assert site.components == pytest.approx({"add": 0.9 * macs, "multiply": 3.7 * macs})


def test_equations_between_sites_are_those_of_their_stage(exits):
    rows, found = reaching(exits, X), js.estimate(exits, CHIP, X)
    functions = 8 * rows[0] + 8 * rows[1] + 5 * rows[2]
    assert found.rest["tanh"].components == pytest.approx({"function": 8 * 4.6 * functions})
    assert found.rest["add"].components == pytest.approx({"add": 0.9 * 8 * rows[1]})


def test_where_no_row_goes_nothing_runs_and_weights_still_take_their_area():
    params = {"a": jax.random.normal(KEYS[1], (6, 8)), "b": jax.random.normal(KEYS[2], (8, 3))}
    net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, X)
    analog = js.compose(js.quantize(8, 8), js.slice_bits(2), js.analog(adc=6, rows=16))(net)
    net = leaving(analog, ["b"], 2.0)
    assert reaching(net, X) == [9, 0]
    found, whole = js.estimate(net, CHIP, X), js.estimate(analog, CHIP, X)
    last = found.sites["b"]
    assert (last.energy, last.latency, last.cycles) == (0, 0, 0)
    assert last.area == whole.sites["b"].area > 0
    assert found.area == whole.area
    assert found.sites["a"] == whole.sites["a"]


def test_where_all_rows_stay_it_is_the_whole_network(exits):
    stays = dataclasses.replace(exits, threshold=jnp.float32(0))
    found, whole = js.estimate(stays, CHIP, X), js.estimate(base_network(exits), CHIP, X)
    assert {n: s for n, s in found.sites.items() if "exit" not in n} == whole.sites
    for name, s in whole.rest.items():
        assert found.rest[name].components == pytest.approx(s.components)


def test_stages_of_a_scan_run_their_slices():
    """Of five layers the first two run for all rows, the others for those that stay."""

    def deep(p, x):
        x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["layers"])[0]
        return x @ p["head"]

    params = {
        "layers": jax.random.normal(KEYS[1], (5, 6, 6)) / 2,
        "head": jax.random.normal(KEYS[2], (6, 3)),
    }
    base = js.quantize(8, 8)(js.trace(deep, params, X))
    net = leaving(base, ["layers[2]"], 0.6)
    rows = reaching(net, X)
    assert rows[0] > rows[1] > 0
    found = js.estimate(net, CHIP, X)
    macs = 6 * 6 * (2 * rows[0] + 3 * rows[1])
    assert found.sites["layers"].components["multiply"] == pytest.approx(0.2 * macs)
    functions = 6 * (2 * rows[0] + 3 * rows[1])
    assert found.rest["tanh"].components == pytest.approx({"function": 8 * 4.6 * functions})


def test_analog_stages_of_a_scan_take_the_area_of_the_whole():
    def deep(p, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["layers"])[0] @ p["head"]

    params, x = {"layers": jnp.ones((5, 4, 4)), "head": jnp.ones((4, 3))}, X[:, :4]
    analog = js.compose(js.quantize(8, 8), js.slice_bits(2), js.analog(adc=6, rows=16))
    base = analog(js.trace(deep, params, x))
    cut = leaving(base, ["layers[2]"], 0.0)
    assert js.estimate(cut, CHIP, x).area == pytest.approx(js.estimate(base, CHIP, x).area)
    works = [site_work(cut, portion, 8)["layers"] for portion in cut.portions(x)]
    assert [(w.runs, w.copies) for w in works] == [(2, 2), (3, 3)]


def test_where_rows_leave_depends_on_values(exits):
    with pytest.raises(ValueError, match=r"args: where rows leave depends on values"):
        js.estimate(exits, CHIP)
    with pytest.raises(ValueError, match=r"args: where rows leave depends on values"):
        jax.jit(lambda x: js.estimate(exits, CHIP, x).energy)(X)
