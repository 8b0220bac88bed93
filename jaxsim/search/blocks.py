"""Which blocks to multiply: one choice for a network, then one for each layer and operand."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsim.checkpoint.log import ScoreCache, run_digest
from jaxsim.checkpoint.save_load import describe
from jaxsim.console.table import render, si
from jaxsim.cores.blocked import Rounding
from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.partition import Parts
from jaxsim.cores.wrapper import Wrapper, build
from jaxsim.evaluate.systolic import Hardware
from jaxsim.inputs.batches import batches, one_batch
from jaxsim.network.arguments import call_arguments
from jaxsim.network.deployment import deploy
from jaxsim.network.network import Network
from jaxsim.network.transform import Transform
from jaxsim.numerics.checks import check_range
from jaxsim.transforms.block import Mode, block


class Config(NamedTuple):
    """Arguments of `block`.

    Attributes:
      K: bits of a block.
      n_x, n_w: blocks of an input and a weight to keep; None for all.
      mode: how they are chosen, for (inputs, weights).
      rounding: what happens to what is not kept.
    """

    K: int
    n_x: int | None = None
    n_w: int | None = None
    mode: tuple[Mode, Mode] = ("exact", "exact")
    rounding: Rounding = "rounded"

    def __str__(self) -> str:
        sides = zip((self.n_x, self.n_w), self.mode, strict=True)
        return f"K={self.K}: " + " × ".join("all" if n is None else f"{n} {m}" for n, m in sides)

    def transform(self) -> Transform:
        """The transform that chooses these blocks."""
        return block(self.K, self.n_x, self.n_w, self.mode, rounding=self.rounding)


def configs(
    K: Iterable[int] = (2, 3, 4), *, bits: int = 8, rounding: Rounding = "rounded"
) -> tuple[Config, ...]:
    """Every way to keep all, or any number of static or dynamic blocks, of either operand.

    Args:
      K: bits of a block.
      bits: width of the codes.
      rounding: what happens to what is not kept.
    """
    found: list[Config] = []
    for k in K:
        kept = range(1, -(-(bits - 1) // k))
        modes: tuple[Mode, Mode] = ("dynamic", "static")
        sides: list[tuple[int | None, Mode]] = [(None, "exact"), *itertools.product(kept, modes)]
        found += [
            Config(k, n_x, n_w, (x, w), rounding)
            for (n_x, x), (n_w, w) in itertools.product(sides, sides)
        ]
    return tuple(found)


class Choice(NamedTuple):
    """A configuration of each site. Calling it is the transform: it follows `quantize`.

    Attributes:
      by_site: what each site multiplies.
      accuracy: what `evaluate` returned.
      energy: pJ of one call, by the analytic model.
      energy_gain, speed_gain: over 8-bit multiplication, by the analytic model.
    """

    by_site: dict[str, Config]
    accuracy: float
    energy: float
    energy_gain: float
    speed_gain: float

    def __call__(self, net: Network) -> Network:
        """The network with these blocks chosen."""
        return _configured(net, self.by_site)


class Search(NamedTuple):
    """What a search found. Printing shows the choices worth having.

    Attributes:
      exact: accuracy of the network as it was given.
      network: the cheapest single configuration that was accurate enough; None if there was none.
      layers: the cheapest choice by site that was accurate enough; None if there was none.
      pareto: choices that no other beats in both modelled energy and accuracy, cheapest first.
      tried: all choices that were evaluated.
      evaluations: how often `evaluate` was called, an earlier run's calls included.
    """

    exact: float
    network: Choice | None
    layers: Choice | None
    pareto: tuple[Choice, ...]
    tried: tuple[Choice, ...]
    evaluations: int

    def __str__(self) -> str:
        return render(self.__rich__())

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
    """Finds what a network need not multiply, by modelled energy and measured accuracy.

    1. The error of each candidate at each site, relative to the site's exact output, is measured
       on the calibration inputs, all sites in one pass; and how much of it reaches the outputs,
       once for each site.
    2. Candidates that nothing beats in both modelled energy and summed error, and those that
       nothing else beats (the error predicts accuracy only roughly), are evaluated on the whole
       network.
    3. For each block size, an integer programme chooses a candidate for each site, the least
       summed error within an energy budget, and bisection on the budget, with real evaluations,
       finds the smallest that is accurate enough.

    An array has one block size, so no choice mixes them. All candidates share one compilation.

    Args:
      net: quantised on symmetric grids, nothing else wrapped around its sites; not deployed.
      calibrate: inputs that set the ranges, as `deploy` takes them; batches are kept in memory.
      evaluate: accuracy of a deployed network, on data that is not reported.
      drop: accuracy that may be lost, in the units of `evaluate`, at least 0.
      candidates: what to choose from; None for `configs()`.
      hardware: the model of energy; None for `Hardware()`.
      steps: bisection steps for each block size.
      log: file of what was measured, to write to and resume from; of this search only.
      quiet: show no progress bar.

    Returns:
      The choices found.

    Raises:
      ValueError: an argument out of range, a site that cannot be blocked, or another search's log.

    Source: Elangovan et al., arXiv 2011.13000 (search by network, then by layer and operand); the
    proxy and the integer programme are our own.
    """
    check_range("drop", drop, 0)
    if net.deployed:
        raise ValueError("net is deployed: search on the quantised network instead")
    inputs = calibrate if one_batch(calibrate) else list(batches(calibrate, "calibrate"))
    candidates = tuple(dict.fromkeys(configs() if candidates is None else candidates))
    if not candidates:
        raise ValueError("candidates=(): give at least one")
    model = Hardware() if hardware is None else hardware
    names = tuple(s.name for s in net.sites if s.kind != "dynamic")
    arrays = net.params, net.buffers, net.masks, net.cores, inputs
    record, run = ScoreCache(log), run_digest(arrays, describe(net), candidates)
    if record.get("run", lambda: run) != run:
        raise ValueError(f"log={str(log)!r} is of another network, inputs or candidates")
    with _progress(quiet) as advance:
        plain = model.estimate(net)
        candidates, energy, cycles = _worth_having(
            candidates, *_modelled(net, names, candidates, model)
        )
        base = (sum(s.energy for s in plain.baseline), sum(s.cycles for s in plain.baseline))
        exact = record.get("exact", lambda: float(evaluate(deploy(net, calibrate=inputs))))

        def choose(rows: Iterable[int]) -> Choice:
            """The evaluated choice of one candidate for each site."""
            rows = list(rows)
            by_site = {n: candidates[c] for n, c in zip(names, rows, strict=True)}
            key = "; ".join(f"{n}: {tuple(c)}" for n, c in by_site.items())

            def measure() -> float:
                return float(evaluate(deploy(_configured(net, by_site), calibrate=inputs)))

            found = record.get(key, measure)
            spent = sum(energy[i, c] for i, c in enumerate(rows))
            slow = sum(cycles[i, c] for i, c in enumerate(rows))
            tried.setdefault(key, Choice(by_site, found, spent, base[0] / spent, base[1] / slow))
            return tried[key]

        tried: dict[str, Choice] = {}
        measured = record.get(
            "harm", lambda: site_harm(net, names, candidates, inputs, advance).tolist()
        )
        harm = np.asarray(measured)
        totals = np.stack([energy.sum(0), harm.sum(0)], 1)
        single: list[Choice] = []
        for c in two_fronts(totals):
            advance(f"network: {candidates[c]}")
            single.append(choose([c] * len(names)))
        good = [choice for choice in single if choice.accuracy >= exact - drop]
        network = min(good, key=lambda choice: choice.energy, default=None)
        layered = list(good)
        for k in sorted({config.K for config in candidates}):
            of_k = [c for c, config in enumerate(candidates) if k == config.K]
            low = float(energy[:, of_k].min(1).sum())
            high = base[0] if network is None else network.energy
            for step in range(steps if low < high else 0):
                advance(f"layers: K={k}, step {step + 1} of {steps}")
                budget = (low + high) / 2
                picked = assign(harm[:, of_k], energy[:, of_k], budget)
                choice = choose(of_k[c] for c in picked)
                if choice.accuracy >= exact - drop:
                    layered.append(choice)
                    high = min(budget, choice.energy)
                else:
                    low = budget
    every = tuple(tried.values())
    points = np.array([[c.energy, -c.accuracy] for c in every])
    pareto = [c for i, c in enumerate(every) if _undominated(points, i)]
    return Search(
        exact=exact,
        network=network,
        layers=min(layered, key=lambda choice: choice.energy, default=None),
        pareto=tuple(sorted(pareto, key=lambda choice: choice.energy)),
        tried=every,
        evaluations=1 + len(tried),
    )


def assign(
    harm: Float[np.ndarray, "sites options"],
    cost: Float[np.ndarray, "sites options"],
    budget: float,
) -> Int[np.ndarray, " sites"]:
    """The option of each site with the least summed harm within a summed cost, exactly.

    Args:
      harm: what each option does at each site.
      cost: what it costs.
      budget: what may be spent.

    Raises:
      ValueError: no choice is within the budget.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    sites, options = harm.shape
    one_each = np.kron(np.eye(sites), np.ones(options))
    scale = cost.max()  # the solver's tolerances are absolute
    result = milp(
        harm.ravel() / max(harm.max(), 1e-30),
        integrality=np.ones(sites * options),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(cost.reshape(1, -1) / scale, -np.inf, budget / scale),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise ValueError(f"budget={budget}: the cheapest choice costs {cost.min(1).sum()}")
    return result.x.reshape(sites, options).argmax(1)


class Measured(NamedTuple):
    """State of a site whose error is measured.

    Attributes:
      exact: what the exact core wrote.
      inner: what the other one did.
      error, size: sums of squares of their difference and of the exact output.
    """

    exact: State
    inner: State
    error: Float[Array, ""]
    size: Float[Array, ""]


def measured(core: Core, *, reference: tuple[Wrapper, ...]) -> Core:
    """Reads what `reference` does, and notes when calibrated how far `core` is from it.

    Args:
      core: what is compared.
      reference: chain of the exact core.
    """
    exact = build(reference)

    def write(op: Op, w: Array, key: Any) -> Measured:
        zero = jnp.zeros(())
        return Measured(exact.write(op, w, key), core.write(op, w, key), zero, zero)

    def calibrate(op: Op, state: Measured, x: Array) -> Measured:
        mine, other = exact.calibrate(op, state.exact, x), core.calibrate(op, state.inner, x)
        y = exact.read(op, mine, x, None)
        error = jnp.sum((core.read(op, other, x, None) - y) ** 2)
        return Measured(mine, other, state.error + error, state.size + jnp.sum(y**2))

    def read(op: Op, state: Measured, x: Array, key: Any) -> Array:
        return exact.read(op, state.exact, x, key)

    return Core(write, calibrate, read)


def site_harm(
    net: Network,
    names: Sequence[str],
    candidates: Sequence[Config],
    calibrate: Any,
    advance: Callable[[str], None] = lambda what: None,
) -> Float[np.ndarray, "sites candidates"]:
    """The relative squared error of the outputs that each candidate would make at each site alone.

    The error is measured where it is made, at all sites in one pass a candidate. How much of it
    reaches the outputs is measured once for each site, and taken to be the same for all candidates.

    Args:
      net: quantised.
      names: of the sites.
      candidates: what is compared.
      calibrate: inputs that set the ranges, and on which errors are measured; read many times.
      advance: told what is being measured.
    """
    watched = {n: (Wrapper.of(measured, reference=net.cores[n]), *net.cores[n]) for n in names}
    local = np.zeros((len(names), len(candidates)))
    for c, config in enumerate(candidates):
        advance(f"errors: {config}")
        chosen = config.transform()(net)
        cores = {n: (*chain, chosen.cores[n][-1]) for n, chain in watched.items()}
        chip = deploy(dataclasses.replace(net, cores={**net.cores, **cores}), calibrate=calibrate)
        for i, name in enumerate(names):
            state = chip.states[name]
            local[i, c] = float(jnp.sum(state.error) / jnp.maximum(jnp.sum(state.size), 1e-30))
    calls = [call_arguments(*batch) for batch in batches(calibrate, "calibrate")]
    # A reference of middling error, neither lost in rounding nor beyond first order.
    middle = int(np.argmin(np.abs(np.log(local.mean(0) + 1e-30) - np.log(1e-2))))
    rest = Config(candidates[middle].K)
    expected = _outputs(deploy(net, calibrate=calibrate), calls)
    for i, name in enumerate(names):
        advance(f"sensitivity: {name}")
        alone = {n: candidates[middle] if n == name else rest for n in names}
        found = _outputs(deploy(_configured(net, alone), calibrate=calibrate), calls)
        reached = np.sum((found - expected) ** 2) / max(np.sum(expected**2), 1e-30)
        local[i] *= reached / max(local[i, middle], 1e-30)
    return local


@jax.jit
def _flat_outputs(net: Network, arguments: Parts) -> Array:
    args, kwargs = arguments.whole()
    leaves = jax.tree.leaves(net(*args, **kwargs))
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves])


