import numpy as np
import pytest

from jaxsim.core import Dot, Op
from jaxsim.cores.converter import converted
from jaxsim.cores.mapping import differential, offset
from jaxsim.cores.sliced import sliced
from jaxsim.cores.tiled import tiled
from jaxsim.numerics import Grid
from tests import sites
from tests.oracles import contraction, crossbar, quantiser


def converter(bits, percentile=100.0, *, signed=True):
    return (converted, {"bits": float(bits), "percentile": percentile, "signed": signed})


def integers(geometry, bits_per_slice, *, shift=0):
    """What every slice of a quantised site yields in front of its converter, and its scale."""
    x, w = sites.operands(geometry)
    qw, sw, _ = quantiser.quantise(Grid(8, per="tensor"), w)
    qx, sx, _ = quantiser.quantise(Grid(8), x)
    width = 8 if shift else 7
    slices = crossbar.digits(qw + shift, bits_per_slice, width) if bits_per_slice else [qw + shift]
    return x, w, [contraction.contract(geometry, qx, s) for s in slices], qx, sx * sw


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
def test_slices_are_converted_each_over_its_own_range(geometry, bits):
    x, w, sums, _, scale = integers(geometry, 2)
    pieces = [sites.quantize(per="tensor"), (sliced, {"bits": 2}), converter(bits), differential]
    y = sites.read_deployed(pieces, geometry, x, w)
    ends = [crossbar.adc_range(s, 100.0, signed=True) for s in sums]
    expected = sum(
        crossbar.adc(s, bits, *end, signed=True) * 4**i
        for i, (s, end) in enumerate(zip(sums, ends, strict=True))
    )
    np.testing.assert_allclose(y, expected * scale, rtol=1e-5, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_the_offset_mapping_converts_the_whole_current(bits):
    x, w, (sums,), qx, scale = integers(sites.DENSE, 0, shift=127)
    pieces = [sites.quantize(per="tensor"), offset, converter(bits, signed=False)]
    y = sites.read_deployed(pieces, sites.DENSE, x, w)
    seen = crossbar.adc(sums, bits, *crossbar.adc_range(sums, 100.0, signed=False), signed=False)
    expected = seen - 127 * qx.sum(1, keepdims=True)
    np.testing.assert_allclose(
        y, expected * scale, rtol=1e-4, atol=1e-5 * np.abs(seen).max() * scale
    )


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("percentile", [100.0, 99.0, 70.0])
def test_calibrated_ranges_cover_the_percentile_of_each_slice(percentile, signed):
    x, w, sums, _, _ = integers(sites.CONV, 3)
    pieces = [sites.quantize(per="tensor"), (sliced, {"bits": 3})]
    pieces += [converter(8, percentile, signed=signed), differential]
    state = sites.deployed(pieces, sites.CONV, x, w).inner
    expected = [crossbar.adc_range(s, percentile, signed=signed) for s in sums]
    np.testing.assert_allclose(np.stack(state.outputs, -1), expected, rtol=1e-4, atol=1e-3)


RAMP = Dot((1,), (), (0,), (), 2, (1, 1))


def ramp(bits, *, signed):
    """A converter's answer to a rising input; it is calibrated on that."""
    x = np.linspace(-1, 1, 4001, dtype=np.float32)[:, None]
    w = np.ones((1, 1), np.float32)
    return x[:, 0], np.asarray(sites.read_deployed([converter(bits, signed=signed)], RAMP, x, w))[
        :, 0
    ]


@pytest.mark.parametrize("bits", [2, 3, 6])
def test_a_signed_converter_has_an_odd_number_of_levels_around_an_exact_zero(bits):
    x, y = ramp(bits, signed=True)
    levels = np.unique(y)
    assert len(levels) == 2**bits - 1
    assert y[x == 0] == 0
    np.testing.assert_allclose(levels, -levels[::-1])
    np.testing.assert_allclose(levels[[0, -1]], [-1, 1])


@pytest.mark.parametrize("bits", [1, 3, 6])
def test_an_unsigned_converter_has_two_to_the_bits_levels_from_end_to_end(bits):
    _, y = ramp(bits, signed=False)
    levels = np.unique(y)
    assert len(levels) == 2**bits
    np.testing.assert_allclose(levels, np.linspace(-1, 1, 2**bits), atol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_errors_stay_within_half_a_step_and_vanish_with_more_bits(signed):
    for bits in (4, 8, 12):
        x, y = ramp(bits, signed=signed)
        step = 2 / (2**bits - 2 if signed else 2**bits - 1)
        assert 0.4 * step < np.abs(y - x).max() <= 0.5 * step + 1e-6


def test_what_leaves_the_range_saturates():
    x, w = np.float32([[0.5], [3.0], [-9.0]]), np.ones((1, 1), np.float32)
    y = sites.read_deployed([converter(8)], RAMP, x, w, calibrate=np.float32([[1.0]]))
    np.testing.assert_allclose(y[1:, 0], [1, -1])


def test_a_silent_column_converts_to_zero():
    x, w = sites.operands(sites.DENSE)
    for signed in (True, False):
        pieces = [sites.quantize(), converter(8, signed=signed), differential]
        np.testing.assert_array_equal(sites.read_deployed(pieces, sites.DENSE, x, 0 * w), 0)


def test_every_output_slice_and_tile_is_a_conversion():
    meter = {}
    x, w = sites.operands(sites.DENSE)
    pieces = [sites.quantize(), (sliced, {"bits": 2}), (tiled, {"rows": 6}), converter(8)]
    core = sites.core_of(*pieces, differential)
    op = Op(sites.DENSE, integer=True)
    core.read(Op(sites.DENSE, integer=True, meter=meter), core.write(op, w, None), x, None)
    assert meter["conversions"] == 5 * 6 * 4 * 4  # outputs, slices, tiles


def test_deployed_without_calibration_is_an_error():
    x, w = sites.operands(sites.DENSE)
    core = sites.core_of(converter(8))
    op = Op(sites.DENSE, integer=True, ranges="missing")
    with pytest.raises(ValueError, match="calibrate=None"):
        core.read(op, core.write(op, w, None), x, None)
