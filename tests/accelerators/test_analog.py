import dataclasses

import jax.numpy as jnp
import pytest

import jaxsim as js
from jaxsim.accelerators import AnalogArray, Work, analog
from jaxsim.accelerators.sites import site_work
from tests.support.scans import MATMUL, RUNS, grouped_scan

# every field above one, no two equal, and none as published
OWN = AnalogArray(
    rows=4,
    columns=20,
    adc=3.5,
    adc_bits=6,
    adc_clock=2.0,
    adc_area=7.25,
    columns_per_adc=12,
    dac=2.75,
    dac_area=4.5,
    cell=1.25,
    cell_area=1.75,
    read=11.0,
)


def work_of(*cut, **array):
    """The one site of five layers: nine products [26, 22] @ [22, 11] each."""
    net = js.compose(js.quantize(8, 8), *cut, js.analog(**array))(grouped_scan())
    (work,) = site_work(net, net.portions()[0], None).values()
    assert (work.matmul, work.runs, work.copies) == (MATMUL, RUNS, RUNS)
    return work


@pytest.fixture(scope="module")
def digits():
    """Three slices, six tiles of four rows, pairs, seven digits."""
    return work_of(js.slice_bits(3), adc=4, rows=4, input_bits=1)


def test_a_site_is_counted_by_hand(digits):
    spent = OWN.spend(digits)
    conversions = 5 * 26 * 7 * (9 * 6 * 3 * 11)
    drives = 5 * 26 * 7 * 9 * 22 * 4  # the rows of four arrays of 20 columns beside one another
    cells = 9 * 6 * 3 * 2 * 4 * 11
    assert spent.energy == {
        "adc": conversions * 3.5 / 4,  # 4 of the 6 bits that 3.5 pJ are the energy of
        "dac": drives * 2.75,
        "cells": 5 * 26 * 7 * cells * 1.25,
    }
    # each digit is driven in 11 s, and its 12 columns are converted in 12 / 2 s meanwhile
    assert spent.seconds == 5 * 26 * 7 * 11
    # a tile has 11 columns, in three slices of two signs 66 wires: four arrays of 20
    arrays = 5 * 9 * 6 * 4
    assert OWN.arrays(digits) == arrays
    one = 4 * 20 * 1.75 + 4 * 4.5 + 2 * 7.25
    assert spent.area == pytest.approx(1e-6 * arrays * one)
    assert spent.utilization == pytest.approx(5 * cells / (arrays * 80))
    assert (spent.inputs, spent.weights) == (5 * 9 * 26 * 22 * 8, 0)
    assert spent.results == 5 * 9 * 26 * 11 * 32


@pytest.mark.parametrize(
    ("changes", "digit"),
    [
        ({"adc_clock": 1.0}, 12),  # slower than a read: twelve columns share
        ({"adc_kind": "sar"}, 12 * 4 / 2),
        ({"adc_kind": "ramp"}, 11),  # all columns at once, 16 / 2 s
        ({"adc_kind": "ramp", "adc_clock": 0.5}, 16 / 0.5),
        ({"columns_per_adc": 3, "adc_kind": "sar"}, 11),
    ],
)
def test_a_digit_takes_what_is_slower_reading_or_converting(digits, changes, digit):
    assert dataclasses.replace(OWN, **changes).spend(digits).seconds == 5 * 26 * 7 * digit


@pytest.mark.parametrize(
    ("adc", "conversions"),  # one of 12 columns each, of a converter with 0.1 cycles a second
    [
        (js.adc.uniform(4), 12 * 4),  # which says no kind: that of the array
        (js.adc.sar(4, mismatch=0.1), 12 * 4),
        (js.adc.cyclic(4), 12 * 4),
        (js.adc.pipeline(4), 12),
        (js.adc.ramp(4), 2**4),
    ],
)
def test_a_converter_that_is_a_circuit_says_how_long_it_takes(adc, conversions):
    work = work_of(js.slice_bits(3), adc=adc, rows=4, input_bits=1)
    array = dataclasses.replace(OWN, adc_clock=0.1, adc_kind="sar")
    digits = array.reads(work).digits
    assert array.spend(work).seconds == pytest.approx(5 * 26 * digits * conversions / 0.1)
    assert array.spend(work).energy["adc"] == array.reads(work).conversions * 3.5 / 4


def test_digits_that_are_added_as_charge_are_converted_once():
    work = work_of(js.slice_bits(3), adc=4, rows=4, input_bits=1, accumulate="analog")
    assert OWN.spend(work).seconds == 5 * 26 * 7 * 11
    slow = dataclasses.replace(OWN, adc_clock=0.1)
    assert slow.spend(work).seconds == pytest.approx(5 * 26 * 12 / 0.1)


def test_arrays_that_there_are_do_not_grow_with_the_weights(digits):
    built = dataclasses.replace(OWN, count=7)
    assert built.area == pytest.approx(1e-6 * 7 * OWN.array_area)
    assert (OWN.area, built.spend(digits).area) == (0, 0)


def test_without_a_size_arrays_are_as_large_as_what_they_hold(digits):
    spent = dataclasses.replace(OWN, rows=None, columns=None).spend(digits)
    cells = 9 * 6 * 3 * 2 * 4 * 11
    one = cells * 1.75 + 9 * 22 * 4.5 + 9 * 6 * 3 * 11 / 12 * 7.25
    assert spent.area == pytest.approx(1e-6 * 5 * one)
    assert spent.utilization == 1