def _outputs(net: Network, calls: Sequence[Parts]) -> Float[np.ndarray, " n"]:
    return np.concatenate([_flat_outputs(net, arguments) for arguments in calls])


def _configured(net: Network, by_site: Mapping[str, Config]) -> Network:
    """A quantised network with a configuration at each site."""
    made = {config: config.transform() for config in by_site.values()}
    focus, cores = net.focus, dict(net.cores)
    for config, transform in made.items():
        names = tuple(n for n, c in by_site.items() if c == config)
        done = transform(dataclasses.replace(net, focus=names))
        cores.update({n: done.cores[n] for n in names})
    return dataclasses.replace(net, cores=cores, focus=focus)


def _modelled(
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


def _worth_having(
    candidates: Sequence[Config], energy: np.ndarray, cycles: np.ndarray
) -> tuple[tuple[Config, ...], np.ndarray, np.ndarray]:
    """Those that cost no more than the cheapest exact candidate, and the exact ones."""
    exact = np.array([c.mode == ("exact", "exact") for c in candidates])
    most = energy.sum(0)[exact].min(initial=np.inf)
    kept = exact | (energy.sum(0) <= most)
    chosen = tuple(c for c, keep in zip(candidates, kept, strict=True) if keep)
    return chosen, energy[:, kept], cycles[:, kept]


def two_fronts(points: Float[np.ndarray, "n 2"]) -> list[int]:
    """The points that no other is below in both, and those only such points are below of.

    Args:
      points: two costs of each.

    Returns:
      Their indices, in order of the first cost.
    """
    first = [i for i in range(len(points)) if _undominated(points, i)]
    rest = [i for i in range(len(points)) if i not in first]
    second = [i for j, i in enumerate(rest) if _undominated(points[rest], j)]
    return sorted(first + second, key=lambda i: points[i, 0])


def _undominated(points: Float[np.ndarray, "n 2"], i: int) -> bool:
    """Whether no other point is at least as low in both, and lower or earlier in one."""
    at_least = (points <= points[i]).all(1)
    better = (points < points[i]).any(1) | (np.arange(len(points)) < i)
    return not np.any(at_least & better)


@contextlib.contextmanager
def _progress(quiet: bool) -> Generator[Callable[[str], None]]:
    """A line that says what is being measured, and for how long the search has run."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, disable=quiet) as bar:
        task = bar.add_task("searching", total=None)
        yield lambda what: bar.update(task, description=what)
