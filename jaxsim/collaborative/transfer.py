"""Training in stages: a backbone learns on some classes, then on others with a new head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from jaxsim.inputs.samples import check_finite, check_labels
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range, checked_int

Loss = Callable[[nn.Module, Any, Array, Array], Array]
"""`(model, variables, images, labels) -> loss`."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Data, model and schedule of one stage of training.

    Attributes:
      images: Inputs, [N, ...].
      labels: Classes, [N].
      model: Backbone with this stage's head, its backbone named `backbone`.
      loss: Function `(model, variables, images, labels) -> loss` of a batch.
      steps: AdamW steps, at least 1.
      learning_rate: Learning rate, above 0.
      per_class: Samples of each class in a step's batch, drawn anew; None for all samples.
      freeze: Whether to leave the backbone as it is.
      weight_decay: Weight decay of AdamW, at least 0.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> import optax
      >>> from flax import linen as nn
      >>> import jaxsim.collaborative as jcol
      >>> class Model(nn.Module):
      ...     classes: int
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.Dense(self.classes)(nn.relu(nn.Dense(4, name="backbone")(x)))
      >>> def loss(model, variables, x, y):
      ...     logits = model.apply(variables, x)
      ...     return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
      >>> x, y = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1])
      >>> stage = jcol.Stage(x, y, Model(2), loss, steps=2, learning_rate=0.1)
      >>> stage.freeze, stage.per_class
      (False, None)
    """

    images: Float[Array | np.ndarray, "N ..."]
    labels: Int[Array | np.ndarray, " N"]
    model: nn.Module
    loss: Loss
    steps: int
    learning_rate: float
    per_class: int | None = None
    freeze: bool = False
    weight_decay: float = 0.0


def fit_stages(
    stages: Sequence[Stage], key: Key[Array, ""], *, backbone: Any = None
) -> list[dict[str, Any]]:
    """Trains stage after stage; each takes over the backbone that the one before left.

    Args:
      stages: Stages in order, at least one: one is training from scratch, two are transfer.
      key: Random key of initial weights and batches.
      backbone: Parameters of the backbone to begin with; None to draw them.

    Returns:
      The variables of each stage's model.

    Raises:
      ValueError: No stage, a setting out of range, images that are not finite, labels that
        are no classes or of another number than images, or a model without a backbone.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> import optax
      >>> from flax import linen as nn
      >>> import jaxsim.collaborative as jcol
      >>> class Model(nn.Module):
      ...     classes: int
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.Dense(self.classes)(nn.relu(nn.Dense(4, name="backbone")(x)))
      >>> def loss(model, variables, x, y):
      ...     logits = model.apply(variables, x)
      ...     return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
      >>> x, y = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1])
      >>> stage = jcol.Stage(x, y, Model(2), loss, steps=2, learning_rate=0.1)
      >>> (variables,) = jcol.fit_stages([stage], jax.random.key(0))
      >>> sorted(variables["params"])
      ['Dense_0', 'backbone']
    """
    if not stages:
        raise ValueError("stages=[]: give at least one")
    results: list[dict[str, Any]] = []
    for i, stage in enumerate(stages):
        _check(i, stage)
        first, batches = jax.random.split(jax.random.fold_in(key, i))
        variables: dict[str, Any] = {**stage.model.init(first, jnp.asarray(stage.images[:1]))}
        if "backbone" not in variables["params"]:
            raise ValueError(
                f"stages[{i}].model: no part of it is named 'backbone', only "
                f"{sorted(variables['params'])}"
            )
        if backbone is not None:
            variables = {**variables, "params": {**variables["params"], "backbone": backbone}}
        variables = _fit_stage(stage, variables, batches)
        backbone = variables["params"]["backbone"]
        results.append(variables)
    return results


def balanced_rows(
    labels: Int[Array | np.ndarray, " N"], per_class: int, key: Key[Array, ""]
) -> Int[np.ndarray, " n"]:
    """Draws rows of equally many samples of each class, without replacement.

    Args:
      labels: Classes of the samples.
      per_class: Number of samples of each class, at least 1.
      key: Random key.

    Raises:
      ValueError: labels that are not classes, or a class with fewer samples.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> import jaxsim.collaborative as jcol
      >>> labels = np.array([0, 0, 0, 1, 1])
      >>> labels[jcol.balanced_rows(labels, 2, jax.random.key(0))].tolist()
      [0, 0, 1, 1]
    """
    per_class = checked_int("per_class", per_class, 1)
    check_labels("labels", labels)
    order = np.asarray(jax.random.permutation(key, len(labels)))
    rows: list[np.ndarray] = []
    for c in np.unique(labels):
        of_class = order[np.asarray(labels)[order] == c]
        if len(of_class) < per_class:
            raise ValueError(f"per_class={per_class}: class {c} has {len(of_class)} samples")
        rows.append(of_class[:per_class])
    return np.concatenate(rows)


@own_promotion()
def _fit_stage(stage: Stage, variables: dict[str, Any], key: Key[Array, ""]) -> dict[str, Any]:
    optimizer = optax.adamw(stage.learning_rate, weight_decay=stage.weight_decay)
    state = optimizer.init(variables["params"])

    # A step at a time from Python: XLA's CPU backend runs convolutions in a scan far slower.
    @jax.jit
    def step(variables: Any, state: Any, x: Array, y: Array) -> Any:
        def loss(params: Any) -> Array:
            return stage.loss(stage.model, {**variables, "params": params}, x, y)

        grads = jax.grad(loss)(variables["params"])
        changes: Any
        changes, state = optimizer.update(grads, state, variables["params"])
        if stage.freeze:
            changes = {**changes, "backbone": jax.tree.map(jnp.zeros_like, changes["backbone"])}
        return {**variables, "params": optax.apply_updates(variables["params"], changes)}, state

    rows = np.arange(len(stage.labels))
    for i in range(stage.steps):
        if stage.per_class is not None:
            rows = balanced_rows(stage.labels, stage.per_class, jax.random.fold_in(key, i))
        variables, state = step(variables, state, stage.images[rows], stage.labels[rows])
    return variables


def _check(i: int, stage: Stage) -> None:
    checked_int(f"stages[{i}].steps", stage.steps, 1)
    check_range(f"stages[{i}].learning_rate", stage.learning_rate, 0, above=True)
    check_range(f"stages[{i}].weight_decay", stage.weight_decay, 0)
    if len(stage.images) != len(stage.labels):
        raise ValueError(
            f"stages[{i}].labels: {len(stage.labels)} of them for {len(stage.images)} images"
        )
    check_labels(f"stages[{i}].labels", stage.labels)
    check_finite(f"stages[{i}].images", stage.images)
