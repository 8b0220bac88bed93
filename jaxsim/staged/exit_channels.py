"""Channels of what classifiers of exits read: those that a network loses leave them too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Bool

from jaxsim.adaptive.heads import Head
from jaxsim.pipeline.microbatch import example_of
from jaxsim.sparsity.channels.axes import Symbol, kept_entries, symbols
from jaxsim.sparsity.channels.groups import Dependencies
from jaxsim.sparsity.channels.propagate import propagate_channels
from jaxsim.staged.exits import exit_logits

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged


def remaining_heads(
    net: Staged, found: Dependencies, keep: Mapping[str, Bool[np.ndarray, " size"]]
) -> tuple[Head, ...]:
    """Leaves out of classifiers the rows that read removed channels.

    Which rows those are is read from the equations of all exits, where axes of the parameters are
    followed as `dependencies` follows them, up to the kernels of the classifiers.

    Args:
      net: Network with exits, before channels are removed.
      found: Its dependencies.
      keep: Masks of the entries that remain, by group.
    """
    values = {"heads": net.heads, "net": net.params}

    def says(values: Any, buffers: Any, arrays: list[Any]) -> Any:
        changed = {"params": values["net"], "heads": values["heads"], "buffers": buffers}
        alone = dataclasses.replace(net, layout=None, **changed)
        return exit_logits(alone, dataclasses.replace(arguments, arrays=tuple(arrays)), None)

    arguments = example_of(net, 1)
    shapes = jax.eval_shape(lambda: (values, net.buffers))
    jaxpr = jax.make_jaxpr(says)(*shapes, list(arguments.arrays)).jaxpr
    traced = propagate_channels(dataclasses.replace(net, params=values), jaxpr)
    leaves = {leaf.path: leaf for leaf in traced.leaves}
    given = {found.units[name]: np.asarray(mask) for name, mask in keep.items()}
    remaining: dict[Symbol, Bool[np.ndarray, " size"]] = {}
    for leaf in found.leaves:
        root, _, path = leaf.path.partition("/")
        twin = leaves[f"params/net/{path}" if root == "params" else leaf.path]
        for own, other in zip(leaf.axes, twin.axes, strict=True):
            pairs = zip(symbols(own), symbols(other), strict=False)
            remaining.update({theirs: given[mine] for mine, theirs in pairs if mine in given})
    heads = list[Head]()
    for i, head in enumerate(net.heads):
        mask = kept_entries(leaves[f"params/heads/{i}/kernel"].axes[0], remaining)
        heads.append({**head, "kernel": head["kernel"][np.flatnonzero(mask)]})
    return tuple(heads)
