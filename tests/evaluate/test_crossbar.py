import dataclasses
import math

import jax.numpy as jnp
import pytest

import jaxsim as js
from jaxsim.evaluate.crossbar import ArrayEnergy, ArrayEstimate
from tests.evaluate.test_systolic import SIZES
from tests.oracles import arrays
from tests.support.networks import DEEP_SITES as SITES
from tests.support.networks import attention, stack
from tests.support.networks import deep_cnn as cnn
from tests.support.printed import header, rows
from tests.support.scans import MATMUL, RUNS, grouped_scan, reused

ARRAY = js.Crossbar()


def estimate(net=None, grid=8, slices=(), **array):
    made = js.compose(js.quantize(8, grid), *slices, js.analog(**array))(net or cnn())
    return ARRAY.estimate(made)


def test_analog_inputs_spend_what_the_hand_counts():
    """Pairs of columns subtracted before one 6-bit conversion."""
    found = estimate(adc=6)
    assert found.names == SITES
    for (M, K, N), spent in zip(SIZES, found.spent, strict=True):
        assert spent.conversions == M * N
        assert spent.drives == M * K
        assert spent.adc == pytest.approx(M * N * ARRAY.adc / 4)
        assert spent.dac == pytest.approx(M * K * ARRAY.dac)
        assert spent.cells == pytest.approx(2 * M * K * N * ARRAY.cell)
        area = 2 * K * N * ARRAY.cell_area + K * ARRAY.dac_area + N / 128 * ARRAY.adc_area
        assert spent.area == pytest.approx(area)
    assert found.energy == pytest.approx(sum(s.adc + s.dac + s.cells for s in found.spent))


@pytest.mark.parametrize(("grid", "width"), [(8, 7), (js.Grid(8, symmetric=False), 8)])
@pytest.mark.parametrize("accumulate", ["digital", "analog"])
@pytest.mark.parametrize("bits", [1, 3])
def test_digits_of_an_input_multiply_what_is_spent_on_them(grid, width, accumulate, bits):
    digits, slices, rows = math.ceil(width / bits), 4, 10
    cut = [js.slice_bits(2)]
    found = estimate(None, grid, cut, adc=8, rows=rows, input_bits=bits, accumulate=accumulate)
    times = digits if accumulate == "digital" else 1
    for (M, K, N), spent in zip(SIZES, found.spent, strict=True):
        arrays = math.ceil(K / rows)
        assert spent.drives == M * K * digits
        assert spent.conversions == M * N * slices * arrays * times
        converters = N * slices * arrays / 128 * ARRAY.adc_area
        cells = 2 * slices * arrays * math.ceil(K / arrays) * N * ARRAY.cell_area
        assert spent.area == pytest.approx(cells + K * ARRAY.dac_area + converters)


def test_layers_of_a_scan_have_arrays_of_their_own():
    found = estimate(stack(), adc=8)
    whole = dict(zip(found.names, found.spent, strict=True))["w"]
    assert whole.conversions == 3 * 5 * 4
    one = 2 * 16 * ARRAY.cell_area + 4 * ARRAY.dac_area + 4 / 128 * ARRAY.adc_area
    assert whole.area == pytest.approx(3 * one)


def test_an_ideal_converter_spends_nothing_and_the_table_says_what_it_is():
    found = estimate()
    assert all(s.adc == s.conversions == 0 for s in found.spent)
    assert "analytic model, not a measurement" in str(found)
    assert "Conv_1/kernel" in str(found)


def test_a_digital_network_has_no_arrays():
    with pytest.raises(ValueError, match="none of its sites is analog"):
        ARRAY.estimate(js.quantize()(cnn()))


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(js.Crossbar)])
def test_coefficients_out_of_range_are_named(field):
    with pytest.raises(ValueError, match=f"{field}=-1"):
        js.Crossbar(**{field: -1})


# every field above one, no two equal, and none as published
MODEL = {
    "adc": 3.5,
    "adc_area": 7.25,
    "columns_per_adc": 12,
    "dac": 2.75,
    "dac_area": 4.5,
    "cell": 1.25,
    "cell_area": 1.75,
}
OWN = js.Crossbar(**MODEL, adc_bits=6)
ORACLE = {**MODEL, "reference_bits": 6}


def spent(net, *cut, bits=(8, 8), **array):
    """What the one site of a network spends in arrays."""
    chip = js.compose(js.quantize(*bits), *cut, js.analog(**array))(net)
    (only,) = OWN.estimate(chip).spent
    return only


def test_groups_runs_tiles_slices_and_digits_are_each_counted_by_hand():
    """Five layers of nine products [26, 22] @ [22, 11]: three slices, six tiles, seven digits."""
    found = spent(grouped_scan(), js.slice_bits(3), adc=4, rows=4, input_bits=1)
    assert found.conversions == 5 * 26 * 7 * (9 * 6 * 3 * 11) == 1621620
    assert found.drives == 5 * 26 * 7 * (9 * 22) == 180180
    assert found.adc == 1621620 * 3.5 / 4  # 4 bits of the 6 that 3.5 pJ are the energy of
    assert found.dac == 180180 * 2.75
    cells = 2 * 9 * 6 * 3 * 4 * 11  # pairs, in tiles four rows high
    assert found.cells == 5 * 26 * 7 * cells * 1.25
    one = cells * 1.75 + 9 * 22 * 4.5 + 9 * 6 * 3 * 11 / 12 * 7.25
    assert found.area == pytest.approx(5 * one)


