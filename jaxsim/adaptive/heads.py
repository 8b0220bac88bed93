"""Linear classifiers, distilled from the last one to read earlier features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxsim.inputs.samples import check_finite
from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range, checked_int

Head = dict[str, Array]
"""A linear classifier: kernel [d, C] and bias [C]."""


@own_promotion()
def apply_head(head: Head, feature: Float[Array | np.ndarray, "B d"]) -> Float[Array, "B C"]:
    """Computes the logits of a linear classifier.

    Args:
      head: Kernel [d, C] and bias [C].
      feature: Features [B, d].
    """
    return jnp.asarray(feature) @ head["kernel"] + head["bias"]


def fit_students(
    features: Sequence[Float[Array | np.ndarray, "n d_l"]],
    teacher: Float[Array, "n C"],
    key: Key[Array, ""],
    *,
    steps: int = 400,
    batch_size: int = 256,
    learning_rate: float | Float[Array, ""] = 0.02,
) -> tuple[Head, ...]:
    """Fits a linear classifier for each exit to the teacher's distribution; no labels are needed.

    Each minimizes KL(p_teacher ‖ p_student) with Adam, its rate falling to zero along a cosine.
    Features are numbers here: nothing of what made them is in the graph.

    Args:
      features: Features [n, d_l] for each exit, row i of all of them about the same example.
      teacher: Logits [n, C] of the last classifier.
      key: Random key for the order of the examples.
      steps: Number of steps of Adam, at least 1.
      batch_size: Number of examples per step, or all n where there are fewer.
      learning_rate: Rate of the first step, for features of unit variance: they are normalized
        before and the classifiers changed to match after.

    Returns:
      For each exit {"kernel": [d_l, C], "bias": [C]}.

    Raises:
      ValueError: No features, one of another number of examples or that is not a matrix, a teacher
        that is not a matrix, a number that is not finite, or an argument out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxsim.adaptive import fit_students
      >>> features, logits = [jnp.eye(4)], 3.0 * jnp.eye(4)
      >>> (head,) = fit_students(features, logits, jax.random.key(0), steps=5, batch_size=4)
      >>> head["kernel"].shape, head["bias"].shape
      ((4, 4), (4,))

    Source: Liu et al. (2020), FastBERT, arXiv 2004.02178, section 3.2.2; the direction of the
    divergence is that of its code.
    """
    if not features:
        raise ValueError("features=(): give those of at least one exit")
    if teacher.ndim != 2 or teacher.shape[1] < 2:
        raise ValueError(
            f"teacher{list(teacher.shape)}: must be logits [n, C] of 2 classes or more"
        )
    for i, feature in enumerate(features):
        if feature.ndim != 2 or len(feature) != len(teacher):
            raise ValueError(f"features[{i}]{list(feature.shape)}: must be [{len(teacher)}, d]")
    check_finite("features", list(features))
    check_finite("teacher", teacher)
    steps = checked_int("steps", steps, 1)
    memory.check(f"steps={steps}", 8 * steps, "lower it")
    batch_size = checked_int("batch_size", batch_size, 1)
    check_range("learning_rate", learning_rate, 0, above=True)
    numbers = jax.lax.stop_gradient((tuple(map(jnp.float32, features)), jnp.float32(teacher)))
    return _fit_heads(*numbers, key, learning_rate, steps, min(batch_size, len(teacher)))


@partial(jax.jit, static_argnames=("steps", "batch_size"))
@own_promotion()
def _fit_heads(
    features: tuple[Array, ...],
    teacher: Array,
    key: Any,
    learning_rate: Any,
    steps: int,
    batch_size: int,
) -> tuple[Head, ...]:
    import optax

    means = [jnp.mean(f, 0) for f in features]
    widths = [jnp.sqrt(jnp.var(f, 0) + 1e-6) for f in features]
    normal = [(f - m) / s for f, m, s in zip(features, means, widths, strict=True)]
    target, C = jax.nn.log_softmax(teacher), teacher.shape[1]
    rate = optax.cosine_decay_schedule(1.0, steps)
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(rate))

    def divergence(heads: list[Head], rows: Array) -> Array:
        logs = [
            jax.nn.log_softmax(apply_head(h, f[rows])) for h, f in zip(heads, normal, strict=True)
        ]
        t = target[rows]
        return sum((jnp.mean(jnp.sum(jnp.exp(t) * (t - log), -1)) for log in logs), jnp.zeros(()))

    def step(carry: Any, key: Any) -> Any:
        heads, state = carry
        rows = jax.random.choice(key, len(teacher), (batch_size,), replace=False)
        updates, state = optimizer.update(jax.grad(divergence)(heads, rows), state)
        return (jax.tree.map(lambda h, u: h - learning_rate * u, heads, updates), state), None

    zero = [{"kernel": jnp.zeros((f.shape[1], C)), "bias": jnp.zeros(C)} for f in features]
    keys = jax.random.split(key, steps)
    (heads, _), _ = jax.lax.scan(step, (zero, optimizer.init(zero)), keys)

    def undo_normalization(head: Head, mean: Array, width: Array) -> Head:
        kernel = head["kernel"] / width[:, None]
        return {"kernel": kernel, "bias": head["bias"] - mean @ kernel}

    return tuple(map(undo_normalization, heads, means, widths))
