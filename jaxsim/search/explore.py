"""Exploration: which hardware each site should have, by modeled cost and measured accuracy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from jaxsim.accelerators.accelerator import Accelerator
from jaxsim.accelerators.calls import Prepared, prepared_call
from jaxsim.accelerators.estimate import estimate_prepared
from jaxsim.accelerators.result import Estimate
from jaxsim.checkpoint.log import ScoreCache, run_digest
from jaxsim.checkpoint.save_load import describe
from jaxsim.inputs.batches import batches, one_batch
from jaxsim.network.arguments import check_key
from jaxsim.network.network import Network
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.search.allocation import allocate
from jaxsim.search.front import Front, Point, non_dominated
from jaxsim.search.options import (
    Fit,
    Option,
    apply_options,
    fit_options,
    named_options,
    site_parts,
)
from jaxsim.search.part_costs import PartCosts, part_costs
from jaxsim.search.switchboard import Switchboard
from jaxsim.search.task import Task, accuracies, finite

Quantity = Literal["energy", "latency", "area"]
"""What a choice spends."""

Proposer = Literal["uniform", "program", "greedy", "random"]
"""What proposes choices to evaluate."""


def explore(
    net: Network,
    accelerator: Accelerator,
    options: Mapping[str, Callable[[Network], Network] | Option | None],
    calibrate: Any,
    evaluate: Callable[[Network], float],
    *,
    minimize: Quantity = "energy",
    limits: Mapping[Quantity, float] | None = None,
    drop: float = 0.01,
    points: int = 6,
    steps: int = 4,
    baselines: Sequence[Literal["greedy", "random"]] = (),
    draws: int = 1,
    key: Key[Array, ""] | None = None,
    traced: bool = False,
    mesh: Mesh | None = None,
    executor: Executor | None = None,
    log: str | Path | None = None,
    quiet: bool = False,
) -> Front:
    """Finds what each site of a network should become on an accelerator.

    1. The error that each option makes at the outputs when one place alone becomes it is measured
       on the calibration inputs.
    2. Each option at all places is evaluated, or where it does not fit the option of least error.
    3. For budgets from the cheapest choice to the one of least error, an integer program chooses an
       option for each place, the least summed error within the budget and the limits; each choice
       is evaluated.
    4. Bisection on the budget, with real evaluations, finds the cheapest choice that loses at most
       `drop`.

    Sites that share a parameter are one place. All choices run as one program, in which each site
    holds its weight in the way of every option and a number says which one reads.

    Energy, time and area are of the call that was traced. Where rows or tokens leave, they are of
    the first batch of calibration inputs: of places for what reaches them in the network as it was
    given, of a point for what reaches them on its chip.

    Args:
      net: Network to explore, not deployed, on one device; transforms that it has already stay.
      accelerator: Hardware that runs it.
      options: What may become of a site, by name: a transform of cores and masks, an `Option` that
        names sites and a part of the accelerator, or None for what is left as it is.
      calibrate: Inputs that set ranges and on which errors are measured, as `deploy` takes them;
        batches are kept in memory.
      evaluate: Measures the accuracy of a deployed network, on data that is not reported.
      minimize: What budgets are of.
      limits: Most that a choice may spend, by name: energy in pJ, latency in s, area in mm².
      drop: Accuracy that may be lost, in the units of `evaluate`, at least 0.
      points: Number of budgets, spaced evenly by their logarithm, at least 2.
      steps: Bisection steps, at least 0.
      baselines: Other ways to choose within the same budgets, for comparison: "greedy" takes away
        accuracy where it saves most, "random" draws a choice for each.
      draws: How often weights are written anew, with other keys, for each error and accuracy, at
        least 1; more than 1 needs `key`.
      key: Random key for options that draw, and for random choices.
      traced: Whether `evaluate` is made of JAX operations, so that `jax.jit` would take it: the
        draws of a choice are then one `sweep`, in the way that is faster here.
      mesh: Devices over which errors are measured, and draws where `traced`; None for one device.
      executor: Where evaluations that do not wait for one another run at once, such as that of a
        cluster; None for here, one by one. It has to be able to send `evaluate` away.
      log: File of scores to write to and resume from; of this network, these options and inputs
        and this `evaluate` only. The accelerator may be another.
      quiet: Show no progress bar.

    Returns:
      The points found, with the errors and costs that they were chosen by.

    Raises:
      ValueError: An argument out of range, an option that fits nowhere or that no part runs, limits
        that nothing meets, or another exploration's log.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.linspace(-1, 1, 32).reshape(8, 4)
      >>> params = {"a": jnp.linspace(-1, 1, 16).reshape(4, 4), "b": jnp.eye(4)}
      >>> net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, x)
      >>> front = js.explore(
      ...     net,
      ...     js.accelerators.systolic_45nm(),
      ...     {"8": js.quantize(8, 8), "4": js.quantize(4, 8), "2": js.quantize(2, 8)},
      ...     x,
      ...     lambda chip: -float(jnp.abs(chip(x) - net(x)).max()),
      ...     drop=0.05,
      ...     points=2,
      ...     quiet=True,
      ... )
      >>> front.within(0.05).accuracy >= -0.05
      True
    """
    named = named_options(options)
    _check_settings(minimize, limits or {}, baselines, drop, points, steps, draws, key)
    if mesh is not None and executor is not None:
        raise ValueError("mesh, executor: evaluations run on devices here or elsewhere; give one")
    inputs = calibrate if one_batch(calibrate) else list(batches(calibrate, "calibrate"))
    fit = fit_options(net, named)
    scores = _open_scores(log, net, named, fit, inputs, (draws, _key_data(key)))
    keys = [None] if key is None else [jax.random.fold_in(key, i) for i in range(draws)]
    call = _Call(net, accelerator, inputs, keys[0])
    costs = part_costs(net, accelerator, named, fit, call.prepared(net))
    board = Switchboard(net, named, fit, inputs)
    steps_to_show = len(keys) * len(named)
    steps_to_show += len(named) + points * (1 + len(baselines)) + steps
    with _progress(steps_to_show, quiet) as advance:
        errors = _measure_errors(scores, board, keys, advance, mesh)
        task = Task(board, evaluate, tuple(keys), mesh)
        search = _Exploration(
            task.traced(scores) if traced else task,
            named,
            call,
            costs,
            np.where(costs.fit.table(), errors, np.inf),
            _site_limits(costs, limits or {}),
            minimize,
            scores,
            executor,
            advance,
        )
        exact = scores.get("exact", lambda: finite([float(evaluate(net))]))[0]
        search.try_all(search.uniform(fit.options), "uniform")
        budgets = search.budgets(points)
        search.try_all([search.program(b) for b in budgets], "program")
        if "greedy" in baselines:
            search.try_all(filter(None, map(search.greedy, budgets)), "greedy")
        if "random" in baselines:
            rng = np.random.default_rng(np.asarray(_key_data(key) or 0, np.uint32))
            search.try_all(filter(None, (search.random(b, rng) for b in budgets)), "random")
        search.bisect(budgets, exact - drop, steps)
    return _front(search, net, named, costs.fit, exact)


class _Call(NamedTuple):
    """The call that is estimated: of inputs where rows or tokens leave, else as it was traced."""

    net: Network
    accelerator: Accelerator
    inputs: Any
    key: Key[Array, ""] | None

    def prepared(self, chip: Network) -> tuple[Prepared, ...]:
        """Its portions as a chip runs them."""
        if not self.net.cut_by:
            return prepared_call(chip, (), {}, None, self.accelerator.activations)
        first = next(iter(batches(self.inputs, "calibrate")))
        return prepared_call(chip, *first, self.key, self.accelerator.activations)


class _Exploration:
    """Proposes choices and evaluates each of them once."""

    def __init__(
        self,
        task: Task,
        options: Mapping[str, Option],
        call: _Call,
        costs: PartCosts,
        errors: Float[np.ndarray, "places options"],
        limits: Mapping[str, float],
        minimize: str,
        scores: ScoreCache,
        executor: Executor | None,
        advance: Callable[[str], None],
    ):
        """Has evaluated none."""
        self.task, self.call, self.costs = task, call, costs
        self.errors, self.limits, self.minimize = errors, limits, minimize
        self.scores, self.executor, self.advance = scores, executor, advance
        self.options, self.names = options, tuple(options)
        self.tried: dict[tuple[int, ...], Point] = {}
        self.estimates: dict[tuple[int, ...], Estimate] = {}
        least = allocate(errors, costs.spent, limits)
        self.least = tuple(least.tolist())

    def cost(self, choice: Sequence[int]) -> float:
        """What the sites of a choice spend of what is minimized."""
        return self._total(choice, self.minimize)

    def meets(self, choice: Sequence[int], limits: Mapping[str, float]) -> bool:
        """Whether a choice can be made and keeps to limits."""
        chosen = np.asarray(choice)
        if not np.isfinite(self.errors[np.arange(len(chosen)), chosen]).all():
            return False
        return all(self._total(choice, name) <= most * (1 + 1e-9) for name, most in limits.items())

    def uniform(self, options: Sequence[str]) -> list[tuple[int, ...]]:
        """Each option at all places that it fits, the best other one elsewhere."""
        found: list[tuple[int, ...]] = []
        for o in range(len(options)):
            fits = np.isfinite(self.errors[:, o])
            choice = tuple(np.where(fits, o, np.argmin(self.errors, 1)).tolist())
            if self.meets(choice, self.limits):
                found.append(choice)
        return found

    def budgets(self, points: int) -> list[float]:
        """Budgets from the cheapest choice to that of least error."""
        spent = np.where(np.isfinite(self.errors), self.costs.spent[self.minimize], np.inf)
        cheapest = allocate(spent, self.costs.spent, self.limits)
        low, high = self.cost(cheapest.tolist()), self.cost(self.least)
        return np.geomspace(low, max(low, high), points).tolist() if low > 0 else [high]

    def program(self, budget: float) -> tuple[int, ...]:
        """The choice of least summed error within a budget."""
        limits = {**self.limits, self.minimize: self._most(budget)}
        found = allocate(self.errors, self.costs.spent, limits)
        return tuple(found.tolist())

    def greedy(self, budget: float) -> tuple[int, ...] | None:
        """From the choice of least error, the exchange that loses least for what it saves.

        None where none is left before the budget is met.
        """
        spent, choice = self.costs.spent[self.minimize], np.array(self.least)
        rows = np.arange(len(choice))
        while self.cost(choice.tolist()) > budget * (1 + 1e-9):
            saved = spent[rows, choice][:, None] - spent
            lost = self.errors - self.errors[rows, choice][:, None]
            rate = np.where(
                (saved > 0) & np.isfinite(lost), lost / np.where(saved, saved, 1), np.inf
            )
            for move in np.argsort(rate, axis=None, kind="stable"):
                place, other = np.unravel_index(move, rate.shape)
                if not np.isfinite(rate[place, other]):
                    return None
                moved = choice.copy()
                moved[place] = other
                if self.meets(moved.tolist(), self.limits):
                    choice = moved
                    break
        return tuple(choice.tolist())

    def random(self, budget: float, rng: np.random.Generator) -> tuple[int, ...] | None:
        """A drawn choice, places drawn again among what is cheaper until the budget holds it.

        None where limits are not met at the cheapest.
        """
        spent = np.where(np.isfinite(self.errors), self.costs.spent[self.minimize], np.inf)
        choice = [int(rng.choice(np.flatnonzero(np.isfinite(row)))) for row in self.errors]
        limits = {**self.limits, self.minimize: budget}
        order: list[int] = []
        while not self.meets(choice, limits):
            if (spent[np.arange(len(choice)), choice] == spent.min(1)).all():
                return None
            order = order or rng.permutation(len(choice)).tolist()
            place = order.pop()
            cheaper = np.flatnonzero(spent[place] <= spent[place, choice[place]])
            choice[place] = int(rng.choice(cheaper))
        return tuple(choice)

    def try_all(self, choices: Iterable[tuple[int, ...]], found_by: Proposer) -> list[Point]:
        """Evaluates choices, at once where there is an executor."""
        listed = list(choices)
        new = [c for c in dict.fromkeys(listed) if c not in self.tried]
        missing = [c for c in new if self._name(c) not in self.scores.scores]
        waiting: dict[tuple[int, ...], Any] = {}
        if self.executor is not None:
            waiting = {c: self.executor.submit(accuracies, self.task, c) for c in missing}
        for choice in set(listed) & self.tried.keys():
            point = self.tried[choice]
            if found_by not in point.found_by:
                self.tried[choice] = point._replace(found_by=(*point.found_by, found_by))
        for choice in new:
            self.advance(f"{found_by}: {len(self.tried) + 1} evaluated")

            def measure(choice: tuple[int, ...] = choice) -> list[float]:
                if choice in waiting:
                    return waiting[choice].result()
                return accuracies(self.task, choice)

            found = np.asarray(self.scores.get(self._name(choice), measure))
            self.tried[choice] = self._point(choice, found, found_by)
        return [self.tried[c] for c in listed]

    def bisect(self, budgets: Sequence[float], accuracy: float, steps: int) -> None:
        """Halves the span of budgets within which choices begin to be accurate enough."""
        good = [p for p in self.tried.values() if p.accuracy >= accuracy]
        if not good:
            return
        by_cost = {self.cost(c): p.accuracy >= accuracy for c, p in self.tried.items()}
        high = min(cost for cost, enough in by_cost.items() if enough)
        low = max((c for c, enough in by_cost.items() if not enough and c < high), default=None)
        if low is None:
            return
        for step in range(steps):
            self.advance(f"bisection: step {step + 1} of {steps}")
            budget = (low * high) ** 0.5
            if budget < min(budgets):
                return
            choice = self.program(budget)
            (point,) = self.try_all([choice], "program")
            if point.accuracy >= accuracy:
                high = min(budget, self.cost(choice))
            else:
                low = budget

    def _total(self, choice: Sequence[int], name: str) -> float:
        return float(self.costs.spent[name][np.arange(len(choice)), list(choice)].sum())

    def _most(self, budget: float) -> float:
        """A budget with room for rounding, within the limit of what is minimized."""
        return min(budget * (1 + 1e-9), self.limits.get(self.minimize, np.inf))

    def _names(self, choice: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.names[o] for o in choice)

    def _name(self, choice: Sequence[int]) -> str:
        return "; ".join(
            f"{place.name}: {name}"
            for place, name in zip(self.costs.fit.places, self._names(choice), strict=True)
        )

    def _point(
        self, choice: tuple[int, ...], accuracies: Float[np.ndarray, " draws"], found_by: str
    ) -> Point:
        by_place = dict(zip(self.costs.fit.places, self._names(choice), strict=True))
        board, call = self.task.board, self.call
        made = apply_options(board.net, self.options, by_place)
        # Where rows or tokens leave is the chip's to say.
        chip = board.deploy(choice, self.task.keys[0]) if made.cut_by else made
        spent = estimate_prepared(
            made,
            call.accelerator,
            call.prepared(chip),
            parts=site_parts(board.net, self.options, by_place),
        )
        self.estimates[choice] = spent
        count = len(accuracies)
        return Point(
            by_place={place.name: name for place, name in by_place.items()},
            accuracy=float(accuracies.mean()),
            deviation=float(accuracies.std(ddof=1) / count**0.5) if count > 1 else 0.0,
            energy=spent.energy,
            latency=spent.latency,
            area=spent.area,
            predicted=float(self.errors[np.arange(len(choice)), list(choice)].sum()),
            found_by=(found_by,),
        )


def _check_settings(
    minimize: str,
    limits: Mapping[Quantity, float],
    baselines: Sequence[str],
    drop: float,
    points: int,
    steps: int,
    draws: int,
    key: Key[Array, ""] | None,
) -> None:
    """Checks the settings of an exploration.

    Raises:
      ValueError: One is out of range.
    """
    known = ("energy", "latency", "area")
    for name in (minimize, *limits):
        if name not in known:
            what = "minimize" if name == minimize else "limits"
            raise ValueError(f"{what}={name!r}: must be one of {', '.join(map(repr, known))}")
    for name, most in limits.items():
        check_range(f"limits[{name!r}]", most, 0)
    for name in baselines:
        if name not in ("greedy", "random"):
            raise ValueError(f"baselines: {name!r} is none of 'greedy', 'random'")
    check_range("drop", drop, 0)
    checked_int("points", points, 2)
    checked_int("steps", steps, 0)
    check_key(key)
    if checked_int("draws", draws, 1) > 1 and key is None:
        raise ValueError(f"draws={draws}: weights are written anew with other keys; give key=")


def _site_limits(costs: PartCosts, limits: Mapping[Quantity, float]) -> dict[str, float]:
    """What limits leave for the places.

    Raises:
      ValueError: Less than the least that can be spent.
    """
    left: dict[str, float] = {}
    for name, most in limits.items():
        spent = np.where(costs.fit.table(), costs.spent[name], np.inf)
        least = float(spent.min(1).sum()) + costs.fixed[name]
        if least > most:
            raise ValueError(
                f"limits[{name!r}]={most:g}: the cheapest choice spends {least:g}, of which "
                f"{costs.fixed[name]:g} are spent whatever is chosen"
            )
        left[name] = most - costs.fixed[name]
    return left


def _key_data(key: Key[Array, ""] | None) -> list[int] | None:
    return None if key is None else np.asarray(jax.random.key_data(key)).ravel().tolist()


def _open_scores(
    log: str | Path | None,
    net: Network,
    options: Mapping[str, Option],
    fit: Fit,
    inputs: Any,
    settings: Any,
) -> ScoreCache:
    """The scores of this exploration that are known.

    Raises:
      ValueError: They are of another one.
    """
    arrays: list[Any] = [net.params, net.buffers, net.masks, net.cores, inputs]
    facts: list[Any] = [describe(net), settings]
    for name, option in options.items():
        places = [p for p, fits in zip(fit.places, fit.fits, strict=True) if name in fits]
        made = apply_options(net, options, dict.fromkeys(places, name))
        arrays += [made.masks, made.cores]
        facts += [name, option.part, describe(made), [p.name for p in places]]
    scores, run = ScoreCache(log), run_digest(arrays, *facts)
    if scores.get("run", lambda: run) != run:
        raise ValueError(f"log={str(log)!r} is of another network, inputs or options")
    return scores


def _measure_errors(
    scores: ScoreCache,
    board: Switchboard,
    keys: Sequence[Key[Array, ""] | None],
    advance: Callable[[str], None],
    mesh: Mesh | None,
) -> Float[np.ndarray, "places options"]:
    """The error of each option at each place alone, infinite where it does not fit.

    Raises:
      ValueError: An error that is not finite.
    """
    fit = board.fit
    errors = np.where(fit.table(), 0.0, np.inf)
    for o, name in enumerate(fit.options):
        here = np.flatnonzero(fit.table()[:, o])

        def measure(o: int = o, name: str = name, here: Any = here) -> Any:
            alone = [[o if p == place else None for p in range(len(fit.places))] for place in here]
            found: list[list[float]] = []
            for key in keys:
                advance(f"errors of {name}")
                found.append(board.errors(alone, key, mesh).tolist())
            return found

        errors[here, o] = np.mean(scores.get(f"errors of {name}", measure), 0)
        for place in here[~np.isfinite(errors[here, o])]:
            raise ValueError(
                f"options: {name!r} at {fit.places[place].name} makes outputs that are not finite"
            )
    return errors


def _front(
    search: _Exploration, net: Network, options: dict[str, Option], fit: Fit, exact: float
) -> Front:
    tried = tuple(search.tried.values())
    costs = np.array([[getattr(p, search.minimize), -p.accuracy] for p in tried])
    return Front(
        points=tuple(tried[i] for i in non_dominated(costs)),
        tried=tried,
        estimates=tuple(search.estimates[choice] for choice in search.tried),
        exact=exact,
        minimize=search.minimize,
        net=net,
        accelerator=search.call.accelerator,
        options=options,
        fit=fit,
        errors=search.errors,
        spent=search.costs.spent,
        evaluations=1 + len(tried) * len(search.task.keys),
    )


@contextlib.contextmanager
def _progress(total: int, quiet: bool) -> Generator[Callable[[str], None]]:
    """A bar that says what is being measured, and how long it may take."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=quiet) as bar:
        task = bar.add_task("exploring", total=total)
        yield lambda what: bar.update(task, description=what, advance=1)
