"""Computation that depends on the input: when rows leave, and which tokens stay."""

from jaxsim.adaptive.features import Feature, first_token, pooled
from jaxsim.adaptive.heads import fit_students
from jaxsim.adaptive.rule import Buckets, Exits, Rule

__all__ = [
    "Buckets",
    "Exits",
    "Feature",
    "Rule",
    "first_token",
    "fit_students",
    "pooled",
]
