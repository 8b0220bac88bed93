"""Soft masks of tokens in training: how dear tokens are, and how sharp the masks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxsim.network.network import Network
from jaxsim.numerics.checks import check_range
from jaxsim.staged.network import Staged
from jaxsim.staged.soften import require_soft


class Soft(NamedTuple):
    """Settings of soft masks, by which thresholds of tokens are learned.

    Attributes:
      weight: Weight in the loss of the mean share of tokens that the masks leave, at least 0.
      temperature: Temperatures of the masks at the first step and at the last, above 0; between
        them it falls geometrically. A score is about one over the length: temperatures have to be
        below that.

    Examples:
      >>> from jaxsim.train import Soft
      >>> Soft(weight=0.5)
      Soft(weight=0.5, temperature=(0.005, 0.0005))
    """

    weight: float = 0.1
    temperature: tuple[float, float] = (5e-3, 5e-4)

    def at(self, step: int, steps: int) -> np.float32:
        """Computes the temperature of one step.

        Args:
          step: Number of the step, from 0.
          steps: Number of steps in all.
        """
        hot, cold = self.temperature
        return np.float32(hot * (cold / hot) ** (step / max(steps - 1, 1)))


def check_soft(net: Network, soft: Soft) -> None:
    """Checks that the levels of a network can be learned by such masks.

    Args:
      net: Network of any kind.
      soft: Settings of the masks.

    Raises:
      ValueError: A setting out of range, a network whose tokens all stay or leave by another rule
        than a threshold, or a pipeline whose rule does not say which tokens there are.
    """
    check_range("weight", soft.weight, 0)
    for end in soft.temperature:
        check_range("temperature", end, 0, above=True)
    if not isinstance(net, Staged):
        raise ValueError("soft: all tokens of the network stay; js.prune_tokens(…)(net) first")
    if require_soft(net).present is None and net.layout is not None:
        raise ValueError(
            "soft: the share of the tokens that is left is of a whole mini-batch, and stages see a "
            "micro-batch; give prune_tokens(present=…), which says how many there are"
        )
