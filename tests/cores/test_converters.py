"""Converters as circuits, beside their definitions one value at a time."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.adc.capacitors import split_weights
from jaxsim.cores.adc.column import ConverterState, _shifted_apart, column_adc
from jaxsim.cores.bit_sliced import bit_sliced
from jaxsim.cores.conductance import conductance
from jaxsim.cores.geometry import Dot
from jaxsim.cores.mapping import differential
from jaxsim.cores.op import Op
from jaxsim.cores.tiled import tiled
from jaxsim.formats.grid import Grid
from tests.oracles import converters, quantiser
from tests.support import sites

KEY = jax.random.key(0)
NAMES = ("sar", "ramp", "pipeline", "cyclic")
SMALL = {"mismatch": 0.03, "offset": 0.004}


def range_of(bits, signed):
    """A range in which a step is one."""
    return (1.0 - 2 ** (bits - 1), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4), static_argnames=("split",))
def _converted(name, errors, bits, signed, drawn, y, lo, hi, key, **split):
    adc = getattr(js.adc, name)(bits, **errors, **split)
    parts = adc.parts(key, 1, y.shape[-1]) if drawn else None
    return adc.convert(y, lo, hi, signed, *([parts] if drawn else [])), parts


def converted(name, bits, signed, y, errors=SMALL, key=KEY, ends=None):
    """Codes [values, columns] of converters of several columns, and what was drawn for them."""
    drawn = "mismatch" in errors or "offset" in errors
    lo, hi = map(jnp.float32, ends or range_of(bits, signed))
    split = {k: errors[k] for k in errors if k == "split"}
    errors = {k: v for k, v in errors.items() if k not in split}
    y = jnp.asarray(y, jnp.float32)
    return _converted(name, errors, bits, signed, drawn, y, lo, hi, key, **split)


def values(bits, signed, columns, count=300, seed=0):
    lo, hi = range_of(bits, signed)
    rng = np.random.default_rng(seed)
    return rng.uniform(lo - 0.1 * (hi - lo), hi + 0.1 * (hi - lo), (count, columns))


def by_definition(name, bits, signed, parts, amplifier, y, split=None):
    """What the circuit's definition makes of values [values, columns], in steps."""
    full = 2**bits - (2 if signed else 1)
    found = np.zeros(y.shape)
    for column in range(y.shape[1]):
        own = {k: np.float64(v)[..., 0, min(column, v.shape[-1] - 1)] for k, v in parts.items()}
        settings = {"signed": signed, "amplifier": amplifier}
        if name in ("pipeline", "cyclic"):
            capacitors, offsets = own["capacitors"], own["offset"] * 2 ** (bits)
            if name == "cyclic":
                capacitors = np.repeat(capacitors, bits - 1, 0)
                offsets = np.concatenate([np.repeat(offsets[:1], bits - 1, 0), offsets[1:]])
            settings |= {"capacitors": capacitors, "offsets": offsets}
            function = converters.staged
        else:
            function = getattr(converters, name)
            count = bits - 1 if signed else bits
            last = -1 if split is None else -2
            errors = [*own["capacitors"][:count], *own["capacitors"][last:]]
            settings |= {"errors": errors, "offset": own["offset"] * full}
            settings |= {} if split is None else {"split": split}
        for row in range(y.shape[0]):
            found[row, column] = function(float(np.float32(y[row, column])), bits, **settings)
    return found


@pytest.mark.parametrize(("bits", "signed"), [(2, True), (5, True), (5, False)])
@pytest.mark.parametrize("name", NAMES)
def test_a_circuit_decides_as_its_definition_does(name, bits, signed):
    y = values(bits, signed, 3)
    codes, parts = converted(name, bits, signed, y, SMALL | {"amplifier": 200.0})
    expected = by_definition(name, bits, signed, parts, 200.0, y)
    assert np.mean(codes == expected) > 0.998  # single precision beside double, at a threshold
    assert np.abs(codes - expected).max() <= 1
    assert np.mean(codes == np.round(np.clip(y, *range_of(bits, signed)))) < 0.99  # they are there


