"""The part that a wrapper plays in a site's chain, declared by the function that wraps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

Role = Literal[
    "operand",
    "mask",
    "correction",
    "scale",
    "bias",
    "digital",
    "groups",
    "codes",
    "floats",
    "sparse",
    "blocks",
    "slices",
    "inputs",
    "serial",
    "mapping",
    "array",
    "adc",
    "cells",
    "observer",
    "",
]
"""Parts of a chain, from the model's side to the cells.

"operand" writes one of two activations in each call. "mask" and "correction" change the weight
before anything stores it. "scale", "bias" and "digital" compute outside the hardware. "groups"
splits sums so that each part has its scales, "codes" stores integer codes, "floats" numbers that
are none, and "sparse" leaves zeros out. "blocks" multiplies blocks of bits, "slices" spreads a code
over cells. "inputs" changes what drives the rows, "serial" applies it in steps. "mapping"
represents signs, "array" bounds the rows of an array, "adc" converts its columns, "cells" are
devices and wires. "observer" measures. "" is unknown to every transform.
"""

WEIGHT: frozenset[Role] = frozenset({"mask", "correction"})
"""Roles that change the weight itself and nothing in how hardware holds it."""

DIGITAL: frozenset[Role] = frozenset({*WEIGHT, "scale", "bias", "digital"})
"""Roles outside the hardware, behind which any hardware may be put."""

F = TypeVar("F", bound=Callable[..., Any])


def role(name: Role, *, at_rest: str = "") -> Callable[[F], F]:
    """Declares the part of a chain that a `Core -> Core` function plays.

    Transforms that check an order ask for roles and never for functions: an ADC of one's own that
    declares "adc" is treated as jaxsim's is.

    Args:
      name: The part; see `Role`.
      at_rest: Name in checkpoints and logs, where it is not the function's; for functions that were
        renamed.

    Returns:
      A decorator that gives the function back.

    Raises:
      ValueError: There is no such role.

    Examples:
      >>> import jaxsim as js
      >>> @js.role("adc")
      ... def ideal(core):
      ...     return core
      >>> js.Wrapper.of(ideal).role
      'adc'
    """
    known = get_args(Role)
    if name not in known:
        raise ValueError(f"name={name!r}: must be one of {', '.join(map(repr, known))}")

    def declare(factory: F) -> F:
        factory.role = name  # pyright: ignore[reportFunctionMemberAccess]
        if at_rest:
            factory.at_rest = at_rest  # pyright: ignore[reportFunctionMemberAccess]
        return factory

    return declare


def role_of(factory: Callable[..., Any]) -> Role:
    """The declared role of a function that wraps cores, "" where it declares none."""
    return getattr(factory, "role", "")
