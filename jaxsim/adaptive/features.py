"""Features that a classifier between stages reads of the activations there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Feature = Callable[..., Float[Array, "B d"]]
"""What a classifier reads of the activations that are live at a cut, [B, …] each; where tokens
leave, a second argument says which are there, [B, n]."""


def pooled(live: Sequence[Array], present: Bool[Array, "B n"] | None = None) -> Float[Array, "B d"]:
    """Averages the one float activation over positions or tokens.

    Args:
      live: Activations at a cut, one of them float and [B, d], [B, N, d], [B, H, W, d], …, features
        last; integers and masks are ignored.
      present: Where given, which tokens of [B, n, d] are there; others do not count.

    Raises:
      ValueError: None or several are floats of that rank.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxsim.adaptive import pooled
      >>> pooled([jnp.ones((2, 5, 3))]).shape
      (2, 3)
    """
    x = _only(live)
    if present is None:
        return jnp.mean(x, tuple(range(1, x.ndim - 1)))
    if x.ndim != 3:
        raise ValueError(f"feature=pooled: an activation {list(x.shape)} has no tokens")
    share = present / jnp.sum(present, -1, keepdims=True)
    return jnp.einsum("bnd,bn->bd", x, share.astype(x.dtype))


def first_token(
    live: Sequence[Array], present: Bool[Array, "B n"] | None = None
) -> Float[Array, "B d"]:
    """Selects the first token, a class token, of the one float activation.

    Args:
      live: Activations at a cut, one of them float and [B, N, d].
      present: Not used: the first token always stays.

    Raises:
      ValueError: None or several are floats of that rank.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxsim.adaptive import first_token
      >>> first_token([jnp.ones((2, 5, 3))]).shape
      (2, 3)
    """
    x = _only(live)
    if x.ndim != 3:
        raise ValueError(f"feature=first_token: an activation {list(x.shape)} has no tokens")
    return x[:, 0]


def _only(live: Sequence[Array]) -> Array:
    found = [x for x in live if x.ndim > 1 and jnp.issubdtype(x.dtype, jnp.floating)]
    if len(found) != 1:
        shapes = ", ".join(str(list(x.shape)) for x in found) or "no float [B, …, d]"
        raise ValueError(
            f"feature: {shapes} are live where the network is cut; give a function of them"
        )
    return found[0]