@pytest.mark.parametrize(("bits", "signed", "low"), [(4, True, 2), (6, True, 2), (6, False, 3)])
def test_split_capacitors_decide_as_charges_on_two_nodes_do(bits, signed, low):
    y = values(bits, signed, 3)
    errors = SMALL | {"amplifier": 200.0, "split": low, "parasitic": 0.3}
    codes, parts = converted("sar", bits, signed, y, errors)
    expected = by_definition("sar", bits, signed, parts, 200.0, y, split=(low, 0.3))
    assert np.mean(codes == expected) > 0.998
    assert np.abs(codes - expected).max() <= 1
    # known wrong: no parasitic, one array, a bridge of one unit
    apart = by_definition("sar", bits, signed, parts, 200.0, y, split=(low, 0.0))
    assert np.mean(codes == apart) < 0.998
    assert np.mean(codes == by_definition("sar", bits, signed, parts, 200.0, y)) < 0.998


def test_levels_of_split_capacitors_have_a_closed_form():
    """Kirchhoff's law solved by hand and by numpy: any errors, any place of the bridge."""
    rng = np.random.default_rng(1)
    for bits, low in ((3, 1), (6, 3), (8, 2), (8, 6)):
        errors, parasitic = 0.05 * rng.normal(size=bits + 2), 0.4
        weights = split_weights(jnp.float32(errors), bits, low, jnp.float32(parasitic))
        codes = np.arange(2**bits)[:, None] >> np.arange(bits) & 1
        expected = converters.split_levels(bits, low, errors, parasitic)
        np.testing.assert_allclose(codes @ np.float64(weights), expected, rtol=2e-6, atol=1e-5)


def test_a_parasitic_tilts_the_steps_of_the_lower_array():
    """(C_l + C_b) / C_b steps of the lower array make one of the upper: 2^low + C_p / C_b."""
    weights = split_weights(None, 6, 3, jnp.float32(0.5))
    np.testing.assert_allclose(weights[3] / weights[0], 8 + 0.5 * 7 / 8, rtol=1e-6)
    assert split_weights(jnp.zeros(8), 6, 3, jnp.zeros(())) == [2.0**k for k in range(6)]


@pytest.mark.parametrize("signed", [True, False])
def test_split_capacitors_without_errors_are_uniform_bit_for_bit(signed):
    y = np.concatenate([HALVES, values(6, signed, 1)]).astype(np.float32)
    ends = (-17.3, 17.3) if signed else (-5.1, 17.3)
    exact = jax.jit(js.adc.uniform(6).convert, static_argnums=3)(y, *map(jnp.float32, ends), signed)
    for errors in ({}, {"mismatch": 0.0, "offset": 0.0, "parasitic": 0.0}):
        codes, _ = converted("sar", 6, signed, y, errors | {"split": 3}, ends=ends)
        np.testing.assert_array_equal(codes, exact)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": 0}, "split=0"),
        ({"split": 7}, "split=7"),
        ({"parasitic": 0.1}, "has no effect with split=None"),
        ({"split": 3, "parasitic": -1.0}, "parasitic=-1.0"),
    ],
)
def test_split_capacitors_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        js.adc.sar(8, **settings)


@pytest.mark.parametrize("name", ["sar", "ramp"])
def test_levels_that_fall_are_met_as_the_circuit_meets_them(name):
    """With capacitors off by half of themselves a later level may lie below an earlier one."""
    y = values(5, False, 12, count=200)
    codes, parts = converted(name, 5, False, y, {"mismatch": 0.5, "offset": 0.001})
    assert np.mean(codes == by_definition(name, 5, False, parts, math.inf, y)) > 0.998
    errors = np.asarray(parts["capacitors"])[:, 0]
    assert any(np.any(np.diff(converters.levels(5, e)) < 0) for e in errors.T)


