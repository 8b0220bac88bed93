"""Search for the cheapest bits and blocks that keep a network accurate."""

from jaxsim.search.bits import ablation_sensitivity, assign_bits, hessian_sensitivity
from jaxsim.search.blocks import search_blocked
from jaxsim.search.config import Config, configs

__all__ = [
    "Config",
    "ablation_sensitivity",
    "assign_bits",
    "configs",
    "hessian_sensitivity",
    "search_blocked",
]
