"""Logits of a collaborative representation, and the loss they are trained with."""

from __future__ import annotations

import warnings
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsim.collaborative.codes import loo_codes, ridge_codes
from jaxsim.collaborative.dictionary import Dictionary
from jaxsim.collaborative.residuals import one_hot, residuals_of
from jaxsim.inputs.samples import check_labels
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import is_traced

Readout = Literal["residual", "ridge"]


@own_promotion()
def unit(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Scales features to length one; near zero they, and their derivative, stay finite.

    Args:
      x: Features on the last axis.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.collaborative as jcol
      >>> [round(a, 3) for a in jcol.unit(jnp.array([3.0, 4.0])).tolist()]
      [0.6, 0.8]
    """
    return x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)


@own_promotion()
def batch_logits(
    X: Float[Array, "N d"],
    labels: Int[Array | np.ndarray, " N"],
    num_classes: int,
    lam: float | Array,
    scale: float | Array,
    *,
    readout: Readout = "residual",
    leave_one_out: bool = True,
) -> Float[Array, "N C"]:
    """Computes logits of samples, each explained by the others, as training needs them.

    A sample in its own dictionary explains itself, and nothing is left to learn from.

    Args:
      X: Features of the samples, one a row.
      labels: Classes of the samples, 0 to C - 1.
      num_classes: Number of classes C, at least 1.
      lam: Strength λ of the penalty, above 0. Traced.
      scale: Factor of the logits. Traced.
      readout: "residual", minus each class's residual, or "ridge", each class's sum of codes.
      leave_one_out: Whether a sample is left out of its own dictionary; False is for comparison.

    Raises:
      ValueError: λ out of range, labels outside [0, C), or features that are not finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.collaborative as jcol
      >>> X = jcol.unit(jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]))
      >>> labels = jnp.array([0, 0, 1, 1])
      >>> jcol.batch_logits(X, labels, 2, 0.1, 1.0).argmax(-1).tolist()
      [0, 0, 1, 1]
    """
    codes = loo_codes(X, lam) if leave_one_out else ridge_codes(X, X, lam)
    onehot = one_hot(labels, num_classes, X.dtype)
    if len(onehot) != len(X):
        raise ValueError(f"labels: {len(onehot)} of them for {len(X)} features")
    if readout == "ridge":
        return scale * (codes @ onehot)
    products = X @ X.T
    return -scale * residuals_of(products * (onehot @ onehot.T), onehot, X, products, codes)


@own_promotion()
def dictionary_logits(
    dictionary: Dictionary,
    y: Float[Array, "Q d"],
    scale: float | Array,
    *,
    readout: Readout = "residual",
) -> Float[Array, "Q C"]:
    """Computes logits of new samples.

    Args:
      dictionary: Labeled samples, from `make_dictionary`.
      y: Features of the new samples, one a row.
      scale: Factor of the logits. Traced.
      readout: "residual", minus each class's residual, or "ridge", each class's sum of codes.

    Raises:
      ValueError: Features of another width.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.collaborative as jcol
      >>> X = jcol.unit(jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]))
      >>> labels = jnp.array([0, 0, 1, 1])
      >>> dictionary = jcol.make_dictionary(X, labels, 2, 0.1)
      >>> jcol.dictionary_logits(dictionary, jnp.array([[0.2, 0.8]]), 1.0).argmax(-1).tolist()
      [1]
    """
    if y.shape[-1] != dictionary.atoms.shape[1]:
        raise ValueError(
            f"y{list(y.shape)}: the dictionary's features have width {dictionary.atoms.shape[1]}"
        )
    codes = y @ dictionary.coder.T
    if readout == "ridge":
        return scale * (codes @ dictionary.onehot)
    products = y @ dictionary.atoms.T
    return -scale * residuals_of(dictionary.gram, dictionary.onehot, y, products, codes)


@own_promotion()
def leave_one_out_entropy(
    logits: Float[Array, "N C"], labels: Int[Array | np.ndarray, " N"]
) -> Float[Array, ""]:
    """Averages the cross-entropy over samples whose class has another sample in the batch.

    Of a class with one sample that sample has nothing to be explained by; it is left out, and
    warned of where labels are known.

    Args:
      logits: Logits from `batch_logits` with `leave_one_out`.
      labels: Classes of the samples, 0 to C - 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.collaborative as jcol
      >>> X = jcol.unit(jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]))
      >>> labels = jnp.array([0, 0, 1, 1])
      >>> loss = jcol.leave_one_out_entropy(jcol.batch_logits(X, labels, 2, 0.1, 1.0), labels)
      >>> loss.shape, bool(loss < 0.7)
      ((), True)
    """
    check_labels("labels", labels, logits.shape[1])
    counts = jnp.zeros(logits.shape[1], logits.dtype).at[labels].add(1)
    if not is_traced(labels):
        alone = np.flatnonzero(np.bincount(np.asarray(labels)) == 1)
        if alone.size:
            warnings.warn(f"labels: one sample of class {alone[0]}; it is left out", stacklevel=2)
    kept = (counts[labels] > 1).astype(logits.dtype)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    return -jnp.sum(kept * chosen) / jnp.maximum(jnp.sum(kept), 1)
