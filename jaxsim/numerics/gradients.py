"""Values with a gradient of another function: straight-through estimators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsim.numerics.checks import is_traced


@jax.custom_jvp
def round_ste(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rounds half to even; its derivative is that of the identity.

    Source: straight-through estimator, Bengio, Léonard and Courville (2013), arXiv 1308.3432.
    """
    return jnp.round(x)


round_ste.defjvps(lambda tangent, ans, x: tangent)


@jax.custom_jvp
def clip_ste(x: Float[Array, "..."], lo: float | Array, hi: float | Array) -> Float[Array, "..."]:
    """Clips to [lo, hi]; its derivative is one on the closed range and zero outside.

    That of `jnp.clip` is a half at the ends, where all the values lie that round to the last code.

    Examples:
      >>> import jax
      >>> from jaxsim.numerics import clip_ste
      >>> grad = jax.grad(lambda x: clip_ste(x, 0.0, 1.0))
      >>> grad(1.0).item(), grad(3.0).item()  # at the end, and beyond it
      (1.0, 0.0)
    """
    return jnp.clip(x, lo, hi)


@clip_ste.defjvp
def _clip_through(primals: Any, tangents: Any) -> Any:
    def smooth(x: Array, lo: float | Array, hi: float | Array) -> Array:
        inside = (x >= lo) & (x <= hi)
        return jnp.where(inside, x, jnp.clip(jax.lax.stop_gradient(x), lo, hi))

    return jax.jvp(smooth, primals, tangents)


def shard_like(a: Any, other: Any) -> jax.sharding.NamedSharding | None:
    """How what is made of a parameter is cut over its devices, in whatever shape; None as it is.

    What ends in the parameter's shape is cut as that is, anything else along the largest axis that
    the devices divide.

    Args:
      a: An array, or its shape and type: what is cut already, or is no larger than the part of the
        parameter on one device, stays as it is.
      other: The parameter; None where it is traced or not cut.
    """
    sharding = None if is_traced(a) or is_traced(other) else getattr(other, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding) or sharding.is_fully_replicated:
        return None
    there = getattr(a, "sharding", None)
    if there is not None and not there.is_fully_replicated:
        return None
    shape, mesh = np.shape(a), sharding.mesh
    entries = (*sharding.spec, *[None] * (np.ndim(other) - len(sharding.spec)))
    names = [n for e in entries if e for n in (e if isinstance(e, tuple) else (e,))]
    parts = math.prod(mesh.shape[n] for n in names)
    if math.prod(shape) * parts <= math.prod(np.shape(other)):
        return None
    if shape[len(shape) - np.ndim(other) :] == np.shape(other):
        spec = [None] * (len(shape) - np.ndim(other)) + list(entries)
    else:
        axes = [i for i, n in enumerate(shape) if n % parts == 0]
        if not axes:
            return None
        most = max(axes, key=lambda i: shape[i])
        spec = [tuple(names) if i == most else None for i in range(len(shape))]
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))


def straight_through(
    exact: Callable[..., Array], smooth: Callable[..., Array]
) -> Callable[..., Array]:
    """A function with the values of `exact` and the derivative of `smooth`.

    Args:
      exact: computes the result, for instance in integers.
      smooth: the same function of the same arguments, differentiable; it also gives the value
        where a derivative is taken, so that nothing is computed twice.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxsim.numerics import straight_through
      >>> rounded = straight_through(lambda x: jnp.round(x), lambda x: 1.0 * x)
      >>> rounded(1.4).item(), jax.grad(rounded)(1.4).item()
      (1.0, 1.0)
    """
    through = jax.custom_jvp(exact)
    through.defjvp(lambda primals, tangents: jax.jvp(smooth, primals, tangents))
    return through


@jax.custom_jvp
def zero_with_gradient_of(y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Zeros, whose derivative is that of `y`: added to a value, they lend it a derivative.

    What computes `y` itself is then dead code, and costs nothing under `jit`.
    """
    return jnp.zeros_like(y)


zero_with_gradient_of.defjvps(lambda tangent, ans, y: tangent)