@pytest.mark.parametrize(
    ("array", "work", "why"),
    [
        (OWN, Work("w", "codes"), "js.analog"),
        (OWN, Work("w", "floats"), "holds cells"),
        (OWN, Work("exp", "elements"), "contracts nothing"),
    ],
)
def test_what_is_not_in_cells_is_told(array, work, why):
    assert why in array.accepts(work)


def test_what_does_not_fit_is_told(digits):
    assert OWN.accepts(digits) == ""
    assert "has 3 rows, not 4" in dataclasses.replace(OWN, rows=3).accepts(digits)
    assert dataclasses.replace(OWN, cell_bits=3).accepts(digits) == ""
    assert "2 bits a cell, not 3" in dataclasses.replace(OWN, cell_bits=2).accepts(digits)


@pytest.mark.parametrize(
    ("cut", "array", "bits"),
    [
        ((), {}, 7),  # a pair holds magnitudes
        ((), {"mapping": "offset"}, 8),
        ((js.slice_bits(2),), {"mapping": "offset"}, 2),
        ((js.slice_bits(7),), {}, 7),
    ],
)
def test_bits_of_a_cell(cut, array, bits):
    work = work_of(*cut, rows=4, **array)
    assert dataclasses.replace(OWN, cell_bits=bits).accepts(work) == ""
    if bits > 1:
        assert f"not {bits}" in dataclasses.replace(OWN, cell_bits=bits - 1).accepts(work)


def test_rows_count_only_where_the_sum_is_as_long(digits):
    """1152 rows are asked for, and 22 are driven."""
    work = work_of()
    assert dataclasses.replace(OWN, rows=22).accepts(work) == ""
    assert "rows=21" in dataclasses.replace(OWN, rows=21).accepts(work)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: 0} for name in ("rows", "columns", "count", "cell_bits", "adc_bits")),
        *({name: 0} for name in ("columns_per_adc", "adc_clock")),
        *({name: -1} for name in ("adc", "adc_area", "dac", "dac_area", "cell", "cell_area")),
        {"read": -1},
        {"adc_kind": "dual"},
    ],
)
def test_settings_out_of_range_are_named(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=name):
        AnalogArray(**{"rows": 4, "columns": 4, **changes})
    assert name in AnalogArray.__doc__


def test_sizes_come_together():
    with pytest.raises(ValueError, match="rows=4, columns=None"):
        AnalogArray(rows=4)
    with pytest.raises(ValueError, match="count=2: needs rows"):
        AnalogArray(count=2)


FIGURES = {"comparison": 0.5, "capacitor": 0.03, "residue": 2.0}


def _counted(kind, bits, signed, split, columns):
    """Comparisons, switched units and residues of a conversion, one decision at a time."""
    magnitude = bits - 1 if signed else bits
    units = [2 ** (k if split is None or k < split else k - split) for k in range(magnitude)]
    match kind:
        case "sar":
            return [int(signed) + len(units), sum(units), 0]
        case "ramp":
            up = sum(
                unit
                for code in range(1, 2**magnitude)
                for k, unit in enumerate(units)
                if code >> k & 1 and not code - 1 >> k & 1
            )
            return [2**bits - 1, up * (2 if signed else 1) / columns, 0]
        case "flash":
            return [sum(1 for _ in range(1, 2**bits)), 0, 0]
        case _:
            stages = bits - 1
            return [sum(2 for _ in range(stages)) + 2, 0, stages]


@pytest.mark.parametrize("mapping", ["differential", "offset"])
@pytest.mark.parametrize(
    "adc",
    [
        js.adc.sar(6),
        js.adc.sar(6, split=2),
        js.adc.ramp(6),
        js.adc.pipeline(6),
        js.adc.cyclic(6),
        6,
    ],
    ids=str,
)
def test_a_conversion_takes_what_its_kind_does(adc, mapping):
    work = work_of(adc=adc, mapping=mapping)
    kind, split = (adc.kind.name, adc.kind.split) if adc != 6 else ("flash", None)
    part = AnalogArray(**FIGURES, columns_per_adc=4)
    steps = _counted(kind, 6, mapping == "differential", split, 4)
    each = sum(n * f for n, f in zip(steps, FIGURES.values(), strict=True))
    found = part.spend(work).energy["adc"]
    assert found == pytest.approx(work.counts["conversions"] * each)
    assert AnalogArray().spend(work).energy["adc"] != pytest.approx(found)  # by default as ever


def test_a_kind_without_its_figure_is_refused():
    part = AnalogArray(comparison=0.5, residue=2.0)
    assert part.accepts(work_of(adc=6)) == part.accepts(work_of(adc=js.adc.cyclic(6))) == ""
    assert "a sar also capacitor=…" in part.accepts(work_of(adc=js.adc.sar(6)))
    with pytest.raises(ValueError, match=r"capacitor=0\.1: has no effect, comparison=None"):
        AnalogArray(capacitor=0.1)
    with pytest.raises(ValueError, match="comparison=-1"):
        AnalogArray(comparison=-1.0)


def test_a_cell_holds_the_largest_code_that_it_is_given():
    net = js.quantize(8, 8)(js.trace(lambda w, x: x @ w, jnp.ones((4, 2)), jnp.ones((3, 4))))
    sliced = js.compose(js.slice_bits(3), js.analog())(net)
    held = {"pair": js.analog()(net), "offset": js.analog(mapping="offset")(net), "sliced": sliced}
    found = {name: analog.cell_bits(made.cores["params"]) for name, made in held.items()}
    assert found == {"pair": 7, "offset": 8, "sliced": 3}
    assert analog.cell_bits(()) == 1
