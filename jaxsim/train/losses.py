"""Losses."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxsim.inputs.samples import check_finite, check_labels
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range


@own_promotion()
def cross_entropy(logits: Float[Array, "N C"], labels: Int[Array, " N"]) -> Float[Array, ""]:
    """Mean cross-entropy with integer classes.

    Args:
      logits: one row an input.
      labels: the class of each.

    Raises:
      ValueError: labels that are no classes, where their numbers are known.
    """
    check_labels("labels", labels, logits.shape[-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def distillation(
    *, temperature: float = 4.0, weight: float = 0.9
) -> Callable[[Array, Array], Array]:
    """A loss for `fit` whose labels are a teacher's logits beside the class, [N, C + 1].

    weight · T² · KL(teacher ‖ student), both at temperature T, and the rest cross-entropy with the
    classes; T² keeps the size of the gradients when T changes. `taught` makes the labels.

    Args:
      temperature: T, above 0.
      weight: share of the teacher, in [0, 1].

    Raises:
      ValueError: an argument out of range.

    Source: Hinton, Vinyals and Dean (2015), arXiv 1503.02531, section 2.
    """
    check_range("temperature", temperature, 0, above=True)
    check_range("weight", weight, 0, 1)

    def loss(logits: Array, labels: Array) -> Array:
        teacher, classes = labels[:, :-1], labels[:, -1].astype(int)
        if teacher.shape != logits.shape:
            raise ValueError(
                f"labels: {labels.shape} for logits of {logits.shape}; give taught(…), a teacher's "
                "logits and the class"
            )
        soft = optax.kl_divergence(
            jax.nn.log_softmax(logits / temperature), jax.nn.softmax(teacher / temperature)
        )
        return weight * temperature**2 * soft.mean() + (1 - weight) * cross_entropy(logits, classes)

    return loss


def taught(
    logits: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "N C1"]:
    """A teacher's logits with the class behind them: labels of `distillation`.

    Args:
      logits: [N, C] of the teacher.
      labels: [N] classes.

    Raises:
      ValueError: other shapes, logits that are not finite, or labels that are no classes.
    """
    if np.ndim(logits) != 2 or np.shape(labels) != (len(logits),):
        raise ValueError(f"labels{list(np.shape(labels))} for logits{list(np.shape(logits))}")
    check_finite("logits", logits)
    check_labels("labels", labels, np.shape(logits)[1])
    return np.concatenate([np.asarray(logits, np.float32), np.asarray(labels)[:, None]], 1)
