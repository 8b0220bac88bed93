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
from jaxsim.sparsity.growth import momentum_growth, rigl, sparse_evolution
from jaxsim.sparsity.lottery import lottery
from jaxsim.sparsity.masked import SparseState, fixed, gradual, masks_of
from jaxsim.sparsity.pattern import Pattern, block, channel, head, n_of_m, unstructured
from jaxsim.sparsity.schedule import Schedule, cubic, iterative, one_shot

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
    # training
    "Schedule",
    "one_shot",
    "iterative",
    "cubic",
    "SparseState",
    "masks_of",
    "fixed",
    "gradual",
    "lottery",
    "rigl",
    "sparse_evolution",
    "momentum_growth",
]
