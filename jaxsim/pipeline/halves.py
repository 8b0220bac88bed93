"""A backward in two halves: gradients of inputs, for which other stages wait, and those of weights.

The equations of the whole are divided by what reads them, so that nothing is computed twice. What a
loop computes of both, such as layers in a scan, belongs to the first half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims

from jaxsim.internals import bind, inner_jaxprs

_CALLS = (prims.jit_p, prims.closed_call_p, prims.remat_p)


class Halves(NamedTuple):
    """The equations of a backward, divided.

    Attributes:
      first: Those that the gradients of inputs need.
      second: The others that the gradients of weights need.
      jaxpr: All of them; its outputs are the gradients of weights and then those of inputs.
      consts: Values of its constants.
      weights: Number of the former.
      crossing: What the first half computes and the second reads.
    """

    first: tuple[jex.JaxprEqn, ...]
    second: tuple[jex.JaxprEqn, ...]
    jaxpr: jex.Jaxpr
    consts: Sequence[Any]
    weights: int
    crossing: tuple[jex.Var, ...]

    def inputs(self, given: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Computes the gradients of inputs.

        Args:
          given: What the backward reads.

        Returns:
          The gradients, and what the second half reads of this one.
        """
        values = self._known(given)
        _run(self.first, values)
        back = self.jaxpr.outvars[self.weights :]
        return [_read(values, v) for v in back], [values[v] for v in self.crossing]

    def gradients(self, given: Sequence[Any], crossing: Sequence[Any]) -> list[Any]:
        """Computes the gradients of weights.

        Args:
          given: What the backward reads.
          crossing: What the first half computed for this one.
        """
        values = self._known(given) | dict(zip(self.crossing, crossing, strict=True))
        _run(self.second, values)
        return [_read(values, v) for v in self.jaxpr.outvars[: self.weights]]

    def _known(self, given: Sequence[Any]) -> dict[jex.Var, Any]:
        held = (*self.jaxpr.invars, *self.jaxpr.constvars)
        known = zip(held, (*given, *self.consts), strict=True)
        return dict(known)


def halves(backward: Callable[..., tuple[Any, Any]], *args: Any) -> Halves:
    """Divides the equations of a backward.

    Args:
      backward: `(*args) -> (gradients of weights, gradients of inputs)`, trees.
      *args: Its arguments, or their shapes.
    """
    leaves, treedef = jax.tree.flatten(args)
    counted: list[int] = []

    def flat(*leaves: Any) -> list[Any]:
        weights, inputs = backward(*jax.tree.unflatten(treedef, leaves))
        counted.append(len(jax.tree.leaves(weights)))
        return jax.tree.leaves((weights, inputs))

    whole = jax.make_jaxpr(flat)(*leaves)

    def inlined(*leaves: Any) -> list[Any]:
        jaxpr = whole.jaxpr
        values = dict(zip((*jaxpr.invars, *jaxpr.constvars), (*leaves, *whole.consts), strict=True))
        _run(jaxpr.eqns, values, inline=True)
        return [_read(values, v) for v in jaxpr.outvars]

    closed = jax.make_jaxpr(inlined)(*leaves)
    jaxpr, weights = closed.jaxpr, counted[0]
    first = _needed(jaxpr, jaxpr.outvars[weights:])
    done = set(map(id, first))
    second = [eqn for eqn in _needed(jaxpr, jaxpr.outvars[:weights]) if id(eqn) not in done]
    read = {v for eqn in second for v in eqn.invars if isinstance(v, jex.Var)}
    read |= {v for v in jaxpr.outvars[:weights] if isinstance(v, jex.Var)}
    crossing = tuple(v for eqn in first for v in eqn.outvars if v in read)
    return Halves(tuple(first), tuple(second), jaxpr, closed.consts, weights, crossing)


def _needed(jaxpr: jex.Jaxpr, outvars: Sequence[Any]) -> list[jex.JaxprEqn]:
    """The equations that outputs need, in order."""
    wanted = {v for v in outvars if isinstance(v, jex.Var)}
    kept: list[jex.JaxprEqn] = []
    for eqn in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(eqn.outvars):
            kept.append(eqn)
            wanted.update(v for v in eqn.invars if isinstance(v, jex.Var))
    return kept[::-1]


def _run(eqns: Sequence[jex.JaxprEqn], values: dict[jex.Var, Any], *, inline: bool = False) -> None:
    """Evaluates equations; with `inline`, those of calls one by one."""
    for eqn in eqns:
        given = [_read(values, v) for v in eqn.invars]
        if inline and eqn.primitive in _CALLS:
            ((jaxpr, consts),) = inner_jaxprs(eqn)
            inner = dict(zip((*jaxpr.invars, *jaxpr.constvars), (*given, *consts), strict=True))
            _run(jaxpr.eqns, inner, inline=True)
            outs = [_read(inner, v) for v in jaxpr.outvars]
        else:
            outs = bind(eqn, given)
        values.update(zip(eqn.outvars, outs, strict=True))


def _read(values: dict[jex.Var, Any], atom: Any) -> Any:
    return atom.val if isinstance(atom, jex.Literal) else values[atom]
