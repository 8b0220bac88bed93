"""Losses that networks are trained on."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxsim.inputs.samples import check_finite, check_labels
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range
from jaxsim.numerics.renamed import old_names


@own_promotion()
def cross_entropy(logits: Float[Array, "N C"], labels: Int[Array, " N"]) -> Float[Array, ""]:
    """Computes the mean cross-entropy with integer classes.

    Args:
      logits: Logits [N, C], a row an input.
      labels: Class of each input, from 0 to C - 1.

    Raises:
      ValueError: Labels that are no classes, where their numbers are known.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxsim.train import cross_entropy
      >>> round(float(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))), 4)
      1.3863
    """
    check_labels("labels", labels, logits.shape[-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def distillation(
    *, temperature: float = 4.0, weight: float = 0.9
) -> Callable[[Array, Array], Array]:
    """Makes a loss for `fit` whose labels are a teacher's logits beside the class, [N, C + 1].

    weight · T² · KL(teacher ‖ student), both at temperature T, and the rest cross-entropy with the
    classes; T² keeps the size of the gradients when T changes. `distillation_targets`
    makes the labels.

    Args:
      temperature: T, above 0.
      weight: Share of the teacher in the loss, in [0, 1].

    Returns:
      `(logits, labels) -> loss`, a mean over a batch.

    Raises:
      ValueError: An argument out of range.

    Source: Hinton, Vinyals and Dean (2015), arXiv 1503.02531, section 2.

    Examples:
      >>> import numpy as np
      >>> from jaxsim.train import distillation, distillation_targets
      >>> teacher = np.array([[2.0, 0.0, 0.0]])
      >>> labels = distillation_targets(teacher, np.array([0]))
      >>> round(float(distillation(weight=1.0)(teacher, labels)), 4)
      0.0
    """
    check_range("temperature", temperature, 0, above=True)
    check_range("weight", weight, 0, 1)

    def loss(logits: Array, labels: Array) -> Array:
        teacher, classes = labels[:, :-1], labels[:, -1].astype(int)
        if teacher.shape != logits.shape:
            raise ValueError(
                f"labels: {labels.shape} for logits of {logits.shape}; give "
                "distillation_targets(…), a teacher's logits and the class"
            )
        soft = optax.kl_divergence(
            jax.nn.log_softmax(logits / temperature), jax.nn.softmax(teacher / temperature)
        )
        return weight * temperature**2 * soft.mean() + (1 - weight) * cross_entropy(logits, classes)

    return loss


def distillation_targets(
    logits: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "N C1"]:
    """Puts the class behind a teacher's logits: labels of `distillation`.

    Args:
      logits: Logits of the teacher, [N, C].
      labels: Classes, [N].

    Returns:
      Labels [N, C + 1].

    Raises:
      ValueError: Other shapes, logits that are not finite, or labels that are no classes.

    Examples:
      >>> import numpy as np
      >>> from jaxsim.train import distillation_targets
      >>> distillation_targets(np.array([[2.0, 0.0]]), np.array([1])).tolist()
      [[2.0, 0.0, 1.0]]
    """
    if np.ndim(logits) != 2 or np.shape(labels) != (len(logits),):
        raise ValueError(f"labels{list(np.shape(labels))} for logits{list(np.shape(logits))}")
    check_finite("logits", logits)
    check_labels("labels", labels, np.shape(logits)[1])
    return np.concatenate([np.asarray(logits, np.float32), np.asarray(labels)[:, None]], 1)


__getattr__ = old_names(__name__, {"taught": distillation_targets})
