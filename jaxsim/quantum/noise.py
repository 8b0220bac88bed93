"""Noise channels on one wire, and what their adjoints make of an observable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex

from jaxsim.numerics.checks import check_range
from jaxsim.quantum.circuit import namespace

Where = Literal["gates", "end"]


class Channel(NamedTuple):
    """A channel on one wire, ρ → Σ K ρ K†.

    Attributes:
      operators: its Kraus operators K; traced where its strength is.
      where: "gates", after every gate on each wire it touches; "end", on every wire before it is
        read.
      adjoint: what it makes of an observable, O → Σ K† O K, as a matrix on the rows and columns of
        O, for strengths that have derivatives; None to compute it from the operators.
    """

    operators: Complex[Array, "m 2 2"] | np.ndarray
    where: Where = "gates"
    adjoint: Array | np.ndarray | None = None


def depolarizing(p: float | Array, where: Where = "gates") -> Channel:
    """One of X, Y and Z, each with probability p / 3.

    Args:
      p: in [0, 3/4], where 3/4 leaves nothing of the state. Traced.
      where: "gates" or "end".

    Raises:
      ValueError: an argument out of range.
    """
    check_range("p", p, 0, 0.75)
    xp = namespace([p])
    stay, turn = xp.sqrt(1 - p), xp.sqrt(p / 3)
    operators = xp.stack([stay * np.eye(2), turn * _X, turn * _Y, turn * _Z])
    # X O X + Y O Y + Z O Z is 2 Tr(O) - O: no root of the strength is left
    eye = np.eye(2).reshape(4)
    adjoint = (1 - 4 * p / 3) * np.eye(4) + (2 * p / 3) * np.outer(eye, eye)
    return _of_strength(operators, adjoint, where, xp, p)


def amplitude_damping(gamma: float | Array, where: Where = "gates") -> Channel:
    """Decay from |1> to |0> with probability gamma.

    Args:
      gamma: in [0, 1]. Traced.
      where: "gates" or "end".

    Raises:
      ValueError: an argument out of range.
    """
    check_range("gamma", gamma, 0, 1)
    xp = namespace([gamma])
    keep = _UP + xp.sqrt(1 - gamma) * _DOWN
    operators = xp.stack([keep, xp.sqrt(gamma) * np.array([[0, 1], [0, 0]])])
    # Populations are polynomial. Coherences keep a root, with derivative zero at gamma = 1: they
    # come from Z, of which 1 - gamma is left where a wire is read.
    some = gamma < 1
    root = xp.where(some, xp.sqrt(xp.where(some, 1 - gamma, 1)), 0)
    kept, decayed, coherent = np.diag([1, 0, 0, 0]), np.zeros((4, 4)), np.diag([0, 1, 1, 0])
    decayed[3] = [1, 0, 0, -1]
    last = np.diag([0, 0, 0, 1])
    adjoint = kept + last + gamma * decayed + root * coherent
    return _of_strength(operators, adjoint, where, xp, gamma)


def kraus(operators: Sequence[Any], where: Where = "gates") -> Channel:
    """A channel of one's own.

    Args:
      operators: [m, 2, 2], with Σ K† K = 1.
      where: "gates" or "end".

    Raises:
      ValueError: another shape, or operators that are not complete.
    """
    made = np.asarray(operators, complex)
    if made.ndim != 3 or made.shape[1:] != (2, 2) or not len(made):
        raise ValueError(f"operators{list(made.shape)}: must be [m, 2, 2] with m of at least 1")
    total = np.einsum("mji,mjk->ik", made.conj(), made)
    if not np.allclose(total, np.eye(2), atol=1e-6):
        error = np.abs(total - np.eye(2)).max()
        raise ValueError(f"operators: Σ K† K is off the identity by {error:.3g}; allowed: 1e-6")
    return Channel(made, _checked(where))


_X = np.array([[0, 1], [1, 0]])
_Y = np.array([[0, -1j], [1j, 0]])
_Z = np.array([[1, 0], [0, -1]])
_UP, _DOWN = np.diag([1, 0]), np.diag([0, 1])


def _of_strength(operators: Any, adjoint: Any, where: Where, xp: Any, strength: Any) -> Channel:
    dtype = _complex(xp, strength)
    return Channel(operators.astype(dtype), _checked(where), xp.asarray(adjoint).astype(dtype))


def _complex(xp: Any, strength: Any) -> Any:
    return jnp.result_type(strength, jnp.complex64) if xp is jnp else np.complex128


def _checked(where: Where) -> Where:
    if where not in ("gates", "end"):
        raise ValueError(f"where={where!r}: must be 'gates' or 'end'")
    return where
