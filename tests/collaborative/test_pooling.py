"""Second-order pooling, and its sketch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.kernel_approximation import PolynomialCountSketch

import jaxsim.collaborative as jcol

tensor_sketch = jax.jit(jcol.tensor_sketch, static_argnums=1)


def maps(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_bilinear_pooling_is_the_sum_of_outer_products():
    F, G = np.asarray(maps(2, 3, 4, 5)), np.asarray(maps(2, 3, 4, 6, seed=1))
    pool = jax.jit(jcol.bilinear_pool)
    found = pool(F, G)
    for b in range(2):
        total = sum(np.outer(F[b, i, j], G[b, i, j]) for i in range(3) for j in range(4)).ravel()
        root = np.sign(total) * np.sqrt(np.abs(total))
        np.testing.assert_allclose(found[b], root / np.linalg.norm(root), atol=1e-4)
    np.testing.assert_allclose(pool(F), pool(F, F), rtol=1e-6)


@pytest.mark.parametrize("pool", ["bilinear", "compact"])
def test_the_derivative_at_a_map_of_zeros_is_finite(pool):
    def total(F):
        if pool == "bilinear":
            return jcol.bilinear_pool(F).sum()
        return jcol.compact_bilinear_pool(F, 16, jax.random.key(0)).sum()

    assert np.isfinite(jax.jit(jax.grad(total))(np.zeros((1, 2, 2, 3), np.float32))).all()


def test_a_sketch_has_the_squared_inner_products():
    rng = np.random.default_rng(0)
    x = rng.normal(size=32)
    y = x + 0.3 * rng.normal(size=32)
    exact = (x @ y) ** 2
    sketches = np.asarray(tensor_sketch(np.float32([x, y]), 8192, jax.random.key(0)))
    assert abs(float(sketches[0] @ sketches[1]) / exact - 1) < 0.1


def test_the_error_of_a_sketch_falls_as_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 16))
    errors = {"ours": [], "theirs": []}
    for seed in range(60):
        a, b = np.asarray(tensor_sketch(np.float32([x, y]), 256, jax.random.key(seed)))
        peer = PolynomialCountSketch(degree=2, n_components=256, random_state=seed)
        c, d = peer.fit_transform(np.stack([x, y]))
        errors["ours"].append(float(a @ b) - (x @ y) ** 2)
        errors["theirs"].append(float(c @ d) - (x @ y) ** 2)
    spreads = {name: np.std(e) for name, e in errors.items()}
    assert 0.6 < spreads["ours"] / spreads["theirs"] < 1.6
    assert abs(np.mean(errors["ours"])) < 4 * spreads["ours"] / 60**0.5


def test_compact_pooling_sketches_the_pooled_outer_product():
    """Inner products of sketches summed over places are those of the full matrices."""
    F, key = np.asarray(maps(2, 3, 3, 6)), jax.random.key(0)
    sketches = np.asarray(tensor_sketch(F, 8192, key)).sum((1, 2))
    full = np.einsum("bhwi,bhwj->bij", F, F).reshape(2, -1)
    np.testing.assert_allclose(sketches @ sketches.T, full @ full.T, rtol=0.1, atol=20)
    pooled = jax.jit(jcol.compact_bilinear_pool, static_argnums=1)(F, 8192, key)
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, rtol=1e-5)


BAD = {
    r"F\[2, 3\]": lambda: jcol.bilinear_pool(maps(2, 3)),
    r"G\[2, 3, 3, 4\]": lambda: jcol.bilinear_pool(maps(2, 2, 3, 4), maps(2, 3, 3, 4)),
    "D=0: must": lambda: jcol.compact_bilinear_pool(maps(1, 2, 2, 2), 0, jax.random.key(0)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
