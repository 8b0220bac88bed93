import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsim as js
from jaxsim.accelerators import DigitalArray, Work
from jaxsim.accelerators.dataflow import tile
from jaxsim.cores.grouped import grouped
from jaxsim.cores.tiled import tiled
from jaxsim.cores.wrapper import Wrapper
from tests.evaluate.test_systolic import blocks_of
from tests.oracles import dataflows

FLOWS = ("output", "weight", "input")
SHAPES = [((2, 7, 11, 5), 3, 4), ((1, 3, 4, 8), 3, 4), ((3, 5, 2, 9), 2, 5), ((1, 1, 13, 6), 4, 2)]


@pytest.mark.parametrize("dataflow", FLOWS)
@pytest.mark.parametrize(("matmul", "rows", "columns"), SHAPES)
def test_cycles_and_traffic_are_those_of_stepping_through_the_array(
    matmul, rows, columns, dataflow
):
    found = tile(matmul, rows, columns, dataflow)
    stepped = dataflows.cycles(matmul, rows, columns, dataflow)
    assert found.folds * (found.steps + found.fill) == stepped
    counted = dataflows.traffic(matmul, rows, columns, dataflow)
    assert {name: getattr(found, name) for name in counted} == counted
    other = next(flow for flow in FLOWS if flow != dataflow)
    assert dataflows.traffic(matmul, rows, columns, other) != counted


@pytest.mark.parametrize(
    ("dataflow", "cycles"), [("output", 136703), ("weight", 161791), ("input", 146431)]
)
def test_cycles_are_those_of_scale_sim(dataflow, cycles):
    """SCALE-Sim 3.0 on 8 × 16 elements, run once; it counts its last cycle from zero."""
    array = DigitalArray(8, 16, dataflow=dataflow)
    work = Work("w", "codes", (1, 128, 512, 256), bits=(8, 8, 8))
    assert array.spend(work).cycles == cycles + 1


OWN = DigitalArray(
    rows=6,
    columns=3,
    count=2,
    dataflow="weight",
    width=9,
    multiply=0.3125,
    add=0.125,
    accumulator=20,
    shifter=13,
    port=1e6,
    clock=4.0,
    multiplier_area=3.5,
    adder_area=2.5,
)


def test_a_site_is_counted_by_hand():
    """Five runs of three products [41, 11] @ [11, 10], a quarter of the weights kept, two groups.

    Tiles: two of 11 summed products by four of 10 columns, of three products 24, 12 for each of two
    arrays; a weight of 6 bits takes 1 + 6 / 4.
    """
    work = Work("w", "codes", (3, 41, 11, 10), 5, 5, 0.25, (5, 6, 7), groups=2)
    spent = OWN.spend(work)
    macs, outputs = 16912.5, 6150  # 5 · 3 · 41 · 11 · 10 / 4, and 5 · 3 · 41 · 10
    scaling = 0.3125 * 9 * 20 + 0.125 * 20
    assert spent.energy == {
        "multiply": macs * 81 * 0.3125,
        "add": macs * 20 * 0.125,
        "shift": 0,
        "scale groups": outputs * 2 * scaling,
    }
    assert spent.cycles == 5 * 12 * (41 + 2 * 6 + 3 - 2)
    assert spent.seconds == spent.cycles / 4
    assert spent.inputs == 5 * 3 * 41 * 11 * 4 * 5
    assert spent.weights == 5 * 3 * 11 * 10 * 2.5
    assert spent.sums == 5 * 3 * 41 * 10 * 20
    assert spent.results == outputs * 7
    assert spent.area == 0
    assert spent.utilization == pytest.approx(4 * macs / (2 * 6 * 3 * spent.cycles))
    assert OWN.area == pytest.approx(1e-6 * 2 * 18 * (81 * 3.5 + 20 * 2.5))


def test_blocks_of_a_site_are_counted_by_hand():
    """Five products of blocks of 3 bits, of which nine fit into an element of 9 × 9."""
    array = dataclasses.replace(OWN, block=3, count=1)
    blocks = blocks_of(5, (7, 4), 3, w_dynamic=True)
    work = Work("w", "codes", (3, 41, 11, 10), 5, 5, bits=(7, 4, 8), blocks=blocks)
    assert array.accepts(work) == ""
    spent, macs, outputs = array.spend(work), 67650, 6150
    assert spent.energy == {
        "multiply": macs * 5 * 9 * 0.3125,
        "add": macs * (4 * 6 + 20) * 0.125,
        "shift": (macs * 13 + outputs * 8) * 0.125,
    }
    assert spent.cycles == pytest.approx(5 * 24 * (41 * 5 / 9 + 13))