HALVES = np.arange(-80, 80)[:, None] / 2


@pytest.mark.parametrize(("bits", "signed"), [(2, True), (6, True), (6, False)])
@pytest.mark.parametrize("name", NAMES)
def test_without_errors_it_is_the_uniform_one_bit_for_bit(name, bits, signed):
    """Where values lie between two codes, too, and with errors of zero that are drawn."""
    ends = (-17.3, 17.3) if signed else (-5.1, 17.3)
    near = np.float32([[np.inf], [-np.inf], [0.0], [-0.0]])
    y = np.concatenate([HALVES, values(bits, signed, 1), near]).astype(np.float32)
    for given in (None, ends):
        lo, hi = given or range_of(bits, signed)
        exact = jax.jit(js.adc.uniform(bits).convert, static_argnums=3)(
            y, jnp.float32(lo), jnp.float32(hi), signed
        )
        for errors in ({}, {"mismatch": 0.0, "offset": 0.0})[: 1 if bits == 2 else 2]:
            codes, _ = converted(name, bits, signed, y, errors, ends=given)
            np.testing.assert_array_equal(codes, exact)


@pytest.mark.parametrize("name", ["uniform", *NAMES])
def test_a_silent_column_converts_to_zero_whatever_the_errors(name):
    errors = {"offset": 0.05} | ({} if name == "uniform" else {"mismatch": 0.2})
    for signed in (True, False):
        codes, _ = converted(name, 5, signed, np.zeros((1, 50)), errors, ends=(0.0, 0.0))
        np.testing.assert_array_equal(codes, 0)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_number_stays_none(name):
    codes, _ = converted(name, 4, True, np.float32([[np.nan], [1.0]]))
    np.testing.assert_array_equal(np.isnan(codes[:, 0]), [True, False])


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", ["sar", "ramp"])
def test_codes_rise_with_their_input_whatever_the_errors(name, signed):
    lo, hi = range_of(5, signed)
    y = np.repeat(np.linspace(lo - 1, hi + 1, 2000)[:, None], 8, 1)
    codes, _ = converted(name, 5, signed, y, {"mismatch": 0.5, "offset": 0.05})
    assert np.all(np.diff(codes, axis=0) >= 0)
    assert min(len(np.unique(c)) for c in codes.T) < 2**5 - 2  # and some codes are missing


def test_codes_of_stages_need_not_rise():
    """A control: with a hundredth of that mismatch a residue jumps back."""
    y = np.repeat(np.linspace(*range_of(7, True), 4000)[:, None], 8, 1)
    codes, _ = converted("pipeline", 7, True, y, {"mismatch": 0.05})
    assert np.any(np.diff(codes, axis=0) < 0)


@pytest.mark.parametrize("name", ["pipeline", "cyclic"])
def test_offsets_of_comparators_within_the_overlap_do_no_harm(name):
    """0.02 of 2 V: V / 4 is more than six deviations away."""
    y = np.repeat(np.arange(-7.0, 8)[:, None], 200, 1)  # on codes, half a step from a decision
    codes, _ = converted(name, 4, True, y, {"offset": 0.02})
    np.testing.assert_array_equal(codes, y)
    far, _ = converted(name, 4, True, y, {"offset": 0.3})
    assert np.any(far != y)


@pytest.mark.parametrize("code", [1, 12, 19, 31])
def test_the_threshold_of_a_code_has_the_deviation_of_the_closed_form(code):
    """mismatch · sqrt(c + c² / 2^bits), to first order."""
    sigma, bits, draws = 0.01, 5, 4000
    adc = js.adc.sar(bits, mismatch=sigma)
    errors = np.asarray(adc.parts(KEY, 1, draws)["capacitors"])[:, 0]
    thresholds = [converters.levels(bits, errors[:, i])[code] for i in range(draws)]
    law = sigma * math.sqrt(code + code**2 / 2**bits)
    assert np.std(thresholds) == pytest.approx(law, rel=0.05)
    # and the converter's own flips where that threshold says
    y = np.stack([np.float64(thresholds) - 0.5 - 1e-4, np.float64(thresholds) - 0.5 + 1e-4])
    codes, _ = converted("sar", bits, False, y, {"mismatch": sigma})
    assert np.mean((codes[0] < code) & (codes[1] >= code)) > 0.99


