"""Activation sparsity: activations and gradients of which only the largest are used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsim.cores.core import Core
from jaxsim.cores.op import Op
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range
from jaxsim.sparsity.distribution import rank

if TYPE_CHECKING:
    from optax import GradientTransformation


@own_promotion()
def topk(
    x: Float[Array, "..."], share: float | Array, axes: tuple[int, ...] = (-1,)
) -> Float[Array, "..."]:
    """Keeps the values of largest magnitude and sets the others to zero; earlier ones win ties.

    The gradient is that of the values that stay.

    Args:
      x: Array of any shape.
      share: Fraction of the values along the axes to keep, in (0, 1]: round(share · n) of n.
        Traced.
      axes: Axes along which values compete.

    Raises:
      ValueError: A share out of range.

    Source: Ahmad and Scheinkman (2019), arXiv 1903.11257, section 3.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.sparsity.topk(jnp.array([3.0, -4.0, 1.0, 2.0]), share=0.5).tolist()
      [3.0, -4.0, 0.0, 0.0]
    """
    check_range("share", share, 0, 1, above=True)
    axes = tuple(a % x.ndim for a in axes)
    others = tuple(a for a in range(x.ndim) if a not in axes)
    moved = x.transpose(*others, *axes)
    n = math.prod(x.shape[a] for a in axes)
    flat = jax.lax.stop_gradient(jnp.abs(moved).reshape(-1, n))
    kept = rank(-flat) < jnp.round(jnp.asarray(share, jnp.float32) * n)
    back = sorted(range(x.ndim), key=(*others, *axes).__getitem__)
    return jnp.where(kept.reshape(moved.shape).transpose(*back), x, 0)


def topk_inputs(core: Core, *, share: float | Array) -> Core:
    """Makes a site read only the largest of its inputs: `js.wrap(topk_inputs, share=0.1)`.

    Those compete that belong to one output: the features of a row, or a whole image.

    Args:
      core: Core that contracts the inputs that are left.
      share: Fraction of the inputs to keep, in (0, 1].

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.array([[3.0, 1.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, x)
      >>> js.wrap(js.sparsity.topk_inputs, share=0.5)(net)(x).tolist()
      [[3.0, 0.0]]
    """

    def least(op: Op, x: Array) -> Array:
        return topk(x, share, op.geometry.x_summed)

    def calibrate(op: Op, state: Any, x: Array) -> Any:
        return core.calibrate(op, state, least(op, x))

    def read(op: Op, state: Any, x: Array, key: Any) -> Array:
        return core.read(op, state, least(op, x), key)

    return Core(core.write, calibrate, read)


class Residue(NamedTuple):
    """State of `topk_gradient`.

    Attributes:
      error: Part of the gradients that has not been sent yet, a tree like them.
    """

    error: Any


def topk_gradient(share: float | Array) -> GradientTransformation:
    """Sends the largest entries of each gradient and keeps the rest for later steps.

    e ← e + g; the largest of e are sent, and leave e. Put it before the optimizer.

    Args:
      share: Fraction of the entries of each leaf to send, in (0, 1]; at least one entry. Traced.

    Raises:
      ValueError: A share out of range.

    Source: Stich, Cordonnier and Jaggi (2018), arXiv 1809.07599, algorithm 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> transform = js.sparsity.topk_gradient(0.5)
      >>> g = jnp.array([3.0, -4.0, 1.0, 2.0])
      >>> sent, state = transform.update(g, transform.init(g))
      >>> sent.tolist(), state.error.tolist()
      ([3.0, -4.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0])
    """
    import optax

    check_range("share", share, 0, 1, above=True)

    def sent(e: Array) -> Array:
        flat = e.ravel()
        count = jnp.maximum(jnp.round(jnp.asarray(share, jnp.float32) * flat.size), 1)
        return jnp.where(rank(-jnp.abs(flat)) < count, flat, 0).reshape(e.shape)

    @own_promotion()
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Residue]:
        whole = jax.tree.map(jnp.add, state.error, updates)
        part = jax.tree.map(sent, whole)
        return part, Residue(jax.tree.map(jnp.subtract, whole, part))

    def init(params: Any) -> Residue:
        return Residue(jax.tree.map(jnp.zeros_like, params))

    return optax.GradientTransformation(init, update)
