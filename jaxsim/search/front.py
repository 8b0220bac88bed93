"""What an exploration found, cheapest first."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxsim.accelerators.accelerator import Accelerator
from jaxsim.accelerators.result import Estimate
from jaxsim.console.table import shown_as_table, si
from jaxsim.network.network import Network
from jaxsim.search.options import Fit, Option, Place, apply_options, option_sites


class Point(NamedTuple):
    """A choice of an option for each place, evaluated.

    Attributes:
      by_place: Name of the option by name of the place.
      accuracy: What `evaluate` returned, the mean over draws.
      deviation: Standard error of that mean over draws; 0 of one.
      energy: Energy of one call, in pJ, by the model.
      latency: Time of one call, in s, by the model.
      area: Area, in mm², by the model.
      predicted: Sum of the errors that its options make alone.
      found_by: What proposed it, of "uniform", "program", "greedy" and "random".
    """

    by_place: dict[str, str]
    accuracy: float
    deviation: float
    energy: float
    latency: float
    area: float
    predicted: float
    found_by: tuple[str, ...]


class Reason(NamedTuple):
    """Why a place has its option.

    Attributes:
      place: Name of the place.
      option: Name of the option.
      error: Relative squared error of the outputs that it makes alone.
      spent: What it spends of what is minimized.
      next: Name of the option of least error among those that spend more there; "" where none does
        with less error.
      gain: Error that this one would take away, for each unit of what it would spend more.
      refused: Why other options cannot be chosen there, by name.
    """

    place: str
    option: str
    error: float
    spent: float
    next: str
    gain: float
    refused: dict[str, str]


@shown_as_table
class Front(NamedTuple):
    """What an exploration found. Printing shows it.

    Attributes:
      points: Points that no other beats in both accuracy and what is minimized, cheapest first.
      tried: All points that were evaluated.
      estimates: What each of them spends, site by site.
      exact: Accuracy of the network as it was given.
      minimize: What is minimized, "energy", "latency" or "area".
      net: Network as it was given.
      accelerator: Hardware that runs it.
      options: Options by name.
      fit: Which of them can be chosen where.
      errors: Relative squared error of the outputs by each option at each place alone; infinite
        where it does not fit.
      spent: What each option spends at each place: "energy" in pJ, "latency" in s, "area" in mm²
        without what places share.
      evaluations: How often `evaluate` was called, an earlier run's calls included.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x, w = jnp.linspace(-1, 1, 32).reshape(8, 4), jnp.sin(jnp.arange(16.0)).reshape(4, 4)
      >>> net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], {"a": w, "b": w}, x)
      >>> options = {"8": js.quantize(8, 8), "2": js.quantize(2, 8)}
      >>> hardware = js.accelerators.systolic_45nm()
      >>> def evaluate(chip):
      ...     return -float(jnp.abs(chip(x) - net(x)).max())
      >>> front = js.explore(net, hardware, options, x, evaluate, points=2, quiet=True)
      >>> front.points[-1].by_place
      {'a': '8', 'b': '8'}
      >>> front.network(-1)
      Network(2 sites, 2 transformed, 0 pruned, 32 parameters)
      >>> front.why(-1)[0].option
      '8'
    """

    points: tuple[Point, ...]
    tried: tuple[Point, ...]
    estimates: tuple[Estimate, ...]
    exact: float
    minimize: str
    net: Network
    accelerator: Accelerator
    options: dict[str, Option]
    fit: Fit
    errors: Float[np.ndarray, "places options"]
    spent: dict[str, Float[np.ndarray, "places options"]]
    evaluations: int

    def within(self, drop: float) -> Point | None:
        """Selects the cheapest point that loses at most so much accuracy.

        Args:
          drop: Accuracy that may be lost, in the units of `evaluate`.

        Returns:
          The point; None where every one loses more.
        """
        good = (point for point in self.points if point.accuracy >= self.exact - drop)
        return next(good, None)

    def transform(self, point: int | Point) -> Callable[[Network], Network]:
        """Makes the transform that gives each place the option of a point.

        Args:
          point: A point, or its number in `points`.
        """
        chosen, options = self._chosen(point), self.options
        return lambda net: apply_options(net, options, chosen)

    def network(self, point: int | Point) -> Network:
        """Transforms the network that was explored; `js.deploy` writes it.

        Args:
          point: A point, or its number in `points`.
        """
        return self.transform(point)(self.net)

    def estimate(self, point: int | Point) -> Estimate:
        """Returns what a point spends on the accelerator, site by site.

        Args:
          point: A point that was evaluated, or its number in `points`.
        """
        chosen = self.points[point] if isinstance(point, int) else point
        places = [p.by_place for p in self.tried]
        return self.estimates[places.index(chosen.by_place)]

    def patterns(self, point: int | Point) -> dict[str, str]:
        """Lists the patterns of the sites that each option changes.

        Args:
          point: A point, or its number in `points`.

        Returns:
          A pattern by name of an option; none for one that changes nothing.
        """
        chosen, found = self._chosen(point), dict[str, str]()
        for name, option in self.options.items():
            sites = option_sites(self.net, option, chosen, name)
            if sites and option.transform is not None:
                found[name] = "re:" + "|".join(map(re.escape, sites))
        return found

    def recipe(self, point: int | Point) -> str:
        """Writes a point as the call that makes its transform.

        Args:
          point: A point, or its number in `points`.
        """
        lines = [
            f"    {pattern!r}: {self.options[name].transform!r},"
            for name, pattern in self.patterns(point).items()
        ]
        return "\n".join(["js.rules({", *lines, "})"])

    def why(self, point: int | Point) -> tuple[Reason, ...]:
        """Explains the option of each place.

        Args:
          point: A point, or its number in `points`.
        """
        found: list[Reason] = []
        for i, (place, name) in enumerate(self._chosen(point).items()):
            errors, spent = self.errors[i], self.spent[self.minimize][i]
            o = self.fit.options.index(name)
            dearer = np.flatnonzero((spent > spent[o]) & (errors < errors[o]))
            best = dearer[np.argmin(errors[dearer])] if dearer.size else o
            more = spent[best] - spent[o]
            refused = {o: why for (p, o), why in self.fit.refused.items() if p == place.name}
            found.append(
                Reason(
                    place=place.name,
                    option=name,
                    error=float(errors[o]),
                    spent=float(spent[o]),
                    next=self.fit.options[best] if best != o else "",
                    gain=float((errors[o] - errors[best]) / more) if best != o else 0.0,
                    refused=refused,
                )
            )
        return tuple(found)

    def hypervolume(self, found_by: Sequence[str] | None = None) -> float:
        """Measures how much of accuracy and savings the points dominate together.

        Both are taken as fractions: of what is minimized from the dearest point that was tried to
        none, and of accuracy from the least that was tried to that of the network as it was given,
        above which it counts as no more: that is luck of the rows.

        Args:
          found_by: Proposers whose points count; None for all.

        Returns:
          The area, in [0, 1].
        """
        cost = np.array([getattr(p, self.minimize) for p in self.tried])
        accuracy = np.array([p.accuracy for p in self.tried])
        low = accuracy.min()
        counted = np.array(
            [found_by is None or not set(found_by).isdisjoint(p.found_by) for p in self.tried]
        )
        saved = 1 - cost[counted] / cost.max()
        gained = (accuracy[counted] - low) / max(self.exact - low, np.finfo(float).tiny)
        return dominated_area(np.stack([saved, np.minimum(gained, 1)], 1))

    def __repr__(self) -> str:
        return f"Front({len(self.points)} points, {self.evaluations} evaluations)"

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(
            title=f"{self.evaluations} evaluations, accuracy {self.exact:.4f} as given; "
            "energy, time and area: analytic model"
        )
        for column in ("", "accuracy", "pJ", "s", "mm²"):
            table.add_column(column, justify="right")
        table.add_column("found by")
        table.add_column("places", overflow="fold")
        for i, point in enumerate(self.points):
            counts = dict.fromkeys(self.fit.options, 0)
            for name in point.by_place.values():
                counts[name] += 1
            error = f" ± {point.deviation:.4f}" if point.deviation else ""
            table.add_row(
                str(i),
                f"{point.accuracy:.4f}{error}",
                *(si(value) for value in (point.energy, point.latency, point.area)),
                ", ".join(point.found_by),
                ", ".join(f"{count} {name}" for name, count in counts.items() if count),
            )
        return table

    def _chosen(self, point: int | Point) -> dict[Place, str]:
        by_place = (self.points[point] if isinstance(point, int) else point).by_place
        return {place: by_place[place.name] for place in self.fit.places}


def dominated_area(points: Float[np.ndarray, "n 2"]) -> float:
    """Measures the area between the origin and the points that dominate it.

    Args:
      points: Two gains of each point; those below 0 count as 0.

    Examples:
      >>> import numpy as np
      >>> from jaxsim.search.front import dominated_area
      >>> dominated_area(np.array([[0.5, 1.0], [1.0, 0.5]]))
      0.75
    """
    area, reached = 0.0, 0.0
    for x, y in sorted(np.maximum(points, 0).tolist(), reverse=True):
        if y > reached:
            area += x * (y - reached)
            reached = y
    return area


def non_dominated(costs: Float[np.ndarray, "n 2"]) -> list[int]:
    """Finds the points that no other is below in both costs, the first of equal ones.

    Args:
      costs: Two costs of each point.

    Returns:
      Their indices, in order of the first cost.

    Examples:
      >>> import numpy as np
      >>> from jaxsim.search.front import non_dominated
      >>> non_dominated(np.array([[2.0, 1.0], [1.0, 2.0], [2.0, 2.0]]))
      [1, 0]
    """
    kept = [i for i in range(len(costs)) if is_non_dominated(costs, i)]
    return sorted(kept, key=lambda i: costs[i, 0])


def is_non_dominated(costs: Float[np.ndarray, "n 2"], i: int) -> bool:
    """Tells whether no other point is at least as low in both, and lower or earlier in one.

    Args:
      costs: Two costs of each point.
      i: Index of the point.
    """
    at_least = (costs <= costs[i]).all(1)
    better = (costs < costs[i]).any(1) | (np.arange(len(costs)) < i)
    return not np.any(at_least & better)
