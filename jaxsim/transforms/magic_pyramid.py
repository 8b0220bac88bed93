"""Tokens left out as an encoder goes up, and rows that leave before the top."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsim.adaptive.encoder import Encoder, require_encoder
from jaxsim.adaptive.heads import Head
from jaxsim.adaptive.pyramid import Pyramid
from jaxsim.adaptive.rule import Rule, check_rule
from jaxsim.adaptive.tokens import Keeps, above, check_levels
from jaxsim.numerics.checks import check_called, checked_int
from jaxsim.values.calls import shown_as_called


@shown_as_called
def magic_pyramid(
    level: Float[Array, " L"] | Sequence[float] | float,
    exit: Rule,
    heads: Sequence[Head] | None = None,
    *,
    keeps: Keeps = above,
    protect: int = 1,
) -> Callable[[Encoder], Pyramid]:
    """Leaves out tokens within layers, and layers after the one that is sure enough.

    Args:
      level: as of `prune_tokens`.
      exit: when a row leaves.
      heads: a classifier after each layer but the last; None for ones that say nothing, for
        `distill_students` to make: entropy 1, at which no row leaves.
      keeps: as of `prune_tokens`.
      protect: as of `prune_tokens`.

    Raises:
      ValueError: what `prune_tokens` raises, a rule out of range, or a number of classifiers that
        does not fit the layers.

    Examples:
      >>> import jaxsim as js
      >>> js.magic_pyramid(0.1, js.Rule(0.2))
      magic_pyramid(level=0.1, exit=Rule(0.2, 0, 1))

    Source: He et al. (2021), Magic Pyramid, arXiv 2111.00230.
    """
    check_called("exit", exit)
    checked_int("protect", protect, 1)

    def pyramid(encoder: Encoder) -> Pyramid:
        require_encoder(encoder, "magic_pyramid")
        L = len(encoder.attention)
        levels = jnp.asarray(level, jnp.float32)
        levels = jnp.full(L, levels) if levels.ndim == 0 else levels
        check_levels(levels, L)
        check_rule(exit, L)
        if heads is not None and len(heads) != L - 1:
            raise ValueError(f"heads: {len(heads)} of them; must be {L - 1}, of all layers but one")
        zero: Any = {name: jnp.zeros_like(w) for name, w in encoder.head.items()}
        return Pyramid(
            encoder=encoder,
            heads=(zero,) * (L - 1) if heads is None else tuple(heads),
            level=levels,
            threshold=jnp.float32(exit.threshold),
            keeps=keeps,
            protect=protect,
            patience=exit.patience,
            first=exit.first,
        )

    return pyramid
