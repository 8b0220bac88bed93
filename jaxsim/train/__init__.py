"""Losses and the loop that train networks."""

from jaxsim.train import pulsed
from jaxsim.train.errors import scale_errors
from jaxsim.train.loop import adapter_marks, fit, only
from jaxsim.train.losses import cross_entropy, distillation, distillation_targets, over_exits
from jaxsim.train.soft import Soft
from jaxsim.train.weight_clipping import clip_weights

__all__ = [
    "Soft",
    "adapter_marks",
    "clip_weights",
    "cross_entropy",
    "distillation",
    "distillation_targets",
    "fit",
    "only",
    "over_exits",
    "pulsed",
    "scale_errors",
]
