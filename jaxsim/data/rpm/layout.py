"""Places of the figures of a panel, and the attributes that vary."""

from __future__ import annotations

from typing import NamedTuple

TYPES = ("triangle", "square", "pentagon", "hexagon", "circle")
SIZES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # share of the place a figure has
COLORS = 10  # levels of gray, from white
COLUMNS = ("places", "type", "size", "color")  # what a component of a panel is written as
LEVELS = {"type": len(TYPES), "size": len(SIZES), "color": COLORS}


class Component(NamedTuple):
    """Figures that share one type, size and color.

    Attributes:
      places: Center and side of each place a figure may take, in a panel of side 1: (x, y, side).
      varied: Attributes among type, size and color that rules govern; figures are otherwise of
        the first type, largest and white.
    """

    places: tuple[tuple[float, float, float], ...]
    varied: tuple[str, ...] = ("type", "size", "color")


def _grid(rows: int, left: float = 0.0, top: float = 0.0, side: float = 1.0) -> Component:
    step = side / rows
    at = [(i + 0.5) * step for i in range(rows)]
    return Component(tuple((left + x, top + y, step) for y in at for x in at))


_OUTER = Component(((0.5, 0.5, 1.0),), ("type",))

CONFIGURATIONS: dict[str, tuple[Component, ...]] = {
    "center": (_grid(1),),
    "grid_2": (_grid(2),),
    "grid_3": (_grid(3),),
    "left_right": (Component(((0.25, 0.5, 0.5),)), Component(((0.75, 0.5, 0.5),))),
    "up_down": (Component(((0.5, 0.25, 0.5),)), Component(((0.5, 0.75, 0.5),))),
    "out_in_center": (_OUTER, Component(((0.5, 0.5, 0.33),))),
    "out_in_grid": (_OUTER, _grid(2, 0.33, 0.33, 0.34)),
}


def components(configuration: str) -> tuple[Component, ...]:
    """Lists the components of a configuration.

    Args:
      configuration: Name of a configuration, one of `CONFIGURATIONS`.

    Raises:
      ValueError: There is no such configuration.
    """
    if configuration not in CONFIGURATIONS:
        raise ValueError(
            f"configuration={configuration!r}: must be one of {', '.join(CONFIGURATIONS)}"
        )
    return CONFIGURATIONS[configuration]