def test_a_finite_gain_shortens_every_level_as_its_formula_says():
    y = np.linspace(0, 31, 3000)[:, None]
    for name in ("sar", "ramp"):
        codes, _ = converted(name, 5, False, y, {"amplifier": 20.0})
        level = converters.levels(5, None, 20.0)
        expected = np.searchsorted(level[1:] - 0.5, y)
        assert np.mean(codes == expected) > 0.999


@pytest.mark.parametrize("name", ["uniform", *NAMES])
def test_gradients_pass_straight_through_as_those_of_the_uniform_one(name):
    bits, hi = 4, 7.0
    y = jnp.float32([-20.0, -7.2, -3.3, 0.0, 0.4, 6.9, 7.4, 9.0])

    def total(adc, parts, y, hi):
        return jnp.sum(jnp.arange(8.0) * adc.convert(y, -hi, hi, True, *parts))

    errors = {"offset": 1e-3} | ({} if name == "uniform" else {"mismatch": 0.01})
    adc = getattr(js.adc, name)(bits, **errors)
    parts = jax.tree.map(lambda a: a[..., 0, :], adc.parts(KEY, 1, 1))
    found = jax.grad(total, (2, 3))(adc, (parts,), y, jnp.float32(hi))
    exact = jax.grad(total, (2, 3))(js.adc.uniform(bits), (), y, jnp.float32(hi))
    np.testing.assert_array_equal(found[0], exact[0])
    assert 0 < abs(found[1]) < np.inf


