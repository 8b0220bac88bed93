"""Training in stages: a backbone learns on some classes, then on others with a head of theirs."""

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
    """One stage: data, a model of them, how long.

    Attributes:
      images: [N, ...] inputs.
      labels: [N] classes.
      model: the backbone with this stage's head, its backbone named `backbone`.
      loss: of the model on a batch.
      steps: AdamW steps, at least 1.
      learning_rate: above 0.
      per_class: samples of each class in a step's batch, drawn anew; None for all samples.
      freeze: leave the backbone as it is.
      weight_decay: of AdamW, at least 0.
    """

    images: Float[np.ndarray, "N ..."]
    labels: Int[np.ndarray, " N"]
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
      stages: at least one; one is training from scratch, two are transfer.
      key: of initial weights and batches.
      backbone: parameters of the backbone to begin with; None to draw them.

    Returns:
      The variables of each stage's model.

    Raises:
      ValueError: no stage, a setting out of range, images that are not finite, labels that
        are no classes or of another number than images, or a model without a backbone.
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
        variables = _fitted(stage, variables, batches)
        backbone = variables["params"]["backbone"]
        results.append(variables)
    return results


def balanced_rows(
    labels: Int[np.ndarray, " N"], per_class: int, key: Key[Array, ""]
) -> Int[np.ndarray, " n"]:
    """Rows of as many samples of each class, drawn without replacement.

    Args:
      labels: classes.
      per_class: samples of each, at least 1.
      key: to draw with.

    Raises:
      ValueError: labels that are no classes, or a class with fewer samples.
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
def _fitted(stage: Stage, variables: dict[str, Any], key: Key[Array, ""]) -> dict[str, Any]:
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
