"""Influence: certified seeds, and simulations."""

from __future__ import annotations

from collections.abc import Iterator

import jax

import jaxsim.cascades as jc
from benchmarks.topics.influence import FILES, load
from benchmarks.topics.speed.row import OURS, Row


def seeds() -> Iterator[Row]:
    """Fifty seeds with a certificate, beside as many simulations from them as the sets hold."""
    for name in FILES:
        g = load(name)
        chosen = jc.maximize_influence(g, 50, jax.random.key(0)).seeds
        calls = {
            OURS: lambda g=g: jc.maximize_influence(g, 50, jax.random.key(0)).seeds,
            "1024 simulations": lambda g=g, chosen=chosen: jc.simulate_ic(
                g, chosen, jax.random.key(1), 1024
            ),
        }
        yield Row(f"50 certified seeds, {name}", calls, "1024 simulations", None)