@pytest.mark.parametrize("name", NAMES)
def test_errors_repeat_with_their_key_and_differ_from_column_to_column(name):
    y = values(5, True, 6)[:, :1].repeat(6, 1)
    first, again, other = (converted(name, 5, True, y, key=jax.random.key(k))[0] for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert np.any(first[:, 0] != first[:, 1])


def test_columns_that_share_a_converter_share_its_errors():
    for name in ("sar", "pipeline", "cyclic", "uniform"):
        adc = getattr(js.adc, name)(6, offset=0.1, columns_per_adc=3)
        offset = np.asarray(adc.parts(KEY, 2, 7)["offset"])
        assert offset.shape[-2:] == (2, 7)
        row = offset.reshape(-1, 7)[0]
        assert [len(set(part)) for part in (row[:3], row[3:6], row[:4])] == [1, 1, 2]
    # a ramp belongs to its array, a comparator to its column
    parts = js.adc.ramp(6, mismatch=0.1, offset=0.1).parts(KEY, 2, 7)
    assert [parts[k].shape for k in ("capacitors", "offset")] == [(7, 2, 1), (2, 7)]


def test_gain_and_offset_of_a_uniform_one_by_hand():
    adc = js.adc.uniform(4, gain_error=0.1, offset=0.02)
    parts = {"gain_error": jnp.float32([0.5]), "offset": jnp.float32([-0.1])}
    y = jnp.float32([[2.0], [4.0], [14.0]])
    found = adc.convert(y, 0.0, 15.0, False, parts)
    np.testing.assert_array_equal(found, [[2], [4], [15]])  # 1.5 and 4.5, to even; and clipped
    drawn = adc.parts(KEY, 100, 100)
    assert np.std(drawn["gain_error"]) == pytest.approx(0.1, rel=0.03)
    assert np.std(drawn["offset"]) == pytest.approx(0.02, rel=0.03)
    assert abs(np.corrcoef(np.ravel(drawn["gain_error"]), np.ravel(drawn["offset"]))[0, 1]) < 0.04


def chain(adc, *, rows=None):
    pieces = [sites.quantize(per="tensor"), (bit_sliced, {"bits": 4})]
    pieces += [(tiled, {"rows": rows})] if rows else []
    return [*pieces, (column_adc, {"adc": adc, "signed": True}), differential]


@pytest.mark.parametrize("rows", [None, 8])
@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
def test_every_slice_tile_and_column_has_parts_of_its_own(geometry, rows):
    """Each output is made of reads by its own converters: those drawn, put in one by one."""
    adc = js.adc.uniform(16, offset=0.01)
    x, w = sites.operands(geometry)
    pieces = chain(adc, rows=rows)
    state = sites.deployed(pieces, geometry, x, w, KEY)
    (found,) = (s for s in leaves(state) if isinstance(s, ConverterState))
    offset = np.asarray(found.parts["offset"])
    columns = geometry.w_shape[-1] if geometry is sites.DENSE else 4
    tiles = 1 if rows is None else -(-math.prod(geometry.w_shape) // columns // rows)
    assert offset.size == len(np.unique(offset)) == 2 * tiles * columns
    y = sites._read_state(sites.wrappers(pieces), geometry, state, x, KEY)
    exact = sites.read_deployed(chain(js.adc.uniform(16), rows=rows), geometry, x, w, KEY)
    # a slice adds its offset times its range, times what its place is worth
    ends = np.asarray(_shifted_apart(found.array.outputs))
    width = (ends[1] - ends[0]).reshape(2, -1)[:, 0]
    _, scale, _ = quantiser.quantise(Grid(8), x)
    scale = np.ravel(state.scale)[0] * scale
    groups = 2 if geometry is sites.CONV else 1
    each = np.swapaxes(offset.reshape(2, groups if rows else 1, tiles, -1), 1, 2)
    added = (each.reshape(2, tiles, columns) * (width * [1, 16])[:, None, None]).sum((0, 1))
    difference = np.asarray(y - exact)
    if geometry is sites.CONV:
        difference = np.moveaxis(difference, channel_axis(difference, columns), -1)
    # the median: what lies at an end of the range is clipped
    found = np.median(difference.reshape(-1, columns), 0)
    np.testing.assert_allclose(found, added * scale, atol=3e-3 * np.abs(added * scale).max())


def leaves(state):
    return jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, ConverterState))


def channel_axis(y, columns):
    (axis,) = [a for a, n in enumerate(y.shape) if n == columns]
    return axis


def net_of(adc, **settings):
    x = jax.random.normal(jax.random.key(3), (16, 12))
    params = {"w": jax.random.normal(jax.random.key(4), (12, 5))}
    net = js.trace(lambda params, x: jnp.tanh(x @ params["w"]), params, x)
    return js.compose(js.quantize(8, 8), js.analog(adc=adc, **settings))(net), x


def test_a_sweep_over_any_error_compiles_once():
    @jax.jit
    def outputs(net, x, key):
        return net(x, key=key)

    for name in NAMES:
        outputs.clear_cache()
        for size in (0.0, 0.1):
            errors = {"mismatch": size, "offset": size, "noise": size, "amplifier": 10 + size}
            net, x = net_of(getattr(js.adc, name)(6, **errors, percentile=99 + size))
            outputs(net, x, KEY)
        assert outputs._cache_size() == 1
    for size in (0.0, 0.1):
        net, x = net_of(js.adc.uniform(6 + size, gain_error=size, offset=size, noise=size))
        outputs(net, x, KEY)
    assert outputs._cache_size() == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_converter_may_be_an_argument_of_a_program(name):
    @jax.jit
    def outputs(adc, y):
        return adc.convert(y, 0.0, 15.0, False)

    for gain in (10.0, 30.0):
        adc = getattr(js.adc, name)(4, amplifier=gain)
        y = jnp.linspace(0, 15, 99)
        np.testing.assert_array_equal(outputs(adc, y), adc.convert(y, 0.0, 15.0, False))
    assert outputs._cache_size() == 1