def test_whole_codes_on_block_multipliers_are_products_of_all_blocks():
    """Magnitudes of 7 and 4 bits are three and two blocks of 3."""
    array = dataclasses.replace(OWN, block=3)
    found = array.multiplied(Work("w", "codes", (1, 2, 3, 4), bits=(8, 5, 8)))
    assert found == (6, 3, 9, False)


def test_operands_that_enter_slowly_take_the_cycles_of_the_ports():
    array = DigitalArray(4, 2, port=3)
    work = Work("w", "codes", (1, 8, 16, 6), bits=(8, 7, 8))
    operands = 8 * 16 * 3 * 8 + 16 * 6 * 2 * 7
    assert array.spend(work).cycles == pytest.approx(operands / (3 * 6))


@pytest.mark.parametrize(
    ("array", "work", "why"),
    [
        (OWN, Work("w", "floats"), "holds floats"),
        (OWN, Work("w", "analog"), "in analog arrays"),
        (OWN, Work("exp", "elements"), "contracts nothing"),
        (dataclasses.replace(OWN, numbers="floats"), Work("w", "codes"), "takes floats"),
        (OWN, Work("w", "codes", bits=(8, 10, 8)), "takes 9 bits of each operand, not 10"),
        (OWN, Work("w", "codes", bits=(8, 8, 8), blocks=blocks_of(5, (7, 4), 3)), "no block mult"),
        (
            dataclasses.replace(OWN, block=2),
            Work("w", "codes", bits=(8, 8, 8), blocks=blocks_of(5, (7, 4), 3)),
            "multiplies blocks of 2 bits, not 3",
        ),
        (
            OWN,
            Work("w", "codes", bits=(8, 8, 8), chain=(Wrapper.of(tiled, rows=3),)),
            "cannot hold tiled",
        ),
    ],
)
def test_what_the_array_cannot_run_is_told(array, work, why):
    assert why in array.accepts(work)


def test_what_the_array_can_run_is_accepted():
    for work in (
        Work("w", "codes", bits=(9, 9, 32)),
        Work("w", "codes", bits=(8, 8, 8), chain=(Wrapper.of(grouped, rows=3),)),
    ):
        assert OWN.accepts(work) == ""
    any_block = dataclasses.replace(OWN, block=0)
    assert not any_block.accepts(Work("w", "codes", bits=(8, 8, 8), blocks=blocks_of(5, (7, 4), 3)))


sizes = st.tuples(*(st.integers(1, n) for n in (3, 20, 20, 20)))


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(2, 8), st.integers(1, 8), st.sampled_from(FLOWS))
def test_fewer_bits_never_cost_more(matmul, bits, more, dataflow):
    array = DigitalArray(3, 5, dataflow=dataflow, width=16)
    few, many = (
        array.spend(Work("w", "codes", matmul, bits=(b, b, 8))) for b in (bits, bits + more)
    )
    assert sum(few.energy.values()) <= sum(many.energy.values())
    assert few.cycles <= many.cycles
    assert few.inputs < many.inputs
    assert few.weights < many.weights


@settings(max_examples=40, deadline=None)
@given(sizes, st.sampled_from(FLOWS))
def test_an_array_is_never_busier_than_it_is_large(matmul, dataflow):
    assert (
        0 < DigitalArray(3, 5, dataflow=dataflow).spend(Work("w", "codes", matmul)).utilization <= 1
    )


@pytest.mark.parametrize(
    "changes",
    [
        *({name: 0} for name in ("rows", "columns", "count", "width", "accumulator", "shifter")),
        *({name: 0} for name in ("port", "clock")),
        *({name: -1} for name in ("multiply", "add", "multiplier_area", "adder_area", "block")),
        {"block": 9},
        {"dataflow": "row"},
        {"numbers": "bits"},
    ],
)
def test_settings_out_of_range_are_named(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=name):
        DigitalArray(**changes)
    assert name in DigitalArray.__doc__


def test_no_dataflow_of_another_name():
    with pytest.raises(ValueError, match="dataflow='row'"):
        tile((1, 2, 3, 4), 2, 2, "row")


def test_hardware_is_an_array_without_gaps():
    """The preset: cycles of multipliers that never wait for tiles to fill."""
    array = js.Hardware(rows=4, columns=8).array
    work = Work("w", "codes", (2, 9, 7, 11), 3, bits=(8, 8, 8))
    assert array.busy(work) == 3 * 2 * 3 * 2 * 7
    assert array.spend(work).cycles == 3 * 2 * 3 * 2 * (7 + 10)
    assert np.isclose(array.spend(work).energy["multiply"], 3 * 2 * 9 * 7 * 11 * 0.2)
