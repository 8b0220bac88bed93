"""What is left out: weights of little worth."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.network.network import Net, Network
from jaxsim.network.params import by_name
from jaxsim.network.site import Site
from jaxsim.network.transform import Transform, transformable
from jaxsim.numerics.checks import check_called, checked_int
from jaxsim.sparsity.criterion import Criterion, magnitude
from jaxsim.sparsity.distribution import Distribution, global_
from jaxsim.sparsity.masks import check_sparsity, make_masks
from jaxsim.sparsity.pattern import Pattern, unstructured
from jaxsim.transforms.merged_weights import closed, is_merged, name_of, opened
from jaxsim.transforms.site_masks import at_parameters, at_sites
from jaxsim.values.calls import shown_as_called


@shown_as_called
def prune(
    sparsity: float | Array | None = None,
    *,
    criterion: Criterion | None = None,
    pattern: Pattern | None = None,
    distribution: Distribution | None = None,
    sites: str | Sequence[str] = "*",
    rounds: int = 1,
    allow_collapse: bool = False,
) -> Transform:
    """Sets the weights that are worth least to zero and keeps them there.

    The masks are data of the network, applied at every call, so gradients of pruned weights are
    zero. Counts are exact; ties go in order of position. What is pruned already stays so.

    A weight that is made of entries of several parameters (an LSTM's gates side by side) loses
    entries of each. Where something else reads a parameter too (the lookup of an embedding whose
    table is also the head, a site that `sites` leaves out), it goes on reading it whole: the mask
    then stands at the site. So it does where a weight is computed of parameters (standardized, or
    merged from a low rank) or is none (`trace(weights=…)`): it is scored as it is multiplied.

    Args:
      sparsity: share of the units to leave out, in [0, 1); None where the pattern fixes it, as
        `js.sparsity.n_of_m` does. Traced.
      criterion: what a weight is worth; `js.sparsity.magnitude()` if None.
      pattern: which weights go together; each for itself, `js.sparsity.unstructured()`, if None.
      distribution: how many each layer loses; `js.sparsity.global_()` if None. A parameter that
        scans stack along its first axes is as many layers.
      sites: patterns of the sites to prune; leave out the first and the last layer here.
      rounds: score and prune so many times, the share that stays falling by the same factor each
        time; SynFlow wants 100.
      allow_collapse: let a layer lose all its weights.

    Raises:
      ValueError: an argument out of range, or a sparsity beside a pattern that fixes it; when
        applied, a site without a parameter, NaN scores or none of a computed weight, a pattern that
        does not fit a layer, a layer that would lose everything, or a scan that stacks another axis
        than the first.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.linspace(-1, 1, 32).reshape(4, 8)
      >>> net = js.trace(lambda params, x: x @ params["w"], {"w": jnp.eye(8)}, x)
      >>> sparse = js.prune(0.5)(js.trace(lambda p, x: x @ p, jnp.arange(1.0, 65).reshape(8, 8), x))
      >>> int(sum(mask.sum() for mask in sparse.masks.values()))
      32
    """
    rounds = checked_int("rounds", rounds, 1)
    criterion = magnitude() if criterion is None else criterion
    pattern = unstructured() if pattern is None else pattern
    distribution = global_() if distribution is None else distribution
    kinds = {
        "criterion": (criterion, Criterion),
        "pattern": (pattern, Pattern),
        "distribution": (distribution, Distribution),
    }
    for name, (value, kind) in kinds.items():
        check_called(name, value)
        if not isinstance(value, kind):
            raise ValueError(f"{name}={value!r}: must be a {kind.__name__} of js.sparsity")
    check_sparsity(sparsity, pattern)
    if pattern.sparsity is not None and rounds > 1:
        raise ValueError(f"rounds={rounds}: the pattern fixes the sparsity, one round reaches it")

    def apply(net: Net) -> Net:
        chosen = transformable(net, "prune", sites, lookups="named", tell_rest=True)
        merged = [site for site in chosen if is_merged(site, net.weights)]
        plain = [site for site in chosen if site not in merged]
        before, net = net.masks, at_parameters(net, plain)
        probe: Network = net
        where = sites
        if merged:
            probe = opened(net, chosen, merged)
            where = [f"re:{re.escape(name)}" for name in probe.focus or ()]
        for i in range(rounds):
            share = sparsity
            if share is not None and rounds > 1:
                share = 1 - (1 - jnp.asarray(share, jnp.float32)) ** ((i + 1) / rounds)
            masks = make_masks(
                probe,
                _scores(criterion, probe, merged),
                share,
                pattern=pattern,
                distribution=distribution,
                sites=where,
                allow_collapse=allow_collapse,
            )
            probe = dataclasses.replace(probe, masks={**probe.masks, **masks})
        return at_sites(closed(net, probe.masks, merged), plain, before)

    return apply


def _scores(criterion: Criterion, probe: Network, merged: Sequence[Site]) -> Any:
    """Scores of a network's parameters, among them weights that are computed.

    Raises:
      ValueError: The criterion has none of such a weight.
    """
    scores = criterion.score(probe, ())
    for site in merged:
        if name_of(site) not in by_name(scores):
            raise ValueError(
                f"criterion: no scores of {name_of(site)}, the weight of {site.name} that "
                f"is computed from {', '.join(site.sources)}; leave it out by sites=…"
            )
    return scores
