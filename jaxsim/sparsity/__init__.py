"""Sparsity: what may be left out, and what that saves."""

from jaxsim.sparsity.criterion import (
    Criterion,
    given,
    grasp,
    magnitude,
    movement,
    random,
    snip,
    squared,
    synflow,
    taylor,
)
from jaxsim.sparsity.distribution import Distribution, er, erk, global_, lamp, uniform
from jaxsim.sparsity.pattern import Pattern, block, channel, head, n_of_m, unstructured

__all__ = [
    # patterns
    "Pattern",
    "unstructured",
    "n_of_m",
    "block",
    "channel",
    "head",
    # criteria
    "Criterion",
    "magnitude",
    "squared",
    "random",
    "given",
    "taylor",
    "snip",
    "grasp",
    "synflow",
    "movement",
    # distributions
    "Distribution",
    "global_",
    "uniform",
    "er",
    "erk",
    "lamp",
]
