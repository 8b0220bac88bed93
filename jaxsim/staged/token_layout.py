"""Where tokens leave a network, whatever the number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxsim.adaptive.tokens import check_level_count
from jaxsim.network.cuts import Equations, cuts
from jaxsim.network.taps import live_at
from jaxsim.staged.attention import Attention, alike, find_attention
from jaxsim.staged.early import known_first


class TokenLayout(NamedTuple):
    """Where tokens leave a network, and what they cost; holds for any number of rows.

    Attributes:
      line: Equations of a call of two rows, what is known of tokens first.
      attention: Where it attends.
      before: The equations as they were.
      attention_before: Where those attend.
      cuts: For each attention the name of the cut at which tokens leave; None where none follows.
      ends: For each attention but the last the name of the cut at which the next layer begins.
      axes: For each cut and each value that crosses it, the axes that hold tokens.
      known: For each of these values, if it is known before anything is computed.
      layers: For each stage how many attentions were before it.
      arguments: For each argument the axes that hold tokens.
      spent: For each stage the floating-point operations of one row at all tokens: those that do
        not depend on their number, those in proportion to it, and those to its square.
      read: Floating-point operations of one row in the classifier of each stage.
      length: Number of tokens of a call.
    """

    line: Equations
    attention: Attention
    before: Equations
    attention_before: Attention
    cuts: tuple[str | None, ...] = ()
    ends: tuple[str, ...] = ()
    axes: tuple[tuple[tuple[int, ...], ...], ...] = ()
    known: tuple[tuple[bool, ...], ...] = ()
    layers: tuple[int, ...] = ()
    arguments: tuple[tuple[int, ...], ...] = ()
    spent: tuple[tuple[float, float, float], ...] = ()
    read: tuple[float, ...] = ()
    length: int = 0


def find_tokens(line: Equations, rowed: Sequence[bool]) -> TokenLayout:
    """Finds where a call attends, and computes what is known of its tokens first.

    Args:
      line: Equations of a call of two rows.
      rowed: True for each argument that holds rows.

    Raises:
      ValueError: As `find_attention` raises.
    """
    before = find_attention(line, rowed)
    early = known_first(line, before)
    attention = find_attention(early, rowed)
    leave, ends = token_cuts(early, attention)
    return TokenLayout(
        line=early,
        attention=attention,
        before=line,
        attention_before=before,
        cuts=leave,
        ends=ends,
        arguments=tuple(attention.token_axes(v) for v in early.arguments),
        length=attention.tokens.size,
    )


def known_tokens(tokens: TokenLayout, line: Equations) -> tuple[Equations, Attention]:
    """Computes what is known of tokens first, in a call of another number of rows.

    Args:
      tokens: Where tokens leave.
      line: Equations of that call.

    Raises:
      ValueError: The model runs other equations for another number of rows.
    """
    before = tokens.attention_before.in_call(tokens.before, line)
    early = known_first(line, before)
    return early, tokens.attention.in_call(tokens.line, early)


def runs_alike(tokens: TokenLayout, line: Equations) -> bool:
    """Tells if a call runs the same equations as one of two rows.

    Args:
      tokens: Where tokens leave.
      line: Equations of the call.
    """
    return alike(tokens.before, line)


def cuts_of(tokens: TokenLayout, leave: Sequence[bool] | None) -> tuple[str, ...]:
    """Names the cuts at which tokens leave.

    Args:
      tokens: Where they can.
      leave: For each attention, False where none does; None where any may.

    Raises:
      ValueError: It is of another number of attentions, as the levels are that it comes from.
    """
    chosen = [True] * len(tokens.cuts) if leave is None else leave
    check_level_count(chosen, len(tokens.cuts))
    pairs = zip(tokens.cuts, chosen, strict=True)
    return tuple(name for name, own in pairs if name is not None and own)


class TokenCuts(NamedTuple):
    """Cuts behind attentions.

    Attributes:
      leave: For each attention the first that fewest activations of tokens cross before the next;
        None where there is none.
      ends: For each but the last the last of these.
    """

    leave: tuple[str | None, ...]
    ends: tuple[str, ...]


def token_cuts(line: Equations, attention: Attention) -> TokenCuts:
    """Finds where tokens leave behind each attention, and where the next layer begins.

    Args:
      line: Equations of a call.
      attention: Where it attends.
    """
    early = {v for eqn in line.plan.jaxpr.eqns[: line.early] for v in eqn.outvars}
    places = [(line.active[cut.at], cut) for cut in cuts(line)]
    bounds = (*attention.at[1:], len(line.plan.jaxpr.eqns))
    leave, ends = list[str | None](), list[str]()
    for begin, end in zip(attention.at, bounds, strict=True):
        behind: list[tuple[int, str]] = []
        for at, cut in places:
            if begin < at <= end:
                live = [v for v in live_at(line, cut.at) if v not in early]
                if any(map(attention.token_axes, live)):
                    behind.append((len(live), cut.name))
        fewest = [name for n, name in behind if n == min(count for count, _ in behind)]
        leave.append(fewest[0] if fewest else None)
        ends += fewest[-1:]
    return TokenCuts(tuple(leave), tuple(ends[: len(attention.at) - 1]))
