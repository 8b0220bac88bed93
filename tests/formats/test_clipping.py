import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsim.formats import clipping
from jaxsim.formats.grid import Grid, Range, encode, observe_range, scale_and_zero
from tests.oracles import quantiser, thresholds

LAPLACE = np.random.default_rng(0).laplace(size=4000).astype(np.float32)


def error(x, clip, grid):
    r = observe_range(jnp.asarray(x), clip=clip, bits=grid.bits, symmetric=grid.symmetric)
    scale, zero = scale_and_zero(grid, r)
    return float(np.mean(((encode(grid, jnp.asarray(x), scale, zero) - zero) * scale - x) ** 2))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_least_squares_is_within_two_percent_of_the_best_of_all_ranges(bits, symmetric):
    grid = Grid(bits, symmetric=symmetric)
    best = thresholds.least_error(LAPLACE, grid)
    assert error(LAPLACE, clipping.least_squares(), grid) <= 1.02 * best
    assert error(LAPLACE, clipping.least_squares(), grid) <= error(LAPLACE, None, grid)


def test_two_bits_by_least_squares_beat_the_thresholds_of_ternary_weight_networks():
    w = np.random.default_rng(1).normal(size=5000).astype(np.float32)
    delta = 0.7 * np.abs(w).mean()
    alpha = np.abs(w[np.abs(w) > delta]).mean()
    ternary = np.mean((np.where(np.abs(w) > delta, alpha * np.sign(w), 0) - w) ** 2)
    assert error(w, clipping.least_squares(), Grid(2)) <= ternary


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_entropy_threshold_is_that_of_a_search_by_hand(bits, symmetric):
    """Up to what sums of 2048 terms in float32 can tell apart."""
    x = LAPLACE if symmetric else np.maximum(LAPLACE, 0)
    r = observe_range(jnp.asarray(x), clip=clipping.entropy(), bits=bits, symmetric=symmetric)
    by_threshold = thresholds.divergences(x, bits, symmetric)
    nearest = min(by_threshold, key=lambda t: abs(t - float(r.hi)))
    assert nearest == pytest.approx(float(r.hi), rel=1e-5)
    assert by_threshold[nearest] <= min(by_threshold.values()) + 2e-6


def test_zeros_do_not_move_the_entropy_threshold():
    x = np.maximum(LAPLACE, 0)
    with_zeros, without = (
        observe_range(jnp.asarray(v), clip=clipping.entropy(), bits=4) for v in (x, x[x > 0])
    )
    assert with_zeros.hi == without.hi


def test_entropy_cuts_a_lone_outlier_off():
    x = np.append(LAPLACE, np.float32(1000))
    r = observe_range(jnp.asarray(x), clip=clipping.entropy(), bits=8, symmetric=True)
    assert float(r.hi) < 500


@settings(max_examples=20)
@given(st.floats(0.1, 5), st.booleans())
def test_rms_is_that_of_numpy(width, symmetric):
    r = observe_range(jnp.asarray(LAPLACE), clip=clipping.rms(width), symmetric=symmetric)
    if symmetric:
        expected = width * np.sqrt(np.mean(LAPLACE**2))
        np.testing.assert_allclose(r, (-expected, expected), rtol=1e-4)
    else:
        ends = LAPLACE.mean() - width * LAPLACE.std(), LAPLACE.mean() + width * LAPLACE.std()
        np.testing.assert_allclose(r, np.clip(ends, LAPLACE.min(), LAPLACE.max()), rtol=1e-3)


@pytest.mark.parametrize("clip", [clipping.least_squares(), clipping.entropy(), clipping.rms(2.0)])
def test_each_row_has_the_range_it_would_have_alone(clip):
    x = jnp.asarray(LAPLACE.reshape(4, 1000))
    together = observe_range(x, axes=(1,), clip=clip, bits=4, symmetric=True)
    for i, row in enumerate(x):
        alone = observe_range(row, clip=clip, bits=4, symmetric=True)
        np.testing.assert_allclose(together.hi[i, 0], alone.hi, rtol=1e-5)


