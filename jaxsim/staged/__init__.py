"""Networks in stages: rows that leave between them, devices that take over, or both."""

from jaxsim.staged.gradient import pipeline_value_and_grad
from jaxsim.staged.network import Staged
from jaxsim.staged.pipeline import simulate_schedule
from jaxsim.staged.seconds import StageSeconds, stage_seconds
from jaxsim.staged.soften import Softened
from jaxsim.staged.speed import Speed, at_speed, fastest, sweep

__all__ = [
    "Softened",
    "Speed",
    "StageSeconds",
    "Staged",
    "at_speed",
    "fastest",
    "pipeline_value_and_grad",
    "simulate_schedule",
    "stage_seconds",
    "sweep",
]
