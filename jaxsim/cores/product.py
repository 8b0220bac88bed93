"""What a read is: one product of floats, or linear in what was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from jaxtyping import Array

from jaxsim.cores.op import Op

Read = TypeVar("Read", bound=Callable[..., Array])


class Operands(NamedTuple):
    """What a read multiplies: `op.contract(inputs(…), weight(…))` is the read, but for rounding.

    Attributes:
      weight: `(op, state) -> w`, the floats that the state stands for, in the weight's shape.
      inputs: `(op, state, x, key) -> x`, the floats that the inputs become.
      divides: Whether the weight can be had in parts: groups of products are an axis of the
        weight, and of each array of the state that has its rank; the same part of these is the
        state of that part of the weight.
    """

    weight: Callable[[Op, Any], Array]
    inputs: Callable[[Op, Any, Array, Any], Array]
    divides: bool = False


def multiplies(operands: Operands | None) -> Callable[[Read], Read]:
    """Declares what a core's read multiplies.

    The read itself bears it: a wrapper that reads in another way has a read of its own, of which
    nothing is said.

    Args:
      operands: What it multiplies; None where it is no product of floats.
    """

    def declare(read: Read) -> Read:
        read.operands = operands  # pyright: ignore[reportFunctionMemberAccess]
        return read

    return declare


class Subtraction(NamedTuple):
    """How two weight planes become one, of which a read is that of the first less the second's.

    Where something is drawn, it is as good as that: of the same distribution.

    Attributes:
      written: The write whose states these are; behind another one nothing is said.
      of: `state -> state`, of what was written of both.
      write: `(op, w, key) -> state`, writes at once two planes of which one is the positive part of
        w, the other its negative part, `op` being that of the one; None for `of` what the core
        writes.
    """

    written: Callable[[Op, Array, Any], Any]
    of: Callable[[Any], Any]
    write: Callable[[Op, Array, Any], Any] | None = None


def subtracts(subtraction: Subtraction | None) -> Callable[[Read], Read]:
    """Declares that a core's read is linear in what was written of a weight.

    As with `multiplies`, the read itself bears it.

    Args:
      subtraction: Its difference of two planes; None where it is not linear.
    """

    def declare(read: Read) -> Read:
        read.subtraction = subtraction  # pyright: ignore[reportFunctionMemberAccess]
        return read

    return declare


def subtraction_of(core: Any) -> Subtraction | None:
    """The difference of two planes that a core's read is declared to have, None without.

    Args:
      core: Any core.
    """
    found = getattr(core.read, "subtraction", None)
    return found if found is not None and found.written is core.write else None


def of_written(
    inner: Operands | None, written: Callable[[Op, Any], Any], *, divides: bool = True
) -> Operands | None:
    """What a read multiplies that has the core inside read floats which are written at each read.

    Args:
      inner: What the core inside multiplies; None where that is not said.
      written: `(op, state) -> state` of the core inside.
      divides: Whether what is written of a part of a state is that part of what is written.
    """
    if inner is None:
        return None
    return Operands(
        lambda op, state: inner.weight(op, written(op, state)),
        lambda op, state, x, key: inner.inputs(op, written(op, state), x, key),
        inner.divides and divides,
    )


def operands_of(core: Any) -> Operands | None:
    """What a core's read is declared to multiply, None where it declares nothing.

    Args:
      core: Any core.
    """
    return getattr(core.read, "operands", None)
