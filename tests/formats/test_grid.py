import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsim.formats import clipping
from jaxsim.formats.grid import (
    Grid,
    Range,
    encode,
    no_range,
    observe_range,
    scale_and_zero,
    update_range,
)
from tests.oracles import quantiser

grids = st.builds(Grid, bits=st.integers(2, 8), symmetric=st.booleans())
values = hnp.arrays(
    np.float32,
    st.sampled_from([(1,), (7,), (3, 4)]),  # few shapes: each compiles once
    elements=st.floats(-100, 100, width=32, allow_subnormal=False).map(lambda v: round(v, 3)),
)
some = settings(max_examples=30)
observed = jax.jit(observe_range, static_argnames=("axes", "symmetric"))


def _encoded(grid, x):
    scale, zero = scale_and_zero(grid, observe_range(x, symmetric=grid.symmetric))
    return encode(grid, x, scale, zero), scale, zero


@some
@given(grids, values)
def test_codes_equal_those_of_numpy(grid, x):
    codes, scale, zero = _encoded(grid, jnp.asarray(x))
    expected, step, z = quantiser.quantise(grid, x)
    np.testing.assert_array_equal(scale, step)
    np.testing.assert_array_equal(zero, z)
    np.testing.assert_array_equal(codes, expected)


@some
@given(grids, values)
def test_every_value_in_range_decodes_to_within_half_a_step(grid, x):
    codes, scale, zero = _encoded(grid, jnp.asarray(x))
    error = np.abs((codes - zero) * scale - x)
    slack = 1e-5 * np.abs(x).max()
    half = 0.5 if grid.symmetric else 1.0  # the zero point of an affine grid is itself rounded
    assert error.max() <= half * scale + slack


@some
@given(grids, values)
def test_zero_is_exact(grid, x):
    _, scale, zero = _encoded(grid, jnp.asarray(x))
    assert encode(grid, jnp.zeros(()), scale, zero) == zero
    assert grid.code_range[0] <= zero <= grid.code_range[1]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axes", [None, (0,), (0, 2)])
@pytest.mark.parametrize("percentile", [None, 50.0, 90.0, 99.98, 100.0])
def test_ranges_equal_numpy_percentiles(symmetric, axes, percentile):
    x = np.random.default_rng(0).normal(1, 2, (40, 3, 50)).astype(np.float32)
    clip = None if percentile is None else clipping.percentile(percentile)
    found = observed(x, axes=axes, clip=clip, symmetric=symmetric)
    expected = quantiser.observed(x, axes=axes, percentile=percentile, symmetric=symmetric)
    for end, value in zip(found, expected, strict=True):
        assert end.shape == np.shape(value)
        np.testing.assert_allclose(end, value, rtol=2e-5, atol=1e-6)


def test_no_gradient_flows_to_a_range():
    ends = lambda x: observe_range(x).hi + observe_range(x, clip=clipping.percentile(90.0)).lo  # noqa: E731
    gradient = jax.jit(jax.grad(ends))(np.arange(9, dtype=np.float32))
    np.testing.assert_array_equal(gradient, 0)


