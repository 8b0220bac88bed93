"""Sites: the contractions of a model, and the patterns that select them."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Sequence
from typing import Literal

Kind = Literal["dot", "conv", "ragged", "routed", "lookup", "dynamic"]
"""How a site computes its result."""


@dataclasses.dataclass(frozen=True)
class Site:
    """Contraction of an activation with a parameter (or, if dynamic, with an activation).

    A lookup is one too: rows of a parameter, chosen by integers, are products with ones and zeros.
    So are products whose weights integers choose among a stack, by groups of rows (ragged) or row
    by row (routed): one site for the stack, as for layers that a scan runs.

    Attributes:
      name: Path of the parameter, `#2`, `#3`, … appended for its later uses; `dynamic/0`, … for
        contractions of two activations; the path with `:lookup`, `:lookup#2`, … for lookups.
      param: Path of the parameter, None if dynamic.
      kind: "dot", "conv", "ragged", "routed", "lookup", or "dynamic".
      x_shape, w_shape: Operand shapes for the example that was traced; of a lookup, the shape of
        the integers and of the table.
      dtype: Dtype of the weight.
      macs: Number of multiply-accumulates of one execution for that example.
      lengths: Trip counts of the loops around it, outermost first; 1 for a while loop whose
        length is unknown. The last of a ragged or routed site is its number of experts.
      stacked: For each of those loops, True if the weight is one slice of a stacked parameter.
      axes: For each of those loops, the axis of a mesh if it is no loop but the devices along that
        axis, each with its part of a `shard_map`, else "".
      sources: Paths of all parameters and buffers that the weight is computed from.
      parts: Paths of those sources whose zeros are zeros of the weight, because it is made of their
        entries, moved or scaled; empty where it is computed in another way.
      shared: Other readers of the sources: names of sites, or of primitives that are not sites
        (`gather` for an embedding).

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 4))}, jnp.ones((2, 3)))
      >>> site = net.sites[0]
      >>> site.name, site.kind, site.w_shape, site.macs
      ('w', 'dot', (3, 4), 24)
    """

    name: str
    param: str | None
    kind: Kind
    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    dtype: str
    macs: int
    lengths: tuple[int, ...] = ()
    stacked: tuple[bool, ...] = ()
    sources: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()

    @property
    def multiplies(self) -> bool:
        """True if inputs are multiplied by a weight: neither by an input, nor looked up in it."""
        return self.kind not in ("lookup", "dynamic")

    @property
    def chosen(self) -> bool:
        """True if integers choose the weight of each row among a stack of experts."""
        return self.kind in ("ragged", "routed")

    @property
    def runs(self) -> int:
        """Number of executions in one call, a while loop's as one; all experts make up one."""
        return math.prod(self.lengths[:-1] if self.chosen else self.lengths)

    @property
    def stack(self) -> tuple[int, ...]:
        """Sizes of the leading axes that loops and devices add to the site's state."""
        return tuple(n for n, s in zip(self.lengths, self.stacked, strict=True) if s)

    @property
    def layers(self) -> tuple[int, ...]:
        """Sizes of those axes that are of the parameter too: of loops, without devices."""
        turns = zip(self.lengths, self.stacked, self.axes or ("",) * len(self.lengths), strict=True)
        return tuple(n for n, stacked, axis in turns if stacked and not axis)


def matching_names(
    sites: Sequence[Site], pattern: str, *, dynamic: bool, lookups: bool
) -> set[str]:
    """Finds the names of the sites that a glob or a `re:` pattern matches.

    Args:
      sites: Sites to search.
      pattern: Glob, or a regular expression after `re:`.
      dynamic: If True, dynamic sites may match any pattern, else only one that begins with
        `dynamic`.
      lookups: If True, lookups may match any pattern, else only one that holds `:lookup`; by their
        name alone, so that the path of a table that is also multiplied by names that site.

    Raises:
      ValueError: The regular expression cannot be compiled.
    """
    if pattern.startswith("re:"):
        try:
            match = re.compile(pattern[3:]).fullmatch
        except re.error as error:
            raise ValueError(f"sites={pattern!r} is not a regular expression: {error}") from None
    else:
        match = re.compile(fnmatch.translate(pattern)).fullmatch
    asked = {
        "dynamic": dynamic or pattern.removeprefix("re:").startswith("dynamic"),
        "lookup": lookups or ":lookup" in pattern,
    }
    return {
        s.name
        for s in sites
        if asked.get(s.kind, True)
        and (match(s.name) or (s.kind != "lookup" and s.param and match(s.param)))
    }
