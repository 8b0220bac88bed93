"""Circuits compiled to their expectation values as functions of encoded angles."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxsim.quantum.heisenberg import signs
from jaxsim.quantum.reuploads import carry_amplitudes, carry_paulis

MOST_OUTCOMES = 5
"""Most wires of a noisy circuit whose probability of every outcome is kept."""
ZERO = 1e-13
"""Below what double precision leaves of a coefficient that is zero."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["unitary", "coeffs", "outcomes", "uploads"],
    meta_fields=["n_wires", "method", "terms"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class CircuitKernel:
    """Expectation <Z> of every wire after RY(θ_q) on wire q and a circuit.

    Where angles are encoded more than once, the circuit is the one behind the last encoding.

    Attributes:
      unitary: Matrix of the circuit, [2^n, 2^n], complex; None for a noisy circuit, and for several
        by their Pauli components.
      coeffs: Coefficients [n, 3^n] over {I, X, Z}^n: <Z_k> = Σ_P c_kP Π_q (1, sin θ_q, cos θ_q)_P;
        None for a traced circuit that its matrix evaluates. Over {I, X, Y, Z}^n, [n, 4^n], where
        angles are encoded more than once, of Pauli components in place of sines and cosines.
      outcomes: The same for the probability of each outcome, [2^n, 3^n] or [2^n, 4^n]; only for
        noisy circuits, and for several by their Pauli components.
      n_wires: Number of wires n; wire 0 is the most significant bit, and digit of P.
      method: "gemm", the state by one real matrix product; "pauli", the polynomial by one;
        "sparse", the polynomial term by term.
      terms: Places (k, P) of the coefficients that are not zero; empty unless "sparse".
      uploads: Circuits between encodings of the same angles, in order: their matrices, or with
        "pauli" what they make of each Pauli component, [4^n, 4^n]. Empty for one encoding.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.quantum as jq
      >>> kernel = jq.compile_circuit(jq.basic_entangling(jnp.zeros((1, 2))))  # one controlled NOT
      >>> kernel.n_wires, kernel.method, kernel.nnz
      (2, 'sparse', 2)
    """

    unitary: Complex[Array, "2^n 2^n"] | np.ndarray | None
    coeffs: Float[Array, "n 3^n"] | np.ndarray | None
    outcomes: Float[Array, "2^n 3^n"] | np.ndarray | None
    n_wires: int
    method: Literal["gemm", "pauli", "sparse"]
    terms: tuple[tuple[int, int], ...] = ()
    uploads: tuple[Array | np.ndarray, ...] = ()

    @property
    def nnz(self) -> int:
        """Number of coefficients that are not zero, of n · 3^n.

        Raises:
          ValueError: A traced circuit, or several, that their matrices evaluate.
        """
        if self.coeffs is None:
            raise ValueError(
                f"nnz: method={self.method!r} of this circuit goes by its matrix alone"
            )
        return int(np.count_nonzero(np.abs(np.asarray(self.coeffs)) > ZERO))


def expval(kernel: CircuitKernel, theta: Float[Array, "... n"]) -> Float[Array, "... n"]:
    """Computes the expectation <Z> of every wire.

    Args:
      kernel: Circuit of n wires, from `compile_circuit`.
      theta: Angles of RY in radians, one for each wire on the last axis.

    Raises:
      ValueError: A last axis that is not n.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.quantum as jq
      >>> kernel = jq.compile_circuit(jq.basic_entangling(jnp.zeros((1, 2))))  # one controlled NOT
      >>> jq.expval(kernel, jnp.zeros((5, 2))).shape
      (5, 2)
    """
    theta = checked_angles(kernel, theta)
    if kernel.method == "gemm":
        return from_states(kernel, states(theta, kept=bool(kernel.uploads)))
    (cos, sin), wires = cosines(theta), range(kernel.n_wires)
    return from_cosines(kernel, [cos[..., q] for q in wires], [sin[..., q] for q in wires])


def checked_angles(kernel: CircuitKernel, theta: Any) -> Array:
    """Checks that there is an angle for each wire, and makes the angles an array of floats.

    Args:
      kernel: Circuit of n wires.
      theta: Angles of RY in radians, one for each wire on the last axis.

    Raises:
      ValueError: A last axis that is not n.
    """
    theta = jnp.asarray(theta)
    if theta.ndim == 0 or theta.shape[-1] != kernel.n_wires:
        raise ValueError(
            f"theta{list(theta.shape)}: its last axis must be {kernel.n_wires}, one angle a wire"
        )
    return theta.astype(jnp.result_type(theta, jnp.float32))


def states(theta: Float[Array, "..."], *, kept: bool = False) -> Float[Array, "... 2"]:
    """Computes the state that RY(θ) makes of |0>, which is real.

    Args:
      theta: Angles in radians.
      kept: Whether it is computed once, as `cosines` does, for several encodings to read.
    """
    half = theta / 2
    return jnp.stack(cosines(half) if kept else [jnp.cos(half), jnp.sin(half)], -1)


def from_states(kernel: CircuitKernel, pairs: Float[Array, "... n 2"]) -> Float[Array, "... n"]:
    """Computes <Z> of every wire from the state of each wire before the circuit; for "gemm".

    Args:
      kernel: Circuit of n wires with its unitary.
      pairs: Amplitudes of |0> and |1> of each wire, from `states`.
    """
    read = jnp.asarray(np.tile(signs(kernel.n_wires).T, 2), pairs.dtype)
    # a product with so few columns, and its derivative, are slower than a sum
    return jnp.sum(_squares(kernel, pairs)[:, None] * read, -1).reshape(*pairs.shape[:-1])


def cosines(theta: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Computes cosine and sine once.

    XLA's CPU backend would compute them anew for each of the terms that they are read by, five
    times slower in all. It fuses nothing with a product, be it with the identity.

    Args:
      theta: Angles in radians.
    """
    both = jnp.stack([jnp.cos(theta), jnp.sin(theta)])
    kept = jnp.matmul(jnp.eye(2, dtype=theta.dtype), both.reshape(2, -1), precision="highest")
    cos, sin = kept.reshape(both.shape)
    return cos, sin


def from_cosines(
    kernel: CircuitKernel, cos: Sequence[Array], sin: Sequence[Array]
) -> Float[Array, "... n"]:
    """Computes <Z> of every wire from cosines and sines of angles; for "pauli" and "sparse".

    Args:
      kernel: Circuit of n wires, from `compile_circuit`.
      cos: Cosines, an array for each wire, all of one shape.
      sin: Sines, likewise.

    Returns:
      Expectations, with n as a further last axis.
    """
    coeffs = jnp.asarray(kernel.coeffs, cos[0].dtype)
    if kernel.uploads:
        return _from_paulis(kernel, coeffs, cos, sin)
    if kernel.method == "pauli":
        return _dense_polynomial(coeffs, cos, sin)
    return _polynomial(coeffs, kernel, cos, sin)


def probabilities(kernel: CircuitKernel, theta: Float[Array, "... n"]) -> Float[Array, "... 2^n"]:
    """Computes the probability of every outcome; wire 0 is the most significant bit.

    Args:
      kernel: Circuit of n wires, from `compile_circuit`; at most 5 wires where it is noisy.
      theta: Angles of RY in radians, one for each wire on the last axis.

    Raises:
      ValueError: A last axis that is not n, or a noisy circuit of more than 5 wires.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.quantum as jq
      >>> kernel = jq.compile_circuit(jq.basic_entangling(jnp.zeros((1, 2))))  # one controlled NOT
      >>> [round(a, 3) for a in jq.probabilities(kernel, jnp.zeros(2)).tolist()]
      [1.0, 0.0, 0.0, 0.0]
    """
    theta = checked_angles(kernel, theta)
    if kernel.unitary is not None:
        pairs = states(theta, kept=bool(kernel.uploads))
        re, im = jnp.split(_squares(kernel, pairs), 2, -1)
        return (re + im).reshape(*theta.shape[:-1], 2**kernel.n_wires)
    if kernel.outcomes is None:
        raise ValueError(
            f"kernel: outcomes of a noisy circuit of {kernel.n_wires} wires were not kept; "
            f"allowed: at most {MOST_OUTCOMES} wires"
        )
    (cos, sin), wires = cosines(theta), range(kernel.n_wires)
    outcomes = jnp.asarray(kernel.outcomes, theta.dtype)
    read = partial(_from_paulis, kernel) if kernel.uploads else _dense_polynomial
    return read(outcomes, [cos[..., q] for q in wires], [sin[..., q] for q in wires])


def _squares(kernel: CircuitKernel, pairs: Float[Array, "... n 2"]) -> Float[Array, "N 2*2^n"]:
    """Squares of the real, then of the imaginary parts of the amplitudes, by one real product."""
    assert kernel.unitary is not None
    first, *others = *kernel.uploads, kernel.unitary
    u = jnp.asarray(first)
    both = jnp.concatenate([u.real.T, u.imag.T], 1).astype(pairs.dtype)
    state = _products([pairs[..., q, :] for q in range(kernel.n_wires)])
    # one long axis: a sum over several of them, in the derivative, is far slower
    amplitudes = state.reshape(-1, len(both)) @ both
    for matrix in others:
        flat = pairs.reshape(-1, kernel.n_wires, 2)
        amplitudes = carry_amplitudes(amplitudes, flat, matrix)
    return amplitudes * amplitudes


def _from_paulis(
    kernel: CircuitKernel, coeffs: Array, cos: Sequence[Array], sin: Sequence[Array]
) -> Array:
    """What is read of a state whose Pauli components are carried from encoding to encoding."""
    shape = cos[0].shape
    cos, sin = [c.ravel() for c in cos], [s.ravel() for s in sin]
    one, none = jnp.ones_like(cos[0]), jnp.zeros_like(cos[0])
    pairs = zip(cos, sin, strict=True)
    vector = _products([jnp.stack([one, s, none, c], -1) for c, s in pairs])
    for transfer in kernel.uploads:
        carried = vector @ jnp.asarray(transfer, vector.dtype).T
        vector = carry_paulis(carried, cos, sin)
    return (vector @ coeffs.T).reshape(*shape, len(coeffs))


def _products(factors: Sequence[Array]) -> Array:
    """The outer product over wires [..., b^n] of [..., b] each, joined in halves."""
    if len(factors) == 1:
        return factors[0]
    middle = len(factors) // 2
    a, b = _products(factors[:middle]), _products(factors[middle:])
    size = a.shape[-1] * b.shape[-1]
    return (a[..., :, None] * b[..., None, :]).reshape(*a.shape[:-1], size)


def _dense_polynomial(coeffs: Array, cos: Sequence[Array], sin: Sequence[Array]) -> Array:
    """The polynomial: one product over the second half of the wires, a sum over the first."""
    n = len(cos)
    ones = jnp.ones_like(cos[0])
    factors = [jnp.stack([ones, s, c], -1) for c, s in zip(cos, sin, strict=True)]
    if n == 1:
        return factors[0] @ coeffs.T
    first, second = _products(factors[: n // 2]), _products(factors[n // 2 :])
    a, b = first.shape[-1], second.shape[-1]
    inner = second @ coeffs.reshape(-1, a, b).transpose(2, 0, 1).reshape(b, -1)
    inner = inner.reshape(*inner.shape[:-1], inner.shape[-1] // a, a)
    return jnp.sum(inner * first[..., None, :], -1)


def _polynomial(
    coeffs: Array, kernel: CircuitKernel, cos: Sequence[Array], sin: Sequence[Array]
) -> Array:
    """The polynomial, term by term; products of the first wires are shared."""
    made: dict[tuple[int, ...], Array | None] = {(): None}

    def product(digits: tuple[int, ...]) -> Array | None:
        if digits not in made:
            before, wire = product(digits[:-1]), len(digits) - 1
            factor = (None, sin[wire], cos[wire])[digits[-1]]
            if before is None or factor is None:
                made[digits] = factor if before is None else before
            else:
                made[digits] = before * factor
        return made[digits]

    n = kernel.n_wires
    outs = [jnp.zeros_like(cos[0])] * n
    for k, p in kernel.terms:
        digits = tuple(int(p // 3 ** (n - 1 - q) % 3) for q in range(n))
        value = product(digits)
        outs[k] = outs[k] + (coeffs[k, p] if value is None else coeffs[k, p] * value)
    return jnp.stack(outs, -1)