def test_an_all_zero_tensor_and_a_single_element_have_a_grid():
    for symmetric in (True, False):
        grid = Grid(symmetric=symmetric)
        codes, scale, zero = _encoded(grid, jnp.zeros((3, 2)))
        assert scale == 1
        np.testing.assert_array_equal(codes, zero)
        codes, scale, zero = _encoded(grid, jnp.array([-0.3]))
        assert (codes - zero) * scale == pytest.approx(-0.3, rel=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_gradient_is_one_on_every_code_inside_and_zero_outside(bits, symmetric):
    """Also on the largest code: a clip whose derivative is a half at its ends fails."""
    grid = Grid(bits=bits, symmetric=symmetric)
    qmin, qmax = grid.code_range
    codes = np.arange(qmin - 2, qmax + 3)

    @jax.jit
    def slopes(lo, hi):
        scale, zero = scale_and_zero(grid, Range(lo, hi))
        x = (codes - zero) * scale
        return jax.vmap(jax.grad(lambda v: encode(grid, v, scale, zero) * scale))(x)

    gradient = slopes(np.float32(-1), np.float32(1))
    inside = (codes >= qmin) & (codes <= qmax)
    np.testing.assert_allclose(gradient, inside.astype(np.float32), rtol=1e-6)


def test_widen_holds_both_and_starts_from_nothing():
    a, b = Range(jnp.float32(-1), jnp.float32(2)), Range(jnp.float32(-3), jnp.float32(1))
    assert update_range(a, b) == (-3, 2)
    assert update_range(no_range(), a) == a


@pytest.mark.parametrize(
    ("average", "expected"),
    [(None, (-9.0, 6.0)), (0.0, (-9.0, 1.0)), (0.75, (-3.0, 4.75)), (1.0, (-1.0, 6.0))],
)
def test_the_share_of_a_moving_average_is_the_old_range_s(average, expected):
    """0.75 · -1 + 0.25 · -9 = -3 and 0.75 · 6 + 0.25 · 1 = 4.75."""
    a, b = Range(jnp.float32(-1), jnp.float32(6)), Range(jnp.float32(-9), jnp.float32(1))
    assert update_range(a, b, average) == expected
    assert update_range(no_range(), b, average) == b
    still = Range(jnp.float32(2), jnp.float32(2))  # of one value, and seen
    assert update_range(still, Range(jnp.float32(0), jnp.float32(4)), 0.5) == (1, 3)


def test_the_first_range_is_taken_to_the_bit_and_makes_no_nan_on_the_way():
    ends = jax.random.normal(jax.random.key(0), (100,))
    first = Range(-jnp.abs(ends), jnp.abs(ends))
    for average in (0.0, 0.3):
        with jax.debug_nans(True):
            found = update_range(no_range((100,)), first, average)
        np.testing.assert_array_equal(found, first)


def test_each_site_of_a_stack_begins_its_average_on_its_own():
    old = Range(jnp.array([jnp.inf, -1.0]), jnp.array([-jnp.inf, 1.0]))
    new = Range(jnp.array([-4.0, -5.0]), jnp.array([8.0, 3.0]))
    found = update_range(old, new, 0.5)
    np.testing.assert_array_equal(found.lo, [-4, -3])
    np.testing.assert_array_equal(found.hi, [8, 2])


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_one_bit_passes_gradients_up_to_the_end_of_its_range_and_none_beyond(scale):
    """The end is the mean magnitude: about half of all values lie beyond it."""
    one, none = jnp.float32(scale), jnp.float32(0)
    slope = jax.jit(jax.vmap(jax.grad(lambda v: encode(Grid(1), v, one, none) * scale)))
    steps = jnp.array([-2.0, -1.5, -1.01, -1.0, -0.5, 0.0, 0.5, 1.0, 1.01, 1.5, 2.0])
    np.testing.assert_array_equal(slope(scale * steps), [0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0])


def test_powers_pass_gradients_wherever_they_round_to_a_code():
    """Up to 96 steps of 64, and up to 1.5 of 1: what is halfway is rounded down."""
    one, none = jnp.float32(1), jnp.float32(0)
    for bits, steps, expected in (
        (4, [-3.0, 3.0, 90.0, 97.0], [1, 1, 1, 0]),
        (2, [1.3, 1.6], [1, 0]),
    ):
        grid = Grid(bits, spacing="powers")
        slope = jax.jit(jax.vmap(jax.grad(lambda v, grid=grid: encode(grid, v, one, none))))
        np.testing.assert_array_equal(slope(jnp.array(steps)), expected)


def test_one_bit_has_a_code_for_zero_only_where_it_is_kept():
    x, one, none = jnp.array([-0.1, -0.0, 0.0, 5.0]), jnp.float32(1), jnp.float32(0)
    np.testing.assert_array_equal(encode(Grid(1), x, one, none), [-1, 1, 1, 1])
    np.testing.assert_array_equal(encode(Grid(1), x, one, none, kept=True), [-1, 0, 0, 1])
    np.testing.assert_array_equal(encode(Grid(1), 0 * x, none, none, kept=True), 0)
    np.testing.assert_array_equal(encode(Grid(1), 3 * x, none, none), [-1, 1, 1, 1])


@pytest.mark.parametrize(
    ("bits", "symmetric", "spacing", "expected"),
    [
        (1, True, "even", (-1, 1)),
        (2, True, "even", (-1, 1)),
        (2, False, "even", (-2, 1)),
        (5, True, "even", (-15, 15)),
        (5, False, "even", (-16, 15)),
        (8, True, "even", (-127, 127)),
        (8, False, "even", (-128, 127)),
        (2, True, "powers", (-1, 1)),
        (3, True, "powers", (-4, 4)),
        (4, True, "powers", (-64, 64)),
    ],
)
def test_codes_of_so_many_bits_reach_so_far(bits, symmetric, spacing, expected):
    assert Grid(bits, symmetric=symmetric, spacing=spacing).code_range == expected


def test_powers_of_two_round_to_the_nearest_and_halfway_to_the_smaller():
    grid, one, none = Grid(4, spacing="powers"), jnp.float32(1), jnp.float32(0)
    steps = [0.49, 0.5, 0.51, 1.0, 1.49, 1.5, 1.51, 2.9, 3.0, 3.1, 4.0, 6.0, 6.1, 48.0, 49.0, 500]
    codes = [0, 0, 1, 1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 32, 64, 64]
    np.testing.assert_array_equal(encode(grid, jnp.array(steps), one, none), codes)
    np.testing.assert_array_equal(encode(grid, -jnp.array(steps), one, none), np.negative(codes))


@pytest.mark.parametrize("spacing", ["even", "powers"])
def test_stochastic_rounding_leaves_what_is_a_code(spacing):
    grid = Grid(4, spacing=spacing, rounding="stochastic")
    codes = jnp.tile(jnp.array([0.0, 1, 2, 4, -1, -2, -4]), (500, 1))
    found = encode(grid, codes, jnp.float32(1), jnp.float32(0), jax.random.key(3))
    np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize("spacing", ["even", "powers"])
def test_stochastic_rounding_without_a_key_is_to_the_nearest(spacing):
    plain, drawn = (Grid(4, spacing=spacing, rounding=r) for r in ("nearest", "stochastic"))
    x, one, none = jnp.linspace(-7, 7, 83), jnp.float32(1), jnp.float32(0)
    np.testing.assert_array_equal(encode(drawn, x, one, none), encode(plain, x, one, none))
    assert np.any(encode(drawn, x, one, none, jax.random.key(0)) != encode(plain, x, one, none))
    key = jax.random.key(0)
    np.testing.assert_array_equal(encode(plain, x, one, none, key), encode(plain, x, one, none))


def test_stochastic_rounding_draws_for_each_value_and_repeats_with_its_key():
    grid, x = Grid(4, rounding="stochastic"), jnp.full((2, 20_000), 2.25)
    one, none = jnp.float32(1), jnp.float32(0)
    first, again, other = (encode(grid, x, one, none, jax.random.key(k)) for k in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert set(np.unique(first)) == {2, 3}
    assert np.mean(first) == pytest.approx(2.25, abs=0.01)
    for a, b in ((first[0], first[1]), (first[0], other[0]), (first[0, 1:], first[0, :-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


def test_values_far_beyond_the_range_take_the_last_code():
    grid, tiny, none = Grid(8), jnp.float32(1e-30), jnp.float32(0)
    x = jnp.array([-3e38, -1e-20, 1e-20, 3e38])
    np.testing.assert_array_equal(encode(grid, x, tiny, none), [-127, -127, 127, 127])
    powers = Grid(4, spacing="powers")
    np.testing.assert_array_equal(encode(powers, x, tiny, none), [-64, -64, 64, 64])


def test_ranges_of_masked_one_bit_weights_are_the_mean_magnitude_of_those_kept():
    """Row one: (3 + 5) / 2; row two: nothing is kept; all: 11 / 4 and 8 / 4."""
    x = jnp.array([[3.0, -5.0, 0.0, 3.0], [0.0, 0.0, 0.0, -8.0]])
    among = jnp.array([[True, True, False, False], [False] * 4])
    kept, every = (observe_range(x, axes=(1,), bits=1, among=m) for m in (among, None))
    np.testing.assert_array_equal(kept.hi, [[4], [0]])
    np.testing.assert_array_equal(every.hi, [[2.75], [2]])
    np.testing.assert_array_equal(kept.lo, -kept.hi)
    assert observe_range(x[0], bits=1, among=among[0]) == (-4, 4)
    assert observe_range(x[0], bits=1) == (-2.75, 2.75)


def test_no_values_have_the_empty_range_of_each_row():
    assert observe_range(jnp.zeros((0, 3))) == no_range()
    r = observe_range(jnp.zeros((2, 0, 3)), axes=(1,), clip=clipping.percentile(90.0))
    np.testing.assert_array_equal(r.lo, np.full((2, 1, 3), np.inf))
    np.testing.assert_array_equal(r.hi, np.full((2, 1, 3), -np.inf))


def test_the_zero_of_an_affine_grid_lies_where_its_range_puts_it():
    """[-1, 3] on 16 codes: a step of 4/15, and zero at -8 + 1/(4/15) = -4.25, so -4."""
    grid = Grid(4, symmetric=False)
    for (lo, hi), step, code in (((-1, 3), 4 / 15, -4), ((2, 3), 0.2, -8), ((-3, -2), 0.2, 7)):
        scale, zero = scale_and_zero(grid, Range(jnp.float32(lo), jnp.float32(hi)))
        assert float(scale) == pytest.approx(step, rel=1e-6)
        assert zero == code


def test_a_symmetric_grid_covers_the_farther_end():
    for lo, hi in ((-14, 3), (-3, 14)):
        scale, zero = scale_and_zero(Grid(4), Range(jnp.float32(lo), jnp.float32(hi)))
        assert (scale, zero) == (2, 0)


def test_a_range_without_width_has_step_one_and_on_one_bit_step_zero():
    still = Range(jnp.float32(0), jnp.float32(0))
    steps = [scale_and_zero(g, still)[0] for g in (Grid(1), Grid(2), Grid(2, symmetric=False))]
    assert steps == [0, 1, 1]


GOOD = {
    "weights": [
        {"bits": 1},
        {"bits": 8},
        {"bits": 2, "spacing": "powers"},
        {"bits": 4, "spacing": "powers"},
        {"per": "channel"},
        {"per": "group", "rows": 1},
        {"bits": 2, "rounding": "stochastic"},
        {"clip": clipping.rms(1.0)},
    ],
    "inputs": [{"dynamic": True}, {"average": 0.0}, {"average": 1.0}, {"per": "token"}],
}
BAD = {
    "weights": [
        ({"bits": 0}, "weights: bits=0: must be an int from 1 to 8"),
        ({"bits": 9}, "weights: bits=9: must be an int from 1 to 8"),
        ({"bits": 4.0}, "weights: bits=4.0"),
        ({"per": "row"}, "weights: per='row', must be one of"),
        ({"per": "group"}, "weights: rows=None with per='group'"),
        ({"rows": 3}, "weights: rows=3 with per='tensor'"),
        ({"per": "group", "rows": 0}, "weights: rows=0: must be an int of at least 1"),
        ({"spacing": "odd"}, "weights: spacing='odd'"),
        ({"rounding": "up"}, "weights: rounding='up'"),
        ({"bits": 1, "symmetric": False}, "symmetric=False with bits=1"),
        ({"bits": 4, "spacing": "powers", "symmetric": False}, "symmetric=False with bits=4"),
        ({"bits": 1, "spacing": "powers"}, "bits=1 of powers of two"),
        ({"bits": 5, "spacing": "powers"}, "bits=5 of powers of two"),
        ({"bits": 1, "rounding": "stochastic"}, "rounding='stochastic' with bits=1"),
        ({"clip": clipping.rms}, "weights: clip=js.clipping.rms|clip=clipping.rms"),
        ({"clip": 3.0}, "weights: clip=3.0, must be a rule"),
        ({"dynamic": True}, "dynamic, average and per='token' are for inputs"),
        ({"average": 0.5}, "dynamic, average and per='token' are for inputs"),
        ({"per": "token"}, "dynamic, average and per='token' are for inputs"),
    ],
    "inputs": [
        ({"per": "channel"}, "inputs: per='channel', must be 'tensor' or 'token'"),
        ({"per": "group", "rows": 2}, "inputs: per='group', must be 'tensor' or 'token'"),
        ({"average": -0.1}, "inputs: average=-0.1"),
        ({"average": 1.1}, "inputs: average=1.1"),
        ({"average": 0.5, "dynamic": True}, "inputs: average=0.5 has no effect"),
        ({"average": 0.5, "per": "token"}, "inputs: average=0.5 has no effect"),
    ],
}


@pytest.mark.parametrize("side", GOOD)
def test_settings_that_fit_together_are_taken(side):
    for settings_of in GOOD[side]:
        found = Grid(**settings_of).checked(side)
        for name, value in settings_of.items():
            assert getattr(found, name) == value
        # an array: a sweep over ints would compile anew
        assert found.average is None or found.average.dtype == jnp.float32


@pytest.mark.parametrize(
    ("side", "settings_of", "said"),
    [(side, settings_of, said) for side, cases in BAD.items() for settings_of, said in cases],
)
def test_settings_that_do_not_are_refused_by_name(side, settings_of, said):
    with pytest.raises(ValueError, match=said):
        Grid(**settings_of).checked(side)


def test_a_grid_prints_each_of_its_settings():
    whole = Grid(4, False, "group", clipping.rms(1.0), True, None, 3, "powers", "stochastic")
    shown = "int4 affine per group of 3 clipped dynamic powers of two stochastic"
    assert str(whole) == shown
    assert str(Grid()) == "int8 symmetric per tensor"
