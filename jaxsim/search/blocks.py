"""Search for the blocks to multiply: one choice for a network, then one for each layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxsim.checkpoint.log import ScoreCache, run_digest
from jaxsim.checkpoint.save_load import describe
from jaxsim.console.table import shown_as_table, si
from jaxsim.evaluate.systolic import Hardware
from jaxsim.inputs.batches import batches, one_batch
from jaxsim.network.deployment import deploy
from jaxsim.network.network import Network
from jaxsim.numerics.checks import check_range
from jaxsim.search.allocation import allocate
from jaxsim.search.config import Choice, Config, configs, configure
from jaxsim.search.front import is_non_dominated
from jaxsim.search.sensitivity import site_sensitivity


@shown_as_table
class Search(NamedTuple):
    """Choices that a search found. Printing shows those worth having.

    Attributes:
      exact: Accuracy of the network as it was given.
      network: The cheapest single configuration that was accurate enough; None if there was none.
      layers: The cheapest choice by site that was accurate enough; None if there was none.
      pareto: Choices that no other beats in both modeled energy and accuracy, cheapest first.
      tried: All choices that were evaluated.
      evaluations: How often `evaluate` was called, an earlier run's calls included.
    """

    exact: float
    network: Choice | None
    layers: Choice | None
    pareto: tuple[Choice, ...]
    tried: tuple[Choice, ...]
    evaluations: int

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title=f"{self.evaluations} evaluations; energy and speed: analytic model")
        table.add_column("choice")
        for column in ("accuracy", "pJ", "energy gain", "speed gain"):
            table.add_column(column, justify="right")
        for choice in self.pareto:
            kinds = list(dict.fromkeys(map(str, choice.by_site.values())))
            shown = kinds[0] if len(kinds) == 1 else f"by layer: {', '.join(kinds)}"
            marks = [n for n in ("network", "layers") if getattr(self, n) is choice]
            gains = (f"{g:.2f}×" for g in (choice.energy_gain, choice.speed_gain))
            table.add_row(
                " ".join((shown, *(f"← {mark}" for mark in marks))),
                f"{choice.accuracy:.4f}",
                si(choice.energy),
                *gains,
            )
        return table


def search_blocked(
    net: Network,
    calibrate: Any,
    evaluate: Callable[[Network], float],
    *,
    drop: float = 0.01,
    candidates: Sequence[Config] | None = None,
    hardware: Hardware | None = None,
    steps: int = 6,
    log: str | Path | None = None,
    quiet: bool = False,
) -> Search:
    """Finds what a network need not multiply, by modeled energy and measured accuracy.

    1. The error of each candidate at each site, relative to the site's exact output, is measured
       on the calibration inputs, all sites in one pass; and how much of it reaches the outputs,
       once for each site.
    2. Candidates that nothing beats in both modeled energy and summed error, and those that
       nothing else beats (the error predicts accuracy only roughly), are evaluated on the whole
       network.
    3. For each block size, an integer program chooses a candidate for each site, the least
       summed error within an energy budget, and bisection on the budget, with real evaluations,
       finds the smallest that is accurate enough.

    An array has one block size, so no choice mixes them. All candidates share one compilation.

    Args:
      net: Network quantized on symmetric grids, nothing else wrapped around its sites; not
        deployed.
      calibrate: Inputs that set the ranges, as `deploy` takes them; batches are kept in memory.
      evaluate: Measures the accuracy of a deployed network, on data that is not reported.
      drop: Accuracy that may be lost, in the units of `evaluate`, at least 0.
      candidates: Configurations to choose from; None for `configs()`.
      hardware: Model of energy; None for `Hardware()`.
      steps: Bisection steps for each block size.
      log: File of scores to write to and resume from; of this search only.
      quiet: Show no progress bar.

    Returns:
      The choices found.

    Raises:
      ValueError: An argument out of range, a site that cannot be blocked, or another search's log.

    Source: Elangovan et al., arXiv 2011.13000 (search by network, then by layer and operand); the
    proxy and the integer program are our own.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.search import Config
      >>> x = jnp.linspace(-1, 1, 32).reshape(8, 4)
      >>> float_net = js.trace(lambda w, x: x @ w, jnp.linspace(-1, 1, 12).reshape(4, 3), x)
      >>> net = js.quantize(8, 8)(float_net)
      >>> def evaluate(chip):
      ...     return -float(jnp.abs(chip(x) - net(x)).max())
      >>> found = js.search_blocked(
      ...     net, x, evaluate, drop=0.2, steps=2, quiet=True,
      ...     candidates=[Config(4), Config(4, n_w=1, mode=("exact", "static"))],
      ... )
      >>> bool(found.network.energy_gain > 1), found.evaluations
      (True, 3)
    """
    check_range("drop", drop, 0)
    if net.deployed:
        raise ValueError("net is deployed: search on the quantized network instead")
    inputs = calibrate if one_batch(calibrate) else list(batches(calibrate, "calibrate"))
    candidates = tuple(dict.fromkeys(configs() if candidates is None else candidates))
    if not candidates:
        raise ValueError("candidates=(): give at least one")
    scores = _open_scores(log, net, inputs, candidates)
    with _progress(quiet) as advance:
        table = _model_candidates(net, candidates, Hardware() if hardware is None else hardware)
        tried = _Choices(net, inputs, evaluate, scores, table)
        exact = scores.get("exact", lambda: float(evaluate(deploy(net, calibrate=inputs))))
        measured = scores.get(  # "harm" stands in files of earlier versions
            "harm",
            lambda: site_sensitivity(net, table.names, table.candidates, inputs, advance).tolist(),
        )
        errors = np.asarray(measured)
        good = [
            choice
            for choice in _evaluate_fronts(tried, errors, advance)
            if choice.accuracy >= exact - drop
        ]
        network = min(good, key=lambda choice: choice.energy, default=None)
        layered = list(good)
        for k in sorted({config.K for config in table.candidates}):
            high = table.base_energy if network is None else network.energy
            layered += _bisect_budget(
                tried, errors, k, high=high, accuracy=exact - drop, steps=steps, advance=advance
            )
    return _summarize(exact, network, layered, tuple(tried.by_name.values()))


class _Table(NamedTuple):
    """Modeled energy and cycles of the candidates that are worth evaluating.

    Attributes:
      names: Sites whose blocks are chosen.
      candidates: What each of them may multiply.
      energy: pJ by site and candidate.
      cycles: Cycles by site and candidate.
      base_energy, base_cycles: Those of 8-bit multiplication at all sites.
    """

    names: tuple[str, ...]
    candidates: tuple[Config, ...]
    energy: Float[np.ndarray, "sites candidates"]
    cycles: Float[np.ndarray, "sites candidates"]
    base_energy: float
    base_cycles: float


class _Choices:
    """Evaluates choices of one candidate for each site, each of them once."""

    def __init__(
        self,
        net: Network,
        inputs: Any,
        evaluate: Callable[[Network], float],
        scores: ScoreCache,
        table: _Table,
    ):
        """Has evaluated none."""
        self.net, self.inputs, self.evaluate = net, inputs, evaluate
        self.scores, self.table = scores, table
        self.by_name: dict[str, Choice] = {}

    def __call__(self, rows: Iterable[int]) -> Choice:
        """The evaluated choice of a candidate for each site, by its number."""
        table, rows = self.table, list(rows)
        by_site = {n: table.candidates[c] for n, c in zip(table.names, rows, strict=True)}
        name = "; ".join(f"{n}: {tuple(c)}" for n, c in by_site.items())

        def measure() -> float:
            chip = deploy(configure(self.net, by_site), calibrate=self.inputs)
            return float(self.evaluate(chip))

        accuracy = self.scores.get(name, measure)
        energy = sum(table.energy[i, c] for i, c in enumerate(rows))
        cycles = sum(table.cycles[i, c] for i, c in enumerate(rows))
        gains = table.base_energy / energy, table.base_cycles / cycles
        return self.by_name.setdefault(name, Choice(by_site, accuracy, energy, *gains))


def _open_scores(
    log: str | Path | None, net: Network, inputs: Any, candidates: tuple[Config, ...]
) -> ScoreCache:
    """The scores of this search that are known.

    Raises:
      ValueError: They are of another one.
    """
    arrays = net.params, net.buffers, net.masks, net.cores, inputs
    scores, run = ScoreCache(log), run_digest(arrays, describe(net), candidates)
    if scores.get("run", lambda: run) != run:
        raise ValueError(f"log={str(log)!r} is of another network, inputs or candidates")
    return scores


def _model_candidates(net: Network, candidates: tuple[Config, ...], model: Hardware) -> _Table:
    """The candidates that are worth evaluating, and what the analytic model says of them."""
    names = tuple(s.name for s in net.sites if s.multiplies)
    plain = model.estimate(net)
    worth = _drop_expensive(candidates, *_model_sites(net, names, candidates, model))
    base = (sum(s.energy for s in plain.baseline), sum(s.cycles for s in plain.baseline))
    return _Table(names, *worth, *base)


def _evaluate_fronts(
    choose: _Choices, errors: np.ndarray, advance: Callable[[str], None]
) -> list[Choice]:
    """The choices of one candidate for all sites that few others beat in energy and error."""
    table = choose.table
    totals = np.stack([table.energy.sum(0), errors.sum(0)], 1)
    found: list[Choice] = []
    for c in pareto_fronts(totals):
        advance(f"network: {table.candidates[c]}")
        found.append(choose([c] * len(table.names)))
    return found


def _bisect_budget(
    choose: _Choices,
    errors: np.ndarray,
    K: int,
    *,
    high: float,
    accuracy: float,
    steps: int,
    advance: Callable[[str], None],
) -> list[Choice]:
    """The accurate choices that bisection on the energy of blocks of K bits met, dearest first."""
    table = choose.table
    of_k = [c for c, config in enumerate(table.candidates) if config.K == K]
    low = float(table.energy[:, of_k].min(1).sum())
    found: list[Choice] = []
    for step in range(steps if low < high else 0):
        advance(f"layers: K={K}, step {step + 1} of {steps}")
        budget = (low + high) / 2
        spent = {"energy": table.energy[:, of_k]}
        picked = allocate(errors[:, of_k], spent, {"energy": budget})
        choice = choose(of_k[c] for c in picked)
        if choice.accuracy >= accuracy:
            found.append(choice)
            high = min(budget, choice.energy)
        else:
            low = budget
    return found


def _summarize(
    exact: float, network: Choice | None, layered: Sequence[Choice], tried: tuple[Choice, ...]
) -> Search:
    """The result of a search from all choices that were evaluated."""
    points = np.array([[c.energy, -c.accuracy] for c in tried])
    pareto = [c for i, c in enumerate(tried) if is_non_dominated(points, i)]
    return Search(
        exact=exact,
        network=network,
        layers=min(layered, key=lambda choice: choice.energy, default=None),
        pareto=tuple(sorted(pareto, key=lambda choice: choice.energy)),
        tried=tried,
        evaluations=1 + len(tried),
    )


def _model_sites(
    net: Network, names: Sequence[str], candidates: Sequence[Config], model: Hardware
) -> tuple[Float[np.ndarray, "sites candidates"], Float[np.ndarray, "sites candidates"]]:
    """Energy and cycles of each candidate at each site."""
    loads = model.loads(net)
    table = np.zeros((2, len(names), len(candidates)))
    for c, config in enumerate(candidates):
        cores = config.transform()(net).cores
        for i, name in enumerate(names):
            blocks = next(w for w in cores[name] if w.role == "blocks").settings["blocks"]
            spent = model.spend(loads[name]._replace(blocks=blocks))
            table[:, i, c] = spent.energy, spent.cycles
    return table[0], table[1]


def _drop_expensive(
    candidates: Sequence[Config], energy: np.ndarray, cycles: np.ndarray
) -> tuple[tuple[Config, ...], np.ndarray, np.ndarray]:
    """Those that cost no more than the cheapest exact candidate, and the exact ones."""
    exact = np.array([c.mode == ("exact", "exact") for c in candidates])
    most = energy.sum(0)[exact].min(initial=np.inf)
    kept = exact | (energy.sum(0) <= most)
    chosen = tuple(c for c, keep in zip(candidates, kept, strict=True) if keep)
    return chosen, energy[:, kept], cycles[:, kept]


def pareto_fronts(points: Float[np.ndarray, "n 2"]) -> list[int]:
    """Finds the points of the first two Pareto fronts.

    The first are those that no other is below in both costs, the second those that no other is
    once the first are gone.

    Args:
      points: Two costs of each point.

    Returns:
      Their indices, in order of the first cost.
    """
    first = [i for i in range(len(points)) if is_non_dominated(points, i)]
    rest = [i for i in range(len(points)) if i not in first]
    second = [i for j, i in enumerate(rest) if is_non_dominated(points[rest], j)]
    return sorted(first + second, key=lambda i: points[i, 0])


@contextlib.contextmanager
def _progress(quiet: bool) -> Generator[Callable[[str], None]]:
    """A line that says what is being measured, and for how long the search has run."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, disable=quiet) as bar:
        task = bar.add_task("searching", total=None)
        yield lambda what: bar.update(task, description=what)
