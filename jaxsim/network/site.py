"""Sites: the contractions of a model, and the patterns that name them."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Sequence
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Site:
    """One contraction of an activation with a parameter (or, if dynamic, with an activation).

    Attributes:
      name: the parameter's path, `#2`, `#3`, … appended for its later uses; `dynamic/0`, … for
        contractions of two activations.
      param: path of the parameter, None if dynamic.
      kind: "dot", "conv", or "dynamic".
      x_shape, w_shape: operand shapes for the example that was traced.
      dtype: dtype of the weight.
      macs: multiply-accumulates of one execution for that example.
      lengths: trip counts of the loops around it, outermost first; 1 for a while loop, whose
        length is unknown.
      stacked: for each of those loops, whether the weight is one slice of a stacked parameter.
      sources: paths of all parameters and buffers that the weight is computed from.
      parts: those of them whose zeros are zeros of the weight, because it is made of their entries,
        moved or scaled; empty where it is computed in another way.
      shared: what else reads the sources: names of sites, or of primitives that are none (`gather`
        for an embedding).
    """

    name: str
    param: str | None
    kind: Literal["dot", "conv", "dynamic"]
    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    dtype: str
    macs: int
    lengths: tuple[int, ...] = ()
    stacked: tuple[bool, ...] = ()
    sources: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    @property
    def stack(self) -> tuple[int, ...]:
        """Leading axes that scans add to the site's state and parameter."""
        return tuple(n for n, s in zip(self.lengths, self.stacked, strict=True) if s)


def matching_names(sites: Sequence[Site], pattern: str, *, dynamic: bool) -> set[str]:
    """Names of the sites that a glob or a `re:` pattern matches."""
    if pattern.startswith("re:"):
        try:
            match = re.compile(pattern[3:]).fullmatch
        except re.error as error:
            raise ValueError(f"sites={pattern!r} is not a regular expression: {error}") from None
    else:
        match = re.compile(fnmatch.translate(pattern)).fullmatch
    dynamic = dynamic or pattern.removeprefix("re:").startswith("dynamic")
    return {
        s.name
        for s in sites
        if (s.kind != "dynamic" or dynamic) and (match(s.name) or (s.param and match(s.param)))
    }
