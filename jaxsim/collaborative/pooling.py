"""Second-order statistics of a feature map."""

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
    """Outer products of features summed over places, as signed roots of length one.

    Args:
      F: feature map.
      G: another one of the same places; None for F itself.

    Raises:
      ValueError: not maps of the same places.

    Source: Lin, RoyChowdhury and Maji (2015), arXiv 1504.07889.
    """
    other = F if G is None else G
    _check_maps(F, other)
    return unit(signed_root(jnp.einsum("bhwi,bhwj->bij", F, other).reshape(len(F), -1)))


@own_promotion()
def compact_bilinear_pool(
    F: Float[Array, "B H W C"], D: int, key: Key[Array, ""]
) -> Float[Array, "B D"]:
    """`bilinear_pool` of F with itself, its outer product sketched in D numbers.

    Args:
      F: feature map.
      D: width of the sketch, at least 1; the error of inner products falls as its root.
      key: of the sketch; the same one always.

    Raises:
      ValueError: no map, or D out of range.

    Source: Gao et al. (2016), arXiv 1511.06062; Pham and Pagh (2013), KDD.
    """
    _check_maps(F, F)
    return unit(signed_root(tensor_sketch(F, D, key).sum((1, 2))))


@own_promotion()
def tensor_sketch(x: Float[Array, "... C"], D: int, key: Key[Array, ""]) -> Float[Array, "... D"]:
    """A sketch of x ⊗ x: inner products of sketches are those of x squared, on average.

    Args:
      x: vectors.
      D: width of the sketch, at least 1.
      key: of its hashes and signs.

    Raises:
      ValueError: D out of range.
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
    """sign(x) √|x|, with a finite derivative at zero."""
    return jnp.sign(x) * jnp.sqrt(jnp.abs(x) + 1e-8)


def _check_maps(F: Array, G: Array) -> None:
    if F.ndim != 4 or G.shape[:-1] != F.shape[:-1]:
        raise ValueError(
            f"F{list(F.shape)}, G{list(G.shape)}: must be [B, H, W, channels] of the same places"
        )
