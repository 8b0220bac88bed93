import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsim.cores.adc import _shifted_apart, fpg_bits, uniform_adc
from jaxsim.cores.bit_sliced import bit_sliced
from jaxsim.cores.geometry import Dot
from jaxsim.cores.mapping import differential, offset
from jaxsim.cores.op import Op
from jaxsim.cores.tiled import tiled
from jaxsim.formats.grid import Grid, Range
from tests.oracles import contraction, crossbar, quantiser
from tests.support import sites


def converter(bits, percentile=100.0, *, signed=True):
    return (uniform_adc, {"bits": float(bits), "percentile": percentile, "signed": signed})


def integers(geometry, bits_per_slice, *, shift=0):
    """What every slice of a quantized site yields in front of its converter, and its scale."""
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
    pieces = [
        sites.quantize(per="tensor"),
        (bit_sliced, {"bits": 2}),
        converter(bits),
        differential,
    ]
    y = sites.read_deployed(pieces, geometry, x, w)
    ends = crossbar.power_of_two_apart([crossbar.adc_range(s, 100.0, signed=True) for s in sums])
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
    pieces = [sites.quantize(per="tensor"), (bit_sliced, {"bits": 3})]
    pieces += [converter(8, percentile, signed=signed), differential]
    state = sites.deployed(pieces, sites.CONV, x, w).inner
    expected = [crossbar.adc_range(s, percentile, signed=signed) for s in sums]
    np.testing.assert_allclose(np.stack(state.outputs, -1), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("signed", [True, False])
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5), st.data())
def test_ranges_of_slices_differ_by_powers_of_two_and_cover_what_was_seen(signed, widths, data):
    hi = np.float32(widths)
    lo = -hi if signed else np.float32([width * data.draw(st.floats(-2, 1)) for width in widths])
    r = _shifted_apart(Range(jnp.asarray(lo), jnp.asarray(lo + hi if not signed else hi)))
    width, seen = np.asarray(r.hi - r.lo), np.asarray((hi - lo) if signed else (lo + hi) - lo)
    assert np.all(width >= seen * (1 - 1e-5))
    assert np.all((width < 2.0001 * seen) | (seen == 0))
    ratios = np.log2(width.max() / width[width > 0])
    np.testing.assert_allclose(ratios, np.round(ratios), atol=1e-3)
    if signed:
        np.testing.assert_allclose(r.lo, -r.hi, rtol=1e-6)


def test_a_silent_slice_keeps_its_empty_range():
    r = _shifted_apart(Range(jnp.float32([-3.0, 0.0]), jnp.float32([3.0, 0.0])))
    np.testing.assert_array_equal(np.stack(r), [[-3, 0], [3, 0]])


def fixed(rule, bits, *, signed):
    settings = {"bits": float(bits), "percentile": 100.0, "signed": signed, "rule": rule}
    return (uniform_adc, settings)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
def test_the_largest_range_holds_the_most_an_array_can_yield(geometry, bits, signed):
    """Every product at its largest: the last level, and nothing saturates."""
    sign = differential if signed else offset
    pieces = [sites.quantize(8, bits, per="tensor"), fixed("max", 16, signed=signed), sign]
    if not signed:
        pieces = [pieces[0], sign, pieces[1]]
    x, w = (np.ones(s, np.float32) for s in (sites.SHAPES[geometry], geometry.w_shape))
    y = sites.read(pieces, geometry, x, w)
    np.testing.assert_allclose(y, sites.read([pieces[0]], geometry, x, w), rtol=1e-3)


@pytest.mark.parametrize(
    ("weight_bits", "input_bits", "rows", "expected"),
    [(2, 2, 16, 8), (1, 2, 16, 6), (2, 1, 16, 6), (1, 1, 16, 5), (8, 8, 1152, 27), (1, 1, 1, 1)],
)
def test_the_full_precision_guarantee_counts_bits(weight_bits, input_bits, rows, expected):
    assert fpg_bits(weight_bits, input_bits, rows) == expected


@pytest.mark.parametrize(("weight_bits", "input_bits"), [(1, 1), (1, 3), (3, 1), (2, 2), (4, 3)])
@pytest.mark.parametrize("rows", [8, 16])
def test_guaranteed_bits_lose_nothing_and_one_less_does(weight_bits, input_bits, rows):
    """Unsigned codes at their largest, on a converter whose step is one unit."""
    geometry = Dot((1,), (), (0,), (), 2, (rows, 1))
    w = np.full((rows, 1), 2**weight_bits - 1, np.int32)
    x = np.full((1, rows), 2**input_bits - 1, np.int32)
    op = Op(geometry, integer=True).codes(np.array(0), np.array(2**weight_bits - 1))
    op = op.inputs(0, 2**input_bits - 1)
    bits = fpg_bits(weight_bits, input_bits, rows)
    exact = int((x @ w)[0, 0])
    for given_bits, same in ((bits, True), (bits - 1, False)):
        core = sites.core_of(fixed("granular", given_bits, signed=False))
        y = core.read(op, core.write(op, w, None), x, None)
        assert (int(y[0, 0]) == exact) is same


def test_ranges_without_calibration_need_codes():
    core = sites.core_of(fixed("max", 8, signed=True))
    x, w = sites.operands(sites.DENSE)
    op = Op(sites.DENSE)
    with pytest.raises(ValueError, match="inputs and weights as codes"):
        core.read(op, core.write(op, w, None), x, None)


@pytest.mark.parametrize("arguments", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1.5, 1, 1)])
def test_the_guarantee_of_no_array_is_an_error(arguments):
    with pytest.raises(ValueError, match="must be an int"):
        fpg_bits(*arguments)


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
    pieces = [sites.quantize(), (bit_sliced, {"bits": 2}), (tiled, {"rows": 6}), converter(8)]
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
