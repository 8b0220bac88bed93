"""Steps along orthogonal matrices: orthogonal, like the exponential, and where slopes say."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import expm

from jaxsim.numerics.cayley import cayley


def skew(n, size, seed=0):
    a = np.random.default_rng(seed).normal(size=(n, n))
    return size * (a - a.T) / 2


def test_it_is_orthogonal_for_any_skew_matrix():
    for size in (0.0, 1e-3, 1.0, 1e3):
        q = cayley(skew(24, size))
        np.testing.assert_allclose(q @ q.T, np.eye(24), atol=1e-12)
        assert np.linalg.det(q) > 0


def test_a_hundred_steps_stay_orthogonal():
    q = np.eye(24)
    for seed in range(100):
        q = q @ cayley(skew(24, 0.3, seed))
    np.testing.assert_allclose(q.T @ q, np.eye(24), atol=1e-12)


def test_little_steps_are_those_of_the_exponential_to_second_order():
    for size in (1e-1, 1e-2):
        a = skew(6, size)
        assert np.abs(cayley(a) - expm(a)).max() < 5 * size**3
    np.testing.assert_allclose(
        cayley(np.float64([[0, -0.2], [0.2, 0]])), expm([[0, -0.2], [0.2, 0]]), atol=1e-3
    )


def test_a_loss_changes_along_it_as_its_slope_says():
    """The derivative of f(Q cayley(t A)) at 0 is the skew part of Qᵀ ∇f times A."""
    with jax.enable_x64(True):
        w, x = (jnp.asarray(np.random.default_rng(i).normal(size=(5, 7))) for i in (1, 2))

        def f(q):
            return jnp.sum(jnp.tanh(w @ q) * x) + jnp.sum((w @ q) ** 3)

        q = jnp.asarray(np.linalg.qr(np.random.default_rng(3).normal(size=(7, 7)))[0])
        slope = np.asarray(q.T @ jax.grad(f)(q))
        slope = (slope - slope.T) / 2
        a = skew(7, 1.0)
        ends = [float(f(q @ cayley(t * a))) for t in (1e-5, -1e-5)]
        np.testing.assert_allclose((ends[0] - ends[1]) / 2e-5, np.sum(slope * a), rtol=1e-6)
        assert float(f(q @ cayley(-1e-3 * slope))) < float(f(q))
