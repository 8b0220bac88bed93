"""Matrices and their choices as symbols."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int16

from jaxsim.data.rpm.layout import COLUMNS, LEVELS, SIZES, Component, components
from jaxsim.data.rpm.rule import RULES, Rule, draw_values, steps
from jaxsim.data.rpm.solver import completing_choices
from jaxsim.numerics import memory
from jaxsim.numerics.checks import checked_int

_TRIES = 1000


class Puzzles(NamedTuple):
    """Matrices of one configuration, their choices and answers.

    Attributes:
      panels: Eight panels of the matrix in row order, then eight choices, [N, 16, C, 4]. A part
        of C is written as its places (a set as bits), type, size and color (levels from 0).
      answers: Number of the right choice, [N].
      rules: Rules of each matrix, by component and attribute.
      configuration: Configuration of all panels.

    Examples:
      >>> from jaxsim.data import rpm
      >>> puzzles = rpm.generate(2, configuration="grid_2", seed=0)
      >>> puzzles.configuration, len(puzzles.rules)
      ('grid_2', 2)
    """

    panels: Int16[np.ndarray, "N 16 C 4"]
    answers: Int[np.ndarray, " N"]
    rules: list[tuple[tuple[Rule, ...], ...]]
    configuration: str


class _Column(NamedTuple):
    """Values of one column of one component, and another possible answer."""

    rule: Rule | None
    values: Int[np.ndarray, "3 3"]
    other: int | None


def generate(
    count: int,
    *,
    configuration: str = "center",
    seed: int = 0,
    allowed: Collection[tuple[str, str]] = RULES,
    wanted: Collection[tuple[str, str]] = (),
) -> Puzzles:
    """Makes matrices with exactly one choice that follows rules, and choices that tell nothing.

    Three attributes of the answer are changed in a tree, so each has its true value in four choices
    and one other in four; the other value is drawn by the same rule, and so is as likely to be an
    answer. Puzzle i depends on the seed and i alone.

    Args:
      count: Number of matrices N, at least 1.
      configuration: One of `CONFIGURATIONS`.
      seed: Seed of all that is drawn, at least 0.
      allowed: Pairs of attribute and kind of rule that may occur, of `RULES`.
      wanted: Pairs of which every puzzle has at least one; any puzzle will do if there are none.

    Raises:
      ValueError: An argument out of range, or rules by which no puzzle was found.

    Examples:
      >>> from jaxsim.data import rpm
      >>> puzzles = rpm.generate(2, configuration="grid_2", seed=0)
      >>> puzzles.panels.shape, puzzles.answers.shape
      ((2, 16, 1, 4), (2,))
    """
    count = checked_int("count", count, 1)
    memory.check(f"count={count}", 2048 * count, "lower it")
    seed = checked_int("seed", seed, 0)
    parts = components(configuration)
    for name, pairs in (("allowed", allowed), ("wanted", wanted)):
        unknown = [pair for pair in pairs if pair not in RULES]
        if unknown:
            raise ValueError(f"{name}={unknown}: must be pairs of rpm.RULES")
    missing = set(wanted) - set(allowed)
    if missing:
        raise ValueError(f"wanted={sorted(missing)}: must be allowed as well")
    found = [_puzzle(parts, configuration, (seed, i), allowed, wanted) for i in range(count)]
    panels, answers, rules = zip(*found, strict=True)
    return Puzzles(np.stack(panels), np.asarray(answers), list(rules), configuration)


def _puzzle(
    parts: tuple[Component, ...],
    configuration: str,
    seed: tuple[int, int],
    allowed: Collection[tuple[str, str]],
    wanted: Collection[tuple[str, str]],
) -> tuple[np.ndarray, int, tuple[tuple[Rule, ...], ...]]:
    rng = np.random.default_rng(seed)
    for _ in range(_TRIES):
        columns = [_component(part, allowed, rng) for part in parts]
        if any(c is None for c in columns):
            continue
        whole = [c for c in columns if c is not None]
        rules = tuple(tuple(c.rule for c in part if c.rule is not None) for part in whole)
        used = {(rule.attribute, rule.kind) for part in rules for rule in part}
        if wanted and not used & set(wanted):
            continue
        matrix = np.stack([np.stack([c.values for c in part], -1) for part in whole], -2).reshape(
            9, len(parts), len(COLUMNS)
        )
        changes = [
            (p, c, column.other)
            for p, part in enumerate(whole)
            for c, column in enumerate(part)
            if column.other is not None
        ]
        if len(changes) < 3:
            continue
        choices = matrix[8:]
        for k in rng.permutation(len(changes))[:3]:
            p, c, other = changes[k]
            changed = choices.copy()
            changed[:, p, c] = other
            choices = np.concatenate([choices, changed])
        order = rng.permutation(8)
        panels = np.concatenate([matrix[:8], choices[order]])
        if completing_choices(panels, configuration).sum() == 1:
            return panels.astype(np.int16), int(np.argmin(order)), rules
    raise ValueError(
        f"configuration={configuration!r}: no puzzle found in {_TRIES} tries with allowed="
        f"{sorted(allowed)} and wanted={sorted(wanted)}"
    )


def _component(
    part: Component, allowed: Collection[tuple[str, str]], rng: np.random.Generator
) -> list[_Column] | None:
    """A column for each of `COLUMNS`; None where a rule could not be followed."""
    columns: list[_Column] = []
    for name in COLUMNS:
        if name == "places":
            m = len(part.places)
            names, levels = (("number", "position"), m) if m > 1 else ((), 1)
        else:
            names, levels = ((name,) if name in part.varied else ()), LEVELS[name]
        if not names:
            fixed = {"places": 1, "size": len(SIZES) - 1}.get(name, 0)
            columns.append(_Column(None, np.full((3, 3), fixed), None))
            continue
        pairs = [pair for pair in RULES if pair[0] in names and pair in allowed]
        if not pairs:
            raise ValueError(f"allowed={sorted(allowed)}: has no rule for {' or '.join(names)}")
        attribute, kind = pairs[rng.integers(len(pairs))]
        rule = Rule(attribute, kind, int(rng.choice(steps(kind))))
        column = _column(rule, levels, rng)
        if column is None:
            return None
        columns.append(column)
    return columns


def _column(rule: Rule, levels: int, rng: np.random.Generator) -> _Column | None:
    values = draw_values(rule, levels, rng)
    if values is None:
        return None
    other: int | None = None
    for _ in range(20):
        again = draw_values(rule, levels, rng)
        if again is not None and again[2, 2] != values[2, 2]:
            other = int(again[2, 2])
            break
    if rule.attribute != "number":
        return _Column(rule, values, other)
    placed = np.array([_draw_places(n, levels, rng) for n in values.ravel()]).reshape(3, 3)
    return _Column(rule, placed, None if other is None else _draw_places(other, levels, rng))


def _draw_places(number: int, places: int, rng: np.random.Generator) -> int:
    """So many places, as bits."""
    return int(sum(1 << int(i) for i in rng.choice(places, number, replace=False)))
