"""Tokens that leave a transformer behind the attentions at which they receive little."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsim.adaptive.tokens import Keeps, TokenRule, above, check_levels
from jaxsim.network.arguments import call_arguments
from jaxsim.network.calls import OutputCall
from jaxsim.network.network import Network, require_uncut
from jaxsim.network.transform import require_network
from jaxsim.numerics.checks import checked_int
from jaxsim.staged.exit_layout import exit_layout
from jaxsim.staged.merging import check_merging, merging_leave
from jaxsim.staged.network import Staged
from jaxsim.staged.rows import find_rows
from jaxsim.values.calls import shown_as_called


@shown_as_called
def prune_tokens(
    level: Float[Array, " L"] | Sequence[float] | float,
    *,
    keeps: Keeps = above,
    protect: int = 1,
    protect_last: int = 0,
    present: Callable[..., Array] | None = None,
    output: Callable[[Any], Any] | None = None,
) -> Callable[[Network], Staged]:
    """Leaves out the tokens that receive little attention, layer by layer, of any transformer.

    The model stays as it is. Where it attends is found among its equations: a product of an
    activation with a softmax of such a product. Behind each, a token leaves whose importance, the
    attention that it receives, is too small; later layers attend to those that are left, and what
    is a sum or a mean over tokens is that over those.

    Args:
      level: of each attention, or of all. For `tokens.above`, the least attention that a token has
        to receive: learned, or `tokens.linear_thresholds`. For `tokens.top`, the share of tokens
        that the layer leaves out, as from `tokens.pruning_ratios`. For `tokens.merge`, how many
        tokens it merges into others, at most every second. At level 0 all stay.
      keeps: `tokens.above`, `tokens.top`, or `tokens.merge`: tokens whose keys are alike become
        one, their average by how many each stands for, and get as much attention as all of these.
      protect: so many first tokens stay whatever they receive, one at least, such as a class token.
      protect_last: so many last tokens, of those present, stay likewise: one for a decoder whose
        last token is read.
      present: `(*args, **kwargs) -> [B, n]`, from the arguments of the model which tokens there are
        at first; None where padding is what no token attends to. With it, `run` sorts rows by
        length and computes short ones at their length.
      output: as of `exit_early`, from what the network returns to its logits [B, C].

    Raises:
      ValueError: a level that is negative or not a number, a number out of range, or, when applied,
        not one level an attention, a network in which nothing attends or something else mixes
        tokens, a pipeline of engine "spmd", or tokens to merge where the network is cut between an
        attention and its merge or in a model that tells pairs of places apart, as decoders do.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> def model(p, x):
      ...     scores = jnp.einsum("bqd,bkd->bqk", x @ p["q"], x @ p["k"])
      ...     x = x + jax.nn.softmax(scores) @ (x @ p["v"])
      ...     return jnp.tanh(x @ p["up"])[:, 0] @ p["out"]
      >>> keys = jax.random.split(jax.random.key(0), 6)
      >>> shapes = {"q": (4, 4), "k": (4, 4), "v": (4, 4), "up": (4, 8), "out": (8, 3)}
      >>> params = {n: jax.random.normal(k, shapes[n]) for n, k in zip(shapes, keys)}
      >>> x = jax.random.normal(keys[5], (2, 6, 4))
      >>> net = js.prune_tokens(0.5, keeps=js.tokens.top)(js.trace(model, params, x))
      >>> net.simulate(x).kept.tolist()
      [[4], [3]]

    Source: Kim et al. (2022), Learned Token Pruning, arXiv 2107.00910; Wang, Zhang and Han (2021),
    SpAtten, arXiv 2012.09852; Bolya et al. (2023), Token Merging, arXiv 2210.09461.
    """
    checked_int("protect", protect, 1)
    checked_int("protect_last", protect_last, 0)
    for name, function in (("present", present), ("output", output)):
        if function is not None and not callable(function):
            raise ValueError(f"{name}={function!r}: must be a function or None")

    def apply(net: Network) -> Staged:
        require_network(net, "prune_tokens")
        require_uncut(
            net,
            "prune_tokens",
            allowed=("exit_early", "pipeline_shard"),
            reason="tokens leave it already",
        )
        layout = getattr(net, "layout", None)
        if layout is not None and layout.engine == "spmd":
            raise ValueError(
                "prune_tokens cannot follow pipeline_shard(engine='spmd'): that runs equal blocks, "
                "and which tokens are there crosses no cut of it; engine='mpmd' hands it on"
            )
        if output is not None:
            if net.cut_by:
                raise ValueError("output: what came before has made logits already")
            net = dataclasses.replace(net, fn=OutputCall(net.fn, output))
        rule = TokenRule(jnp.asarray(level, jnp.float32), keeps, protect, protect_last, present)
        fields = {f.name: getattr(net, f.name) for f in dataclasses.fields(type(net))}
        fields["tokens"] = rule
        if fields.get("threshold") is None:
            fields["threshold"] = jnp.float32(0)
        staged = Staged(**fields)
        args, kwargs = net.example.combine()
        arguments = call_arguments(args, {**net.defaults.combine(), **kwargs})
        _, rowed = find_rows(arguments)
        places = () if layout is None else layout.cuts
        cut = exit_layout(staged, arguments, rowed, staged.exits, staged.feature, places)
        found = cut.tokens
        assert found is not None
        if rule.merges:
            check_merging(found)
            merging_leave(found, cut.places, None)
        count = len(found.attention.names)
        levels = jnp.full(count, rule.level) if rule.level.ndim == 0 else rule.level
        check_levels(levels, count)
        if rule.merges:
            cut = np.array([name is not None for name in found.cuts])
            if rule.level.ndim == 0:
                levels = levels * cut
            elif np.any(lost := (np.asarray(levels) > 0) & ~cut):
                raise ValueError(
                    f"level: no cut follows {found.attention.names[int(np.argmax(lost))]} before "
                    "its tokens are read; merge none there, by level 0"
                )
        for name, given, least in (
            ("protect", protect, found.attention.first),
            ("protect_last", protect_last, found.attention.last),
        ):
            if given < least:
                raise ValueError(
                    f"{name}={given}: must be at least {least}, since the model reads so many of "
                    "these tokens by their number"
                )
        return dataclasses.replace(staged, tokens=dataclasses.replace(rule, level=levels))

    return apply
