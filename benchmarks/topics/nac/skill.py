"""Games of skill: learned meta-solvers beside others on games nobody has seen."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.record import IMAGES, Table, record
from benchmarks.common.spread import mean_and_error
from benchmarks.topics.nac.settings import NacSettings
from benchmarks.topics.nac.training import TEST, grown, trained
from jaxsim import games as jg
from jaxsim import solvers as js
from jaxsim.checkpoint.log import ScoreCache
from jaxsim.collaborative.statistics import holm, paired_test
from jaxsim.solvers.experiment import baselines, recipe
from jaxsim.solvers.mixing import MetaSolver

SKILL = js.unrolled(5, 25.0)
"""Five steps at rate 25, as published."""
PUBLISHED = js.Objective(SKILL, js.unrolled(20, 10.0))
"""Of games of skill: 20 iterations, windows of 5, measured by gradient ascent."""
EVERY = js.Objective(SKILL, window=20, each=True)
SKILL_NETWORKS: Mapping[str, tuple[Any, js.Objective, dict[str, Any]]] = {
    "NAC equivariant, all iterations": (
        js.EquivariantMixing(), EVERY, {"rate": 6e-3, "batch": 16},
    ),
    "NAC conv, as published": (
        js.ConvMixing(), PUBLISHED, {"steps": 100, "rate": 1e-2, "batch": 5},
    ),
    "NAC GRU, as published": (
        js.GRUMixing(), PUBLISHED, {"steps": 100, "rate": 1e-2, "batch": 5},
    ),
}  # fmt: skip


def skill_game(key: Any) -> jg.Game:
    """A game of skill of 200 actions."""
    return jg.games_of_skill(key, 200)


def skill(settings: NacSettings) -> None:
    """Games of skill: our network beside the other meta-solvers on games nobody has seen."""
    skill_table(settings, "nac_skill", "NAC equivariant, all iterations")


def published(settings: NacSettings) -> None:
    """The same with the networks and the objective as published."""
    skill_table(settings, "nac_published", "NAC GRU, as published", "NAC conv, as published")


def skill_table(settings: NacSettings, file: str, mine: str, *others: str) -> None:
    """Trains, measures, compares the first network with everything else."""
    log, made = ScoreCache(settings.log), recipe("skill")
    found: dict[str, np.ndarray] = {}
    approximate: dict[str, np.ndarray] = {}

    def score(name: str, told: str, solver: Any, report: Any = None) -> list[Any]:
        begun = time.time()
        result = log.get(
            f"skill {TEST} {told} {settings.games}",
            lambda: grown((solver(), report), made, settings.games),
        )
        print(name, np.mean(result[0], 0)[[5, 10, 20]].round(3), f"{time.time() - begun:.0f} s")
        return result

    for name, (solver, report) in baselines().items():
        result = np.array(score(name, name, lambda s=solver: s, report))
        found[name], approximate[name] = result
    for name in (mine, *others):
        network, objective, options = SKILL_NETWORKS[name]
        options = {"steps": settings.steps} | options
        every = []
        for seed in range(settings.seeds):

            def train(seed: int = seed) -> MetaSolver:
                return trained(network, objective, skill_game, seed=seed, **options)  # noqa: B023

            every.append(score(name, f"{name} {options} {seed}", train))
        exact, seen = np.array(every).swapaxes(0, 1)
        found[name], approximate[name] = exact.mean(0), seen.mean(0)
        each = ", ".join(f"{e[:, -1].mean():.3f}" for e in exact)
        found[f"{name} seeds"] = np.array([e[:, -1].mean() for e in exact])
        print(name, each)
    untrained = js.EquivariantMixing()
    start = js.network_solver(
        untrained, untrained.init(jax.random.key(0), jnp.zeros((4, 4)), jnp.int32(2))
    )
    name = "equivariant, untrained"
    found[name], approximate[name] = np.array(score(name, name, lambda: start))
    lp = found["PSRO-Nash, LP"][:, -1]
    names = [n for n in found if not n.endswith(" seeds")]
    rows = []
    for name in names:
        x = found[name]
        told = found.get(f"{name} seeds")
        rows.append(
            [
                name,
                *(mean_and_error(x[:, i], 3) for i in (5, 10, 15, 20)),
                mean_and_error(approximate[name][:, -1], 3),
                "" if name == "PSRO-Nash, LP" else mean_and_error(x[:, -1] - lp, 3),
                "" if told is None else ", ".join(f"{v:.3f}" for v in told),
            ]
        )
    rest = [n for n in names if n != mine]
    tests = [paired_test(found[mine][:, -1], found[n][:, -1]) for n in rest]
    corrected = holm([t.t_p for t in tests])
    tested = [
        [n, f"{t.mean:.3f} ± {t.half_width:.3f}", f"{p:.2g}", f"{t.n - t.wins} of {t.n}"]
        for n, t, p in zip(rest, tests, corrected, strict=True)
    ]
    record(
        file,
        Table(
            [
                "meta-solver", "after 5", "after 10", "after 15", "after 20",
                "after 20, approximate", "less PSRO-Nash, LP", "after 20, each meta-seed",
            ],
            rows,
            "Games of skill of 200 actions: NashConv",
        ),
        Table(
            ["against", "difference, 95 %", "p, Holm", "games won"],
            tested,
            f"{mine}, paired by game",
        ),
        question="What does a learned meta-solver win in games of skill?",
        baseline="PSRO with the exact Nash mixture (LP), the same games, starts and oracle",
        notes=f"{settings.games} games that served nothing else, 2 agents at first and one an "
        "iteration, 5 gradient steps at rate 25. NashConv is the sum of both gains and exact; "
        "approximate: by 20 gradient steps at rate 10, a lower bound. Mean ± standard error over "
        f"games, of the mean of {settings.seeds} meta-seeds where networks were trained. Settings "
        "were chosen on 64 validation games.",
        settings=settings.recorded(),
    )  # fmt: skip
    figure(
        IMAGES / f"{file}.png",
        {n: found[n] for n in names if n != "self-play"},
        "Games of skill, 200 actions",
    )


def figure(path: Path, found: Mapping[str, np.ndarray], title: str) -> None:
    """A picture of NashConv against the size of the population."""
    from jaxsim.solvers.plot import nash_conv_curves

    nash_conv_curves(path, found, title=title)
