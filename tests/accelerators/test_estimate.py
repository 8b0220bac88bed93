import gc
import weakref

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsim as js
from jaxsim.accelerators import (
    AnalogArray,
    DigitalArray,
    Link,
    Memory,
    Part,
    SimdUnit,
    Spent,
    calls,
)
from jaxsim.accelerators.result import SiteEstimate
from jaxsim.accelerators.sites import site_work
from jaxsim.network import cost
from jaxsim.network.plan import contractions
from tests.support.printed import rows
from tests.support.scans import MATMUL, RUNS, grouped_scan


def model(p, x):
    h = jnp.tanh(x @ p["first"])
    return jax.nn.softmax(h @ p["second"] + p["bias"]) @ p["third"]


def network(batch=6):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "first": jax.random.normal(keys[0], (16, 24)),
        "second": jax.random.normal(keys[1], (24, 8)),
        "bias": jnp.ones(8),
        "third": jax.random.normal(keys[2], (8, 4)),
    }
    return js.trace(model, params, jnp.ones((batch, 16)))


ANALOG = js.compose(js.quantize(8, 8), js.slice_bits(2), js.analog(adc=6, rows=16))
CHIP = js.Accelerator(
    {
        "cells": AnalogArray(16, 32, cell_bits=2),
        "array": DigitalArray(4, 5, clock=10.0),
        "simd": SimdUnit(lanes=2, clock=20.0),
    },
    {"near": Memory(read=2.0, write=3.0, size=5e4), "far": Memory(read=7.0)},
    {"array": Link(energy=0.5)},
    activations=8,
)


@pytest.fixture(scope="module")
def net():
    return network()


@pytest.fixture(scope="module")
def hybrid(net):
    """Cells, codes and floats, one site each."""
    return js.rules({"first": ANALOG, "second": js.quantize(8, 4)})(net)


def test_chains_say_where_sites_run(hybrid):
    found = js.estimate(hybrid, CHIP)
    assert {n: s.part for n, s in found.sites.items()} == {
        "first": "cells",
        "second": "array",
        "third": "simd",
    }
    assert set(found.rest) == {
        "tanh",
        "add",
        "reduce_max",
        "max",
        "sub",
        "exp",
        "reduce_sum",
        "div",
    }
    assert {s.part for s in found.rest.values()} == {"simd"}
    assert found.uncounted == {}


