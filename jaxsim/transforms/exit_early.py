"""Classifiers between the stages of a network, by which rows may leave before the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxsim.adaptive.features import Feature, pooled
from jaxsim.adaptive.heads import fit_students
from jaxsim.adaptive.rule import Rule, check_rule
from jaxsim.inputs.batches import join_batches
from jaxsim.inputs.samples import check_batch
from jaxsim.network.arguments import call_arguments
from jaxsim.network.calls import OutputCall
from jaxsim.network.cuts import Cut, balance_blocks, blocks, flops
from jaxsim.network.network import Network, require_uncut
from jaxsim.network.transform import require_network
from jaxsim.numerics.checks import check_called, checked_int
from jaxsim.staged.exit_layout import BatchPair, exit_layout, find_batch_axes, trace_batch_pair
from jaxsim.staged.network import Staged
from jaxsim.staged.passes import at_exits
from jaxsim.staged.rows import find_rows
from jaxsim.values.calls import shown_as_called


@shown_as_called
def exit_early(
    exits: int | Sequence[str] = 4,
    rule: Rule = Rule(),  # noqa: B008
    *,
    feature: Feature = pooled,
    output: Callable[[Any], Any] | None = None,
) -> Callable[[Network], Staged]:
    """Lets rows leave a classifier before its end, where they have been computed far enough.

    The network is cut where the fewest activations are live, into stages of about equal FLOPs, and
    each but the last gets a linear classifier. These say nothing (uncertainty 1) before
    `distill_exits` has taught them.

    Args:
      exits: how many there are, the network's own included; or the names of the sites before which
        the others are.
      rule: when a row leaves.
      feature: `(live) -> [B, d]`, what a classifier reads of the activations [B, …] that are live
        where it is: by default the mean over places or tokens, `jaxsim.adaptive.first_token`, or a
        function, which cuts with several activations need.
      output: from what the network returns to its logits [B, C], such as `lambda y: y["logits"]`,
        or `lambda y: y[:, -1]` for those of the last token; None where it returns them. Calls of
        what is made return logits.

    Raises:
      ValueError: an argument out of range; when applied, a network that has exits already, that
        returns anything but logits, or that has too few cuts whose feature is known.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> normal = jax.random.normal
      >>> params = {"a": normal(keys[0], (6, 8)), "b": normal(keys[1], (8, 3))}
      >>> x = jax.random.normal(keys[2], (4, 6))
      >>> net = js.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, x)
      >>> exits = js.exit_early(["b"], js.Rule(0.5))(net)
      >>> exits.simulate(x).layer.shape  # the exit that each row takes
      (4,)

    Source: Teerapittayanon et al. (2016), BranchyNet, arXiv 1709.01686; Liu et al. (2020),
    FastBERT, arXiv 2004.02178.
    """
    check_called("rule", rule)
    names = tuple(exits) if isinstance(exits, Sequence) else None
    count = checked_int("exits", exits, 2) if names is None else len(names) + 1
    check_rule(rule, count)
    if count < 2:
        raise ValueError("exits=[]: name at least one site")
    if not callable(feature):
        raise ValueError(f"feature={feature!r}: must be a function of the live activations")
    if output is not None and not callable(output):
        raise ValueError(f"output={output!r}: must be a function of what the network returns")

    def apply(net: Network) -> Staged:
        require_network(net, "exit_early")
        require_uncut(
            net,
            "exit_early",
            allowed=("pipeline_shard", "prune_tokens"),
            reason="it has exits already",
        )
        layout, tokens = getattr(net, "layout", None), getattr(net, "tokens", None)
        if layout is not None and layout.engine == "spmd":
            raise ValueError(
                "exit_early cannot follow pipeline_shard(engine='spmd'): that runs equal blocks, "
                "and classifiers make them differ; engine='mpmd' runs unequal stages"
            )
        if output is not None:
            net = dataclasses.replace(net, fn=OutputCall(net.fn, output))
        args, kwargs = net.example.combine()
        arguments = call_arguments(args, {**net.defaults.combine(), **kwargs})
        _, rowed = find_rows(arguments)
        at = names or _balanced(
            trace_batch_pair(net, arguments, rowed, leaving=False), count, feature
        )
        seen = exit_layout(net, arguments, rowed, at, feature)
        heads = tuple(
            {"kernel": jnp.zeros((d, seen.classes)), "bias": jnp.zeros(seen.classes)}
            for d in seen.widths
        )
        fields = {f.name: getattr(net, f.name) for f in dataclasses.fields(Network)}
        return Staged(
            **fields,
            heads=heads,
            threshold=jnp.float32(rule.threshold),
            exits=tuple(name for name in seen.places if name in at),
            feature=feature,
            patience=int(rule.patience),
            first=int(rule.first),
            layout=layout,
            tokens=tokens,
        )

    return apply


def distill_exits(
    net: Network,
    inputs: Any,
    *,
    key: Key[Array, ""],
    steps: int = 400,
    learning_rate: float | Array = 0.02,
    batch_size: int = 256,
    **kwargs: Any,
) -> Staged:
    """Teaches the classifiers of the exits to say what the network says at its end.

    Nothing else changes and no labels are needed.

    Args:
      net: from `exit_early`; quantized, pruned or deployed as it will be used.
      inputs: examples: a batch (an array, a tuple of positional arguments, or a dict of keyword
        arguments), or an iterable of batches, which are joined.
      key: for the order of the examples, and for cores that draw random numbers.
      steps: of Adam.
      learning_rate: of Adam at the first step.
      batch_size: examples of one step, and of one call of the network.
      **kwargs: keyword arguments of the network.

    Raises:
      ValueError: no exits, or what `fit_students` or the network raises.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> normal = jax.random.normal
      >>> params = {"a": normal(keys[0], (6, 8)), "b": normal(keys[1], (8, 3))}
      >>> x = jax.random.normal(keys[2], (4, 6))
      >>> net = js.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, x)
      >>> exits = js.exit_early(["b"], js.Rule(0.5))(net)
      >>> taught = js.distill_exits(exits, x, key=keys[0], steps=5, batch_size=4)
      >>> taught.heads[0]["kernel"].shape
      (8, 3)
    """
    if not (isinstance(net, Staged) and net.exits):
        raise ValueError("net: has no exits; js.exit_early(…)(net) makes them")
    batch_size = checked_int("batch_size", batch_size, 1)
    batch = join_batches(inputs)
    check_batch("inputs", *batch)
    arguments = call_arguments(batch.args, {**net.defaults.combine(), **kwargs, **batch.kwargs})
    *features, teacher = at_exits(net, arguments, batch_size, jax.random.fold_in(key, 1))
    heads = fit_students(
        features, teacher, key, steps=steps, batch_size=batch_size, learning_rate=learning_rate
    )
    return dataclasses.replace(net, heads=heads)


def _balanced(found: BatchPair, count: int, feature: Feature) -> tuple[str, ...]:
    """The minimal cuts at which the feature is known that make stages of about equal FLOPs."""
    places: list[Cut] = []
    refused = ""
    for cut in found.places:
        if cut.minimal:
            try:
                find_batch_axes(found, [cut], [cut.name], feature)
                places.append(cut)
            except ValueError as error:
                refused = f"; not at {cut.name}: {error}"
    if len(places) < count - 1:
        raise ValueError(
            f"exits={count}: the network has {len(places)} places for one, so at most "
            f"{len(places) + 1} with its own{refused}"
        )
    begins = balance_blocks(blocks(places, flops(found.two)), count)
    return tuple(places[i - 1].name for i in begins)
