"""Rounding with a gradient, digits of codes, and the checks of arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Num


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


TINY = float(np.finfo(np.float32).tiny)
"""The smallest normal float32: hardware may take what lies below it for zero."""


def step_of(width: Float[Array, "..."], count: float | Array, *, empty: float) -> Array:
    """A share of a width that can be divided by.

    `width / count`, and at least the smallest normal float, since a quotient below it may be
    flushed to zero.

    Args:
      width: at least 0.
      count: into how many steps.
      empty: the step where the width is zero, or so small that it may be taken for it.
    """
    return jnp.where(width >= TINY, jnp.maximum(width / count, TINY), empty)


def times_both(y: Float[Array, "..."], a: Array | float, b: Array) -> Float[Array, "..."]:
    """`y * (a * b)`, and `y * a * b` where the product of two scales is no normal float."""
    both = a * b
    fits = (both >= TINY) & jnp.isfinite(both)
    return y * jnp.where(fits, both, a) * jnp.where(fits, 1.0, b)


def power_below(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The largest power of two that is no larger than each magnitude, at most 2^126; 0 for zero.

    What is divided by it keeps its digits, and can be squared or added up.
    """
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) & 0x7F800000
    return jnp.minimum(lax.bitcast_convert_type(bits, jnp.float32), 2.0**126)


def unit_of(x: Float[Array, "..."], axes: Sequence[int]) -> Float[Array, "..."]:
    """A power of two that brings the largest magnitude near one; 1 for zeros.

    Args:
      x: no derivative flows to the unit.
      axes: what shares a unit, kept with size 1.
    """
    most = jnp.max(jnp.abs(lax.stop_gradient(x)), axes, keepdims=True, initial=0)
    unit = power_below(most)
    return jnp.where(unit > 0, unit, 1.0)


@jax.custom_jvp
def divide(x: Float[Array, "..."], by: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x / by` for any normal `by`, with a derivative that is finite where the quotient is.

    Compilers multiply by the reciprocal, which above 2^126 may be flushed to zero; and the usual
    derivative squares `by`.
    """
    return _quotient(x, by)


def _quotient(x: Array, by: Array) -> Array:
    less = jnp.where(jnp.abs(by) > 1, 0.25, 1.0).astype(by.dtype)
    return (x * less) / (by * less)


divide.defjvps(
    lambda tangent, ans, x, by: _quotient(tangent, by),
    lambda tangent, ans, x, by: -ans * _quotient(tangent, by),
)


@contextlib.contextmanager
def own_promotion() -> Generator[None]:
    """JAX's standard promotion of types and ranks, which this package's arithmetic is written for.

    A caller's strict modes (`jax_numpy_dtype_promotion`, `jax_numpy_rank_promotion`) are about the
    caller's code. Also a decorator.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


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


def is_whole(value: Any) -> bool:
    """Whether a value is an int, numpy's, or an array that holds one; a boolean is none."""
    if isinstance(value, np.ndarray | jax.Array) and not is_traced(value):
        return value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer)
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def checked_int(name: str, value: Any, lo: int, hi: int | None = None) -> int:
    """A whole number in [lo, hi] as an int, numpy's and arrays that hold one included.

    Raises:
      ValueError: it is not one.
    """
    if not is_whole(value) or value < lo or (hi is not None and value > hi):
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


def cut_with(a: Any, other: Any) -> jax.sharding.NamedSharding | None:
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


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Count:
    """A whole number that a compiled programme is made for: static, and without a leaf.

    Attributes:
      number: At least 0.
    """

    number: int

    def __len__(self) -> int:
        return self.number


def checked_count(name: str, value: Any, lo: int = 1) -> Count:
    """How often a compiled loop runs.

    Args:
      name: of the argument, for the error.
      value: the number, at most 2**31 - 1, as loops count in 32 bits.
      lo: smallest that is allowed.

    Raises:
      ValueError: it is out of range.
    """
    return Count(checked_int(name, value, lo, 2**31 - 1))


def check_called(name: str, value: Any) -> None:
    """Checks that a function of jaxsim's that makes a value is not given in place of the value.

    Args:
      name: of the argument, for the error.
      value: what a caller gave.

    Raises:
      ValueError: it is such a function, or a class.
    """
    module = getattr(value, "__module__", None) or ""
    qualified = getattr(value, "__qualname__", "")
    if not module.startswith("jaxsim.") or not qualified or "." in qualified:
        return
    parameters = [*inspect.signature(value).parameters.values()]
    if parameters and parameters[0].name in ("net", "chip", "layer"):  # takes what it is given to
        return
    public = getattr(sys.modules["jaxsim"], qualified, None) is value
    called = f"js.{qualified}" if public else f"{module.rpartition('.')[2]}.{qualified}"
    needs = any(
        p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters
    )
    raise ValueError(
        f"{name}={called}: is what makes one; call it: {called}({'…' if needs else ''})"
    )


def checked_seed(value: Any, name: str = "seed") -> int:
    """A seed of `jax.random.key` as an int; beyond 32 bits two seeds would draw the same.

    Raises:
      ValueError: it is no whole number from 0 to 2**32 - 1.
    """
    return checked_int(name, value, 0, 2**32 - 1)


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


def quantile(
    x: Float[Array, "*rows n"], q: Float[Array, ""], among: Bool[Array, "*rows n"] | None = None
) -> Float[Array, "*rows"]:
    """The q-quantile along the last axis, interpolated between neighbours as numpy does.

    The two order statistics are found by bisection on the bits of the floats, 32 counting passes:
    exact, and far faster than a sort on every backend.

    Args:
      x: float32 values without NaN, n at least 1.
      q: share in [0, 1].
      among: which of the values to look at; None for all. A row without one has quantile zero.
    """
    last = x.shape[-1] - 1 if among is None else jnp.sum(among, -1).astype(jnp.float32) - 1
    position = jnp.clip(q, 0, 1) * jnp.maximum(last, 0)
    below = jnp.floor(position).astype(jnp.int32)
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers that sort as the floats do
    if among is not None:  # what is left out comes last, and is as large as the largest
        some = jnp.any(among, -1, keepdims=True)
        largest = jnp.max(jnp.where(among, order, -(2**31)), -1, keepdims=True)
        order = jnp.where(among, order, jnp.where(some, largest, 0))

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
    # halves: the difference of two of the largest floats is none
    return lo + (hi * 0.5 - lo * 0.5) * ((position - below) * 2)


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
