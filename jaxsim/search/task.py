"""Evaluation of one choice: plain data that another process can be sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxsim.checkpoint.log import ScoreCache
from jaxsim.evaluate.sweep import Way, fastest_way, sweep
from jaxsim.network.network import Network
from jaxsim.search.switchboard import Switchboard


class Task(NamedTuple):
    """What an evaluation needs to know beside the choice.

    Attributes:
      board: Network that holds every option.
      evaluate: Measures the accuracy of a deployed network.
      keys: Random key of each draw, or None.
      mesh: Devices over which draws are divided; None for one device.
      way: How a device computes the draws of a choice in one program; None where `evaluate` is
        called for each.
    """

    board: Switchboard
    evaluate: Callable[[Network], Any]
    keys: tuple[Any, ...]
    mesh: Mesh | None = None
    way: Way | None = None

    def traced(self, scores: ScoreCache) -> Task:
        """Computes draws in one program, in the way that is faster here.

        Args:
          scores: Known scores: a run that goes on keeps to the way that it began with.
        """

        def measure() -> Way:
            whole = [None] * len(self.board.fit.places)
            chips = (self.board.deploy(whole, key) for key in self.keys)
            return fastest_way(self.evaluate, chips, mesh=self.mesh)

        return self._replace(way=scores.get("way of draws", measure))


def accuracies(task: Task, choice: Sequence[int]) -> list[float]:
    """Measures the accuracy of a choice by draw.

    Args:
      task: What is known beside the choice.
      choice: Number of the option of each place.

    Raises:
      ValueError: An accuracy that is not finite.
    """
    chips = (task.board.deploy(choice, key) for key in task.keys)
    if task.way is None:
        return finite([float(task.evaluate(chip)) for chip in chips])
    found = sweep(task.evaluate, chips, way=task.way, mesh=task.mesh)
    return finite(np.asarray(found, float).tolist())


def finite(found: list[float]) -> list[float]:
    """Returns accuracies as they are.

    Args:
      found: Accuracies.

    Raises:
      ValueError: One is not finite.
    """
    if not np.isfinite(found).all():
        raise ValueError(f"evaluate: returned {found}; expected finite numbers")
    return found
