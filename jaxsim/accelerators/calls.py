"""Traced calls, kept for as long as their model lives: a search asks for each of them often."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import jax

from jaxsim.accelerators.equations import Asked, equation_work
from jaxsim.network.network import Network
from jaxsim.network.portions import Portion


class Prepared(NamedTuple):
    """A portion of a call, and what its equations ask.

    Attributes:
      portion: Equations that run for the same rows.
      asked: Work of those that are no sites.
    """

    portion: Portion
    asked: Asked


_calls: weakref.WeakKeyDictionary[
    Any, dict[Any, tuple[tuple[Portion, ...], dict[Any, tuple[Prepared, ...]]]]
] = weakref.WeakKeyDictionary()
"""Traced calls of models that live, the last few of each."""

_LIMIT = 8


def prepared_call(
    net: Network, args: tuple[Any, ...], kwargs: dict[str, Any], key: Any, activations: int | None
) -> tuple[Prepared, ...]:
    """Traces a call, once for all uncut networks of a model, and collects what equations ask.

    Args:
      net: Network.
      args: Positional arguments.
      kwargs: Keyword arguments.
      key: Random key of the call, or None.
      activations: Bits in which floats lie in memory; None for their own.
    """
    if net.cut_by:  # which rows run depends on values
        return _prepared(net.portions(*args, key=key, **kwargs), activations)
    shapes = jax.tree.map(
        lambda a: (a.shape, a.dtype) if hasattr(a, "shape") else a, (args, kwargs)
    )
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda a: a is None)
    held = jax.tree.map(lambda a: (a.shape, a.dtype), (net.params, net.buffers))
    defaults = repr((net.example, net.defaults))
    of = (repr(leaves), structure, repr(held), defaults, net.weights, tuple(sorted(net.masks)))
    try:
        known = _calls.setdefault(net.fn, {})
    except TypeError:  # a function that cannot be referred to weakly
        known = {}
    if of not in known:
        if len(known) >= _LIMIT:
            known.clear()
        known[of] = (net.portions(*args, **kwargs), {})
    portions, by_width = known[of]
    if activations not in by_width:
        by_width[activations] = _prepared(portions, activations)
    return by_width[activations]


def _prepared(portions: tuple[Portion, ...], activations: int | None) -> tuple[Prepared, ...]:
    return tuple(Prepared(p, equation_work(p, activations)) for p in portions)
