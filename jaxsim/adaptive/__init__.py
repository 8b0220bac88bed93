"""Computation that depends on the input: early exits, and tokens that are left out."""

from jaxsim.adaptive.encoder import Encoder, deploy_layers, flops_layer, mean_token, over_layers
from jaxsim.adaptive.features import Feature, first_token, pooled
from jaxsim.adaptive.heads import fit_students
from jaxsim.adaptive.passes import pass_all
from jaxsim.adaptive.pyramid import Pyramid
from jaxsim.adaptive.rule import Buckets, Exits, Rule
from jaxsim.adaptive.speed import Speed, at_speed, fastest, sweep
from jaxsim.adaptive.students import distill_students
from jaxsim.numerics.renamed import old_names

__all__ = [
    "Buckets",
    "Encoder",
    "Exits",
    "Feature",
    "Pyramid",
    "Rule",
    "Speed",
    "at_speed",
    "deploy_layers",
    "distill_students",
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

__getattr__ = old_names(__name__, {"distil_students": distill_students})
