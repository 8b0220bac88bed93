"""Lengths, roots, sketches, steps and statistics worked out on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxsim.collaborative as jcol
from jaxsim.collaborative import transfer
from jaxsim.collaborative.pooling import signed_root


def test_short_vectors_are_a_little_shorter_than_one():
    """(3, 4) · 10⁻⁶ over √(25 + 1) · 10⁻⁶."""
    found = jcol.unit(jnp.array([[3e-6, 4e-6], [3, 4], [0, 0]]))
    short = np.array([3, 4]) / np.sqrt(26)
    np.testing.assert_allclose(found, [short, [0.6, 0.8], [0, 0]], rtol=1e-5)
    assert np.isfinite(jax.grad(lambda x: jcol.unit(x).sum())(jnp.zeros(2))).all()


def test_roots_have_their_sign_and_a_slope_at_zero():
    found = signed_root(jnp.array([4.0, -9.0, 3e-8, 0.0]))
    np.testing.assert_allclose(found, [2, -3, 2e-4, 0], rtol=1e-5)


def test_codes_of_two_samples_by_hand():
    """XXᵀ = (1, 0.6; 0.6, 1), λ = 1: (2, 0.6; 0.6, 2)⁻¹ (1, 0.6) = (1.64, 0.6) / 3.64."""
    X = jnp.array([[1.0, 0, 0], [0.6, 0.8, 0]])
    y = jnp.array([[1.0, 0, 0]])
    codes = jcol.ridge_codes(X, y, 1.0)
    np.testing.assert_allclose(codes, [[1.64 / 3.64, 0.6 / 3.64]], rtol=1e-5)
    left = jcol.class_residuals(X, np.array([0, 1]), y, codes, 2)
    a, b = 1.64 / 3.64, 0.6 / 3.64
    expected = [(1 - a) ** 2, (1 - 0.6 * b) ** 2 + (0.8 * b) ** 2]
    np.testing.assert_allclose(left, [expected], rtol=1e-5)
    scaled = jcol.class_residuals(X, np.array([0, 1]), y, codes, 2, normalize=True)
    np.testing.assert_allclose(scaled, [[expected[0] / a**2, expected[1] / b**2]], rtol=1e-5)
    made = jcol.make_dictionary(X, np.array([0, 1]), 2, 1.0)
    np.testing.assert_allclose(
        jcol.dictionary_logits(made, y, 3.0), [[-3 * e for e in expected]], rtol=1e-5
    )
    ridge = jcol.dictionary_logits(made, y, 3.0, readout="ridge")
    np.testing.assert_allclose(ridge, [[3 * a, 3 * b]], rtol=1e-5)
    # each from the other alone: 0.6 / (1 + 1)
    np.testing.assert_allclose(jcol.loo_codes(X, 1.0), [[0, 0.3], [0.3, 0]], rtol=1e-5)


def test_entropy_counts_those_whose_class_has_another():
    """Logits log 3 apart: 3/4 and 1/4 of classes 0 and 0; class 1 is alone."""
    logits = jnp.log(jnp.array([[3.0, 1], [1, 3], [1, 1]]))
    with pytest.warns(UserWarning, match="one sample of class 1"):
        found = jcol.leave_one_out_entropy(logits, np.array([0, 0, 1]))
    assert float(found) == pytest.approx(-(np.log(0.75) + np.log(0.25)) / 2)
    with pytest.warns(UserWarning, match="one sample of class 0"):
        assert float(jcol.leave_one_out_entropy(logits[:2], np.array([0, 1]))) == 0


def test_a_sketch_of_a_unit_is_a_sign_at_the_sum_of_two_places():
    """Both parts are hashed apart: of one hash, places would be even and signs all one."""
    found = np.asarray(jcol.tensor_sketch(jnp.eye(200), 64, jax.random.key(0)))
    assert np.allclose(np.abs(found).sum(1), 1, atol=1e-4)
    places, signs = np.abs(found).argmax(1), np.sign(found.sum(1))
    assert abs((places % 2).mean() - 0.5) < 4 * 0.5 / np.sqrt(200)
    assert abs(signs.mean()) < 4 / np.sqrt(200)
    assert abs(np.corrcoef(places >= 32, signs)[0, 1]) < 4 / np.sqrt(200)
    again, other = (jcol.tensor_sketch(jnp.eye(200), 64, jax.random.key(k)) for k in (0, 1))
    np.testing.assert_array_equal(again, found)
    assert np.abs(other - found).max() > 0.5


class Line(nn.Module):
    """A number of the backbone and one of a head."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, use_bias=False)(nn.Dense(1, use_bias=False, name="backbone")(x))