@pytest.mark.parametrize("mapping", ["differential", "offset", "unit_column"])
def test_a_chip_keeps_its_converters(mapping, tmp_path):
    """Drawn at deployment, the same at each call, and from disk; cells do not change with them."""
    cells = js.cells.proportional(0.02)
    net, x = net_of(js.adc.sar(6, mismatch=0.05, offset=0.01), cells=cells, mapping=mapping)
    chip = js.deploy(net, key=KEY, calibrate=x)
    first = chip(x)
    np.testing.assert_array_equal(first, chip(x))
    assert np.any(first != js.deploy(net, key=jax.random.key(9), calibrate=x)(x))
    js.save(tmp_path / "chip", chip)
    np.testing.assert_array_equal(first, js.load(tmp_path / "chip", net)(x))
    plain, _ = net_of(6.0, cells=cells, mapping=mapping)
    ours, theirs = (cells_of(c) for c in (chip, js.deploy(plain, key=KEY, calibrate=x)))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def cells_of(chip):
    """Conductances of a chip: what is as large as a pair's cells, or an offset's."""
    return [a for a in jax.tree.leaves(chip.states) if np.size(a) in (60, 120, 12)]


def test_noise_is_drawn_at_each_call_and_conversion_and_not_at_calibration():
    net, x = net_of(js.adc.uniform(16, noise=0.01))
    exact, _ = net_of(16.0)
    chip, quiet = (js.deploy(n, calibrate=x) for n in (net, exact))
    for a, b in zip(jax.tree.leaves(chip.states), jax.tree.leaves(quiet.states), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="key=None: converters with noise"):
        chip(x)
    first, other = (np.arctanh(chip(x, key=jax.random.key(k))) for k in (1, 2))
    assert not np.array_equal(first, other)


def test_the_noise_of_a_conversion_is_a_share_of_the_range():
    op = Op(Dot((1,), (), (0,), (), 2, (1, 1)), ranges="stored")
    core = sites.core_of((column_adc, {"adc": js.adc.uniform(16, noise=0.02), "signed": True}))
    w, x = np.ones((1, 1), np.float32), np.full((4000, 1), 0.5, np.float32)
    state = core.calibrate(op, core.write(op, w, None), np.float32([[2.0]]))
    y = np.asarray(core.read(op, state, x, KEY))[:, 0]
    assert y.mean() == pytest.approx(0.5, abs=0.005)
    assert y.std() == pytest.approx(0.02 * 4, rel=0.05)
    assert abs(np.corrcoef(y[1:], y[:-1])[0, 1]) < 0.05


def test_a_converter_that_differs_needs_a_key():
    net, x = net_of(js.adc.sar(6, mismatch=0.05))
    with pytest.raises(ValueError, match="key=None: converters that differ"):
        js.deploy(net, calibrate=x)


def test_one_of_ones_own_has_parts_and_noise_too():
    """A converter whose columns are shifted by a step each, drawn where the chip is written."""

    def convert(y, lo, hi, signed, parts):
        return js.adc.uniform(8).convert(y + parts, lo, hi, signed)

    def parts(key, arrays, columns):
        return jnp.arange(float(columns))[None]

    own = js.adc.uniform(8)._replace(convert=convert, parts=parts)
    op = Op(Dot((1,), (), (0,), (), 2, (1, 3)), ranges="stored")
    core = sites.core_of((column_adc, {"adc": own, "signed": True}))
    state = core.write(op, np.ones((1, 3), np.float32), KEY)
    state = core.calibrate(op, state, np.float32([[127.0]]))
    np.testing.assert_allclose(core.read(op, state, np.float32([[5.0]]), None), [[5, 6, 7]])