def test_a_site_is_the_sum_of_part_link_memory_and_conversion(hybrid):
    """[6, 24] @ [24, 8] with inputs of 4 and weights of 8 bits, on 4 × 5 elements."""
    site = js.estimate(hybrid, CHIP).sites["second"]
    macs, x, w, y = 6 * 24 * 8, 6 * 24, 24 * 8, 6 * 8
    streamed = 2 * x * 4 + 2 * w * 8 + y * 8  # two tiles down, two across
    assert site.components == pytest.approx(
        {
            "multiply": 0.2 * macs,
            "add": 0.1 * macs,
            "link": 0.5 * streamed,
            "convert": 3.7 * (x + y) + 0.9 * x,
        }
    )
    read, written = 2 * x * 4 + 2 * w * 8, y * 8 + w * 8  # the weight comes from afar
    assert site.bits == {"near": read + written, "far": w * 8}
    assert site.memory == pytest.approx({"near": 2 * read + 3 * written, "far": 7 * w * 8})
    assert site.energy == pytest.approx(sum(site.components.values()) + sum(site.memory.values()))
    assert site.cycles == 4 * (24 + 7)
    converting = -(-(2 * x + y) // 2) / 20
    assert site.latency == max(site.cycles / 10, converting)
    assert (site.area, site.equations) == (0, 1)


def test_unfinished_sums_cross_the_link_twice(net):
    """[6, 24] @ [24, 8]: weights stay, six tiles of four summed products, two of five columns."""
    parts = {"array": DigitalArray(4, 5, dataflow="weight"), "simd": SimdUnit()}
    chip = js.Accelerator(parts, links={"array": Link(energy=0.5)}, activations=8)
    site = js.estimate(js.quantize(8, 4)(net), chip).sites["second"]
    streamed = 2 * 6 * 24 * 4 + 24 * 8 * 8 + 6 * 8 * 8
    assert site.components["link"] == 0.5 * (streamed + 2 * 5 * 6 * 8 * 32)


def test_what_is_added_is_as_busy_as_its_parts_are_long():
    one = SiteEstimate("a", {"x": 1.0}, {"m": 2.0}, {"m": 3.0}, 3.0, 5.0, 7.0, 0.5, 2)
    two = SiteEstimate("a", {"x": 10.0, "y": 4.0}, {"m": 20.0}, {"m": 30.0}, 1.0, 6.0, 8.0, 0.1, 3)
    assert one.joined(two) == SiteEstimate(
        *("a", {"x": 11.0, "y": 4.0}, {"m": 22.0}, {"m": 33.0}, 4.0, 11.0, 15.0),
        pytest.approx(0.4),
        5,
    )


def test_totals_are_the_sums(hybrid):
    found = js.estimate(hybrid, CHIP)
    every = [*found.sites.values(), *found.rest.values()]
    assert found.energy == pytest.approx(sum(s.energy for s in every))
    assert found.latency == pytest.approx(sum(s.latency for s in every))
    assert found.area == pytest.approx(CHIP.area + found.sites["first"].area)
    assert sum(found.components.values()) + sum(found.memory.values()) == pytest.approx(
        found.energy
    )
    assert sum(p.energy for p in found.parts.values()) == pytest.approx(found.energy)
    assert sum(p.latency for p in found.parts.values()) == pytest.approx(found.latency)
    assert found.parts["cells"].sites == ("first",)
    assert found.parts["cells"].area == found.sites["first"].area > 0


def test_no_site_depends_on_what_others_are(net, hybrid):
    """What a search over sites and parts stands on."""
    alone = {
        "first": js.rules({"first": ANALOG})(net),
        "second": js.rules({"second": js.quantize(8, 4)})(net),
        "third": net,
    }
    together = js.estimate(hybrid, CHIP).sites
    for name, other in alone.items():
        assert js.estimate(other, CHIP).sites[name] == together[name]


def test_a_call_of_more_rows_takes_longer_on_the_same_area(hybrid):
    few, many = (js.estimate(hybrid, CHIP, jnp.ones((n, 16))) for n in (6, 60))
    assert many.area == few.area
    assert many.energy > few.energy
    assert many.latency > few.latency
    assert js.estimate(hybrid, CHIP).energy == few.energy


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 7), st.integers(2, 8))
def test_fewer_bits_never_cost_more(weights, inputs):
    few = js.estimate(js.quantize(weights, inputs)(network()), CHIP)
    many = js.estimate(js.quantize(weights + 1, inputs)(network()), CHIP)
    for name, site in few.sites.items():
        assert site.energy < many.sites[name].energy
        assert site.latency <= many.sites[name].latency


def test_pruned_weights_save_energy():
    sparse = js.compose(js.prune(0.5, distribution=js.sparsity.uniform()), js.quantize(8, 8))
    dense, pruned = (js.estimate(t(network()), CHIP) for t in (js.quantize(8, 8), sparse))
    for name, site in pruned.sites.items():
        whole = dense.sites[name]
        assert site.components["multiply"] == pytest.approx(whole.components["multiply"] / 2)
        assert site.bits["far"] == pytest.approx(whole.bits["far"] * 5 / 8)
        assert site.cycles == whole.cycles


def test_groups_of_a_scan_ask_what_they_are():
    chip = js.quantize(6, 5)(grouped_scan())
    (work,) = site_work(chip, chip.portions()[0], 8).values()
    assert (work.matmul, work.runs, work.copies) == (MATMUL, RUNS, RUNS)
    assert work.bits == (5, 6, 8)
    assert work.sizes == (2 * 13 * 99, 2 * 11 * 99, 2 * 13 * 99)


@pytest.mark.parametrize(
    ("transform", "arithmetic", "bits", "groups"),
    [
        (None, "floats", (32, 32), 1),
        (js.quantize(5, 7), "codes", (7, 5), 1),
        (js.quantize(5, None), "floats", (32, 5), 1),
        (js.quantize(js.Floating("float8_e4m3fn"), None), "floats", (32, 8), 1),
        (js.quantize(js.Grid(5, per="group", rows=5), 7), "codes", (7, 5), 4),
        (js.compose(js.quantize(5, 7), js.analog(rows=16)), "analog", (7, 5), 1),
    ],
)
def test_chains_say_what_is_multiplied(net, transform, arithmetic, bits, groups):
    made = net if transform is None else js.rules({"first": transform})(net)
    work = site_work(made, made.portions()[0], None)["first"]
    assert (work.arithmetic, work.groups) == (arithmetic, groups)
    assert work.bits[0] == bits[0]
    assert bits[1] <= work.bits[1] < bits[1] + 1  # scales of blocks among them
    assert work.bits[2] == 32


