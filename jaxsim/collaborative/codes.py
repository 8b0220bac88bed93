"""Ridge codes: a feature as a linear combination of the features of labeled samples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range, is_traced


@own_promotion()
def ridge_codes(
    X: Float[Array, "N d"], y: Float[Array, "Q d"], lam: float | Array
) -> Float[Array, "Q N"]:
    """Computes the codes α that minimize ‖y − αX‖² + λ‖α‖², one for each row of y.

    Solved in the smaller of N and d dimensions, which is known of the shapes.

    Args:
      X: Features of the samples, the dictionary; one a row.
      y: Features to explain, one a row.
      lam: Strength λ of the penalty, above 0. Traced.

    Raises:
      ValueError: λ out of range, widths that differ, or features that are not finite.

    Source: Zhang, Yang and Feng (2011), ICCV, "Sparse representation or collaborative
      representation".

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.collaborative as jcol
      >>> (codes,) = jcol.ridge_codes(jnp.eye(2), jnp.array([[1.0, 0.0]]), 1.0).tolist()
      >>> [round(a, 3) for a in codes]
      [0.5, 0.0]
    """
    checked_features("X", X)
    checked_features("y", y, X.shape[1])
    check_range("lam", lam, 0, above=True)
    if X.shape[0] <= X.shape[1]:
        return _solve(X @ X.T, lam, X @ y.T).T
    return _solve(X.T @ X, lam, y.T).T @ X.T


@own_promotion()
def coder(X: Float[Array, "N d"], lam: float | Array) -> Float[Array, "N d"]:
    """Computes the matrix P with codes y Pᵀ, for a dictionary that is read many times.

    Args:
      X: Features of the samples, one a row.
      lam: Strength λ of the penalty, above 0. Traced.

    Raises:
      ValueError: λ out of range.
    """
    check_range("lam", lam, 0, above=True)
    N, d = X.shape
    if d >= N:
        return _solve(X @ X.T, lam, X)
    return _solve(X.T @ X, lam, X.T).T


@own_promotion()
def loo_codes(X: Float[Array, "N d"], lam: float | Array) -> Float[Array, "N N"]:
    """Computes the code of each sample from all the others; the diagonal is zero.

    All of them come from one factorization: of the N × N system where N ≤ d, of the d × d system
    where N > d. The second form loses digits in float32 where N ≤ d and λ is small.

    Args:
      X: Features of the samples, one a row.
      lam: Strength λ of the penalty, above 0. Traced.

    Raises:
      ValueError: λ out of range, or features that are not finite.

    Source: the leave-one-out identity of ridge regression, Cook and Weisberg (1982), §2.2.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.collaborative as jcol
      >>> X = jcol.unit(jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]))
      >>> labels = jnp.array([0, 0, 1, 1])
      >>> codes = jcol.loo_codes(X, 0.1)
      >>> codes.shape, jnp.diagonal(codes).tolist()
      ((4, 4), [0.0, 0.0, 0.0, 0.0])
    """
    checked_features("X", X)
    check_range("lam", lam, 0, above=True)
    N, d = X.shape
    if d >= N:
        inverse = _solve(X @ X.T, lam, jnp.eye(N, dtype=X.dtype))
        codes = -inverse / jnp.diagonal(inverse)[:, None]
    else:
        hat = X @ _solve(X.T @ X, lam, X.T)
        codes = hat / (1 - jnp.diagonal(hat))[:, None]
    return jnp.where(jnp.eye(N, dtype=bool), 0, codes)


def _solve(gram: Array, lam: float | Array, right: Array) -> Array:
    """(gram + λI)⁻¹ right, by Cholesky."""
    shifted = gram + lam * jnp.eye(len(gram), dtype=gram.dtype)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(shifted), right)


def checked_features(name: str, x: Any, width: int | None = None) -> None:
    """Checks features of samples.

    Args:
      name: Name of the argument, for the error.
      x: Features, a matrix.
      width: Number of columns; None for any.

    Raises:
      ValueError: Not a matrix, of another width, or not finite (where that is known).
    """
    if np.ndim(x) != 2 or (width is not None and x.shape[1] != width):
        wanted = "[rows, d]" if width is None else f"[rows, {width}]"
        raise ValueError(f"{name}{list(np.shape(x))}: must be {wanted}")
    if not is_traced(x) and not np.isfinite(np.asarray(x)).all():
        raise ValueError(f"{name}: holds NaN or infinite values")
