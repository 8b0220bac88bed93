"""Numbers: checks of arguments, steps and digits, straight-through gradients, exact quantiles."""

from jaxsim.numerics.checks import check_range, check_share, checked_int, is_traced
from jaxsim.numerics.gradients import (
    clip_ste,
    round_ste,
    straight_through,
    zero_with_gradient_of,
)
from jaxsim.numerics.quantiles import quantile
from jaxsim.numerics.renamed import old_names

__all__ = [
    "check_range",
    "check_share",
    "checked_int",
    "clip_ste",
    "is_traced",
    "quantile",
    "round_ste",
    "straight_through",
    "zero_with_gradient_of",
]

__getattr__ = old_names(
    __name__,
    {
        "clip_through": clip_ste,
        "derivative_alone": zero_with_gradient_of,
        "round_through": round_ste,
    },
)