def test_lookups_read_their_rows():
    table = jnp.ones((50, 6))
    net = js.trace(
        lambda p, i: p["t"][i] @ p["w"], {"t": table, "w": jnp.ones((6, 2))}, jnp.arange(9)
    )
    plain, coded = (
        js.estimate(t(net), CHIP).sites["t:lookup"]
        for t in (lambda n: n, js.rules({"t:lookup": js.quantize(4, None)}))
    )
    assert plain.part == coded.part == "simd"
    assert plain.bits["far"] == 9 * 6 * 32
    assert coded.bits["far"] == 9 * 6 * 4


def test_products_of_activations_run_where_they_are_asked_for(net):
    def attend(p, x):
        return (x @ p["w"]) @ x.T

    net = js.trace(attend, {"w": jnp.ones((16, 16))}, jnp.ones((6, 16)))
    chip = js.rules({"w": js.quantize(8, 8), "dynamic*": js.quantize(8, 8)})(net)
    assert {s.part for s in js.estimate(chip, CHIP).sites.values()} == {"array"}
    moved = js.estimate(chip, CHIP, parts={"dynamic*": "simd"})
    assert moved.sites["dynamic/0"].part == "simd"
    assert moved.sites["dynamic/0"].bits["far"] == 0  # both operands lie near


def test_parts_may_be_asked_for(hybrid):
    found = js.estimate(hybrid, CHIP, parts={"sec*": "simd"})
    assert found.sites["second"].part == "simd"


def test_the_first_pattern_wins(net):
    chip = js.quantize(8, 8)(net)
    found = js.estimate(chip, CHIP, parts={"third": "simd", "*": "array"})
    assert [s.part for s in found.sites.values()] == ["array", "array", "simd"]


def test_what_no_part_runs_is_named(net, hybrid):
    digital = js.Accelerator({"array": DigitalArray()})
    with pytest.raises(ValueError, match=r"runs first \(array is in an.*; b .*\), third \(array h"):
        js.estimate(hybrid, js.Accelerator({"array": DigitalArray(), "b": DigitalArray()}))
    with pytest.raises(ValueError, match=r"first .*second .*third "):
        js.estimate(net, digital)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"second": "gpu"}, r"parts\['second'\]='gpu': must be one of cells, array, simd"),
        ({"fourth": "simd"}, r"parts\['fourth'\]: matches no site; the sites are: first, second"),
        ({"second": "cells"}, r"no part .* second \(cells holds cells"),
    ],
)
def test_parts_that_cannot_be_are_refused(hybrid, parts, match):
    with pytest.raises(ValueError, match=match):
        js.estimate(hybrid, CHIP, parts=parts)


def test_other_things_than_networks_and_accelerators_are_refused(net):
    with pytest.raises(ValueError, match=r"net: expected a jaxsim\.Network"):
        js.estimate(model, CHIP)
    with pytest.raises(ValueError, match="accelerator="):
        js.estimate(net, js.Hardware())


def test_weights_fit_in_the_level_in_which_they_lie(net):
    """16 · 24 + 24 · 8 + 8 · 4 weights of 8 bits are 4864 bits."""
    parts = {"array": DigitalArray(), "simd": SimdUnit()}
    chip = js.quantize(8, 8)(net)
    for size, fits in ((4864, True), (4863, False)):
        levels = {"near": Memory(read=1.0, size=size), "far": Memory(read=2.0)}
        accelerator = js.Accelerator(parts, levels, weights="near", activations=8)
        if fits:
            found = js.estimate(chip, accelerator)
            assert all(site.bits["far"] == 0 for site in found.sites.values())
        else:
            with pytest.raises(ValueError, match=r"weights='near': the weights take 4\.86e\+03"):
                js.estimate(chip, accelerator)


def test_what_no_part_counts_is_named(net):
    chip = js.quantize(8, 8)(net)
    found = js.estimate(chip, js.Accelerator({"array": DigitalArray()}))
    assert found.rest == {}
    assert found.uncounted["tanh"] == 1
    assert "not counted: tanh (1)" in " ".join(str(found).split())
    assert "convert" not in found.components


def test_a_part_of_ones_own_runs_what_it_accepts(hybrid):
    optical = Part(
        lambda work: "" if work.arithmetic == "codes" else "takes codes",
        lambda work: Spent({"laser": 3.0 * work.runs}, 2.0, 50.0, inputs=7, area=11.0),
        area=13.0,
    )
    chip = js.Accelerator({"optical": optical, **CHIP.parts}, CHIP.memory)
    found = js.estimate(hybrid, chip)
    site = found.sites["second"]
    assert site.part == "optical"
    assert (site.components["laser"], site.latency, site.area) == (3, 50, 11)
    assert found.area == pytest.approx(CHIP.area + 13 + 11 + found.sites["first"].area)


