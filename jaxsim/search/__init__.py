"""Search for the cheapest bits and blocks that keep a network accurate."""

from jaxsim.search.bits import ablation_sensitivity, assign_bits, hessian_sensitivity
from jaxsim.search.blocks import search_blocked

__all__ = [
    "ablation_sensitivity",
    "assign_bits",
    "hessian_sensitivity",
    "search_blocked",
]