def test_parts_stand_at_their_array_and_column_whatever_the_order_of_axes():
    """A weight [columns, rows, arrays] of numbers that say which array and column they serve."""

    def convert(y, lo, hi, signed, parts):
        return y + parts["array"] + parts["column"]

    def parts(key, arrays, columns):
        return {"array": 10.0 * jnp.arange(arrays)[:, None], "column": jnp.arange(columns)[None]}

    own = js.adc.uniform(8)._replace(convert=convert, parts=parts)
    op = Op(Dot((2,), (0,), (1,), (2,), 3, (3, 4, 2)))
    core = sites.core_of((column_adc, {"adc": own, "signed": True}))
    x, w = jnp.ones((2, 5, 4)), jnp.zeros((3, 4, 2))
    y = core.read(op, core.write(op, w, KEY), x, None)
    expected = 10 * np.arange(2)[:, None, None] + np.arange(3) + np.zeros((1, 5, 1))
    np.testing.assert_array_equal(y, expected)


def test_converters_draw_numbers_of_their_own():
    """Not those of the cells, which are given the same key of the site."""

    def parts(key, arrays, columns):
        return jax.random.normal(key, (arrays, columns))

    own = js.adc.uniform(8)._replace(convert=lambda *args: args[0] + args[-1], parts=parts)
    cells = js.cells.Device(lambda g, key: jax.random.normal(key, g.shape))
    op = Op(Dot((1,), (), (0,), (), 2, (1, 6))).codes(np.array(0), np.array(1))
    pieces = (column_adc, {"adc": own, "signed": False}), (conductance, {"device": cells})
    state = sites.core_of(*pieces).write(op, jnp.ones((1, 6)), KEY)
    drawn = [np.ravel(a) for a in jax.tree.leaves(state) if np.size(a) == 6]
    assert len(drawn) == 2
    assert np.abs(drawn[0] - drawn[1]).min() > 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: js.adc.sar(0), "bits=0: must be an int from 1 to 16"),
        (lambda: js.adc.ramp(17), "bits=17"),
        (lambda: js.adc.pipeline(8.5), "bits=8.5: must be an int"),
        (lambda: js.adc.cyclic(8, mismatch=-0.1), "mismatch=-0.1: must be a number of at least 0"),
        (lambda: js.adc.sar(8, offset=-0.1), "offset=-0.1"),
        (lambda: js.adc.ramp(8, noise=-0.1), "noise=-0.1"),
        (lambda: js.adc.pipeline(8, amplifier=0.0), "amplifier=0.0: must be a number above 0"),
        (lambda: js.adc.sar(8, columns_per_adc=0), "columns_per_adc=0"),
        (lambda: js.adc.cyclic(8, span="all"), "span='all': must be 'calibrated'"),
        (lambda: js.adc.ramp(8, percentile=0.0), "percentile=0.0"),
        (lambda: js.adc.uniform(8, gain_error=-1.0), "gain_error=-1.0"),
        (lambda: js.analog(adc=js.adc.sar(1)), "adc.bits=1"),
        (lambda: js.adc.Kind("dual"), "name='dual': must be one of 'flash', 'pipeline'"),
        (lambda: js.analog(adc=js.adc.sar(8)._replace(kind="sar")), "adc.kind='sar': must be a"),
    ],
)
def test_what_no_converter_can_be_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_the_name_of_a_circuit_says_its_errors():
    assert str(js.adc.sar(8, mismatch=0.02)) == "successive_approximation, 8 bits, mismatch 0.02"
    assert str(js.adc.sar(8, split=4)) == "successive_approximation, 8 bits, split 4"
    assert str(js.adc.ramp(8, amplifier=100, noise=0.1)).endswith("amplifier 100, noise 0.1")
    assert "offset 0.3" in str(js.adc.cyclic(8, offset=0.3, columns_per_adc=4))
