"""Smooth games and poker: a meta-solver learned by recipe beside all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.record import Table, record
from benchmarks.common.spread import mean_and_error
from benchmarks.topics.nac.settings import NacSettings
from benchmarks.topics.nac.training import TEST, grown, trained
from jaxsim import solvers as js
from jaxsim.checkpoint.log import ScoreCache
from jaxsim.solvers.experiment import Recipe, baselines, recipe
from jaxsim.solvers.mixing import MetaSolver


def modes(settings: NacSettings) -> None:
    """The smooth games: modes in the plane, Lotto, matching pennies."""
    for game, steps in (("rps", 200), ("pennies", 100), ("lotto", 100)):
        made = recipe(game)
        table = recipe_table(settings, game, made, made, js.EquivariantMixing(), steps, rate=3e-3)
        record(
            f"nac_{game}",
            table,
            question="What does a learned meta-solver win in this smooth game?",
            baseline="PSRO with the exact Nash mixture, the same games, starts and oracle",
            notes=_RECIPE_NOTES.format(games=min(settings.games, 64), seeds=settings.seeds)
            + f" {steps} steps of meta-training, not tuned. "
            + _EXACT[game],
            settings=settings.recorded(),
        )


_EXACT = {
    "rps": "Exact means over all points of the plane.",
    "pennies": "Exact means over all deterministic players with a memory of one round.",
    "lotto": "Nothing exact is known.",
}
_RECIPE_NOTES = (
    "{games} games (poker: starts) that served nothing else; mean ± standard error over them, of "
    "the mean of {seeds} meta-seeds where a network was trained. NashConv is the sum of both gains."
)


def poker(settings: NacSettings) -> None:
    """Kuhn's poker, learned by evolution strategies, and Leduc by what was learned there."""
    tables = []
    for name, oracle in {"approximate": js.approximate(0.5), "exact": js.exact()}.items():
        kuhn, leduc = recipe("kuhn"), recipe("leduc")
        kuhn = kuhn._replace(objective=kuhn.objective._replace(oracle=oracle))
        leduc = leduc._replace(objective=leduc.objective._replace(oracle=oracle, iterations=30))
        network = js.EquivariantMixing(start=0)
        for game, played in (("Kuhn", kuhn), ("Leduc", leduc)):
            tables.append(
                recipe_table(
                    settings, f"{game}, {name} answers", kuhn, played, network, 60, rate=3e-2,
                    batch=4, gradient="es", told=f"kuhn {name}",
                )
            )  # fmt: skip
    record(
        "nac_poker",
        *tables,
        question="What does a meta-solver learned in Kuhn's poker win there and in Leduc?",
        baseline="PSRO with the exact Nash mixture, uniform weights and the untrained network",
        notes=_RECIPE_NOTES.format(games=min(settings.games, 24), seeds=settings.seeds)
        + " Training by 15 antithetic pairs in Kuhn's poker alone, 15 iterations; Leduc has 30.",
        settings=settings.recorded(),
    )


def recipe_table(
    settings: NacSettings,
    title: str,
    learned: Recipe,
    played: Recipe,
    network: Any,
    steps: int,
    *,
    rate: float,
    told: str = "",
    **options: Any,
) -> Table:
    """Trains on one kind of game, measures on another, beside every other meta-solver."""
    log, games = ScoreCache(settings.log), min(settings.games, 24 if told else 64)

    learning = f"{told or title} {steps} steps, rate {rate} {options}"

    def measured(
        name: str, solver: Callable[[], MetaSolver], report: Any = None, by: str = ""
    ) -> np.ndarray:
        found = log.get(
            f"{title} {TEST} {games} {name} {by}",
            lambda: grown((solver(), report), played, games),
        )
        print(title, name, np.mean(found, 1)[:, -1], flush=True)
        return np.array(found)

    def learn(seed: int) -> MetaSolver:
        kept = settings.log.expanduser().parent / f"nac {learning} {seed}.npz"
        like = network.init(jax.random.key(0), jnp.zeros((4, 4)), jnp.int32(2))
        leaves, tree = jax.tree.flatten(like)
        if not kept.exists():
            solver = trained(
                network, learned.objective, learned.sample, steps=steps, rate=rate, seed=seed,
                **options,
            )  # fmt: skip
            np.savez(kept, *map(np.asarray, jax.tree.leaves(solver)))  # pyright: ignore
        with np.load(kept) as stored:
            arrays = [jnp.asarray(stored[f"arr_{i}"]) for i in range(len(leaves))]
        return js.network_solver(network, jax.tree.unflatten(tree, arrays))

    found = {n: measured(n, lambda s=s: s, r) for n, (s, r) in baselines().items()}
    params = network.init(jax.random.key(0), jnp.zeros((4, 4)), jnp.int32(2))
    found["untrained"] = measured("untrained", lambda: js.network_solver(network, params))
    seeds = [
        measured(f"NAC {seed}", lambda seed=seed: learn(seed), by=learning)
        for seed in range(settings.seeds)
    ]
    found = {"NAC equivariant": np.mean(seeds, 0), **found}
    which = 1 if (found["uniform"][0] < 0).any() else 0
    mine = found["NAC equivariant"][which][:, -1]
    rows = []
    for name, (exact, seen) in found.items():
        last = (seen if which else exact)[:, -1]
        rows.append(
            [
                name,
                "–" if which else mean_and_error(exact[:, -1], 3),
                mean_and_error(seen[:, -1], 3),
                "" if name == "NAC equivariant" else mean_and_error(last - mine, 3),
            ]
        )
    columns = ["meta-solver", "NashConv, exact", "NashConv, found", "more than NAC"]
    return Table(columns, rows, title)
