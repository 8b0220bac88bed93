"""Formats of numbers, and the wrappers that store them at a site."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import singledispatch
from typing import Any, Literal, Protocol, TypeVar, cast

from jaxsim.cores.block_grid import block_grid
from jaxsim.cores.grouped import grouped
from jaxsim.cores.lookup import codebook_lookup
from jaxsim.cores.microscaled import microscaled
from jaxsim.cores.minifloat import minifloat
from jaxsim.cores.quantized import quantized
from jaxsim.cores.wrapper import Wrapper
from jaxsim.formats.block_grid import ROWS, BlockGrid
from jaxsim.formats.codebook import Codebook, Floating
from jaxsim.formats.grid import Grid
from jaxsim.formats.microscaling import Microscaled
from jaxsim.values.value import same

Side = Literal["weights", "inputs"]
"""Which operand of a contraction a format is for."""


class Format(Protocol):
    """How numbers are stored: any object that says which wrappers store them.

    `Grid`, `Codebook` and `Floating` are formats, and so is an object of one's own with this
    method. A wrapper whose role is "codes" has the settings `weights` and `inputs`, each a format
    or None; such a format has `bits`, `symmetric` and `code_range` as `Grid` has them, which what
    comes after it (`slice_bits`, `analog`) reads.

    Examples:
      >>> import jaxsim as js
      >>> from jaxsim.cores.storage import wrappers_of
      >>> wrappers_of(js.Grid(4, per="channel"), "weights")
      (quantized(weights=int4 symmetric per channel),)
    """

    def wrappers(self, side: Side) -> Sequence[Wrapper]:
        """The wrappers that store numbers of one operand in this format, outermost first.

        Args:
          side: "weights" or "inputs".

        Raises:
          ValueError: The format cannot store this operand.
        """
        ...


@singledispatch
def wrappers_of(form: Any, side: Side) -> tuple[Wrapper, ...]:
    """The wrappers that store numbers of one operand in a format, outermost first.

    `Grid`, `Codebook` and `Floating` lie below the cores, which compute with them, and are
    registered here. Any other object is asked for its `wrappers`.

    Args:
      form: A format.
      side: "weights" or "inputs".

    Raises:
      ValueError: It is no format, or cannot store this operand.
    """
    method = getattr(form, "wrappers", None)
    if isinstance(form, type) or not callable(method):
        raise ValueError(
            f"{side}={form!r}: must be an int, a Grid, a Codebook, a Floating, None, or an object "
            "with a method wrappers(side)"
        )
    found = tuple(cast("Sequence[Any]", method(side)))
    if not found or not all(isinstance(wrapper, Wrapper) for wrapper in found):
        raise ValueError(f"{side}={form!r}: wrappers({side!r}) gave {found}, expected Wrappers")
    return found


@wrappers_of.register
def _(form: Grid, side: Side) -> tuple[Wrapper, ...]:
    groups, form = _grouped(form.checked(side))
    return (*groups, Wrapper.of(quantized, **{"weights": None, "inputs": None, side: form}))


@wrappers_of.register
def _(form: Codebook, side: Side) -> tuple[Wrapper, ...]:
    groups, form = _grouped(form.checked(side))
    return (*groups, Wrapper.of(codebook_lookup, weights=form))


@wrappers_of.register
def _(form: Floating, side: Side) -> tuple[Wrapper, ...]:
    sides = {"weights": None, "inputs": None, side: form.checked(side)}
    return (Wrapper.of(minifloat, **sides),)


@wrappers_of.register
def _(form: BlockGrid, side: Side) -> tuple[Wrapper, ...]:
    form = form.checked(side)
    return Wrapper.of(grouped, rows=ROWS), Wrapper.of(block_grid, weights=form)


@wrappers_of.register
def _(form: Microscaled, side: Side) -> tuple[Wrapper, ...]:
    sides = {"weights": None, "inputs": None, side: form.checked(side)}
    return Wrapper.of(grouped, rows=form.rows), Wrapper.of(microscaled, **sides)


F = TypeVar("F", Grid, Codebook)


def _grouped(form: F) -> tuple[tuple[Wrapper, ...], F]:
    """What splits a site into groups, and the format of each group."""
    if form.per != "group":
        return (), form
    one = dataclasses.replace(form, per="channel", rows=None)
    return (Wrapper.of(grouped, rows=form.rows),), one


def join_chains(weights: Sequence[Wrapper], inputs: Sequence[Wrapper]) -> tuple[Wrapper, ...]:
    """One chain for both operands: a function that stores both is wrapped once.

    Integer codes come before numbers that are none, so that codes of one operand reach the other's
    core.

    Args:
      weights: Wrappers that store the weights.
      inputs: Wrappers that store the inputs.

    Raises:
      ValueError: A function that stores both has a setting of each operand's that differ, or
        inputs are in blocks and weights are not.
    """
    groups = [next((w for w in side if w.role == "groups"), None) for side in (weights, inputs)]
    if weights and groups[0] is None and groups[1] is not None:
        raise ValueError(
            f"inputs: they are in blocks of {groups[1].settings['rows']}, and {weights[-1].name} "
            "has one scale for weights of many blocks; expected weights in blocks or groups of as "
            "many, or None"
        )
    chain = list(weights)
    for wrapper in inputs:
        place = next((i for i, w in enumerate(chain) if w.factory is wrapper.factory), None)
        if place is None:
            chain.append(wrapper)
        else:
            mine = chain[place].settings
            both = {k: v if v is not None else mine.get(k) for k, v in wrapper.settings.items()}
            for k, v in mine.items():
                if v is not None and not same(v, both.get(k)):
                    raise ValueError(
                        f"weights, inputs: {wrapper.name} stores both, with {k}={v} for the "
                        f"weights and {k}={both.get(k)} for the inputs; expected one {k}"
                    )
            chain[place] = Wrapper.of(wrapper.factory, **both)
    order = {"groups": 0, "codes": 1}
    return tuple(sorted(chain, key=lambda wrapper: order.get(wrapper.role, 2)))
