"""Numbers: checks of arguments, steps and digits, straight-through gradients, exact quantiles."""

from jaxsim.numerics.checks import check_range, check_share, checked_int, is_traced
from jaxsim.numerics.gradients import (
    clip_through,
    derivative_alone,
    round_through,
    straight_through,
)
from jaxsim.numerics.quantiles import quantile

__all__ = [
    "check_range",
    "check_share",
    "checked_int",
    "clip_through",
    "derivative_alone",
    "is_traced",
    "quantile",
    "round_through",
    "straight_through",
]
