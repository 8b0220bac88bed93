"""Rounding with a gradient, digits of codes, and the checks of arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Num


@jax.custom_jvp
def round_through(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rounds half to even; its derivative is that of the identity.

    Source: straight-through estimator, Bengio, Léonard and Courville (2013), arXiv 1308.3432.
    """
    return jnp.round(x)


round_through.defjvps(lambda tangent, ans, x: tangent)


def clip_through(
    x: Float[Array, "..."], lo: float | Array, hi: float | Array
) -> Float[Array, "..."]:
    """Clips to [lo, hi]; its derivative is one on the closed range and zero outside.

    That of `jnp.clip` is a half at the ends, where all the values lie that round to the last code.
    """
    inside = (x >= lo) & (x <= hi)
    return jnp.where(inside, x, jnp.clip(jax.lax.stop_gradient(x), lo, hi))


def is_traced(value: Any) -> bool:
    """Whether a value is known only inside a compiled programme, where no check can see it."""
    return isinstance(value, Tracer)


def check_range(
    name: str,
    value: Any,
    lo: float,
    hi: float = math.inf,
    *,
    above: bool = False,
    whole: bool = False,
) -> None:
    """Checks that a number is finite and in [lo, hi], or (lo, hi]; a traced one is not looked at.

    Args:
      name: of the argument, for the error.
      value: a number, or an array that holds one.
      lo: lower end.
      hi: upper end.
      above: whether `lo` itself is out of range.
      whole: whether it must be an integer.

    Raises:
      ValueError: it is not.
    """
    if is_traced(value):
        return
    number = np.asarray(value)
    if (
        number.ndim == 0
        and number.dtype.kind in ("iu" if whole else "iuf")
        and np.isfinite(number)
        and (number > lo if above else number >= lo)
        and number <= hi
    ):
        return
    upper = "" if hi == math.inf else f" and at most {hi}"
    raise ValueError(
        f"{name}={value}: must be {'an int' if whole else 'a number'} "
        f"{'above' if above else 'of at least'} {lo}{upper}"
    )


def check_share(name: str, value: Any) -> None:
    """Checks that a number, or each of an array, is in [0, 1); a traced one is not looked at.

    Args:
      name: of the argument, for the error.
      value: what may be left out.

    Raises:
      ValueError: it is not.
    """
    check_range(name, value, 0, 1)
    if not is_traced(value) and np.any(np.asarray(value) >= 1):
        raise ValueError(f"{name}={value}: must be below 1")


def checked_int(name: str, value: Any, lo: int, hi: int | None = None) -> int:
    """A whole number in [lo, hi] as an int, numpy's included.

    Raises:
      ValueError: it is not one.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < lo or (hi is not None and value > hi):
        allowed = f"of at least {lo}" if hi is None else f"from {lo} to {hi}"
        raise ValueError(f"{name}={value!r}: must be an int {allowed}")
    return int(value)


def native(a: Any) -> Any:
    """An array in this machine's byte order; anything else as it is.

    jax reads the bytes of others as if they were its own, once a programme is compiled.
    """
    if isinstance(a, np.ndarray | np.generic) and not a.dtype.isnative:
        return a.astype(a.dtype.newbyteorder("="))
    return a


def placed_like(a: Array, other: Any) -> Array:
    """An array on the devices of another one of its rank, cut as that is where its sizes allow it.

    Args:
      a: What is made beside a parameter, such as its mask.
      other: The parameter; nothing happens where it is traced or not on a mesh.
    """
    sharding = None if is_traced(a) or is_traced(other) else getattr(other, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding) or np.ndim(a) != np.ndim(other):
        return a
    try:
        sharding.shard_shape(np.shape(a))
    except ValueError:  # a size that the mesh does not divide
        return a
    return jax.device_put(a, sharding)


def straight_through(
    exact: Callable[..., Array], smooth: Callable[..., Array]
) -> Callable[..., Array]:
    """A function with the values of `exact` and the derivative of `smooth`.

    Args:
      exact: computes the result, for instance in integers.
      smooth: the same function of the same arguments, differentiable; it also gives the value
        where a derivative is taken, so that nothing is computed twice.
    """
    through = jax.custom_jvp(exact)
    through.defjvp(lambda primals, tangents: jax.jvp(smooth, primals, tangents))
    return through


@jax.custom_jvp
def derivative_alone(y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Zeros, whose derivative is that of `y`: added to a value, they lend it a derivative.

    What computes `y` itself is then dead code, and costs nothing under `jit`.
    """
    return jnp.zeros_like(y)


derivative_alone.defjvps(lambda tangent, ans, y: tangent)


def quantile(x: Float[Array, "*rows n"], q: Float[Array, ""]) -> Float[Array, "*rows"]:
    """The q-quantile along the last axis, interpolated between neighbours as numpy does.

    The two order statistics are found by bisection on the bits of the floats, 32 counting passes:
    exact, and far faster than a sort on every backend.

    Args:
      x: float32 values without NaN, n at least 1.
      q: share in [0, 1].
    """
    position = jnp.clip(q, 0, 1) * (x.shape[-1] - 1)
    below = jnp.floor(position).astype(jnp.int32)
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers that sort as the floats do

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        lo, hi = ends
        middle = (lo & hi) + ((lo ^ hi) >> 1)
        enough = jnp.sum(order <= middle[..., None], -1) > below
        return jnp.where(enough, lo, middle + 1), jnp.where(enough, middle, hi)

    ends = (jnp.min(order, -1), jnp.max(order, -1))
    found, _ = lax.fori_loop(0, 32, halve, ends)
    more = jnp.sum(order <= found[..., None], -1) > below + 1
    beyond = jnp.where(order > found[..., None], order, jnp.max(order, -1, keepdims=True))
    above = jnp.where(more, found, jnp.min(beyond, -1))
    lo, hi = (
        lax.bitcast_convert_type(jnp.where(o < 0, o ^ 0x7FFFFFFF, o), jnp.float32)
        for o in (found, above)
    )
    return lo + (hi - lo) * (position - below)


def digit_count(largest: int, bits: int) -> int:
    """Digits of `bits` bits that the magnitudes up to `largest` take, at least one."""
    return max(1, -(-largest.bit_length() // bits))


def digit(code: Num[Array, "..."], place: int, bits: int, count: int) -> Num[Array, "..."]:
    """One digit of the magnitude of each code, with the code's sign.

    Args:
      code: whole numbers, as integers or floats.
      place: value of the digit's place, a power of two.
      bits: bits of a digit.
      count: digits of a code; the gradient of each is an equal share of the code's.
    """
    if jnp.issubdtype(code.dtype, jnp.integer):
        wide = code.astype(jnp.int32)
        found = jnp.sign(wide) * ((jnp.abs(wide) // place) % 2**bits)
        return found.astype(code_dtype(-(2**bits) + 1, 2**bits - 1))
    magnitude = jnp.floor(jnp.abs(code) / place) % 2**bits
    found = lax.stop_gradient(jnp.sign(code) * magnitude)
    return found + (code - lax.stop_gradient(code)) / (place * count)


def over_planes(values: Any, ndim: int) -> Array:
    """One value a plane, as it broadcasts to an array of that rank which begins with the planes."""
    return jnp.reshape(values, (*values.shape, *(1,) * (ndim - values.ndim)))


def code_dtype(lo: int, hi: int) -> np.dtype[np.signedinteger]:
    """The narrowest signed integer type that holds every code from `lo` to `hi`."""
    return next(
        np.dtype(t)
        for t in ("int8", "int16", "int32")
        if lo >= np.iinfo(t).min and hi <= np.iinfo(t).max
    )
