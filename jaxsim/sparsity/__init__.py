"""Sparsity: what may be left out, and what that saves."""

from jaxsim.sparsity.activations import topk, topk_gradient, topk_inputs
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
from jaxsim.sparsity.gates import (
    Gates,
    closed,
    gated,
    hard_concrete,
    penalized,
    soft_threshold,
    variational_dropout,
)
from jaxsim.sparsity.obs import prune_layer
from jaxsim.sparsity.optimizers.growth import momentum_growth, rigl, sparse_evolution
from jaxsim.sparsity.optimizers.lottery import lottery
from jaxsim.sparsity.optimizers.masked import SparseState, fixed, gradual, masks_of
from jaxsim.sparsity.pattern import Pattern, block, channel, head, n_of_m, per_output, unstructured
from jaxsim.sparsity.schedule import Schedule, cubic, iterative, one_shot
from jaxsim.sparsity.second_order import fisher, obd, wood_fisher
from jaxsim.sparsity.structured import (
    activation_variance,
    activity,
    batch_norm_scale,
    redundancy,
    wanda,
)

__all__ = [
    # patterns
    "Pattern",
    "unstructured",
    "n_of_m",
    "per_output",
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
    "fisher",
    "wood_fisher",
    "obd",
    "prune_layer",
    "batch_norm_scale",
    "redundancy",
    "activation_variance",
    "wanda",
    "activity",
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
    # gates
    "Gates",
    "gated",
    "penalized",
    "closed",
    "hard_concrete",
    "soft_threshold",
    "variational_dropout",
    # for one input
    "topk",
    "topk_inputs",
    "topk_gradient",
]
