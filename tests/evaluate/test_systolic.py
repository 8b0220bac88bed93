import dataclasses

import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.blocked import Blocks
from jaxsim.cores.tiled import tiled
from jaxsim.cores.wrapper import Wrapper
from jaxsim.evaluate.systolic import EnergyBreakdown, Estimate, Workload
from tests.oracles import systolic
from tests.support.networks import DEEP_SITES as SITES
from tests.support.networks import attention, stack
from tests.support.networks import deep_cnn as cnn
from tests.support.printed import header, rows
from tests.support.scans import MATMUL, RUNS, grouped_scan

ARRAY = js.Hardware(rows=4, columns=8, weight_loads=1)
MULTIPLY, ADD, SRAM, DRAM = 0.2 / 64, 0.1 / 32, 20 / 64, 1300 / 64
# by hand, for 8 images of 6×6×3: rows, depth and columns of each layer's matrix product
SIZES = [(8 * 6 * 6, 27, 4), (8 * 3 * 3, 36, 6), (8, 6, 8), (8, 8, 3)]


def eight(net=None):
    return js.quantize(8, 8)(cnn() if net is None else net)


def test_plain_codes_are_the_baseline():
    estimate = ARRAY.estimate(eight())
    assert estimate.names == SITES
    assert estimate.spent == estimate.baseline
    assert estimate.energy_gain == estimate.speed_gain == estimate.traffic_gain == 1


