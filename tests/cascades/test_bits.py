import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.cascades import bits


def draw(p, edges=64, words=512, key=0):
    salt = bits.salts(jax.random.key(key), words)
    t = bits.threshold(jnp.full(edges, p, jnp.float32))
    return np.asarray(bits.unpack(bits.bernoulli(jnp.arange(edges), t, salt)))


@pytest.mark.parametrize("p", [0.0, 3e-4, 1 / 1045, 0.01, 0.1, 0.5, 0.9, 1 - 1 / 1045, 1.0])
def test_bits_have_their_probability(p):
    x = draw(p)
    if p in (0, 1):
        assert (x == p).all()
    else:
        z = (x.mean() - p) / (p * (1 - p) / x.size) ** 0.5
        assert abs(z) < 4
        per_edge = (x.mean(1) - p) / (p * (1 - p) / x.shape[1]) ** 0.5
        assert 0.7 < per_edge.std() < 1.35


def test_bits_are_independent_between_edges_simulations_and_keys():
    x = draw(0.3, edges=128, words=256).astype(float) - 0.3
    scale = 0.3 * 0.7
    between_edges = (x @ x.T)[np.triu_indices(128, 1)] / scale / x.shape[1] ** 0.5
    assert 0.95 < between_edges.std() < 1.05
    assert abs(between_edges).max() < 5.5
    y = x[:, :1024]
    between_sims = (y.T @ y)[np.triu_indices(1024, 1)] / scale / 128**0.5
    assert 0.98 < between_sims.std() < 1.02
    other = draw(0.3, edges=128, words=256, key=1) - 0.3
    assert abs((x * other).sum() / scale / x.size**0.5) < 4


def test_hashed_bits_agree_with_threefry_on_a_spread():
    # A two-step cascade through hashed bits and through jax.random's own.
    p = jnp.asarray([0.3, 0.05, 0.6, 0.2])
    salt = bits.salts(jax.random.key(0), 8192)
    ours = bits.unpack(bits.bernoulli(jnp.arange(4), bits.threshold(p), salt))
    theirs = jax.random.uniform(jax.random.key(1), ours.shape) < p[:, None]
    size = [np.asarray((x[0] & x[1]) + (x[0] & x[2]) + x[3], float) for x in (ours, theirs)]
    # + of booleans is or; both sides share it
    se = (sum(s.var() for s in size) / size[0].size) ** 0.5
    assert abs(size[0].mean() - size[1].mean()) < 4 * se


@pytest.mark.parametrize(
    ("rows", "words", "p"), [(1, 1, 0.5), (15, 2, 1.0), (16, 3, 0.3), (701, 2, 0.7)]
)
def test_counting_and_packing(rows, words, p):
    flags = np.random.default_rng(rows).random((rows, 32 * words)) < p
    x = bits.pack(jnp.asarray(flags))
    np.testing.assert_array_equal(bits.unpack(x), flags)
    np.testing.assert_array_equal(bits.count_per_simulation(x), flags.sum(0))
