"""One network on several devices, in stages."""

from jaxsim.pipeline.gradient import pipeline_value_and_grad
from jaxsim.pipeline.pipeline import Pipeline, simulate_schedule

__all__ = [
    "Pipeline",
    "pipeline_value_and_grad",
    "simulate_schedule",
]
