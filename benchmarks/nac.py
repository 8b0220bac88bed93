"""How fast are games and meta-gradients, and what does a learned meta-solver win?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array

from benchmarks.graphs import ROOT
from benchmarks.log import Log
from benchmarks.record import Table, record
from jaxsim import games as jg
from jaxsim import solvers as js
from jaxsim.collaborative.statistics import holm, paired_test
from jaxsim.demo import Demo
from jaxsim.solvers.mixing import MetaSolver
from jaxsim.solvers.responses import Oracle

IMAGES = ROOT / "docs" / "images"
TEST, VALIDATION = 4242, 777
"""Keys of the games that are reported and of those that settings were chosen on."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the run."""

    only: Literal["all", "timing", "skill", "published", "modes", "poker"] = "all"
    """Which part."""
    runs: int = 7
    """Rounds of each timing."""
    seeds: int = 3
    """Trainings of each network."""
    games: int = 128
    """Test games."""
    log: Path = Demo.cache / "nac.json"
    """What was measured so far: a stopped run goes on."""


def main(args: list[str]) -> None:
    """Measures."""
    settings = tyro.cli(Settings, args=args)
    jax.config.update(
        "jax_compilation_cache_dir", str(settings.log.expanduser().parent / "compiled")
    )
    parts = {
        "timing": timing,
        "skill": skill,
        "published": published,
        "modes": modes,
        "poker": poker,
    }
    for name, part in parts.items():
        if settings.only in ("all", name):
            part(settings)


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


def curves(
    sample: Callable[[Any], jg.Game],
    solver: MetaSolver,
    oracle: Oracle,
    *,
    games: int,
    report: MetaSolver | None = None,
    exploiter: Oracle | None = None,
    key: int = TEST,
    **options: int,
) -> list[Any]:
    """NashConv of each game after each iteration, exact and as found, rounded to five digits."""

    @jax.jit
    def one(solver: Any, report: Any, keys: Any) -> tuple[Array, Array]:
        def run(key: Any) -> tuple[Array, Array]:
            game, play = jax.random.split(key)
            made = js.psro(
                sample(game),
                solver,
                oracle,
                play,
                report=report,
                exploiter=exploiter,
                **options,
            )
            return made.nash_conv, made.found

        return jax.vmap(run)(keys)

    keys = jax.random.split(jax.random.key(key), games)
    found = one(solver, report, keys)
    return [np.round(np.asarray(a, float), 5).tolist() for a in found]


BASELINES: Mapping[str, tuple[MetaSolver, MetaSolver | None]] = {
    "PSRO-Nash, LP": (js.nash_lp(), None),
    "PSRO-Nash, RM+": (js.nash(), None),
    "uniform": (js.uniform(), None),
    "rectified Nash": (js.rectified(), js.nash()),
    "PRD": (js.projected_replicator(), None),
    "self-play": (js.latest(), None),
}

SKILL = js.unrolled(5, 25.0)
"""Five steps at rate 25, as published."""
PUBLISHED = js.Objective(SKILL, js.unrolled(20, 10.0))
"""Of games of skill: 20 iterations, windows of 5, measured by gradient ascent."""
EVERY = js.Objective(SKILL, window=20, each=True)
SKILL_NETWORKS: Mapping[str, tuple[Any, js.Objective, dict[str, Any]]] = {
    "NAC equivariant, all iterations": (
        js.EquivariantMixing(), EVERY, {"steps": 1500, "rate": 6e-3, "batch": 16},
    ),
    "NAC conv, as published": (
        js.ConvMixing(), PUBLISHED, {"steps": 100, "rate": 1e-2, "batch": 5},
    ),
    "NAC GRU, as published": (
        js.GRUMixing(), PUBLISHED, {"steps": 100, "rate": 1e-2, "batch": 5},
    ),
}  # fmt: skip


def mean_and_error(values: np.ndarray) -> str:
    """Mean over games and its standard error."""
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


def skill_game(key: Any) -> jg.Game:
    """A game of skill of 200 actions."""
    return jg.games_of_skill(key, 200)


def skill(settings: Settings) -> None:
    """Games of skill: our network beside the other meta-solvers on games nobody has seen."""
    skill_table(settings, "nac_skill", "NAC equivariant, all iterations")


def published(settings: Settings) -> None:
    """The same with the networks and the objective as published."""
    skill_table(settings, "nac_published", "NAC GRU, as published", "NAC conv, as published")


def skill_table(settings: Settings, file: str, mine: str, *others: str) -> None:
    """Trains, measures, compares the first network with everything else."""
    log, exploiter = Log(settings.log), js.unrolled(20, 10.0)
    found: dict[str, np.ndarray] = {}
    approximate: dict[str, np.ndarray] = {}

    def measure(name: str, told: str, solver: Any, report: Any = None) -> list[Any]:
        begun = time.time()
        result = log.get(
            f"skill {told} {settings.games}",
            lambda: curves(
                skill_game,
                solver(),
                SKILL,
                games=settings.games,
                report=report,
                exploiter=exploiter,
            ),
        )
        print(name, np.mean(result[0], 0)[[5, 10, 20]].round(3), f"{time.time() - begun:.0f} s")
        return result

    for name, (solver, report) in BASELINES.items():
        result = np.array(measure(name, name, lambda s=solver: s, report))
        found[name], approximate[name] = result
    for name in (mine, *others):
        network, objective, options = SKILL_NETWORKS[name]
        every = []
        for seed in range(settings.seeds):

            def train(seed: int = seed) -> MetaSolver:
                return trained(network, objective, skill_game, seed=seed, **options)  # noqa: B023

            every.append(measure(name, f"{name} {options} {seed}", train))
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
    found[name], approximate[name] = np.array(measure(name, name, lambda: start))
    lp = found["PSRO-Nash, LP"][:, -1]
    names = [n for n in found if not n.endswith(" seeds")]
    rows = []
    for name in names:
        x = found[name]
        told = found.get(f"{name} seeds")
        rows.append(
            [
                name,
                *(mean_and_error(x[:, i]) for i in (5, 10, 15, 20)),
                mean_and_error(approximate[name][:, -1]),
                "" if name == "PSRO-Nash, LP" else mean_and_error(x[:, -1] - lp),
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
        settings=dataclasses.asdict(settings) | {"log": None},
    )  # fmt: skip
    figure(
        IMAGES / f"{file}.png",
        {n: found[n] for n in names if n != "self-play"},
        "Games of skill, 200 actions",
    )


def figure(path: Path, found: Mapping[str, np.ndarray], title: str) -> None:
    """A picture of NashConv against the size of the population."""
    from jaxsim.plot import nash_conv_curves

    nash_conv_curves(path, found, title=title)


def modes(settings: Settings) -> None:
    """Placeholder."""


def poker(settings: Settings) -> None:
    """Placeholder."""


def timing(settings: Settings) -> None:
    """Placeholder."""
