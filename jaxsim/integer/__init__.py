"""A calibrated network as integers alone."""

from jaxsim.integer.convert import integer_only
from jaxsim.integer.network import IntegerNetwork

__all__ = [
    "IntegerNetwork",
    "integer_only",
]
