"""Speed of exact NashConv beside OpenSpiel, and of a meta-step beside PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from benchmarks.common.record import Table, record
from benchmarks.peers.open_spiel_poker import tabular_policy
from benchmarks.peers.torch_meta_step import torch_step
from benchmarks.topics.nac.settings import NacSettings
from benchmarks.topics.nac.skill import PUBLISHED, skill_game
from jaxsim import games as jg
from jaxsim import solvers as js
from jaxsim.console.timing import alternate
from jaxsim.games import sequence


def timing(settings: NacSettings) -> None:
    """NashConv of Leduc beside OpenSpiel, a meta-step beside PyTorch."""
    import pyspiel
    import torch

    named, peer = jg.leduc_poker(), pyspiel.load_game("leduc_poker")
    game = named.game
    policies = [
        sequence.random_policy(s, k)
        for s, k in zip(game, jax.random.split(jax.random.key(0)), strict=True)
    ]
    theirs = tabular_policy(named, policies)

    def measured(first: Array, second: Array) -> Array:
        plans = [
            sequence.realization_plan(s, p) for s, p in zip(game, (first, second), strict=True)
        ]
        return sequence.nash_conv(game, *plans)

    one, many = jax.jit(measured), jax.jit(jax.vmap(measured))
    batch = [jnp.stack([p] * 64) for p in policies]
    times = alternate(
        {
            "OpenSpiel, C++": lambda: pyspiel.nash_conv(peer, theirs),
            "jaxsim": lambda: [one(*policies).block_until_ready() for _ in range(100)],
            "jaxsim, 64 at once": lambda: many(*batch),
        },
        runs=settings.runs,
    )
    per = {"OpenSpiel, C++": 1, "jaxsim": 100, "jaxsim, 64 at once": 64}
    base = times["OpenSpiel, C++"].median
    rows = [
        [n, f"{1e3 * t.median / per[n]:.4f}", f"{base * per[n] / t.median:.0f}"]
        for n, t in times.items()
    ]
    off = abs(float(one(*policies)) - pyspiel.nash_conv(peer, theirs))
    network, optimizer = js.GRUMixing(), js.meta_optimizer(0.01, 10**6)
    steps: dict[str, Callable[[], Any]] = {"PyTorch, GRU": torch_step()}
    for name, net, aim in (
        ("jaxsim, GRU", network, PUBLISHED),
        ("jaxsim, equivariant", js.EquivariantMixing(), PUBLISHED),
    ):
        step = js.meta_step(net, aim, skill_game, optimizer, batch=5)
        state = js.init_meta(net, optimizer, jax.random.key(0))
        steps[name] = lambda s=step, a=state: s(a, jax.random.key(1))
    found = alternate(steps, runs=settings.runs)
    slow = found["PyTorch, GRU"].median
    rows_step = [
        [n, f"{t.median:.3f}", f"{slow / t.median:.1f}", f"{t.first:.1f}"] for n, t in found.items()
    ]
    record(
        "nac_timing",
        Table(["", "ms a policy", "times as fast"], rows, "Exact NashConv of Leduc poker"),
        Table(
            ["", "s a step", "times as fast", "first call, s"],
            rows_step,
            "Meta-step of games of skill: 200 actions, 5 games, 20 iterations, windows of 5",
        ),
        question="How fast are exact NashConv and a meta-step?",
        baseline="OpenSpiel 2.0.2's C++ nash_conv; a PyTorch loop of the same algorithm, ours",
        notes=f"Policies in, NashConv out; it differs by {off:.1g}. OpenSpiel walks the tree anew "
        "at each call, ours has one game compiled. Meta-step: training only, on both sides, the "
        f"games of a batch one after the other in PyTorch, {torch.get_num_threads()} threads.",
        settings={"runs": settings.runs},
    )
