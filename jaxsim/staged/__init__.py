"""Networks in stages: rows that leave between them, devices that take over, or both."""

from jaxsim.staged.gradient import pipeline_value_and_grad
from jaxsim.staged.network import Staged
from jaxsim.staged.pipeline import simulate_schedule

__all__ = [
    "Staged",
    "pipeline_value_and_grad",
    "simulate_schedule",
]
