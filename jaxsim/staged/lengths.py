"""Lengths of rows: those of few tokens are computed with few from the first stage on.

That is so where the rule by which tokens leave says which are there, arguments hold them, and those
of each row stand in front.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxsim.adaptive.rule import round_up
from jaxsim.cores.partition import Partitioned
from jaxsim.staged.exit_layout import exit_layout
from jaxsim.staged.exits import tokens_given
from jaxsim.staged.rows import find_rows
from jaxsim.staged.token_layout import TokenLayout

if TYPE_CHECKING:
    from jaxsim.network.network import Network
    from jaxsim.staged.network import Staged


class ShortRows(NamedTuple):
    """Numbers of tokens that the rows of a call are computed with.

    Attributes:
      counts: Number of each row, rounded up, [N].
      axes: For each argument the axes that hold tokens.
    """

    counts: np.ndarray
    axes: tuple[tuple[int, ...], ...]

    def cut(self, arguments: Partitioned, rows: np.ndarray) -> Partitioned:
        """Leaves out the tokens that none of some rows has.

        Args:
          arguments: Arguments of a call with these rows.
          rows: Their indices.
        """
        count = int(self.counts[rows].max())
        arrays = zip(arguments.arrays, self.axes, strict=True)
        return dataclasses.replace(
            arguments, arrays=tuple(first_tokens(a, along, count) for a, along in arrays)
        )


def short_rows(
    net: Network, arguments: Partitioned, multiple: int, argument: str | None = None
) -> ShortRows | None:
    """Finds the numbers of tokens that rows can be computed with.

    Args:
      net: Network of any kind.
      arguments: Arguments of a call with all rows.
      multiple: What numbers are rounded up to, at least 1.
      argument: Name of an argument that asks for it, for the error; None gives None where rows have
        to be computed with all tokens.

    Raises:
      ValueError: They have to be, with the reason.
    """
    why = "all tokens of the network stay; js.prune_tokens(…)(net) first, at level 0 too"
    if getattr(net, "tokens", None) is not None:
        staged: Any = net
        _, batched = find_rows(arguments)
        found = exit_layout(staged, arguments, batched, staged.exits, staged.feature)
        state = tokens_given(staged, arguments)
        assert found.tokens is not None
        why = "no rule says which tokens there are; js.prune_tokens(…, present=…)"
        if state is not None and can_be_short(staged, found.tokens):
            counts = token_counts(np.asarray(state.present), multiple)
            if counts is not None:
                return ShortRows(counts, found.tokens.arguments)
            why = "tokens that are there stand behind some that are not"
        elif state is not None:
            why = "no argument holds the tokens"
    if argument is not None:
        raise ValueError(f"{argument}={multiple}: {why}")
    return None


def token_counts(present: np.ndarray, multiple: int) -> np.ndarray | None:
    """Rounds up the number of tokens of each row; None where these do not stand in front.

    Args:
      present: Which tokens there are, [N, n].
      multiple: What numbers are rounded up to, as far as n.
    """
    n, length = present.shape[1], present.sum(1)
    if not (present == (np.arange(n) < length[:, None])).all():
        return None
    return np.minimum(n, [round_up(int(k), multiple) for k in length])


def can_be_short(net: Staged, tokens: TokenLayout) -> bool:
    """Tells if rows of few tokens can be computed at their length from the first stage on.

    Args:
      net: Network whose tokens leave.
      tokens: Where they do.
    """
    return net.tokens is not None and net.tokens.present is not None and any(tokens.arguments)


def first_tokens(a: Any, along: Sequence[int], count: int) -> Any:
    """Takes the first tokens of an array.

    Args:
      a: Array.
      along: Its axes that hold tokens.
      count: Number of tokens.
    """
    return a[tuple(slice(count) if i in along else slice(None) for i in range(np.ndim(a)))]
