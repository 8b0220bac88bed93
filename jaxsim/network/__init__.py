"""A model traced once into a network, and what can be asked of it."""

from jaxsim.network.cost import Cost, SiteCost
from jaxsim.network.deployment import deploy, widen_ranges
from jaxsim.network.network import Network
from jaxsim.network.site import Site
from jaxsim.network.tracing import trace

__all__ = [
    "Cost",
    "Network",
    "Site",
    "SiteCost",
    "deploy",
    "trace",
    "widen_ranges",
]
