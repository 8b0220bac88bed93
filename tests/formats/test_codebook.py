import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.formats.codebook import fp4, k_means, nearest, nf4

# Mean squared errors of the best 1 to 4 bit tables for a normal variable: Max (1960), table 1.
LLOYD_MAX = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}


@pytest.mark.parametrize("bits", LLOYD_MAX)
def test_k_means_of_a_normal_variable_reaches_the_error_of_lloyd_and_max(bits):
    x = jax.random.normal(jax.random.key(0), (100_000, 1))
    centres, pointers = k_means(x, size=2**bits, iterations=100)
    error = float(jnp.mean((centres[pointers] - x) ** 2))
    assert error == pytest.approx(LLOYD_MAX[bits], rel=0.02)


@pytest.mark.parametrize("length", [1, 3])
def test_k_means_ends_where_centres_are_means_and_pointers_nearest(length):
    x = jax.random.normal(jax.random.key(1), (400, length))
    centres, pointers = (np.asarray(a) for a in k_means(x, size=8, iterations=300))
    distances = ((np.asarray(x)[:, None] - centres) ** 2).sum(-1)
    np.testing.assert_array_equal(pointers, distances.argmin(-1))
    for i, centre in enumerate(centres):
        np.testing.assert_allclose(centre, np.asarray(x)[pointers == i].mean(0), atol=1e-5)


def test_k_means_finds_clusters_that_its_start_missed():
    spots = np.array([[0.0], [1.0], [1.01], [50.0]])
    x = jnp.asarray(np.repeat(spots, [500, 1, 1, 1], 0), jnp.float32)
    centres, _ = k_means(x, size=4, iterations=50)
    np.testing.assert_allclose(centres, spots, atol=1e-5)


def test_nearest_is_that_of_all_distances():
    levels = jnp.asarray(nf4().levels)
    x = jax.random.normal(jax.random.key(2), (1000,))
    expected = np.abs(np.asarray(x)[:, None] - np.asarray(levels)).argmin(-1)
    np.testing.assert_array_equal(nearest(x, levels), expected)


def test_nf4_is_symmetric_at_its_ends_holds_zero_and_spreads_a_normal_variable():
    levels = np.asarray(nf4().levels)
    assert len(levels) == 16
    assert (levels[0], levels[7], levels[-1]) == (-1, 0, 1)
    x = np.random.default_rng(0).normal(size=64 * 4000).reshape(-1, 64)
    x /= np.abs(x).max(1, keepdims=True)
    share = np.bincount(np.asarray(nearest(jnp.asarray(x.ravel()), jnp.asarray(levels))))
    assert share.max() / share.sum() < 0.1  # evenly used: int4 puts 15 % in its middle code


def test_fp4_is_the_float_of_two_exponent_bits_and_one_of_mantissa():
    import ml_dtypes

    codes = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_allclose(np.multiply(fp4().levels, 6), np.unique(codes), atol=1e-6)
