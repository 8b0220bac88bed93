"""Estimate of a network on an accelerator: energy, latency and area, for every equation."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax

from jaxsim.accelerators.accelerator import Accelerator
from jaxsim.accelerators.equations import Asked, equation_work
from jaxsim.accelerators.memory import moves, serving, slowest
from jaxsim.accelerators.sites import site_work
from jaxsim.accelerators.table import estimate_table
from jaxsim.accelerators.work import Work
from jaxsim.console.table import render
from jaxsim.network.network import Network
from jaxsim.network.plan import Traced
from jaxsim.network.site import matching_names


class SiteEstimate(NamedTuple):
    """What one site, or all equations of one primitive, spend in one call.

    Attributes:
      part: Name of the part that runs it.
      components: Energy by component of the part, in pJ; "convert" is the SIMD unit's, for codes of
        inputs and scales of results.
      memory: Energy by level of memory, in pJ.
      bits: Bits moved by level of memory, reads and writes together.
      latency: Time, in s: of the slowest of the part, the conversions, the link and the levels.
      area: Area that it alone takes, in mm²: of cells that hold its weight.
      cycles: Cycles of the part.
      utilization: Fraction of the part that is busy with it meanwhile, in [0, 1].
      equations: Number of executions in one call.
    """

    part: str
    components: dict[str, float]
    memory: dict[str, float]
    bits: dict[str, float]
    latency: float
    area: float
    cycles: float
    utilization: float
    equations: float

    @property
    def energy(self) -> float:
        """Sum of the energies, in pJ."""
        return sum(self.components.values()) + sum(self.memory.values())


class PartEstimate(NamedTuple):
    """What runs on one part in one call.

    Attributes:
      energy: Energy of the part and of what it moves, in pJ.
      latency: Time in which it is at work, in s.
      area: Its area, and that of the cells of its sites, in mm².
      utilization: Fraction of it that is busy while it is at work, in [0, 1].
      sites: Names of its sites.
    """

    energy: float
    latency: float
    area: float
    utilization: float
    sites: tuple[str, ...]


class Estimate(NamedTuple):
    """An analytic estimate of one call of a network on an accelerator. It prints.

    Attributes:
      sites: What each site spends.
      rest: What the other equations spend, by primitive.
      uncounted: Number of equations that are not counted, by primitive.
      notes: Sentences that say what the estimate leaves out.
      accelerator: The accelerator.
    """

    sites: dict[str, SiteEstimate]
    rest: dict[str, SiteEstimate]
    uncounted: dict[str, float]
    notes: tuple[str, ...]
    accelerator: Accelerator

    @property
    def energy(self) -> float:
        """Energy of the call, in pJ."""
        return sum(s.energy for s in self._all)

    @property
    def latency(self) -> float:
        """Time of the call, in s: of its equations one after the other."""
        return sum(s.latency for s in self._all)

    @property
    def area(self) -> float:
        """Area of the accelerator, with the cells that hold the network's weights, in mm²."""
        return self.accelerator.area + sum(s.area for s in self.sites.values())

    @property
    def components(self) -> dict[str, float]:
        """Energy by component of the parts, in pJ."""
        return _summed(s.components for s in self._all)

    @property
    def memory(self) -> dict[str, float]:
        """Energy by level of memory, in pJ."""
        return _summed(s.memory for s in self._all)

    @property
    def bits(self) -> dict[str, float]:
        """Bits moved by level of memory."""
        return _summed(s.bits for s in self._all)

    @property
    def parts(self) -> dict[str, PartEstimate]:
        """What runs on each part."""
        found: dict[str, PartEstimate] = {}
        for name, part in self.accelerator.parts.items():
            sites = tuple(n for n, s in self.sites.items() if s.part == name)
            own = [s for s in self._all if s.part == name]
            time = sum(s.latency for s in own)
            busy = sum(s.latency * s.utilization for s in own)
            found[name] = PartEstimate(
                sum(s.energy for s in own),
                time,
                part.area + sum(s.area for s in own),
                busy / time if time else 0.0,
                sites,
            )
        return found

    @property
    def _all(self) -> tuple[SiteEstimate, ...]:
        return (*self.sites.values(), *self.rest.values())

    def __str__(self) -> str:
        return render(self.__rich__())

    def __rich__(self) -> Any:
        return estimate_table(self)


