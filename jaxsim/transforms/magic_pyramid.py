"""Tokens left out as a transformer goes up, and rows that leave before the top."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Array, Float

from jaxsim.adaptive.features import Feature, pooled
from jaxsim.adaptive.heads import Head
from jaxsim.adaptive.rule import Rule
from jaxsim.adaptive.tokens import Keeps, above
from jaxsim.network.network import Network, require_uncut
from jaxsim.network.transform import require_network
from jaxsim.numerics.checks import check_called
from jaxsim.staged.exits import attentions_of
from jaxsim.staged.network import Staged
from jaxsim.transforms.exit_early import exit_early
from jaxsim.transforms.prune_tokens import prune_tokens
from jaxsim.values.calls import shown_as_called


@shown_as_called
def magic_pyramid(
    level: Float[Array, " L"] | Sequence[float] | float,
    exit: Rule,
    heads: Sequence[Head] | None = None,
    *,
    keeps: Keeps = above,
    protect: int = 1,
    protect_last: int = 0,
    present: Callable[..., Array] | None = None,
    feature: Feature = pooled,
    output: Callable[[Any], Any] | None = None,
) -> Callable[[Network], Staged]:
    """Leaves out tokens within layers, and layers after the one that is sure enough.

    It is `prune_tokens` and then `exit_early` with an exit after every layer.

    Args:
      level: as of `prune_tokens`.
      exit: when a row leaves.
      heads: a classifier after each layer but the last; None for ones that say nothing, for
        `distill_exits` to teach: entropy 1, at which no row leaves.
      keeps: as of `prune_tokens`.
      protect: as of `prune_tokens`.
      protect_last: as of `prune_tokens`.
      present: as of `prune_tokens`.
      feature: as of `exit_early`: the mean over the tokens that are there, or
        `jaxsim.adaptive.first_token`.
      output: as of `exit_early`.

    Raises:
      ValueError: what `prune_tokens` and `exit_early` raise, or a number of classifiers that does
        not fit the layers.

    Examples:
      >>> import jaxsim as js
      >>> js.magic_pyramid(0.1, js.Rule(0.2))
      magic_pyramid(level=0.1, exit=Rule(0.2, 0, 1))

    Source: He et al. (2021), Magic Pyramid, arXiv 2111.00230.
    """
    check_called("exit", exit)
    prune = prune_tokens(
        level,
        keeps=keeps,
        protect=protect,
        protect_last=protect_last,
        present=present,
        output=output,
    )

    def pyramid(net: Network) -> Staged:
        require_network(net, "magic_pyramid")
        require_uncut(
            net,
            "magic_pyramid",
            allowed=("pipeline_shard",),
            reason="it makes the exits and the cuts of tokens itself",
        )
        pruned = prune(net)
        ends = tuple(dict.fromkeys(attentions_of(pruned).ends))
        staged: Any = exit_early(ends, exit, feature=feature)(pruned)
        if heads is None:
            return staged
        if len(heads) != len(staged.heads):
            raise ValueError(
                f"heads: {len(heads)} of them; must be {len(staged.heads)}, of all layers but one"
            )
        return dataclasses.replace(staged, heads=tuple(heads))

    return pyramid
