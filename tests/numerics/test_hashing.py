"""Hashed numbers: normal, and independent of their place, their key and one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxsim.numerics.hashing import hashed_normal, mix
from tests.oracles import hashing

N = 2**18
draw = jax.jit(hashed_normal, static_argnums=1)


@pytest.fixture(scope="module")
def draws():
    """A row for each of 16 keys that follow one another."""
    return np.stack([draw(jax.random.key(i), (N,)) for i in range(16)])


def test_numbers_are_normal(draws):
    for z in draws[:4]:
        assert stats.kstest(z, "norm").pvalue > 1e-4
    all_ = draws.ravel().astype(np.float64)
    error = 1 / np.sqrt(all_.size)
    moments = [np.mean(all_**k) for k in range(1, 7)]
    expected, spread = [0, 1, 0, 3, 0, 15], [1, 2, 15, 96, 945, 10170]  # of z^k, by hand
    for got, wanted, variance in zip(moments, expected, spread, strict=True):
        assert abs(got - wanted) < 5 * error * np.sqrt(variance)
    beyond = np.mean(np.abs(all_) > 4)
    assert beyond == pytest.approx(2 * stats.norm.sf(4), rel=0.3)
    assert stats.kstest(draws[0] * 1.03, "norm").pvalue < 1e-4  # a control


def test_numbers_of_other_places_and_keys_are_not_correlated(draws):
    limit = 5 / np.sqrt(N)
    for lag in (1, 2, 3, 64, 1000, 1024, 2**15, 2**16, 2**17):
        for power in (1, 2):
            z = draws[0].astype(float) ** power
            a, b = z[lag:], z[:-lag]
            assert abs(np.corrcoef(a, b)[0, 1]) < limit * 2, (lag, power)
    for power in (1, 2):
        across = np.corrcoef(draws.astype(float) ** power)
        assert np.abs(across - np.eye(16)).max() < limit * 1.2
    shifted = np.corrcoef(draws[0, 1:], draws[1, :-1])[0, 1]
    assert abs(shifted) < limit


def test_sums_over_rows_and_columns_spread_as_independent_ones(draws):
    """What a product with cells sums up."""
    table = draws[0].reshape(512, 512)
    for axis in (0, 1):
        assert np.var(table.sum(axis)) == pytest.approx(512, rel=0.25)
    many = draws.reshape(16, 512, 512).sum(1).ravel()
    assert np.var(many) == pytest.approx(512, rel=0.06)


def test_keys_of_every_kind_draw_and_shapes_are_places():
    flat = draw(jax.random.key(0), (24,))
    np.testing.assert_array_equal(draw(jax.random.key(0), (2, 3, 4)).ravel(), flat)
    other = draw(jax.random.key(0, impl="rbg"), (24,))
    assert not np.array_equal(other, flat)
    assert draw(jax.random.key(0), ()).shape == ()
    assert draw(jax.random.key(0), (0, 3)).shape == (0, 3)
    with pytest.raises(ValueError, match=r"fewer than 2\^32"):
        jax.eval_shape(lambda key: hashed_normal(key, (2**16, 2**16)), jax.random.key(0))


def test_numbers_are_those_of_numpy_and_the_same_in_every_version():
    found = np.asarray(draw(jax.random.key(7), (N,)))
    np.testing.assert_allclose(found, hashing.normal(jax.random.key(7), N), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[:3], [0.42988235, -0.42235023, -0.5993617], rtol=1e-6)


def test_each_bit_changes_half_of_the_others():
    h = jnp.asarray(np.random.default_rng(0).integers(0, 2**32, 4096, np.uint32))
    for bit in (0, 7, 31):
        changed = np.asarray(mix(h) ^ mix(h ^ np.uint32(1 << bit)))
        share = np.unpackbits(changed.view(np.uint8)).mean()
        assert share == pytest.approx(0.5, abs=0.01)
