"""Labeled features, factorized once for a collaborative head to read at inference."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from jaxsim.collaborative.codes import checked_features, coder
from jaxsim.collaborative.residuals import one_hot, same_class_gram
from jaxsim.numerics.arrays import own_promotion


class Dictionary(NamedTuple):
    """Samples of every class, with the matrices that give codes over them.

    Attributes:
      atoms: Features of the samples, [N, d].
      coder: Matrix that gives codes of y as y coderᵀ, [N, d].
      onehot: Classes of the samples as rows of a unit matrix, [N, C].
      gram: Inner products of the samples, zero between classes, [N, N].

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.collaborative as jcol
      >>> X = jcol.unit(jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]))
      >>> labels = jnp.array([0, 0, 1, 1])
      >>> dictionary = jcol.make_dictionary(X, labels, 2, 0.1)
      >>> dictionary.atoms.shape, dictionary.onehot.shape
      ((4, 2), (4, 2))
    """

    atoms: Float[Array, "N d"]
    coder: Float[Array, "N d"]
    onehot: Float[Array, "N C"]
    gram: Float[Array, "N N"]


@own_promotion()
def make_dictionary(
    X: Float[Array, "N d"],
    labels: Int[Array | np.ndarray, " N"],
    num_classes: int,
    lam: float | Array,
) -> Dictionary:
    """Factorizes labeled samples.

    Args:
      X: Features of the samples, one a row.
      labels: Classes of the samples, 0 to C - 1.
      num_classes: Number of classes C, at least 1.
      lam: Strength λ of the penalty, above 0. Traced.

    Raises:
      ValueError: λ out of range, labels outside [0, C) or of another number, or features that are
        not finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.collaborative as jcol
      >>> X = jcol.unit(jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]))
      >>> labels = jnp.array([0, 0, 1, 1])
      >>> jcol.make_dictionary(X, labels, 2, 0.1).coder.shape
      (4, 2)
    """
    checked_features("X", X)
    onehot = one_hot(labels, num_classes, X.dtype)
    if len(onehot) != len(X):
        raise ValueError(f"labels: {len(onehot)} of them for {len(X)} features")
    return Dictionary(X, coder(X, lam), onehot, same_class_gram(X, onehot))


def checksum(tree: Any) -> UInt32[Array, ""]:
    """Computes a number that any change of any one entry of a tree of arrays changes.

    Every entry's bits are multiplied by an odd number that depends on its place and added up modulo
    2^32.

    Args:
      tree: Arrays of numbers or random keys.
    """
    total = jnp.uint32(0)
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        bits = _bits(lax.stop_gradient(jnp.asarray(leaf)))
        place = jnp.arange(bits.size, dtype=jnp.uint32) + jnp.uint32(i)
        total = total * jnp.uint32(0x9E3779B1) + jnp.sum(
            bits * (2 * place * jnp.uint32(0x85EBCA6B) + 1), dtype=jnp.uint32
        )
    return total


def _bits(x: Array) -> UInt32[Array, " n"]:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.ravel().astype(jnp.uint32)
    narrow = {2: jnp.uint16, 1: jnp.uint8}.get(x.dtype.itemsize, jnp.uint32)
    return lax.bitcast_convert_type(x, narrow).ravel().astype(jnp.uint32)
