"""Solver of matrices, from their symbols and the rules there are."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from jaxsim.data.rpm.layout import COLUMNS, LEVELS, Component, components
from jaxsim.data.rpm.rule import KINDS, RULES, follows


def solve(
    panels: Int[np.ndarray, "*batch 16 C 4"], configuration: str
) -> Int[np.ndarray, "*batch"]:
    """Finds the only choice with which every attribute follows a rule; −1 where not exactly one.

    Args:
      panels: Eight panels of the matrix and eight choices, from `generate`.
      configuration: Configuration of the panels, one of `CONFIGURATIONS`.

    Raises:
      ValueError: No such configuration, or panels of another.

    Examples:
      >>> from jaxsim.data import rpm
      >>> puzzles = rpm.generate(2, configuration="grid_2", seed=0)
      >>> (rpm.solve(puzzles.panels, "grid_2") == puzzles.answers).tolist()
      [True, True]
    """
    good = completing_choices(panels, configuration)
    return np.where(good.sum(-1) == 1, good.argmax(-1), -1)


def completing_choices(
    panels: Int[np.ndarray, "*batch 16 C 4"], configuration: str
) -> Bool[np.ndarray, "*batch 8"]:
    """Marks the choices that complete the matrix.

    Args:
      panels: Eight panels of the matrix and eight choices, from `generate`.
      configuration: Configuration of the panels, one of `CONFIGURATIONS`.

    Raises:
      ValueError: No such configuration, or panels of another.
    """
    parts = components(configuration)
    if panels.shape[-3:] != (16, len(parts), len(COLUMNS)):
        raise ValueError(
            f"panels{list(panels.shape)}: must be [..., 16, {len(parts)}, {len(COLUMNS)}]"
        )
    panels = np.asarray(panels, int)
    context = np.broadcast_to(
        panels[..., None, :8, :, :], (*panels.shape[:-3], 8, 8, *panels.shape[-2:])
    )
    whole = np.concatenate([context, panels[..., 8:, None, :, :]], -3)
    rows = whole.reshape(*whole.shape[:-3], 3, 3, *whole.shape[-2:])
    good = np.ones(rows.shape[:-4], bool)
    for c, part in enumerate(parts):
        for column, name in enumerate(COLUMNS):
            good &= _column(rows[..., c, column], name, part)
    return good


def _column(values: Int[np.ndarray, "*batch 3 3"], name: str, part: Component) -> np.ndarray:
    if name == "places":
        m = len(part.places)
        numbers = np.bitwise_count(values).astype(int)
        return _attribute("number", numbers, m) | _attribute("position", values, m)
    return _attribute(name, values, LEVELS[name])


def _attribute(name: str, values: Int[np.ndarray, "*batch 3 3"], levels: int) -> np.ndarray:
    kinds = [kind for kind in KINDS if (name, kind) in RULES]
    return np.any([follows(name, kind, values, levels) for kind in kinds], 0)