@pytest.mark.parametrize(
    ("slices", "kept", "array", "how"),
    [
        (None, 7, {"adc": 5, "rows": 5}, {"adc_bits": 5, "rows": 5}),
        (2, 7, {"adc": 9, "rows": 22}, {"adc_bits": 9, "slices": 4}),
        (
            3,
            7,
            {"rows": 7, "input_bits": 2},
            {"adc_bits": None, "rows": 7, "slices": 3, "digits": 4},
        ),
        (
            3,
            7,
            {"adc": 7, "rows": 21, "input_bits": 3, "accumulate": "analog"},
            {"adc_bits": 7, "rows": 21, "slices": 3, "digits": 3, "apart": False},
        ),
        (
            2,
            4,
            {"adc": 7, "mapping": "offset", "input_bits": 2},
            {"adc_bits": 7, "slices": 3, "digits": 2, "pair": False},
        ),
    ],
)
def test_what_a_site_spends_is_what_walking_through_its_arrays_counts(slices, kept, array, how):
    """Codes of `kept` bits and a sign, on both sides."""
    cut = () if slices is None else (js.slice_bits(slices),)
    found = spent(grouped_scan(), *cut, bits=(kept + 1, kept + 1), **array)
    expected = arrays.spent(MATMUL, RUNS, RUNS, array=ORACLE, **how)
    assert found._asdict() == pytest.approx(expected)
    assert arrays.spent(MATMUL, RUNS, 1, array=ORACLE, **how) != pytest.approx(expected)


def test_an_array_that_a_scan_reads_again_is_built_once():
    expected = arrays.spent((1, 5, 4, 4), 3, 1, adc_bits=7, array=ORACLE)
    assert spent(reused(), adc=7)._asdict() == pytest.approx(expected)


@pytest.mark.parametrize("rows", [1, 0, 7])
def test_an_array_is_as_large_for_any_number_of_rows(rows):
    """Of an empty batch nothing is converted, and so no converter is seen."""
    chip = js.compose(js.quantize(8, 8), js.analog(adc=7))(reused())
    (found,) = OWN.estimate(chip, jnp.ones((rows, 4))).spent
    expected = arrays.spent((1, rows, 4, 4), 3, 1, adc_bits=7, array=ORACLE)
    if not rows:
        expected["area"] -= 4 / 12 * 7.25
    assert found._asdict() == pytest.approx(expected)


def test_an_affine_input_has_the_digits_of_its_whole_range():
    """Codes of 5 bits without a symmetric zero are 0 … 31: five bits, in digits of 2 three."""
    found = spent(grouped_scan(), bits=(8, js.Grid(5, symmetric=False)), adc=6, input_bits=2)
    assert found.drives == 5 * 26 * 3 * 9 * 22
    symmetric = spent(grouped_scan(), bits=(8, 5), adc=6, input_bits=2)
    assert symmetric.drives == 5 * 26 * 2 * 9 * 22


def test_the_defaults_are_the_published_figures():
    published = {**arrays.PUMA, "adc_bits": 8, "columns_per_adc": 128}
    assert dataclasses.asdict(js.Crossbar()) == pytest.approx(published, rel=1e-12)


def test_products_of_activations_stay_digital():
    chip = js.compose(js.quantize(8, 8), js.analog(adc=8, sites="?"))(attention())
    assert ARRAY.estimate(chip).names == ("q", "k", "v")


SPENT = (ArrayEnergy(2, 3, 5, 7, 11, 13), ArrayEnergy(17, 19, 23, 29, 31, 37))


def test_the_printed_estimate_says_each_number_in_its_column():
    found = ArrayEstimate(("a", "b"), SPENT)
    assert (found.energy, found.area) == (106, 50)
    columns = ["site", "pJ", "conversions", "drives", "ADC pJ", "DAC pJ", "cells pJ", "µm²"]
    assert header(found) == columns
    assert rows(found) == [
        ["a", *["23", "2", "3", "5", "7", "11", "13"]],
        ["b", *["83", "17", "19", "23", "29", "31", "37"]],
        ["all", *["106", "19", "22", "28", "36", "42", "50"]],
    ]


@pytest.mark.parametrize("name", ["adc_bits", "columns_per_adc"])
def test_the_smallest_converter_has_one_bit_and_one_column(name):
    assert getattr(js.Crossbar(**{name: 1}), name) == 1
    with pytest.raises(ValueError, match=f"{name}=0: must be an int of at least 1"):
        js.Crossbar(**{name: 0})


@pytest.mark.parametrize("name", [*MODEL][:2] + [*MODEL][3:])
def test_an_energy_or_area_may_be_nothing(name):
    assert getattr(js.Crossbar(**{name: 0.0}), name) == 0
