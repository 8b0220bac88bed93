"""Solvers that grow a population of agents, and meta-solvers that are learned."""

from jaxsim.solvers.es import es_value_and_grad
from jaxsim.solvers.mixing import latest, nash, nash_lp, projected_replicator, rectified, uniform
from jaxsim.solvers.nac import (
    MetaState,
    Objective,
    init_meta,
    meta_optimizer,
    meta_step,
    nac_loss,
    network_solver,
)
from jaxsim.solvers.networks import ConvMixing, EquivariantMixing, GRUMixing
from jaxsim.solvers.psro import Population, Run, approximate_gain, psro
from jaxsim.solvers.responses import Oracle, approximate, exact, first_order, implicit, unrolled
from jaxsim.solvers.sampled import dice, dice_payoff, ppo

__all__ = [
    "Population",
    "Run",
    "psro",
    "approximate_gain",
    # meta-solvers
    "uniform",
    "latest",
    "nash",
    "nash_lp",
    "rectified",
    "projected_replicator",
    "ConvMixing",
    "GRUMixing",
    "EquivariantMixing",
    "network_solver",
    # oracles
    "Oracle",
    "unrolled",
    "implicit",
    "exact",
    "approximate",
    "first_order",
    "dice",
    "dice_payoff",
    "ppo",
    # meta-training
    "Objective",
    "MetaState",
    "nac_loss",
    "meta_optimizer",
    "init_meta",
    "meta_step",
    "es_value_and_grad",
]
