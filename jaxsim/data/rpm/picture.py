"""Panels as gray pixels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Int, UInt8

from jaxsim.data.rpm.layout import COLORS, COLUMNS, SIZES, TYPES, components
from jaxsim.numerics import memory
from jaxsim.numerics.checks import checked_int

ANGLES = 8  # a figure is turned by a multiple of 45 degrees that means nothing
_FINE = 4  # samples a pixel, along each side
_EDGE = 1.2  # pixels of outline
_CORNERS = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}


def draw(
    panels: Int[np.ndarray, "*batch C 4"],
    configuration: str,
    *,
    side: int = 40,
    seed: int = 0,
    turned: bool = True,
) -> UInt8[np.ndarray, "*batch side side"]:
    """Draws pictures of panels: black outlines on white, filled with gray.

    Args:
      panels: Panels as symbols, from `generate`.
      configuration: Configuration of the panels, one of `CONFIGURATIONS`.
      side: Side of a picture in pixels, at least 16.
      seed: Seed of the angles.
      turned: Whether figures are turned at random.

    Raises:
      ValueError: An argument out of range, or panels of another configuration.
      MemoryError: Pictures that would take more than `memory.LIMIT`.

    Examples:
      >>> from jaxsim.data import rpm
      >>> puzzles = rpm.generate(2, configuration="grid_2", seed=0)
      >>> rpm.draw(puzzles.panels, "grid_2", side=20).shape
      (2, 16, 20, 20)
    """
    side = checked_int("side", side, 16)
    parts = components(configuration)
    panels = np.asarray(panels)
    if panels.shape[-2:] != (len(parts), len(COLUMNS)):
        raise ValueError(f"panels{list(panels.shape)}: must be [..., {len(parts)}, {len(COLUMNS)}]")
    for column, top in ((1, len(TYPES)), (2, len(SIZES)), (3, COLORS)):
        values = panels[..., column]
        if values.size and not (values.min() >= 0 and values.max() < top):
            raise ValueError(f"panels: {COLUMNS[column]} must be from 0 to {top - 1}")
    rng = np.random.default_rng(seed)
    flat = panels.reshape(-1, len(parts), len(COLUMNS))
    what = f"{len(flat)} pictures of side = {side}"
    memory.check(what, 4 * len(flat) * side**2, "draw fewer at a time")
    out = np.full((len(flat), side, side), 255, np.float32)
    for picture, panel in zip(out, flat, strict=True):
        for part, (places, kind, size, color) in zip(parts, panel, strict=True):
            for i, place in enumerate(part.places):
                if not places >> i & 1:
                    continue
                angle = int(rng.integers(ANGLES)) if turned else 0
                whole, inner = _figure(side, place, int(kind), int(size), angle)
                picture *= 1 - whole
                picture += inner * 255 * (1 - color / COLORS)
    return np.round(out).astype(np.uint8).reshape(*panels.shape[:-2], side, side)


@lru_cache(maxsize=8192)
def _figure(
    side: int, place: tuple[float, float, float], kind: int, size: int, angle: int
) -> tuple[np.ndarray, np.ndarray]:
    """Share of each pixel in a figure, and in it without its outline, [side, side]."""
    x, y, wide = (side * v for v in place)
    radius = 0.5 * wide * SIZES[size]
    at = (np.arange(side * _FINE) + 0.5) / _FINE
    dx, dy = at[None] - x, at[:, None] - y
    name = TYPES[kind]
    if name == "circle":
        depth = radius - np.hypot(dx, dy)
    else:
        n = _CORNERS[name]
        # To the nearest side: each is radius · cos(π/n) from the center.
        turn = 2 * np.pi * (np.arange(n) / n + angle / ANGLES) - np.pi / 2 + np.pi / n
        along = dx[..., None] * np.cos(turn) + dy[..., None] * np.sin(turn)
        depth = radius * np.cos(np.pi / n) - along.max(-1)

    def share(inside: np.ndarray) -> np.ndarray:
        return inside.reshape(side, _FINE, side, _FINE).mean((1, 3), dtype=np.float32)

    return share(depth >= 0), share(depth >= _EDGE)
