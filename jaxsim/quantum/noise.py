"""Noise channels on one wire, with their adjoints on observables."""

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
      operators: Kraus operators K [m, 2, 2]; traced where the strength is.
      where: "gates", after every gate on each wire it touches; "end", on every wire before it is
        read.
      adjoint: Map of observables, O → Σ K† O K, as a matrix on the rows and columns of O, for
        strengths that have derivatives; None to compute it from the operators.

    Examples:
      >>> import jaxsim.quantum as jq
      >>> channel = jq.depolarizing(0.1)
      >>> channel.operators.shape, channel.where
      ((4, 2, 2), 'gates')
    """

    operators: Complex[Array, "m 2 2"] | np.ndarray
    where: Where = "gates"
    adjoint: Array | np.ndarray | None = None


def depolarizing(p: float | Array, where: Where = "gates") -> Channel:
    """Makes a channel that applies one of X, Y and Z, each with probability p / 3.

    Args:
      p: Probability in [0, 3/4]; 3/4 leaves nothing of the state. Traced.
      where: "gates", after every gate on its wires, or "end", before wires are read.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.quantum as jq
      >>> circuit = jq.basic_entangling(jnp.zeros((1, 1)))  # a rotation by 0
      >>> kernel = jq.compile_circuit(circuit, noise=jq.depolarizing(0.3))
      >>> round(float(jq.expval(kernel, jnp.zeros(1))[0]), 3)  # 1 - 4p/3
      0.6
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
    """Makes a channel of decay from |1> to |0> with probability gamma.

    Args:
      gamma: Probability in [0, 1]. Traced.
      where: "gates", after every gate on its wires, or "end", before wires are read.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.quantum as jq
      >>> circuit = jq.basic_entangling(jnp.zeros((1, 1)))  # a rotation by 0
      >>> kernel = jq.compile_circuit(circuit, noise=jq.amplitude_damping(0.25))
      >>> round(float(jq.expval(kernel, jnp.full(1, jnp.pi))[0]), 3)  # 2 gamma - 1
      -0.5
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
    """Makes a channel from Kraus operators.

    Args:
      operators: Operators K, [m, 2, 2], with Σ K† K = 1.
      where: "gates", after every gate on its wires, or "end", before wires are read.

    Raises:
      ValueError: Another shape, or operators that are not complete.

    Examples:
      >>> import numpy as np
      >>> import jaxsim.quantum as jq
      >>> flips = [np.sqrt(0.9) * np.eye(2), np.sqrt(0.1) * np.array([[0, 1], [1, 0]])]
      >>> jq.kraus(flips, "end").operators.shape
      (2, 2, 2)
    """
    made = np.asarray(operators, complex)
    if made.ndim != 3 or made.shape[1:] != (2, 2) or not len(made):
        raise ValueError(f"operators{list(made.shape)}: must be [m, 2, 2] with m of at least 1")
    total = np.einsum("mji,mjk->ik", made.conj(), made)
    if not np.allclose(total, np.eye(2), atol=1e-6, rtol=0):
        error = np.abs(total - np.eye(2)).max()
        raise ValueError(f"operators: Σ K† K is off the identity by {error:.3g}; allowed: 1e-6")
    return Channel(made, _check_where(where))


_X = np.array([[0, 1], [1, 0]])
_Y = np.array([[0, -1j], [1j, 0]])
_Z = np.array([[1, 0], [0, -1]])
_UP, _DOWN = np.diag([1, 0]), np.diag([0, 1])


def _of_strength(operators: Any, adjoint: Any, where: Where, xp: Any, strength: Any) -> Channel:
    dtype = _complex(xp, strength)
    return Channel(operators.astype(dtype), _check_where(where), xp.asarray(adjoint).astype(dtype))


def _complex(xp: Any, strength: Any) -> Any:
    return jnp.result_type(strength, jnp.complex64) if xp is jnp else np.complex128


def _check_where(where: Where) -> Where:
    if where not in ("gates", "end"):
        raise ValueError(f"where={where!r}: must be 'gates' or 'end'")
    return where
