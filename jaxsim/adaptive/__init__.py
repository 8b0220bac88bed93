"""Computation that depends on the input: early exits, and tokens that are left out."""

from jaxsim.adaptive.encoder import Encoder, deploy_layers, flops_layer, mean_token, over_layers
from jaxsim.adaptive.exits import EarlyExit
from jaxsim.adaptive.features import Feature, first_token, pooled
from jaxsim.adaptive.heads import fit_students
from jaxsim.adaptive.passes import pass_all
from jaxsim.adaptive.pyramid import Pyramid
from jaxsim.adaptive.rule import Buckets, Exits, Rule
from jaxsim.adaptive.speed import Speed, at_speed, fastest, sweep
from jaxsim.adaptive.students import distil_students

__all__ = [
    "Buckets",
    "EarlyExit",
    "Encoder",
    "Exits",
    "Feature",
    "Pyramid",
    "Rule",
    "Speed",
    "at_speed",
    "deploy_layers",
    "distil_students",
    "fastest",
    "first_token",
    "fit_students",
    "flops_layer",
    "mean_token",
    "over_layers",
    "pass_all",
    "pooled",
    "sweep",
]
