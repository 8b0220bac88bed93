"""Residuals: the part of a feature that each class of a dictionary leaves unexplained."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsim.collaborative.codes import checked_features
from jaxsim.inputs.samples import check_labels
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import checked_int, is_traced


@own_promotion()
def class_residuals(
    X: Float[Array, "N d"],
    labels: Int[Array | np.ndarray, " N"],
    y: Float[Array, "Q d"],
    alpha: Float[Array, "Q N"],
    num_classes: int,
    *,
    normalize: bool = False,
) -> Float[Array, "Q C"]:
    """Computes ‖y − α_c X_c‖² for each class c, without an array of size Q × C × d.

    Args:
      X: Features of the samples, one a row.
      labels: Classes of the samples, 0 to C - 1.
      y: Features to explain, one a row.
      alpha: Codes of y over the samples, from `ridge_codes`.
      num_classes: Number of classes C, at least 1.
      normalize: Whether to divide by ‖α_c‖².

    Raises:
      ValueError: A label outside [0, C), shapes that differ, or features that are not finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.collaborative as jcol
      >>> X = jcol.unit(jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]))
      >>> labels = jnp.array([0, 0, 1, 1])
      >>> y = jnp.array([[1.0, 0.0]])
      >>> residuals = jcol.class_residuals(X, labels, y, jcol.ridge_codes(X, y, 0.1), 2)
      >>> residuals.argmin(-1).tolist()
      [0]
    """
    checked_features("X", X)
    checked_features("y", y, X.shape[1])
    onehot = one_hot(labels, num_classes, X.dtype)
    if onehot.shape[0] != X.shape[0] or alpha.shape != (y.shape[0], X.shape[0]):
        raise ValueError(
            f"alpha{list(alpha.shape)}, labels[{onehot.shape[0]}]: must be "
            f"[{y.shape[0]}, {X.shape[0]}] and [{X.shape[0]}]"
        )
    return residuals_of(same_class_gram(X, onehot), onehot, y, y @ X.T, alpha, normalize=normalize)


def same_class_gram(X: Float[Array, "N d"], onehot: Float[Array, "N C"]) -> Float[Array, "N N"]:
    """Computes inner products of samples of one class; zero between classes.

    Args:
      X: Features of the samples, one a row.
      onehot: Classes as rows of a unit matrix.
    """
    return (X @ X.T) * (onehot @ onehot.T)


def residuals_of(
    gram: Float[Array, "N N"],
    onehot: Float[Array, "N C"],
    y: Float[Array, "Q d"],
    products: Float[Array, "Q N"],
    alpha: Float[Array, "Q N"],
    *,
    normalize: bool = False,
) -> Float[Array, "Q C"]:
    """Computes residuals from Gram matrices.

    Args:
      gram: Inner products of samples of one class, from `same_class_gram`.
      onehot: Classes as rows of a unit matrix.
      y: Features to explain, one a row.
      products: Inner products of y with the samples.
      alpha: Codes of y over the samples.
      normalize: Whether to divide by ‖α_c‖².
    """
    size = jnp.sum(y**2, 1, keepdims=True)
    left = size - 2 * (alpha * products) @ onehot + (alpha * (alpha @ gram)) @ onehot
    # a difference of near numbers may come out below zero
    left = jnp.maximum(left, 0)
    if not normalize:
        return left
    return left / ((alpha**2) @ onehot + jnp.finfo(left.dtype).tiny)


def one_hot(labels: Any, num_classes: int, dtype: Any = jnp.float32) -> Float[Array, "N C"]:
    """Writes classes as rows of a unit matrix.

    A class without a sample is warned of: its residual is ‖y‖², whatever y is.

    Args:
      labels: Classes, a vector of integers.
      num_classes: Number of classes C, at least 1.
      dtype: Type of the result.

    Raises:
      ValueError: labels that are not integers in [0, num_classes), where that is known.
    """
    num_classes = checked_int("num_classes", num_classes, 1)
    labels = labels if is_traced(labels) else np.asarray(labels)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels: {labels.dtype}{list(labels.shape)}, must be a vector of ints")
    check_labels("labels", labels, num_classes)
    if not is_traced(labels):
        missing = sorted(set(range(num_classes)) - set(labels.tolist()))
        if missing:
            warnings.warn(f"labels: no sample of class {missing[0]}", stacklevel=2)
    return jax.nn.one_hot(labels, num_classes, dtype=dtype)