@pytest.mark.parametrize("clip", [None, clipping.least_squares(), clipping.entropy()])
def test_zeros_have_a_finite_range_and_step_one(clip):
    r = observe_range(jnp.zeros(50), clip=clip, bits=8, symmetric=True)
    scale, _ = scale_and_zero(Grid(8), Range(*(jnp.round(end, 20) for end in r)))
    assert np.isfinite(r.hi)
    assert np.isfinite(scale)


def rounded(x, lo, hi, grid, rule):
    clip = rule(lo, hi) if rule is clipping.learned else rule(hi)
    x, r = clipping.cut(
        clip, x, observe_range(x, clip=clip, bits=grid.bits, symmetric=grid.symmetric)
    )
    scale, zero = scale_and_zero(grid, r)
    return (encode(grid, x, scale, zero) - zero) * scale


def test_a_learned_step_has_the_derivative_of_lsq():
    grid, x, hi = Grid(3), jnp.asarray(LAPLACE[:50]), 1.2
    found = jax.vmap(
        jax.grad(lambda h, v: rounded(v[None], -h, h, grid, clipping.learned)[0]), (None, 0)
    )
    step = hi / 3
    by_step = np.where(np.abs(x / step) <= 3.5, np.rint(x / step) - x / step, 3 * np.sign(x))
    inside = np.abs(np.rint(x / step)) <= 3
    by_step = np.where(inside, by_step, 3 * np.sign(x))
    np.testing.assert_allclose(found(hi, x), by_step / 3 / np.sqrt(3), rtol=1e-4, atol=1e-5)


def test_pact_trains_its_end_by_what_it_cuts_off():
    grid, x = Grid(4, symmetric=False), jnp.array([-1.0, 0.3, 0.9, 1.1, 7.0])
    by_end = jax.jacobian(lambda h: rounded(x, 0.0, h, grid, clipping.pact))(1.0)
    np.testing.assert_array_equal(by_end, [0, 0, 0, 1, 1])
    by_x = jax.vmap(jax.grad(lambda v: rounded(v[None], 0.0, 1.0, grid, clipping.pact)[0]))(x)
    np.testing.assert_array_equal(by_x, [0, 1, 1, 0, 0])


def test_fixed_ranges_may_differ_by_channel():
    x, hi = jnp.ones((3, 5)), jnp.array([1.0, 2.0, 4.0])
    r = observe_range(x, axes=(1,), clip=clipping.fixed(-hi, hi))
    np.testing.assert_array_equal(r.hi, hi[:, None])


def test_a_sweep_over_a_rule_compiles_once():
    seen = []

    @jax.jit
    def codes(grid, x):
        seen.append(None)
        r = observe_range(x, clip=grid.clip, bits=grid.bits, symmetric=grid.symmetric)
        return encode(grid, x, *scale_and_zero(grid, r))

    for width in (1.0, 2, 3.5):
        codes(Grid(4, clip=clipping.rms(width)), jnp.asarray(LAPLACE))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("message", "make"),
    {
        "percentile: share=0": lambda: clipping.percentile(0),
        "percentile: share=100.5": lambda: clipping.percentile(100.5),
        "rms: width=-1": lambda: clipping.rms(-1),
        "lo=1.0, hi=0.0": lambda: clipping.fixed(1.0, 0.0),
        "lo=nan": lambda: clipping.learned(float("nan"), 1.0),
        "pact: hi=0": lambda: clipping.pact(0),
    }.items(),
)
def test_bad_rules_are_refused(message, make):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_oracle_codes_as_the_package_does():
    grid = Grid(4)
    codes, step, _ = quantiser.quantise(grid, LAPLACE)
    assert thresholds.squared_error(LAPLACE, grid, -abs(LAPLACE).max(), abs(LAPLACE).max()) == (
        pytest.approx(np.mean((codes * step - LAPLACE) ** 2), rel=1e-5)
    )