def test_the_baseline_spends_what_the_hand_counts():
    for (M, K, N), spent in zip(SIZES, ARRAY.estimate(eight()).spent, strict=True):
        macs, row_tiles, column_tiles = M * K * N, -(-M // 4), 1
        moved = 8 * (M * K * column_tiles + K * N * row_tiles + M * N)
        assert spent.multiply == pytest.approx(0.2 * macs)
        assert spent.add == pytest.approx(0.1 * macs)
        assert spent.shift == 0
        assert spent.bits == moved
        assert spent.sram == pytest.approx(SRAM * moved)
        assert spent.dram == pytest.approx(DRAM * 8 * K * N)
        assert spent.cycles == row_tiles * column_tiles * K


@pytest.mark.parametrize(
    ("transform", "products", "width", "bits", "shifted", "multipliers"),
    [
        (js.block(4, 1, 1), 1, 4, (6, 6), True, 4),
        (js.block(4, 2, 1, "static"), 2, 4, (8, 4), False, 4),
        (js.block(3, 2, 2, rounding="unbiased"), 4, 4, (8, 8), True, 4),
        (js.block(3, 2, 2), 4, 3, (8, 8), True, 7),
        (js.block(2, 2, 3, ("dynamic", "static")), 6, 2, (7, 6), True, 16),
        (js.block(4, mode="static", pairs=[(0, 1), (1, 0), (1, 1)]), 3, 4, (8, 8), False, 4),
    ],
)
def test_blocks_spend_what_the_hand_counts(transform, products, width, bits, shifted, multipliers):
    estimate = ARRAY.estimate(transform(eight()))
    for (M, K, N), spent in zip(SIZES, estimate.spent, strict=True):
        macs, row_tiles = M * K * N, -(-M // 4)
        x_moved, w_moved = bits[0] * M * K, bits[1] * K * N * row_tiles
        assert spent.multiply == pytest.approx(MULTIPLY * width**2 * products * macs)
        assert spent.add == pytest.approx((0.1 + ADD * 2 * width * (products - 1)) * macs)
        assert spent.shift == pytest.approx(ADD * (16 * macs * shifted + 8 * M * N))
        assert spent.bits == x_moved + w_moved + 8 * M * N
        computing = row_tiles * K * products / multipliers
        assert spent.cycles == pytest.approx(max(computing, (x_moved + w_moved) / (8 * 12)))
        assert spent.dram == pytest.approx(DRAM * bits[1] * K * N)
    assert estimate.energy == pytest.approx(sum(s.energy for s in estimate.spent))


def test_pruned_blocks_are_gated_and_not_stored():
    """Half the energy of multiplying, all the cycles, and a bit a weight to say which."""
    dense = eight()
    sparse = js.compose(js.prune(0.5, distribution=js.sparsity.uniform()), js.quantize(8, 8))(cnn())
    wide = dataclasses.replace(ARRAY, port=1e6)  # cycles are those of multiplying alone
    for transform in (lambda net: net, js.block(3, 2, 2, "static")):
        full, half = (wide.estimate(transform(net)) for net in (dense, sparse))
        for a, b in zip(full.spent, half.spent, strict=True):
            assert b.multiply == pytest.approx(a.multiply / 2)
            assert b.add == pytest.approx(a.add / 2)
            assert b.cycles == a.cycles
            assert b.bits < a.bits
        assert half.baseline == full.baseline
    last = ARRAY.estimate(sparse).spent[-1]
    assert last.dram == pytest.approx(DRAM * 24 * (8 / 2 + 1))


def test_scans_run_as_often_as_they_do():
    (first, head) = ARRAY.estimate(eight(stack())).spent
    assert first.multiply == pytest.approx(0.2 * 3 * 5 * 4 * 4)
    assert first.cycles == 3 * 2 * 4
    assert head.multiply == pytest.approx(0.2 * 5 * 4 * 2)


def test_untouched_products_of_activations_are_left_out():
    assert ARRAY.estimate(eight(attention())).names == ("q", "k", "v")


def test_reports_say_that_they_are_a_model():
    shown = str(ARRAY.estimate(js.block(4, 1, 1)(eight())))
    assert "analytic model" in shown
    assert all(name in shown for name in SITES)


def test_the_arrays_weights_can_stay_on_chip():
    assert all(s.dram == 0 for s in js.Hardware().estimate(eight()).spent)


def test_what_the_array_cannot_hold_is_named():
    with pytest.raises(ValueError, match="Conv_0/kernel holds floats"):
        ARRAY.estimate(cnn())
    with pytest.raises(ValueError, match="floats for an operand"):
        ARRAY.estimate(js.quantize(8, None)(cnn()))
    with pytest.raises(ValueError, match="cannot hold bit_sliced"):
        ARRAY.estimate(js.slice_bits(2)(js.block(4)(eight())))
    with pytest.raises(ValueError, match="cannot hold tiled"):
        ARRAY.estimate(eight().wrap(SITES, Wrapper.of(tiled, rows=3)))


@pytest.mark.parametrize("name", ["rows", "columns", "accumulator", "shifter"])
def test_sizes_are_whole(name):
    with pytest.raises(ValueError, match=rf"{name}=0\.5: must be an int"):
        js.Hardware(**{name: 0.5})


@pytest.mark.parametrize("field", dataclasses.fields(js.Hardware), ids=lambda f: f.name)
def test_no_coefficient_is_negative_and_each_is_documented(field):
    with pytest.raises(ValueError, match=f"{field.name}=-1: must"):
        js.Hardware(**{field.name: -1})
    assert field.name in js.Hardware.__doc__


# every field above one and no two equal; sixteenths, so that sums are exact
MODEL = {
    "rows": 6,
    "columns": 3,
    "multiply": 0.3125,
    "add": 0.125,
    "sram": 1.25,
    "dram": 2.75,
    "accumulator": 20,
    "shifter": 13,
    "port": 7.0,
    "weight_loads": 1.5,
}
ODD = js.Hardware(**MODEL)


def blocks_of(products, bits, width, x_dynamic=False, w_dynamic=False):
    """Blocks by the numbers that an estimate reads."""
    return Blocks(
        rows=(),
        K=np.int32(width),
        n_x=np.int32(2),
        n_w=np.int32(3),
        products=np.int32(products),
        x_bits=np.int32(bits[0]),
        w_bits=np.int32(bits[1]),
        x_dynamic=np.bool_(x_dynamic),
        w_dynamic=np.bool_(w_dynamic),
        width=np.int32(width),
    )


def test_groups_tiles_runs_and_sparse_codes_are_each_counted_by_hand():
    """Two runs of three products [41, 11] @ [11, 10]: seven tiles by four, a quarter kept.

    Weights of 6 bits take 1 + 6/4 = 2.5 each where three in four are gone.
    """
    spent = ODD.spend(Workload((3, 41, 11, 10), 2, 0.25, (5, 6), None))
    macs = 6765  # 2 · 3 · 41 · 11 · 10 / 4
    inputs, weights = 54120, 11550  # bits: 2 · 3 · 41 · 11 · 4 · 5, and 2 · 3 · 11 · 10 · 7 · 2.5
    results = 19680  # 2 · 3 · 41 · 10 · 8
    assert spent.multiply == macs * 64 * 0.3125
    assert spent.add == macs * 20 * 0.125
    assert spent.shift == 0
    assert spent.bits == inputs + weights + results == 85350
    assert spent.sram == 85350 * 1.25
    assert spent.dram == 1.5 * 660 * 2.5 * 2.75  # 2 · 3 · 11 · 10 weights, 2.5 bits each
    assert spent.cycles == 1848  # 2 · 3 · 7 · 4 · 11
    narrow = dataclasses.replace(ODD, port=3).spend(
        Workload((3, 41, 11, 10), 2, 0.25, (5, 6), None)
    )
    assert narrow.cycles == pytest.approx(65670 / 27)  # 3 bits to each of 6 + 3 elements


def test_blocks_of_one_site_are_counted_by_hand():
    """Five products of blocks of 3 bits, of which seven fit in an element, shifted by an index."""
    load = Workload((3, 41, 11, 10), 2, 1.0, (8, 8), blocks_of(5, (7, 4), 3, w_dynamic=True))
    spent = dataclasses.replace(ODD, port=1e6).spend(load)
    macs, outputs = 27060, 2460
    assert spent.multiply == macs * 5 * 9 * 0.3125
    assert spent.add == macs * (4 * 6 + 20) * 0.125
    assert spent.shift == (macs * 13 + outputs * 8) * 0.125
    assert spent.bits == 2706 * 4 * 7 + 660 * 7 * 4 + outputs * 8
    assert spent.cycles == pytest.approx(2 * 3 * 7 * 4 * 11 * 5 / 7)


CODES = {"products": 1, "width": 8}
CASES = [
    ((3, 41, 11, 10), 2, {}),
    ((2, 17, 5, 13), 3, {"bits": (4, 6), "kept": 0.5}),
    ((2, 17, 5, 13), 3, {"bits": (4, 3), "kept": 0.5}),  # 1 + 3/2 bits, the sparse code
    ((2, 17, 5, 13), 3, {"bits": (4, 2), "kept": 0.5}),  # 1 + 2/2 bits, as many as dense
    ((2, 17, 5, 13), 3, {"bits": (4, 8), "kept": 0.9}),  # 8 bits: the sparse code takes 8.2
    ((2, 17, 5, 13), 3, {"bits": (4, 8), "kept": 0.0}),  # nothing is left but what says so
    ((4, 6, 7, 3), 5, {}),  # tiles that just fit
    ((4, 7, 5, 4), 3, {"bits": (2, 3)}),  # tiles one too large
    ((3, 20, 7, 8), 2, {"products": 6, "width": 2, "bits": (5, 7), "dynamic": True}),
    ((3, 20, 7, 8), 2, {"products": 2, "width": 4, "bits": (6, 5), "kept": 0.7}),
    ((3, 20, 7, 8), 2, {"products": 9, "width": 5, "bits": (6, 5), "dynamic": True}),
    ((3, 20, 7, 8), 2, {"products": 4, "width": 6, "bits": (6, 5)}),
    ((3, 20, 7, 8), 2, {"products": 3, "width": 7, "bits": (6, 5)}),
    ((3, 20, 7, 8), 2, {"products": 49, "width": 1, "bits": (6, 5)}),
]


@pytest.mark.parametrize("port", [0.5, 1e4])
@pytest.mark.parametrize(("matmul", "runs", "how"), CASES)
def test_what_a_site_spends_is_what_walking_through_its_tiles_counts(matmul, runs, how, port):
    blocked, dynamic = "products" in how, how.get("dynamic", False)
    bits, kept = how.get("bits", (8, 8)), how.get("kept", 1.0)
    chosen = blocks_of(how["products"], bits, how["width"], dynamic) if blocked else None
    load = Workload(matmul, runs, kept, (8, 8) if blocked else bits, chosen)
    array = {**MODEL, "port": port}
    expected = systolic.spent(matmul, runs, **array, **how, blocked=blocked)
    assert js.Hardware(**array).spend(load)._asdict() == pytest.approx(expected)
    assert systolic.spent(matmul, runs + 1, **array, **how) != pytest.approx(expected)


def test_what_a_scan_of_groups_asks_of_the_array():
    (load,) = ODD.loads(eight(grouped_scan())).values()
    assert load == Workload(MATMUL, RUNS, 1.0, (8, 8), None)


def test_what_is_asked_follows_pruning_widths_and_blocks():
    """Inputs of 8 bits and weights of 6, half of them pruned, and blocks of both."""
    transform = js.compose(js.prune(0.5, distribution=js.sparsity.uniform()), js.quantize(6, 8))
    net = transform(grouped_scan())
    (load,) = ODD.loads(net).values()
    assert load == Workload(MATMUL, RUNS, 0.5, (8, 6), None)
    (load,) = ODD.loads(js.block(2, 3, 2, ("static", "dynamic"))(net)).values()
    assert load[:4] == (MATMUL, RUNS, 0.5, (8, 6))
    blocks = load.blocks
    assert (blocks.K, blocks.products, blocks.x_bits, blocks.w_bits) == (2, 6, 6, 6)


def test_the_defaults_are_the_published_figures():
    assert dataclasses.asdict(js.Hardware()) == {
        "rows": 32,
        "columns": 32,
        **systolic.HOROWITZ,
        "accumulator": 32,
        "shifter": 16,
        "port": 8,
        "weight_loads": 0,
    }


SPENT = (EnergyBreakdown(2, 3, 5, 7, 11, 13, 17), EnergyBreakdown(19, 23, 29, 31, 37, 41, 43))
BASELINE = (
    EnergyBreakdown(53, 59, 61, 67, 71, 73, 79),
    EnergyBreakdown(83, 89, 97, 101, 103, 107, 109),
)


def test_gains_are_the_baseline_over_what_is_spent():
    found = Estimate(("a", "b"), SPENT, BASELINE)
    assert (SPENT[0].energy, SPENT[1].energy) == (28, 139)
    assert (found.energy, found.cycles, found.bits) == (167, 54, 60)
    assert found.energy_gain == pytest.approx(784 / 167)
    assert found.speed_gain == pytest.approx(180 / 54)
    assert found.traffic_gain == pytest.approx(188 / 60)


def test_the_printed_estimate_says_each_number_in_its_column():
    shown = str(Estimate(("a", "b"), SPENT, BASELINE))
    amounts = ["pJ", "multiply", "add", "shift", "SRAM", "DRAM", "cycles", "bits"]
    assert header(shown) == ["site", *amounts, "energy gain", "speed gain", "traffic gain"]
    assert rows(shown) == [
        ["a", *["28", "2", "3", "5", "7", "11", "13", "17", "11.11×", "5.62×", "4.65×"]],
        ["b", *["139", "19", "23", "29", "31", "37", "41", "43", "3.40×", "2.61×", "2.53×"]],
        ["all", *["167", "21", "26", "34", "38", "48", "54", "60", "4.69×", "3.33×", "3.13×"]],
    ]


@pytest.mark.parametrize("name", ["rows", "columns", "accumulator", "shifter"])
def test_the_smallest_array_has_one_of_each(name):
    assert getattr(js.Hardware(**{name: 1}), name) == 1
    with pytest.raises(ValueError, match=f"{name}=0: must be an int of at least 1"):
        js.Hardware(**{name: 0})


@pytest.mark.parametrize("name", ["multiply", "add", "sram", "dram", "weight_loads"])
def test_an_energy_may_be_nothing(name):
    assert getattr(js.Hardware(**{name: 0.0}), name) == 0


def test_a_port_takes_something():
    assert js.Hardware(port=1e-3).port == 1e-3
    with pytest.raises(ValueError, match="port=0: must be a number above 0"):
        js.Hardware(port=0)
