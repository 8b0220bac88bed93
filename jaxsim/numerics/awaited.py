"""Numbers that are known only once others are."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Num

from jaxsim.numerics.short_floats import as_bytes, from_bytes

A = TypeVar("A")


def awaited(a: A, x: Array) -> A:
    """Arrays, and on a CPU nothing is made of them before an input is there.

    Weights in a format become floats in each call. They depend on no input: on a CPU, XLA makes
    those of all layers at once, which takes the memory of the float model, and the time to touch
    it, up to ten times that of the products.

    Args:
      a: What weights are made of, an array or several.
      x: What is multiplied by them.

    Returns:
      The arrays, bit for bit.
    """
    divided = not jax.typeof(x).sharding.mesh.empty  # one number is not at hand on all devices
    if jax.default_backend() != "cpu" or x.size == 0 or divided:
        return a
    never = _is_beyond_all(lax.stop_gradient(x[(0,) * x.ndim]))

    def one(leaf: Array) -> Array:
        held = as_bytes(leaf)
        return from_bytes(jnp.where(never, jnp.zeros((), held.dtype), held), leaf.dtype)

    return jax.tree.map(one, a)


@jax.custom_batching.custom_vmap
def _is_beyond_all(number: Num[Array, ""]) -> Bool[Array, ""]:
    """Never, which XLA does not know."""
    return number.astype(jnp.float32) > jnp.inf


@_is_beyond_all.def_vmap
def _(size: int, batched: list[bool], numbers: Num[Array, " n"]) -> tuple[Array, bool]:
    """One number for all, so that `vmap` of inputs leaves weights as they are."""
    del size, batched
    return _is_beyond_all(numbers[0]), False
