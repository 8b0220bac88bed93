"""Estimate of a network on an accelerator: energy, latency and area, for every equation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxsim.accelerators.accelerator import Accelerator
from jaxsim.accelerators.assignment import assign_parts
from jaxsim.accelerators.calls import prepared_call
from jaxsim.accelerators.equations import Asked
from jaxsim.accelerators.memory import moves, serving, slowest
from jaxsim.accelerators.result import Estimate, SiteEstimate, summed
from jaxsim.accelerators.sites import site_work
from jaxsim.accelerators.work import Spent, Work
from jaxsim.network.network import Network
from jaxsim.numerics.checks import check_range


def estimate(
    net: Network,
    accelerator: Accelerator,
    *args: Any,
    parts: Mapping[str, str] | None = None,
    drive: Mapping[str, float] | None = None,
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
      drive: Mean of G · V² of the cells of analog sites by name, from `measure_drive`; None for 1
        everywhere, the fixed figures, which need no inputs and are the most that cells can draw.
      **kwargs: Keyword arguments, as in a call.

    Returns:
      What each site and every other equation spends; printing shows a table.

    Raises:
      ValueError: Sites that no part runs, by name; a part that cannot run a site it is given;
        weights that do not fit in their level; a drive of a site that is not analog; a network that
        is cut.

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
    traced, asked = prepared_call(net, args, kwargs, accelerator.activations)
    works = site_work(net, traced, accelerator.activations)
    for name, mean in (drive or {}).items():
        if name not in works or works[name].arithmetic != "analog":
            raise ValueError(f"drive[{name!r}]={mean}: net has no analog site of this name")
        check_range(f"drive[{name!r}]", mean, 0)
        works[name] = works[name]._replace(drive=mean)
    chosen = assign_parts(net, accelerator, works, parts or {})
    _check_room(accelerator, works)
    sites = {name: _spent(accelerator, chosen[name], work) for name, work in works.items()}
    rest, uncounted = _rest(accelerator, asked)
    notes = ["registers, control, clock and leakage are not counted"]
    if asked.loops:
        notes.append(f"turns of {asked.loops} while loops are counted once")
    return Estimate(sites, rest, uncounted, tuple(notes), accelerator)


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


def _converted(accelerator: Accelerator, work: Work) -> Spent | None:
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
    uncounted = dict(asked.uncounted)
    for work, times in asked.work:
        part = _elements_part(accelerator, work)
        if part is None:
            uncounted[work.name] = uncounted.get(work.name, 0) + times
            continue
        spent = _spent(accelerator, part, work._replace(runs=times))
        found[work.name] = _joined(found[work.name], spent) if work.name in found else spent
    return found, uncounted


def _joined(a: SiteEstimate, b: SiteEstimate) -> SiteEstimate:
    latency = a.latency + b.latency
    busy = a.latency * a.utilization + b.latency * b.utilization
    return SiteEstimate(
        a.part,
        summed((a.components, b.components)),
        summed((a.memory, b.memory)),
        summed((a.bits, b.bits)),
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
