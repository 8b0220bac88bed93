import dataclasses
import math

import pytest

import jaxsim as js
from tests.evaluate.test_systolic import SIZES
from tests.support.networks import SITES, cnn, stack

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
