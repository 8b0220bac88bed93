"""Meta-solvers trained, and their NashConv on games that nothing was chosen on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxsim import games as jg
from jaxsim import solvers as js
from jaxsim.solvers.experiment import Recipe, measure
from jaxsim.solvers.mixing import MetaSolver

TEST, VALIDATION = 90210, 777
"""Keys of the games that are reported and of those that settings were chosen on. Until 27 November
2026 the first was 4242: those games were looked at before the settings were fixed."""


def trained(
    network: Any,
    objective: js.Objective,
    sample: Callable[[Any], jg.Game],
    *,
    steps: int,
    rate: float,
    seed: int,
    **options: Any,
) -> MetaSolver:
    """A meta-solver after training; seeds of its games are no test or validation games."""
    optimizer = js.meta_optimizer(rate, steps)
    state = js.init_meta(network, optimizer, jax.random.key(seed))
    step = js.meta_step(network, objective, sample, optimizer, **options)
    begun = time.time()
    for i in range(steps):
        state, value = step(state, jax.random.key(1000 + seed))
        if i % 50 == 49:
            print(f"  step {i + 1}: {float(value):.3f}, {time.time() - begun:.0f} s", flush=True)
    return js.network_solver(network, state.params)


def grown(solver: tuple[MetaSolver, MetaSolver | None], made: Recipe, games: int) -> list[Any]:
    """NashConv after each iteration, exact (-1 where it is not known) and found, for the log."""
    found = measure({"": solver}, made, jax.random.key(TEST), games)[""]
    return [np.round(np.nan_to_num(a.astype(float), nan=-1), 5).tolist() for a in found]
