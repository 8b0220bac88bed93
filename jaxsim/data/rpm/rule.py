"""Rules that rows follow: values are drawn by a rule, or tested for one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

STEPS = (-2, -1, 1, 2)  # of a progression
SIGNS = (-1, 1)  # of an arithmetic
KINDS = ("constant", "progression", "arithmetic", "distribute")
ATTRIBUTES = ("number", "position", "type", "size", "color")
# Types have an order but no sum.
RULES = tuple((a, k) for a in ATTRIBUTES for k in KINDS if (a, k) != ("type", "arithmetic"))


class Rule(NamedTuple):
    """Rule that the rows of one attribute of one component follow.

    Attributes:
      attribute: "number" or "position" of the figures, their "type", "size" or "color".
      kind: "constant": a row has one value. "progression": each value is `step` after the one
        before; a position moves on by so many places. "arithmetic": the third is the first plus or
        minus the second, as `step` is 1 or −1; of positions, the union or what is left.
        "distribute": every row has the same three values, each once.
      step: Step of a progression, sign of an arithmetic; 0 otherwise.

    Examples:
      >>> from jaxsim.data import rpm
      >>> rpm.Rule("size", "progression", 1).kind
      'progression'
    """

    attribute: str
    kind: str
    step: int = 0


def steps(kind: str) -> tuple[int, ...]:
    """Lists the steps that a kind of rule may have.

    Args:
      kind: Kind of rule.
    """
    return {"progression": STEPS, "arithmetic": SIGNS}.get(kind, (0,))


def draw_values(
    rule: Rule, levels: int, rng: np.random.Generator, tries: int = 100
) -> Int[np.ndarray, "3 3"] | None:
    """Draws values of three rows that follow a rule; None where there are none.

    Args:
      rule: Rule to follow.
      levels: Number of values of the attribute, 0 to levels − 1; of a position, number of places,
        and values are sets of them as bits; of a number, number of places, and values are 1 to
        levels.
      rng: Random generator.
      tries: Number of rows that may be drawn in vain.
    """
    if rule.kind == "distribute":
        values = _distinct(rule.attribute, levels, rng)
        return (
            None if values is None else np.stack([np.roll(values, i) for i in rng.permutation(3)])
        )
    rows = []
    for _ in range(tries):
        row = _row(rule, levels, rng)
        if row is not None:
            rows.append(row)
        if len(rows) == 3:
            return np.stack(rows)
    return None


def follows(
    attribute: str, kind: str, values: Int[np.ndarray, "*batch 3 3"], levels: int
) -> Bool[np.ndarray, "*batch"]:
    """Tests whether three rows follow a kind of rule, whatever its step.

    Args:
      attribute: Attribute of the values.
      kind: Kind of rule.
      values: Values of three rows, as `draw_values` gives them.
      levels: Number of values, as in `draw_values`.
    """
    a, b, c = values[..., 0], values[..., 1], values[..., 2]
    if kind == "constant":
        return np.all((a == b) & (b == c), -1)
    if kind == "distribute":
        ordered = np.sort(values, -1)
        same = np.all(ordered == ordered[..., :1, :], (-2, -1))
        return same & np.all(np.diff(ordered[..., 0, :], axis=-1) > 0, -1)
    found = np.zeros(values.shape[:-2], bool)
    for step in steps(kind):
        if kind == "progression":
            held = (_shift(attribute, a, step, levels) == b) & (
                _shift(attribute, b, step, levels) == c
            )
            if attribute == "position":
                held &= a != b
        else:
            held = _combine(attribute, a, b, step) == c
        found |= np.all(held, -1)
    return found


def _row(rule: Rule, levels: int, rng: np.random.Generator) -> Int[np.ndarray, " 3"] | None:
    a, b = (_value(rule.attribute, levels, rng) for _ in range(2))
    if rule.kind == "constant":
        return np.array([a, a, a])
    if rule.kind == "progression":
        b = int(_shift(rule.attribute, a, rule.step, levels))
        row = np.array([a, b, int(_shift(rule.attribute, b, rule.step, levels))])
    else:
        row = np.array([a, b, int(_combine(rule.attribute, a, b, rule.step))])
    if rule.attribute == "position":
        good = row[0] != row[1] and row[2] > 0
    else:
        low = 1 if rule.attribute == "number" else 0
        good = row.min() >= low and row.max() < low + levels
    return row if good else None


def _value(attribute: str, levels: int, rng: np.random.Generator) -> int:
    if attribute == "position":
        return int(rng.integers(1, 2**levels))
    return int(rng.integers(levels)) + (attribute == "number")


def _distinct(
    attribute: str, levels: int, rng: np.random.Generator
) -> Int[np.ndarray, " 3"] | None:
    count = 2**levels - 1 if attribute == "position" else levels
    if count < 3:
        return None
    return rng.choice(count, 3, replace=False) + (attribute in ("number", "position"))


def _shift(attribute: str, value: np.ndarray | int, step: int, levels: int) -> np.ndarray:
    value = np.asarray(value)
    if attribute != "position":
        return value + step
    step %= levels
    return ((value << step) | (value >> (levels - step))) & (2**levels - 1)


def _combine(attribute: str, a: np.ndarray | int, b: np.ndarray | int, sign: int) -> np.ndarray:
    a, b = np.asarray(a), np.asarray(b)
    if attribute == "position":
        return a | b if sign > 0 else a & ~b
    # Sizes count from one, as numbers do: the smallest is not nothing.
    first = 1 if attribute == "size" else 0
    return a + first + sign * (b + first) - first