def test_deployed_networks_are_estimated_alike(net, hybrid):
    chip = js.deploy(hybrid, key=jax.random.key(0), calibrate=jnp.ones((2, 16)))
    assert js.estimate(chip, CHIP) == js.estimate(hybrid, CHIP)


def test_the_call_is_traced_once_for_all_networks_of_a_model(net, hybrid, monkeypatch):
    js.estimate(hybrid, CHIP)
    monkeypatch.setattr(js.Network, "portions", None)
    js.estimate(js.quantize(3, 8)(net), CHIP)
    with pytest.raises(TypeError):
        js.estimate(hybrid, CHIP, jnp.ones((7, 16)))


def test_pruned_networks_are_traced_by_themselves(net):
    """What is pruned an op says, which formats without a zero read."""
    pruned = js.prune(0.5, distribution=js.sparsity.uniform())(net)
    masked = [
        [c.op.masked for c in contractions(calls.prepared_call(n, (), {}, None, 8)[0].portion.plan)]
        for n in (net, pruned)
    ]
    assert masked == [[False] * 3, [True] * 3]


def test_what_was_traced_goes_with_the_model():
    def own(p, x):
        return x @ p["w"]

    net = js.trace(own, {"w": jnp.ones((3, 4))}, jnp.ones((2, 3)))
    js.estimate(net, CHIP)
    before, gone = len(calls._calls), weakref.ref(net.fn)
    del net, own
    jax.clear_caches()
    gc.collect()
    assert gone() is None
    assert len(calls._calls) < before


def test_sites_that_are_alike_are_counted_once(monkeypatch):
    """210 sites of five kinds, as a decoder of thirty layers has: what keeps it below a second."""
    widths = {"a": (8, 8), "b": (8, 12), "c": (12, 8), "d": (8, 8), "e": (8, 8), "f": (8, 8)}

    def deep(p, x):
        for layer in p:
            for w in layer.values():
                x = jnp.tanh(x @ w)
        return x

    params = [{n: jnp.ones(shape) for n, shape in widths.items()} for _ in range(35)]
    net = js.trace(deep, params, jnp.ones((2, 8)))
    assert len(net.sites) == 210
    chip = js.compose(js.quantize(8, 8), js.slice_bits(2), js.analog(adc=8, rows=16))(net)
    counted = []
    count = cost._counted
    monkeypatch.setattr(cost, "_counted", lambda *args: counted.append(1) or count(*args))
    found = js.estimate(chip, CHIP)
    assert len(counted) == 3
    assert found.sites["0/b"] == found.sites["34/b"] != found.sites["34/c"]
    rounded = js.rules({"1/*": js.quantize(4, 8), "*": js.quantize(8, 8)})(net)
    assert js.estimate(rounded, CHIP).sites["1/b"] != js.estimate(rounded, CHIP).sites["2/b"]


def test_the_table_says_each_number_in_its_column(hybrid):
    found = js.estimate(hybrid, CHIP)
    shown = {row[0]: row[1:] for row in rows(found)}
    site = found.sites["second"]
    assert shown["second"][0] == "array"
    assert shown["second"][4] == f"{site.cycles:.0f}"
    assert shown["second"][3] == f"{site.latency:.3g} s"
    assert {"first", "tanh", "all", "near", "far", "multiply"} < set(shown)
    assert "analytic model, not a measurement" in str(found)


@pytest.mark.parametrize(("rows", "experts", "each"), [(2, 4, 1), (3, 6, 1), (11, 7, 4)])
def test_experts_are_as_many_as_rows_choose(rows, experts, each):
    """Of seven experts each row chooses two: so many are loaded, and rows are spread evenly."""

    def fn(p, x, which):
        return jnp.einsum("bi,bkio->bko", x, p["w"][which])

    x, which = jnp.ones((rows, 5)), jnp.zeros((rows, 2), jnp.int32)
    net = js.quantize(8, 8)(js.trace(fn, {"w": jnp.ones((7, 5, 3))}, x, which))
    work = site_work(net, net.portions()[0], None)["w"]
    assert (work.matmul, work.runs, work.copies) == ((experts, each, 5, 3), 1, 7)
    assert work.sizes == (2 * rows * 5, experts * 15, 2 * rows * 3)
