import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxsim as js
from jaxsim.cores.adc import Column, fpg_bits, uniform
from jaxsim.cores.adc.column import _shifted_apart, column_adc, uniform_adc
from jaxsim.cores.bit_sliced import bit_sliced
from jaxsim.cores.geometry import Dot
from jaxsim.cores.mapping import differential, offset
from jaxsim.cores.op import Op
from jaxsim.cores.tiled import tiled
from jaxsim.formats.grid import Grid, Range
from tests.oracles import contraction, crossbar, quantiser
from tests.support import sites

shifted_apart = jax.jit(_shifted_apart)


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
    r = shifted_apart(Range(lo, lo + hi if not signed else hi))
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
    counting = dataclasses.replace(op, meter=meter)
    jax.eval_shape(lambda x, w: core.read(counting, core.write(op, w, None), x, None), x, w)
    assert meter["conversions"] == 5 * 6 * 4 * 4  # outputs, slices, tiles


def test_deployed_without_calibration_is_an_error():
    x, w = sites.operands(sites.DENSE)
    core = sites.core_of(converter(8))
    op = Op(sites.DENSE, integer=True, ranges="missing")
    with pytest.raises(ValueError, match="calibrate=None"):
        core.read(op, core.write(op, w, None), x, None)


COLUMN = Column(depth=6, x_lo=-3, x_hi=7, w_hi=np.float32([[5], [2]]))
"""Two planes whose largest codes are 5 and 2, read by six inputs in [-3, 7]."""
UNSIGNED = COLUMN._replace(x_lo=0)

SPANS = [
    # signed converters have 2^b - 2 steps, half of them below zero; others 2^b - 1
    ("granular", COLUMN, 8, True, ([-127, -127], [127, 127])),
    ("granular", UNSIGNED, 8, True, ([-127, -127], [127, 127])),
    ("granular", COLUMN, 8, False, ([-128, -128], [127, 127])),
    ("granular", UNSIGNED, 8, False, ([0, 0], [255, 255])),
    ("granular", COLUMN, 1, False, ([-1, -1], [0, 0])),
    ("granular", COLUMN, 3, True, ([-3, -3], [3, 3])),
    # 6 · 5 · 7 = 210, 6 · 2 · 7 = 84; 6 · 5 · 3 = 90, 6 · 2 · 3 = 36
    ("max", COLUMN, 8, True, ([-210, -84], [210, 84])),
    ("max", COLUMN._replace(x_lo=-7, x_hi=3), 8, True, ([-210, -84], [210, 84])),
    ("max", COLUMN, 4, False, ([-90, -36], [210, 84])),
    ("max", UNSIGNED, 4, False, ([0, 0], [210, 84])),
]


@pytest.mark.parametrize(("rule", "column", "bits", "signed", "expected"), SPANS)
def test_ranges_that_follow_from_codes_are_those_by_hand(rule, column, bits, signed, expected):
    found = uniform(bits, span=rule).span(column, bits, signed)
    np.testing.assert_array_equal(np.squeeze(found), expected)


def test_a_granular_converter_of_inputs_of_both_signs_resolves_every_code():
    """An unsigned one: 255 steps from -128, so sums of -128 and 127 are exact and 128 is not."""
    geometry = Dot((1,), (), (0,), (), 2, (1, 1))
    op = Op(geometry, integer=True).codes(np.array(0), np.array(1)).inputs(-128, 128)
    core = sites.core_of(fixed("granular", 8, signed=False))
    x = np.array([[-129], [-128], [-1], [0], [1], [127], [128]], np.int32)
    y = core.read(op, core.write(op, np.ones((1, 1), np.int32), None), x, None)
    np.testing.assert_array_equal(y[:, 0], [-128, -128, -1, 0, 1, 127, 127])


