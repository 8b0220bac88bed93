"""Hadamard matrices: orthogonal, with entries of one magnitude."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key


def hadamard_matrix(order: int) -> Float[np.ndarray, "n n"] | None:
    """A matrix of ones and minus ones whose rows are orthogonal, None where no way is known here.

    Orders are those of Sylvester (powers of two), of Paley (q + 1 for primes q of 3 modulo 4, and
    2q + 2 for primes q of 1 modulo 4), and products of one of Paley with one of Sylvester.

    Args:
      order: Number of rows.

    Source: Paley (1933), On orthogonal matrices.
    """
    power = 1
    while order % power == 0:
        small = _paley(order // power)
        if small is not None:
            return np.kron(small, _sylvester(power))
        power *= 2
    return None


def orthogonal_factors(
    key: Key[Array, ""], size: int
) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "p p"]]:
    """Two orthogonal matrices whose Kronecker product mixes all of `size` numbers.

    The second is Sylvester's of at most 64 rows, so that a product with both is cheap. The first is
    a Hadamard matrix too where one of its order is known, else random.

    Args:
      key: Random key of a random matrix.
      size: Product of their numbers of rows, at least 1.
    """
    size = int(size)
    largest = min(size & -size, 64)
    for inner in (largest >> i for i in range(largest.bit_length())):
        outer = hadamard_matrix(size // inner)
        if outer is not None:
            break
    else:
        inner, outer = largest, None
    if outer is None:
        draws = np.asarray(jax.random.normal(key, (size // inner,) * 2), np.float64)
        first, upper = np.linalg.qr(draws)
        first = first * np.sign(np.diag(upper))
    else:
        first = _normalized(outer)
    return first.astype(np.float32), _normalized(_sylvester(inner)).astype(np.float32)


def mix_along(
    a: Float[Array, "..."],
    axis: int,
    outer: Float[Array, "m m"] | Float[np.ndarray, "m m"],
    inner: Float[Array, "p p"] | Float[np.ndarray, "p p"],
) -> Float[Array, "..."]:
    """Multiplies an array along an axis by the Kronecker product of two matrices, in float32.

    Args:
      a: Array.
      axis: Axis of m · p entries, from 0.
      outer: Matrix that mixes entries p places apart.
      inner: Matrix that mixes neighbors.
    """
    last = jnp.moveaxis(a.astype(jnp.float32), axis, -1)
    product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    if len(outer) == 1:
        turned = product(last, outer[0, 0] * inner)
    else:
        parts = last.reshape(*last.shape[:-1], len(outer), len(inner))
        turned = product(product(jnp.asarray(outer).T, parts), inner).reshape(last.shape)
    return jnp.moveaxis(turned, -1, axis)


def _normalized(matrix: np.ndarray) -> np.ndarray:
    return matrix / math.sqrt(len(matrix))


def random_signs(key: Key[Array, ""], size: int) -> Float[np.ndarray, " n"]:
    """Random ones and minus ones.

    Args:
      key: Random key.
      size: Number of them.
    """
    return np.asarray(jax.random.rademacher(key, (size,), jnp.float32))


def _sylvester(order: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _paley(order: int) -> np.ndarray | None:
    """A matrix of an order that is 1, 2, or one of Paley's."""
    if order in (1, 2):
        return _sylvester(order)
    if order % 4:
        return None
    if _prime(q := order - 1):
        skew = np.ones((order, order))
        skew[1:, 0] = -1
        skew[1:, 1:] = _residues(q)
        np.fill_diagonal(skew, 0)
        return skew + np.eye(order)
    if (q := order // 2 - 1) % 4 == 1 and _prime(q):
        conference = np.ones((q + 1, q + 1))
        conference[1:, 1:] = _residues(q)
        np.fill_diagonal(conference, 0)
        plus, minus = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
        return np.kron(conference, plus) + np.kron(np.eye(q + 1), minus)
    return None


def _residues(q: int) -> np.ndarray:
    """Jacobsthal's matrix: of each difference, whether it is a square modulo q."""
    squares = {i * i % q for i in range(1, q)}
    sign = np.array([0, *(1 if i in squares else -1 for i in range(1, q))])
    return sign[(np.arange(q)[:, None] - np.arange(q)) % q]


def _prime(n: int) -> bool:
    return n > 2 and all(n % d for d in range(2, math.isqrt(n) + 1))