def estimate(
    net: Network,
    accelerator: Accelerator,
    *args: Any,
    parts: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> Estimate:
    """Estimates energy, latency and area of one call of a network on an accelerator.

    A site runs on the first part that accepts its chain of cores: cells on arrays of cells, codes
    and blocks on an array of multipliers that takes their widths, floats on a part that has floats.
    Every other equation (functions, norms, lookups, sums of residuals, moves of a cache) runs on
    the first part that accepts those. Equations follow one another, and within one the part, its
    link and the levels of memory work at once. Turns of a while loop count once, and all branches
    of a choice. Nothing is measured.

    Args:
      net: Network; its cores say what each site is computed with.
      accelerator: Parts, memory and links.
      *args: Inputs (only shapes count); without any, those of the traced example.
      parts: Name of the part for sites by pattern, as `Network.select` takes them; the first
        pattern that matches a site wins.
      **kwargs: Keyword arguments, as in a call.

    Returns:
      What each site and every other equation spends; printing shows a table.

    Raises:
      ValueError: Sites that no part runs, by name; a part that cannot run a site it is given;
        weights that do not fit in their level; a network that is cut.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.ones((4, 64))
      >>> net = js.trace(lambda p, x: jnp.tanh(x @ p["w"]), {"w": jnp.ones((64, 32))}, x)
      >>> found = js.estimate(js.quantize(8, 8)(net), js.accelerators.systolic_45nm())
      >>> found.sites["w"].part, sorted(found.rest), found.sites["w"].cycles
      ('array', ['tanh'], 126.0)
    """
    if not isinstance(net, Network):
        raise ValueError(f"net: expected a jaxsim.Network (make one with js.trace), got {net!r}")
    if not isinstance(accelerator, Accelerator):
        raise ValueError(f"accelerator={accelerator!r}: must be a jaxsim.Accelerator")
    if net.cut_by:
        raise ValueError(
            f"net: is cut by {', '.join(net.cut_by)}; an estimate is of a network that runs whole"
        )
    traced, asked = _prepared(net, args, kwargs, accelerator.activations)
    works = site_work(net, traced, accelerator.activations)
    chosen = assign_parts(net, accelerator, works, parts or {})
    _check_room(accelerator, works)
    sites = {name: _spent(accelerator, chosen[name], work) for name, work in works.items()}
    rest, uncounted = _rest(accelerator, asked)
    notes = ["registers, control, clock and leakage are not counted"]
    if asked.loops:
        notes.append(f"turns of {asked.loops} while loops are counted once")
    return Estimate(sites, rest, uncounted, tuple(notes), accelerator)


def assign_parts(
    net: Network, accelerator: Accelerator, works: Mapping[str, Work], asked: Mapping[str, str]
) -> dict[str, str]:
    """Chooses the part of each site: the one that is asked for, or the first that accepts it.

    Args:
      net: Network of the sites.
      accelerator: Its parts.
      works: Work of each site.
      asked: Name of a part by pattern of sites.

    Raises:
      ValueError: No part runs some sites, or the one that is asked for does not.
    """
    given: dict[str, str] = {}
    for pattern, part in asked.items():
        if part not in accelerator.parts:
            known = ", ".join(accelerator.parts)
            raise ValueError(f"parts[{pattern!r}]={part!r}: must be one of {known}")
        names = matching_names(net.sites, pattern, dynamic=pattern == "*", lookups=False)
        if not names:
            known = ", ".join(s.name for s in net.sites)
            raise ValueError(f"parts[{pattern!r}]: matches no site; the sites are: {known}")
        for name in names:
            given.setdefault(name, part)
    chosen: dict[str, str] = {}
    refused: list[str] = []
    for name, work in works.items():
        options = [given[name]] if name in given else list(accelerator.parts)
        why = {part: accelerator.parts[part].accepts(work) for part in options}
        part = next((part for part, reason in why.items() if not reason), None)
        if part is None:
            reasons = "; ".join(f"{part} {reason}" for part, reason in why.items())
            refused.append(f"{name} ({reasons})")
        else:
            chosen[name] = part
    if refused:
        raise ValueError(f"net: no part of the accelerator runs {', '.join(refused)}")
    return chosen


def _spent(accelerator: Accelerator, name: str, work: Work) -> SiteEstimate:
    """What a site or an equation spends on a part, with what it moves and converts."""
    part, levels = accelerator.parts[name], serving(accelerator.memory, name)
    spent, held = part.spend(work), work.arithmetic == "analog"
    level = accelerator.weight_level if accelerator.weight_level in levels else ""
    moved = moves(work, spent, levels, level or next(reversed(list(levels)), ""), held)
    components = {k: v for k, v in spent.energy.items() if v}
    times = [spent.seconds, slowest(moved, levels, list(levels))]
    if name in accelerator.links:
        link = accelerator.links[name]
        bits = spent.inputs + spent.weights + 2 * spent.sums + spent.results
        components["link"] = bits * link.energy
        times.append(bits / link.bandwidth if link.bandwidth is not None else 0.0)
    if work.arithmetic in ("codes", "analog"):
        converted = _converted(accelerator, work)
        if converted is not None:
            components["convert"] = sum(converted.energy.values())
            times.append(converted.seconds)
    return SiteEstimate(
        name,
        components,
        {k: moved.read[k] * m.read + moved.written[k] * m.write_energy for k, m in levels.items()},
        {k: moved.read[k] + moved.written[k] for k in levels},
        max(times),
        spent.area,
        spent.cycles,
        spent.utilization,
        work.runs,
    )


def _converted(accelerator: Accelerator, work: Work) -> Any:
    """What the first part for elements spends on codes of inputs and on scales of results."""
    x, _, y = work.sizes
    asked = Work("convert", "elements", runs=work.runs, operations={"multiply": x + y, "add": x})
    part = _elements_part(accelerator, asked)
    return None if part is None else accelerator.parts[part].spend(asked)


def _elements_part(accelerator: Accelerator, work: Work) -> str | None:
    return next((n for n, p in accelerator.parts.items() if not p.accepts(work)), None)


def _rest(
    accelerator: Accelerator, asked: Asked
) -> tuple[dict[str, SiteEstimate], dict[str, float]]:
    """What equations that are no sites spend, by primitive, and those that are not counted."""
    found: dict[str, SiteEstimate] = {}
    uncounted = Counter(asked.uncounted)
    for work, times in asked.work:
        part = _elements_part(accelerator, work)
        if part is None:
            uncounted[work.name] += times
            continue
        spent = _spent(accelerator, part, work._replace(runs=times))
        found[work.name] = _joined(found[work.name], spent) if work.name in found else spent
    return found, dict(uncounted)


def _joined(a: SiteEstimate, b: SiteEstimate) -> SiteEstimate:
    latency = a.latency + b.latency
    busy = a.latency * a.utilization + b.latency * b.utilization
    return SiteEstimate(
        a.part,
        _summed((a.components, b.components)),
        _summed((a.memory, b.memory)),
        _summed((a.bits, b.bits)),
        latency,
        a.area + b.area,
        a.cycles + b.cycles,
        busy / latency if latency else 0.0,
        a.equations + b.equations,
    )


def _check_room(accelerator: Accelerator, works: Mapping[str, Work]) -> None:
    """Checks that the weights fit in the level in which they lie.

    Raises:
      ValueError: They do not.
    """
    level = accelerator.weight_level
    room = accelerator.memory[level].size if level else None
    if room is None:
        return
    held = (w for w in works.values() if w.arithmetic != "analog" and w.copies)
    bits = sum(w.counts.get("weight_bits", 0.0) for w in held)
    if bits > room:
        raise ValueError(
            f"weights={level!r}: the weights take {bits:.3g} bits, and it holds {room:.3g}"
        )


def _summed(tables: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for table in tables:
        for name, amount in table.items():
            found[name] = found.get(name, 0.0) + amount
    return found


_calls: weakref.WeakKeyDictionary[Any, dict[Any, tuple[Traced, dict[Any, Asked]]]] = (
    weakref.WeakKeyDictionary()
)
"""Traced calls of models that live, the last few of each."""
_LIMIT = 8


def _prepared(
    net: Network, args: tuple[Any, ...], kwargs: dict[str, Any], activations: int | None
) -> tuple[Traced, Asked]:
    """A call, traced once for all networks of the model, and what its equations ask."""
    shapes = jax.tree.map(
        lambda a: (a.shape, a.dtype) if hasattr(a, "shape") else a, (args, kwargs)
    )
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda a: a is None)
    held = jax.tree.map(lambda a: (a.shape, a.dtype), (net.params, net.buffers))
    key = (
        repr(leaves),
        structure,
        repr(held),
        repr((net.example, net.defaults)),
        net.weights,
        tuple(sorted(net.masks)),
    )
    try:
        known = _calls.setdefault(net.fn, {})
    except TypeError:  # a function that cannot be referred to weakly
        known = {}
    if key not in known:
        if len(known) >= _LIMIT:
            known.clear()
        known[key] = (net.traced(*args, **kwargs), {})
    traced, by_width = known[key]
    if activations not in by_width:
        fixed = len(jax.tree.leaves((net.params, net.buffers)))
        by_width[activations] = equation_work(traced, fixed, activations)
    return traced, by_width[activations]
