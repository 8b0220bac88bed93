"""Noise channels on one wire, and what their adjoints make of an observable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex

from jaxsim.numerics import check_range
from jaxsim.quantum.circuit import namespace

Where = Literal["gates", "end"]


class Channel(NamedTuple):
    """A channel on one wire, ρ → Σ K ρ K†.

    Attributes:
      operators: its Kraus operators K; traced where its strength is.
      where: "gates", after every gate on each wire it touches; "end", on every wire before it is
        read.
    """

    operators: Complex[Array, "m 2 2"] | np.ndarray
    where: Where = "gates"


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
    parts = [stay * np.eye(2), turn * _X, turn * _Y, turn * _Z]
    return Channel(xp.stack(parts).astype(_complex(xp, p)), _checked(where))


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
    parts = [keep, xp.sqrt(gamma) * np.array([[0, 1], [0, 0]])]
    return Channel(xp.stack(parts).astype(_complex(xp, gamma)), _checked(where))


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


def _complex(xp: Any, strength: Any) -> Any:
    return jnp.result_type(strength, jnp.complex64) if xp is jnp else np.complex128


def _checked(where: Where) -> Where:
    if where not in ("gates", "end"):
        raise ValueError(f"where={where!r}: must be 'gates' or 'end'")
    return where
