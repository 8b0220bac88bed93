"""Traced calls, kept for as long as their model lives: a search asks for each of them often."""

from __future__ import annotations

import weakref
from typing import Any

import jax

from jaxsim.accelerators.equations import Asked, equation_work
from jaxsim.network.network import Network
from jaxsim.network.plan import Traced

_calls: weakref.WeakKeyDictionary[Any, dict[Any, tuple[Traced, dict[Any, Asked]]]] = (
    weakref.WeakKeyDictionary()
)
"""Traced calls of models that live, the last few of each."""
_LIMIT = 8


def prepared_call(
    net: Network, args: tuple[Any, ...], kwargs: dict[str, Any], activations: int | None
) -> tuple[Traced, Asked]:
    """Traces a call once for all networks of a model, and collects what its equations ask.

    Args:
      net: Network.
      args: Positional arguments.
      kwargs: Keyword arguments.
      activations: Bits in which floats lie in memory; None for their own.
    """
    shapes = jax.tree.map(
        lambda a: (a.shape, a.dtype) if hasattr(a, "shape") else a, (args, kwargs)
    )
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda a: a is None)
    held = jax.tree.map(lambda a: (a.shape, a.dtype), (net.params, net.buffers))
    key = (
        repr(leaves),
        structure,
        repr(held),
        repr((net.example, net.defaults)),
        net.weights,
        tuple(sorted(net.masks)),
    )
    try:
        known = _calls.setdefault(net.fn, {})
    except TypeError:  # a function that cannot be referred to weakly
        known = {}
    if key not in known:
        if len(known) >= _LIMIT:
            known.clear()
        known[key] = (net.traced(*args, **kwargs), {})
    traced, by_width = known[key]
    if activations not in by_width:
        fixed = len(jax.tree.leaves((net.params, net.buffers)))
        by_width[activations] = equation_work(traced, fixed, activations)
    return traced, by_width[activations]
