"""Codes and residuals are those of explicit solves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

import jaxsim.collaborative as jcol
from jaxsim.collaborative.codes import coder
from tests.oracles.collaborative import reconstruction, refits, stacked

SIZES = [(12, 30), (30, 12), (20, 20), (1, 5), (5, 1)]
ridge_codes, loo_codes = jax.jit(jcol.ridge_codes), jax.jit(jcol.loo_codes)


def features(rows, d, seed=0):
    """Rows of length one."""
    x = np.random.default_rng([seed, rows, d]).normal(size=(rows, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(("N", "d"), SIZES)
@pytest.mark.parametrize("lam", [1e-3, 0.1, 3.0])
def test_codes_are_those_of_stacked_least_squares(N, d, lam):
    X, y = features(N, d), features(7, d, 1)
    with jax.enable_x64(True):
        found = np.asarray(ridge_codes(X, y, lam))
    assert np.abs(found - stacked(X, y, lam)).max() < 1e-10
    sklearn = Ridge(alpha=lam, fit_intercept=False).fit(X.T, y.T).coef_.reshape(7, N)
    assert np.abs(found - sklearn).max() < 1e-9


@pytest.mark.parametrize(("N", "d"), [(12, 30), (30, 12), (20, 20), (2, 5)])
@pytest.mark.parametrize("lam", [1e-5, 0.1])
def test_leave_one_out_codes_are_those_of_refits(N, d, lam):
    X = features(N, d)
    expected = refits(X, lam)
    with jax.enable_x64(True):
        found = np.asarray(loo_codes(X, lam))
    assert np.abs(found - expected).max() < 1e-10
    assert not np.diagonal(found).any()


@pytest.mark.parametrize(("N", "d"), [(12, 64), (40, 128)])
def test_leave_one_out_codes_keep_their_digits_in_float32(N, d):
    X = features(N, d)
    found = loo_codes(X.astype(np.float32), 1e-5)
    assert np.abs(found - refits(X, 1e-5)).max() < 1e-5


@jax.jit
def all_codes(X, y, lam):
    return jcol.ridge_codes(X, y, lam), jcol.loo_codes(X, lam)


@given(shape=st.sampled_from([(2, 1), (3, 12), (12, 3), (6, 6)]), seed=st.integers(0, 1000))
@settings(max_examples=12)
def test_both_sizes_of_system_give_the_same_codes(shape, seed):
    """The push-through identity: the same features, padded with zeros to be wide."""
    X, y = features(*shape, seed), features(3, shape[1], seed + 1)
    wide = lambda a: np.pad(a, ((0, 0), (0, 20)))  # noqa: E731
    with jax.enable_x64(True):
        narrow, loo = all_codes(X, y, 0.1)
        found, left = all_codes(wide(X), wide(y), 0.1)
    np.testing.assert_allclose(found, narrow, atol=1e-12)
    np.testing.assert_allclose(left, loo, atol=1e-11)


@pytest.mark.parametrize(("N", "d"), [(12, 30), (30, 12)])
def test_residuals_are_those_of_reconstructions(N, d):
    X, y = features(N, d), features(7, d, 1)
    labels = np.arange(N) % 3

    @jax.jit
    def both(X, y):
        alpha = jcol.ridge_codes(X, y, 0.1)
        left = (jcol.class_residuals(X, labels, y, alpha, 3, normalize=n) for n in (False, True))
        return alpha, *left

    with jax.enable_x64(True):
        alpha, found, scaled = map(np.asarray, both(X, y))
    expected = reconstruction(X, labels, y, alpha, 3)
    assert np.abs(found - expected).max() < 1e-12
    size = np.stack([(alpha[:, labels == c] ** 2).sum(1) for c in range(3)], 1)
    np.testing.assert_allclose(scaled, expected / size, rtol=1e-9)


def test_limits_of_lambda():
    """Large: nothing is explained. Small, y in the span of a class: that class explains it all."""
    X = features(6, 20)
    labels = np.array([0, 0, 0, 1, 1, 1])
    y = X[:3].T @ np.array([[0.2], [-0.5], [0.4]])
    with jax.enable_x64(True):
        X, y = jnp.asarray(X), jnp.asarray(y.T)
        none = jcol.ridge_codes(X, y, 1e9)
        left = jcol.class_residuals(X, labels, y, none, 2)
        np.testing.assert_allclose(left, float((y**2).sum()), rtol=1e-8)
        most = jcol.ridge_codes(X, y, 1e-10)
        left = np.asarray(jcol.class_residuals(X, labels, y, most, 2))
    assert left[0, 0] < 1e-12
    assert left[0, 1] > 0.1


@pytest.mark.parametrize("readout", ["residual", "ridge"])
@pytest.mark.parametrize(("N", "d"), [(6, 10), (10, 4)])
def test_logits_of_a_batch_are_those_of_dictionaries_without_each_sample(N, d, readout):
    X, labels = features(N, d), np.arange(N) % 2

    @jax.jit
    def one(X, labels, x):
        made = jcol.make_dictionary(X, labels, 2, 0.1)
        return jcol.dictionary_logits(made, x, 3.0, readout=readout)

    with jax.enable_x64(True):
        found = jax.jit(lambda X: jcol.batch_logits(X, labels, 2, 0.1, 3.0, readout=readout))(X)
        for i in range(N):
            others = np.delete(np.arange(N), i)
            alone = one(X[others], labels[others], X[i : i + 1])
            np.testing.assert_allclose(found[i], alone[0], atol=1e-10)


def test_a_sample_in_its_own_dictionary_has_nothing_to_learn():
    """Why training leaves it out."""
    X, labels = features(20, 64).astype(np.float32), np.arange(20) % 4

    @jax.jit
    def entropies(X):
        return {
            loo: jcol.leave_one_out_entropy(
                jcol.batch_logits(X, labels, 4, 1e-3, 10.0, leave_one_out=loo), labels
            )
            for loo in (False, True)
        }

    losses = entropies(X)
    assert losses[False] < 1e-3
    assert losses[True] > 1


@pytest.mark.parametrize("readout", ["residual", "ridge"])
@pytest.mark.parametrize(("N", "d"), [(6, 10), (10, 4)])
def test_derivatives_are_those_of_finite_differences(N, d, readout):
    labels = np.arange(N) % 2

    def loss(X, lam, scale):
        logits = jcol.batch_logits(X, labels, 2, lam, scale, readout=readout)
        return jcol.leave_one_out_entropy(logits, labels)

    both = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    with jax.enable_x64(True):
        args = (features(N, d), np.float64(0.2), np.float64(3.0))
        grads = both(*args)[1]
        for i, grad in enumerate(grads):
            way = np.random.default_rng(0).normal(size=grad.shape)
            step = [a + 1e-6 * way if i == j else a for j, a in enumerate(args)]
            back = [a - 1e-6 * way if i == j else a for j, a in enumerate(args)]
            difference = (float(both(*step)[0]) - float(both(*back)[0])) / 2e-6
            np.testing.assert_allclose(np.sum(grad * way), difference, rtol=1e-6, atol=1e-9)


def test_a_class_of_one_sample_is_left_out_and_warned_of():
    X = jnp.asarray(features(5, 8), jnp.float32)
    labels = np.array([0, 0, 1, 1, 2])
    logits = jcol.batch_logits(X, labels, 3, 0.1, 5.0)
    with pytest.warns(UserWarning, match="one sample of class 2; it is left out"):
        found = jcol.leave_one_out_entropy(logits, labels)
    own = -jax.nn.log_softmax(logits)[np.arange(5), labels]
    np.testing.assert_allclose(found, own[:4].mean(), rtol=1e-6)


def test_a_class_without_samples_leaves_everything_and_is_warned_of():
    X, y = jnp.asarray(features(4, 8)), jnp.asarray(features(2, 8, 1))
    with pytest.warns(UserWarning, match="no sample of class 1"):
        left = jcol.class_residuals(X, np.array([0, 0, 2, 2]), y, jcol.ridge_codes(X, y, 0.1), 3)
    np.testing.assert_allclose(left[:, 1], 1, rtol=1e-6)


def test_a_sweep_over_lambda_compiles_once():
    X = jnp.asarray(features(6, 8), jnp.float32)
    codes = jax.jit(lambda X, lam: jcol.loo_codes(X, lam))
    a, b = codes(X, 0.1), codes(X, 1.0)
    assert codes._cache_size() == 1
    assert not np.allclose(a, b)


GOOD = jnp.ones((3, 4))
BAD = {
    "lam=0: must be a number above 0": lambda: jcol.ridge_codes(GOOD, GOOD, 0),
    "lam=-1: must": lambda: jcol.loo_codes(GOOD, -1),
    r"y\[3, 5\]: must be \[rows, 4\]": lambda: jcol.ridge_codes(GOOD, jnp.ones((3, 5)), 0.1),
    r"X\[4\]: must be \[rows, d\]": lambda: jcol.loo_codes(GOOD[0], 0.1),
    "X: holds NaN": lambda: jcol.loo_codes(GOOD.at[0, 0].set(jnp.nan), 0.1),
    r"labels\[\d+\]=3: must be a class from 0 to 2": lambda: jcol.make_dictionary(
        GOOD, np.array([0, 1, 3]), 3, 0.1
    ),
    r"labels\[2\]=-1: must be a class": lambda: jcol.batch_logits(
        GOOD, np.array([0, 1, -1]), 3, 0.1, 1.0
    ),
    "labels: 1 of them for 3": lambda: jcol.batch_logits(GOOD, np.array([0]), 1, 0.1, 1.0),
    "labels: float64": lambda: jcol.make_dictionary(GOOD, np.zeros(3), 1, 0.1),
    "labels: 2 of them for 3": lambda: jcol.make_dictionary(GOOD, np.array([0, 0]), 1, 0.1),
    r"alpha\[3, 2\]": lambda: jcol.class_residuals(
        GOOD, np.zeros(3, int), GOOD, jnp.ones((3, 2)), 1
    ),
    "num_classes=0: must": lambda: jcol.make_dictionary(GOOD, np.zeros(3, int), 0, 0.1),
    r"y\[3, 2\]: the dictionary's features have width 4": lambda: jcol.dictionary_logits(
        jcol.make_dictionary(GOOD, np.zeros(3, int), 1, 0.1), jnp.ones((3, 2)), 1.0
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_a_matrix_of_codes_keeps_its_digits_where_there_are_more_features_than_samples():
    """The d × d system is singular but for λ there, and float32 has no digits for it."""
    X, lam = features(4, 30).astype(np.float32), 1e-5
    exact = np.linalg.solve(X @ X.T.astype(float) + lam * np.eye(4), X)
    found = np.asarray(jax.jit(coder)(X, lam))
    assert np.abs(found - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("lam", [0.0, -1.0])
def test_a_penalty_is_above_zero(lam):
    with pytest.raises(ValueError, match=f"lam={lam}: must be a number above 0"):
        coder(features(4, 30), lam)
