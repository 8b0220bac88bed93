"""Integers that a model's own constants determine: evaluated on the host, at many turns at once.

Counters of loops and what indexes are made of them. NumPy does the arithmetic, as a model is traced
while another program is, and an operation of JAX would be compiled each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxsim.internals import parameters, shape_of
from jaxsim.network.moves import SEVERAL, UNCHANGED
from jaxsim.numerics.checks import is_traced

LARGEST = 2**16
"""Most entries of an array of integers that is followed."""


def integers(value: Any) -> np.ndarray | None:
    """Reads a constant of a jaxpr as integers or truth values.

    Args:
      value: Constant, which may be traced.

    Returns:
      Its entries on the host; None where it is something else, unknown, or large.
    """
    if is_traced(value):
        return None
    if not _counts(jnp.result_type(value)) or np.size(value) > LARGEST:
        return None
    return np.asarray(value)


def _counts(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_


def evaluate(eqn: jex.JaxprEqn, ins: Sequence[np.ndarray], turns: int) -> np.ndarray | None:
    """Evaluates an equation on integers.

    Args:
      eqn: Equation.
      ins: Its operands, each with leading axes for the turns of the loops around it, of which each
        has the length of the loop, or one where it is the same at all turns.
      turns: Number of these leading axes.

    Returns:
      The result in the same form; None where the equation has none of integers, or is not known.
    """
    if len(eqn.outvars) != 1:
        return None
    out = shape_of(eqn.outvars[0])
    free = not all(isinstance(n, int) for n in out.shape)  # a symbol of jax.export
    if free or not _counts(out.dtype) or math.prod(out.shape) > LARGEST:
        return None
    name = eqn.primitive.name
    if name in _ELEMENTWISE:
        # operands are of one shape, but for scalars that select or bound
        rank = max(a.ndim for a in ins)
        same = [a.reshape((*a.shape, *[1] * (rank - a.ndim))) for a in ins]
        with np.errstate(over="ignore"):
            found = _ELEMENTWISE[name](*same)
        return None if found is None else found.astype(out.dtype)
    if name not in _SHAPED:
        return None
    return _SHAPED[name](parameters(eqn), turns, out, *ins).astype(out.dtype, copy=False)


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """Divides and rounds towards zero."""
    if (b == 0).any():
        return None
    return (a - np.fmod(a, b)) // b


def _remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """Computes what division towards zero leaves."""
    return None if (b == 0).any() else np.fmod(a, b)


def _select(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    shape = np.broadcast_shapes(*(a.shape for a in (which, *cases)))
    return np.choose(
        np.broadcast_to(which, shape).astype(np.int64), [np.broadcast_to(c, shape) for c in cases]
    )


_ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative},
    **{"max": np.maximum, "min": np.minimum, "abs": np.abs, "sign": np.sign},
    **{"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal},
    **{"eq": np.equal, "ne": np.not_equal},
    **{"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert},
    **{"div": _quotient, "rem": _remainder, "select_n": _select},
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    **dict.fromkeys(("convert_element_type", *UNCHANGED - SEVERAL), lambda x: x),
}


def _broadcast(params: Any, turns: int, out: Any, x: np.ndarray) -> np.ndarray:
    shape = [1] * len(out.shape)
    for axis, n in zip(params["broadcast_dimensions"], x.shape[turns:], strict=True):
        shape[axis] = n
    return np.broadcast_to(x.reshape((*x.shape[:turns], *shape)), (*x.shape[:turns], *out.shape))


def _arrange(params: Any, turns: int, out: Any, x: np.ndarray) -> np.ndarray:
    del params
    return x.reshape((*x.shape[:turns], *out.shape))


def _count(params: Any, turns: int, out: Any) -> np.ndarray:
    at = [1] * len(out.shape)
    at[params["dimension"]] = -1
    along = np.arange(out.shape[params["dimension"]]).reshape(at)
    return np.broadcast_to(along, out.shape).reshape((*[1] * turns, *out.shape))


def _cut(params: Any, turns: int, out: Any, x: np.ndarray) -> np.ndarray:
    del out
    strides = params["strides"] or [1] * (x.ndim - turns)
    ends = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return x[(*[slice(None)] * turns, *(slice(*end) for end in ends))]


def _reverse(params: Any, turns: int, out: Any, x: np.ndarray) -> np.ndarray:
    del out
    return np.flip(x, tuple(turns + axis for axis in params["dimensions"]))


def _join(params: Any, turns: int, out: Any, *parts: np.ndarray) -> np.ndarray:
    del out
    lead = np.broadcast_shapes(*(a.shape[:turns] for a in parts))
    whole = [np.broadcast_to(a, (*lead, *a.shape[turns:])) for a in parts]
    return np.concatenate(whole, turns + params["dimension"])


def _pile(params: Any, turns: int, out: Any, *parts: np.ndarray) -> np.ndarray:
    axis = turns + params["axis"]
    return _join(
        {"dimension": params["axis"]}, turns, out, *(np.expand_dims(a, axis) for a in parts)
    )


def _window(params: Any, turns: int, out: Any, x: np.ndarray, *starts: np.ndarray) -> np.ndarray:
    """Takes a window of x at each turn, which is moved inside as XLA moves it."""
    del params
    lead = np.broadcast_shapes(*(a.shape[:turns] for a in (x, *starts)))
    whole = np.broadcast_to(x, (*lead, *x.shape[turns:]))
    places = np.ix_(*map(np.arange, lead))
    index: list[Any] = [p.reshape((*p.shape, *[1] * len(out.shape))) for p in places]
    for axis, (first, size) in enumerate(zip(starts, out.shape, strict=True)):
        inside = np.clip(first, 0, x.shape[turns + axis] - size)
        along = np.arange(size).reshape(
            *[1] * turns, *[-1 if a == axis else 1 for a in range(len(out.shape))]
        )
        index.append(inside.reshape((*inside.shape, *[1] * len(out.shape))) + along)
    return whole[tuple(index)]


_SHAPED: Mapping[str, Callable[..., np.ndarray]] = {
    **{"broadcast_in_dim": _broadcast, "reshape": _arrange, "squeeze": _arrange},
    **{"expand_dims": _arrange, "iota": _count, "slice": _cut, "rev": _reverse},
    **{"concatenate": _join, "stack": _pile, "dynamic_slice": _window},
}
