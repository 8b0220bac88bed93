"""Losses and loops that train networks and pyramids."""

from jaxsim.train.loop import adapter_marks, fit, only
from jaxsim.train.losses import cross_entropy, distillation, distillation_targets, over_exits
from jaxsim.train.pyramid import Soft, train_pyramid

__all__ = [
    "Soft",
    "adapter_marks",
    "cross_entropy",
    "distillation",
    "distillation_targets",
    "fit",
    "only",
    "over_exits",
    "train_pyramid",
]
