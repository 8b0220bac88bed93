"""Linear students: they reach a teacher that is linear, and refuse what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.adaptive import heads as students
from jaxsim.adaptive.heads import apply_head, fit_students
from tests.oracles import students as oracle


def kl(teacher, student):
    t, s = (np.asarray(jax.nn.log_softmax(x), np.float64) for x in (teacher, student))
    return np.mean(np.sum(np.exp(t) * (t - s), -1))


def problem(seed=0, n=300, d=6, C=3):
    rng = np.random.default_rng(seed)
    # Features far from unit variance, as a network's are.
    x = rng.normal(size=(n, d)) * rng.uniform(0.1, 20, d) + 5
    logits = (x - 5) / x.std(0) @ rng.normal(size=(d, C)) + rng.normal(size=C)
    return jnp.float32(x), jnp.float32(logits)


def test_a_student_with_the_teachers_features_becomes_the_teacher():
    x, teacher = problem()
    noise = jax.random.normal(jax.random.key(1), (len(x), 4))
    exact, blind = fit_students((x, noise), teacher, jax.random.key(0), steps=1600)
    assert kl(teacher, apply_head(exact, x)) < 1e-6
    mean = jnp.log(jnp.mean(jax.nn.softmax(teacher), 0))
    assert kl(teacher, apply_head(blind, noise)) > 0.8 * kl(teacher, mean)


def test_a_student_does_not_depend_on_the_others():
    x, teacher = problem()
    both = fit_students((x, x[:, :2]), teacher, jax.random.key(0))
    (alone,) = fit_students((x[:, :2],), teacher, jax.random.key(0))
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(both[1][name], alone[name], rtol=1e-4, atol=1e-5)


def test_a_constant_feature_is_no_trouble():
    x, teacher = problem()
    (head,) = fit_students((x.at[:, 0].set(3.0),), teacher, jax.random.key(0))
    assert all(np.isfinite(v).all() for v in head.values())


def test_rates_share_a_program():
    x, teacher = problem()
    before = students._fit_heads._cache_size()
    for rate in (0.01, 0.03):
        fit_students((x,), teacher, jax.random.key(0), steps=3, learning_rate=rate)
    assert students._fit_heads._cache_size() == before + 1


@pytest.mark.parametrize(
    ("features", "shape", "options", "message"),
    [
        ((), (5, 2), {}, "at least one exit"),
        (((5, 3),), (5,), {}, r"teacher\[5\]"),
        (((5, 3),), (5, 1), {}, r"teacher\[5, 1\]"),
        (((5, 3), (4, 3)), (5, 2), {}, r"features\[1\]\[4, 3\]: must be \[5, d\]"),
        (((5, 3, 1),), (5, 2), {}, r"features\[0\]"),
        (((5, 3),), (5, 2), {"steps": 0}, "steps=0"),
        (((5, 3),), (5, 2), {"batch_size": 0}, "batch_size=0"),
        (((5, 3),), (5, 2), {"learning_rate": 0.0}, r"learning_rate=0\.0"),
    ],
)
def test_errors(features, shape, options, message):
    with pytest.raises(ValueError, match=message):
        fit_students(
            [jnp.zeros(s) for s in features], jnp.zeros(shape), jax.random.key(0), **options
        )


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_student_after_some_steps_is_what_adam_by_hand_makes_of_it(steps):
    x, teacher = problem(n=20, d=3, C=4)
    (head,) = fit_students((x,), teacher, jax.random.key(0), steps=steps, learning_rate=0.3)
    for rate, near in ((0.3, True), (0.2, False)):
        kernel, bias = oracle.fitted(x, teacher, steps, rate)
        found = np.allclose(head["kernel"], kernel, rtol=2e-3, atol=1e-4)
        assert (found and np.allclose(head["bias"], bias, rtol=2e-3, atol=1e-3)) == near


def test_every_step_draws_rows_of_its_own():
    """Pairs of 12 rows: one pair, drawn again and again, would teach nothing of the others."""
    teacher = 3 * jax.random.normal(jax.random.key(3), (12, 4))
    rows = jnp.eye(12)
    keys = [jax.random.key(0), jax.random.key(0), jax.random.key(1)]
    first, again, other = (
        fit_students((rows,), teacher, key, steps=600, batch_size=2, learning_rate=0.05)[0]
        for key in keys
    )
    assert kl(teacher, apply_head(first, rows)) < 0.05 * kl(teacher, jnp.zeros((12, 4)))
    assert np.array_equal(first["kernel"], again["kernel"])
    assert not np.array_equal(first["kernel"], other["kernel"])


def test_the_least_problem_is_two_classes_one_step_and_one_row():
    (head,) = fit_students(
        (jnp.ones((1, 1)),), jnp.zeros((1, 2)), jax.random.key(0), steps=1, batch_size=1
    )
    assert head["kernel"].shape == (1, 2)


@pytest.mark.parametrize("what", ["features", "teacher"])
def test_numbers_that_are_not_finite_are_named(what):
    given = {"features": [jnp.ones((3, 2))], "teacher": jnp.ones((3, 2))}
    given[what] = jax.tree.map(lambda a: a.at[1, 1].set(jnp.inf), given[what])
    with pytest.raises(ValueError, match=what):
        fit_students(**given, key=jax.random.key(0))