def slope(model, variables, x, y):
    p = variables["params"]
    return p["backbone"]["kernel"].sum() - 2 * p["Dense_0"]["kernel"].sum()


def stage(**settings):
    x, y = np.ones((4, 1), np.float32), np.array([0, 0, 1, 1])
    return jcol.Stage(x, y, Line(), slope, **({"steps": 1, "learning_rate": 0.1} | settings))


def numbers(variables):
    p = variables["params"]
    return np.array([float(p["backbone"]["kernel"][0, 0]), float(p["Dense_0"]["kernel"][0, 0])])


def test_a_step_of_adam_is_the_rate_and_decays():
    """Against the sign of the slope by 0.1, and by 0.1 · 0.5 of the number itself."""
    key = jax.random.key(0)
    init = Line().init(jax.random.split(jax.random.fold_in(key, 0))[0], jnp.ones((1, 1)))
    start = numbers(init)
    for steps, decay in ((1, 0.0), (3, 0.0), (1, 0.5), (2, 0.5)):
        (found,) = jcol.fit_stages([stage(steps=steps, weight_decay=decay)], key)
        expected = start.copy()
        for _ in range(steps):
            expected = expected * (1 - 0.1 * decay) + np.array([-0.1, 0.1])
        np.testing.assert_allclose(numbers(found), expected, atol=1e-5)
    (found,) = jcol.fit_stages([stage(freeze=True, weight_decay=0.5)], key)
    np.testing.assert_allclose(numbers(found), [start[0], start[1] * 0.95 + 0.1], atol=1e-5)


def test_stages_draw_their_heads_and_batches_apart(monkeypatch):
    keys = []

    def spy(labels, per_class, key):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return np.array([0, 2])

    monkeypatch.setattr(transfer, "balanced_rows", spy)
    first, second = jcol.fit_stages(
        [stage(steps=3, per_class=1, learning_rate=1e-9) for _ in range(2)], jax.random.key(0)
    )
    assert len(keys) == len(set(keys)) == 6
    assert numbers(first)[0] == pytest.approx(numbers(second)[0])
    assert numbers(first)[1] != pytest.approx(numbers(second)[1])


def test_rows_are_drawn_anew_for_each_key():
    labels = np.repeat([0, 1], 20)
    drawn = {tuple(jcol.balanced_rows(labels, 3, jax.random.key(k)).tolist()) for k in range(5)}
    assert len(drawn) == 5
    assert len(jcol.balanced_rows(labels, 20, jax.random.key(0))) == 40
    with pytest.raises(ValueError, match="per_class=21: class 0 has 20 samples"):
        jcol.balanced_rows(labels, 21, jax.random.key(0))
    with pytest.raises(ValueError, match="per_class=0"):
        jcol.balanced_rows(labels, 0, jax.random.key(0))


def test_a_paired_comparison_by_hand():
    """Differences 2, 1 and 3: mean 2, deviation 1; Student's t of two degrees is 4.302653."""
    found = jcol.paired_test([3.0, 2, 4], [1.0, 1, 1])
    assert (found.mean, found.wins, found.n) == (2, 3, 3)
    assert found.half_width == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert found.t_p == pytest.approx(0.0741799, rel=1e-5)
    assert found.wilcoxon_p == pytest.approx(0.25)
    tie = jcol.paired_test([3.0, 1, 0], [1.0, 1, 1])
    assert (tie.wins, tie.mean) == (1, pytest.approx(1 / 3))
    same = jcol.paired_test([3.0, 3], [1.0, 1])
    assert (same.t_p, same.half_width, same.wins) == (0, 0, 2)


def test_holm_by_hand_at_its_ends():
    """0.01 · 3, then the larger of it and 0.012 · 2, then 0.9."""
    np.testing.assert_allclose(jcol.holm([0.9, 0.01, 0.012]), [0.9, 0.03, 0.03])
    assert jcol.holm([0.0]).tolist() == [0]
    assert jcol.holm([1.0, 1.0]).tolist() == [1, 1]
    for bad in ([-0.01], [1.01], [[0.5]], [float("nan")]):
        with pytest.raises(ValueError, match="must be numbers in"):
            jcol.holm(bad)
