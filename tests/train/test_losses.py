"""Losses worked out on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.train.losses import cross_entropy, distillation, distillation_targets, over_exits

LN = np.log
STUDENT = np.float32([2 * LN([1, 3]), [0, 0]])
"""At temperature two 1/4 and 3/4, at one 1/10 and 9/10; and halves."""
TEACHER = np.zeros((2, 2), np.float32)
CLASSES = np.array([0, 1])


def test_cross_entropy_is_the_mean_surprise_of_the_classes():
    np.testing.assert_allclose(cross_entropy(jnp.asarray(STUDENT), CLASSES), LN(20) / 2, rtol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_a_teacher_and_the_classes_share_a_loss(weight):
    """KL(1/2, 1/2 ‖ 1/4, 3/4) = ln(4/3) / 2 of one row of two, by T² = 4."""
    labels = distillation_targets(TEACHER, CLASSES)
    found = distillation(temperature=2.0, weight=weight)(jnp.asarray(STUDENT), jnp.asarray(labels))
    expected = weight * 4 * LN(4 / 3) / 4 + (1 - weight) * LN(20) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_divergence_is_the_teacher_s_from_the_student():
    """The other way around: KL(1/4, 3/4 ‖ 1/2, 1/2) = ln 2 - H(1/4)."""
    labels = distillation_targets(STUDENT, CLASSES)
    found = distillation(temperature=2.0, weight=1.0)(jnp.asarray(TEACHER), jnp.asarray(labels))
    expected = (LN(1 / 4) / 4 + 3 * LN(3 / 4) / 4 + LN(2)) / 2
    np.testing.assert_allclose(found, 4 * expected, rtol=1e-6)


def test_labels_of_a_teacher_are_its_logits_and_the_class():
    made = distillation_targets(np.array([[2.0, 0.5, -1], [0, 1, 3]]), np.array([2, 0]))
    np.testing.assert_array_equal(made, [[2, 0.5, -1, 2], [0, 1, 3, 0]])


@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        (np.zeros(3), np.zeros(3, int), r"labels\[3\] for logits\[3\]"),
        (np.zeros((2, 3)), np.zeros(3, int), r"labels\[3\] for logits\[2, 3\]"),
        (np.zeros((2, 3)), np.array([0, 3]), "labels"),
        (np.full((2, 3), np.inf), np.array([0, 2]), "logits"),
    ],
)
def test_what_are_no_logits_of_classes_is_refused(logits, labels, said):
    with pytest.raises(ValueError, match=said):
        distillation_targets(logits, labels)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"weight": -1e-6}, {"weight": 1 + 1e-6}, {"temperature": -1}]
)
def test_a_share_beyond_one_and_no_temperature_are_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        distillation(**settings)


def test_labels_of_another_width_are_refused_by_both_shapes():
    with pytest.raises(ValueError, match=r"labels: \(2, 2\) for logits of \(2, 2\)"):
        distillation()(jnp.asarray(STUDENT), jnp.zeros((2, 2)))


def test_classes_beyond_the_logits_are_refused():
    with pytest.raises(ValueError, match="labels"):
        cross_entropy(jnp.asarray(STUDENT), np.array([0, 2]))
    assert jax.eval_shape(cross_entropy, STUDENT, np.array([0, 2])).shape == ()


def test_exits_are_weighed_in_a_sum_or_averaged():
    """Rows that are told apart by 3, 1 and 2 at three exits."""
    logits = jnp.array([[[3.0], [1.0], [2.0]]] * 2)
    labels = jnp.array([10.0, 20.0])
    product = lambda z, y: jnp.sum(z[:, 0] * y)  # noqa: E731
    found = over_exits(product, (0.5, 4, 0))(logits, labels)
    assert float(found) == 30 * (0.5 * 3 + 4 * 1)
    np.testing.assert_allclose(over_exits(product)(logits, labels), 30 * 2, rtol=1e-6)
    with pytest.raises(ValueError, match="weights: 2 of them for 3 exits"):
        over_exits(product, (1, 1))(logits, labels)
    with pytest.raises(ValueError, match=r"weights\[1\]=-0.1: must be a number of at least 0"):
        over_exits(weights=(0, -0.1))
    assert over_exits(product, [1, 2]) == over_exits(product, (1.0, 2.0)) != over_exits(product)
