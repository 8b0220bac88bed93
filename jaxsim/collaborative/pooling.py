"""Bilinear pooling: second-order statistics of feature maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxsim.collaborative.head import unit
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import checked_int


@own_promotion()
def bilinear_pool(
    F: Float[Array, "B H W C1"], G: Float[Array, "B H W C2"] | None = None
) -> Float[Array, "B C1*C2"]:
    """Sums outer products of features over places, as signed roots of length one.

    Args:
      F: Feature maps, [B, H, W, C1].
      G: Other feature maps of the same places, [B, H, W, C2]; None for F itself.

    Raises:
      ValueError: Not maps of the same places.

    Source: Lin, RoyChowdhury and Maji (2015), arXiv 1504.07889.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.collaborative as jcol
      >>> jcol.bilinear_pool(jnp.ones((2, 4, 4, 3))).shape
      (2, 9)
    """
    other = F if G is None else G
    _check_maps(F, other)
    return unit(signed_root(jnp.einsum("bhwi,bhwj->bij", F, other).reshape(len(F), -1)))


@own_promotion()
def compact_bilinear_pool(
    F: Float[Array, "B H W C"], D: int, key: Key[Array, ""]
) -> Float[Array, "B D"]:
    """Pools F with itself as `bilinear_pool` does, its outer product sketched in D numbers.

    Args:
      F: Feature maps, [B, H, W, C].
      D: Width of the sketch, at least 1; the error of inner products falls as its root.
      key: Random key of the sketch; equal keys give equal sketches.

    Raises:
      ValueError: No map, or D out of range.

    Source: Gao et al. (2016), arXiv 1511.06062; Pham and Pagh (2013), KDD.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.collaborative as jcol
      >>> jcol.compact_bilinear_pool(jnp.ones((2, 4, 4, 8)), 16, jax.random.key(0)).shape
      (2, 16)
    """
    _check_maps(F, F)
    return unit(signed_root(tensor_sketch(F, D, key).sum((1, 2))))


@own_promotion()
def tensor_sketch(x: Float[Array, "... C"], D: int, key: Key[Array, ""]) -> Float[Array, "... D"]:
    """Sketches x ⊗ x: inner products of sketches are on average those of x, squared.

    Args:
      x: Vectors on the last axis.
      D: Width of the sketch, at least 1.
      key: Random key of hashes and signs; equal keys give equal sketches.

    Raises:
      ValueError: D out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.collaborative as jcol
      >>> jcol.tensor_sketch(jnp.ones((5, 8)), 16, jax.random.key(0)).shape
      (5, 16)
    """
    width, C = checked_int("D", D, 1), x.shape[-1]
    parts: list[Array] = []
    for part in jax.random.split(key):
        place, sign = jax.random.split(part)
        to = jax.random.randint(place, (C,), 0, width)
        signed = x * jax.random.rademacher(sign, (C,), x.dtype)
        parts.append(jnp.zeros((*x.shape[:-1], width), x.dtype).at[..., to].add(signed))
    spectrum = jnp.fft.rfft(parts[0]) * jnp.fft.rfft(parts[1])
    return jnp.fft.irfft(spectrum, width).astype(x.dtype)


def signed_root(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes sign(x) √|x|, with a finite derivative at zero.

    Args:
      x: Numbers of any shape.
    """
    return jnp.sign(x) * jnp.sqrt(jnp.abs(x) + 1e-8)


def _check_maps(F: Array, G: Array) -> None:
    if F.ndim != 4 or G.shape[:-1] != F.shape[:-1]:
        raise ValueError(
            f"F{list(F.shape)}, G{list(G.shape)}: must be [B, H, W, channels] of the same places"
        )
