"""Losses that networks are trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxsim.inputs.samples import check_finite, check_labels
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range
from jaxsim.numerics.renamed import old_names
from jaxsim.values.value import Value


@own_promotion()
def cross_entropy(
    logits: Float[Array, "N C"], labels: Int[Array | np.ndarray, " N"]
) -> Float[Array, ""]:
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
    """Makes a loss for `fit` whose labels are a teacher's logits beside the class, [N, *, C + 1].

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
        teacher, classes = labels[..., :-1], labels[..., -1].astype(int)
        if teacher.shape != logits.shape:
            raise ValueError(
                f"labels: {labels.shape} for logits of {logits.shape}; give "
                "distillation_targets(…), a teacher's logits and the class"
            )
        soft = optax.kl_divergence(
            jax.nn.log_softmax(logits / temperature), jax.nn.softmax(teacher / temperature)
        )
        rows = logits.reshape(-1, logits.shape[-1]), classes.reshape(-1)
        return weight * temperature**2 * soft.mean() + (1 - weight) * cross_entropy(*rows)

    return loss


def distillation_targets(
    logits: Float[Array | np.ndarray, "N *each C"], labels: Int[Array | np.ndarray, " N *each"]
) -> Float[np.ndarray, "N *each C1"]:
    """Puts the class behind a teacher's logits: labels of `distillation`.

    Of a language model each place of a row has logits, and the token that follows is its class.

    Args:
      logits: Logits of the teacher, [N, *, C].
      labels: Classes, [N, *].

    Returns:
      Labels [N, *, C + 1].

    Raises:
      ValueError: Other shapes, logits that are not finite, or labels that are no classes.

    Examples:
      >>> import numpy as np
      >>> from jaxsim.train import distillation_targets
      >>> distillation_targets(np.array([[2.0, 0.0]]), np.array([1])).tolist()
      [[2.0, 0.0, 1.0]]
    """
    if np.ndim(logits) < 2 or np.shape(labels) != np.shape(logits)[:-1]:
        raise ValueError(f"labels{list(np.shape(labels))} for logits{list(np.shape(logits))}")
    check_finite("logits", logits)
    check_labels("labels", labels, np.shape(logits)[-1])
    classes = np.asarray(labels)[..., None]
    return np.concatenate([np.asarray(logits, np.float32), classes], -1, dtype=np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class OverExits(Value):
    """A loss of all exits, from that of one; made by `over_exits`.

    Attributes:
      loss: Mean over a batch of `(logits, labels)`.
      weights: Of each exit in the sum; None for the mean.
    """

    loss: Callable[[Array, Array], Array]
    weights: tuple[float, ...] | None

    def __call__(self, logits: Float[Array, "N L C"], labels: Array) -> Float[Array, ""]:
        """The weighted sum of the exits' losses."""
        L = logits.shape[1]
        weights = (1 / L,) * L if self.weights is None else self.weights
        if len(weights) != L:
            raise ValueError(f"weights: {len(weights)} of them for {L} exits")
        each = [self.loss(logits[:, i], labels) for i in range(L)]
        return sum((w * e for w, e in zip(weights, each, strict=True)), jnp.zeros(()))


def over_exits(
    loss: Callable[[Array, Array], Array] = cross_entropy,
    weights: Sequence[float] | None = None,
) -> OverExits:
    """Makes a loss of all exits of a network from the loss of one.

    `fit` trains networks with exits on it, and `pipeline_value_and_grad` takes it: gradients of
    early exits come from the stages that they stand in.

    Args:
      loss: Mean over a batch of `(logits [N, C], labels)`.
      weights: Of each exit in the sum, the network's own last, at least 0; None for the mean.

    Returns:
      `(logits [N, L, C], labels) -> loss`.

    Raises:
      ValueError: A weight that is negative or not a number, or, when called, another number of
        weights than of exits.

    Source: Teerapittayanon et al. (2016), BranchyNet, arXiv 1709.01686, section III-B; Chen et al.
    (2023), EE-LLM, arXiv 2312.04916.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxsim.train import over_exits
      >>> logits = jnp.zeros((2, 3, 4))  # two rows, three exits, four classes
      >>> round(float(over_exits(weights=(0.25, 0.25, 1.0))(logits, jnp.array([0, 3]))), 4)
      2.0794
    """
    if weights is None:
        return OverExits(loss, None)
    for i, weight in enumerate(weights):
        check_range(f"weights[{i}]", weight, 0)
    return OverExits(loss, tuple(map(float, weights)))


__getattr__ = old_names(__name__, {"taught": distillation_targets})