def test_a_column_knows_the_largest_magnitude_of_each_plane_and_its_own_depth():
    seen = []

    def spy(column, bits, signed):
        seen.append((column, bits, signed))
        return 0 * column.w_hi, column.w_hi

    adc = js.adc.uniform(5)._replace(span=spy)
    geometry = Dot((1,), (), (0,), (), 2, (4, 3))
    op = Op(geometry, integer=True).codes(np.array([-6, 0]), np.array([2, 3])).inputs(-1, 5)
    core = sites.core_of((column_adc, {"adc": adc, "signed": False}))
    core.read(op, core.write(op, jnp.ones((2, 4, 3), int), None), jnp.ones((2, 4)), None)
    ((column, bits, signed),) = seen
    assert (column.depth, column.x_lo, column.x_hi, float(bits), signed) == (4, -1, 5, 5, False)
    np.testing.assert_array_equal(column.w_hi, [6, 3])


@pytest.mark.parametrize("missing", ["w_lo", "w_hi", "x_lo", "x_hi"])
def test_a_range_from_codes_needs_both_ends_of_both_operands(missing):
    op = Op(RAMP, integer=True).codes(np.array(0), np.array(1)).inputs(0, 1)
    core, one = sites.core_of(fixed("max", 8, signed=False)), jnp.ones((1, 1))
    state = core.write(op, one, None)
    assert core.read(op, state, one, None) == 1
    with pytest.raises(ValueError, match="inputs and weights as codes"):
        core.read(dataclasses.replace(op, **{missing: None}), state, one, None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bits": 0.99}, "bits=0.99: must be a number of at least 1 and at most 16"),
        ({"bits": 16.01}, "bits=16.01"),
        ({"bits": 8, "percentile": 0}, "percentile=0: must be a number above 0 and at most 100"),
        ({"bits": 8, "percentile": 100.1}, "percentile=100.1"),
        ({"bits": 8, "span": "largest"}, "span='largest': must be 'calibrated'"),
    ],
)
def test_numbers_of_a_converter_are_refused_just_outside_of_their_range(settings, said):
    with pytest.raises(ValueError, match=said):
        uniform(**settings)


def test_numbers_of_a_converter_are_taken_at_the_ends_of_their_range():
    for bits, percentile in ((1, 100), (16, 1e-3)):
        assert float(uniform(bits, percentile=percentile).bits) == bits


def test_conversion_steps_are_counted_by_resolution():
    meter = {}
    adc = js.adc.uniform(3)
    core = sites.core_of((column_adc, {"adc": adc, "signed": False}))
    geometry = Dot((1,), (), (0,), (), 2, (4, 3))
    op = Op(geometry, meter=meter)
    w, x = np.ones((4, 3), np.float32), np.ones((5, 4), np.float32)
    jax.eval_shape(lambda w, x: core.read(op, core.write(Op(geometry), w, None), x, None), w, x)
    assert (meter["conversions"], meter["conversion_steps"]) == (5 * 3, 5 * 3 * 8)


def test_slices_widen_to_powers_of_two_by_hand():
    """Widths 12, 5 and 0.2 beside 12: 12, 6 and 12 / 32; an empty slice stays empty."""
    lo, hi = jnp.float32([-6.0, 1.0, 0.0, 2.0]), jnp.float32([6.0, 6.0, 0.2, 2.0])
    r = _shifted_apart(Range(lo, hi))
    np.testing.assert_allclose(r.lo, [-6, 1, 0, 2])
    np.testing.assert_allclose(r.hi, [6, 7, 0.375, 2])
    one = Range(jnp.float32(-1), jnp.float32(2))
    assert _shifted_apart(one) is one


def test_the_name_of_a_converter_says_bits_and_span():
    assert str(js.adc.uniform(4)) == "equal_steps, 4 bits"
    assert str(js.adc.uniform(4, span="granular")) == "equal_steps, 4 bits, unit_step"


def test_slices_are_widened_by_a_hundred_doublings_at_most():
    """1e30 over 1e-10 is no float32; 1e30 / 2^100 covers it too."""
    hi = jnp.float32([1e30, 1e-10])
    r = _shifted_apart(Range(-hi, hi))
    np.testing.assert_allclose(r.hi, np.float32([1e30, 1e30 / 2.0**100]), rtol=1e-6)
