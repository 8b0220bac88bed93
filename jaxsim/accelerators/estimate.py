"""Estimate of a network on an accelerator: energy, latency and area, for every equation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Key

from jaxsim.accelerators.accelerator import Accelerator
from jaxsim.accelerators.assignment import assign_parts, try_parts
from jaxsim.accelerators.calls import Prepared, prepared_call
from jaxsim.accelerators.equations import Asked
from jaxsim.accelerators.memory import moves, serving, slowest
from jaxsim.accelerators.result import Estimate, SiteEstimate, StageEstimate, summed
from jaxsim.accelerators.sites import site_work
from jaxsim.accelerators.work import Spent, Work
from jaxsim.network.network import Network
from jaxsim.network.portions import Portion
from jaxsim.numerics.checks import check_range


def estimate(
    net: Network,
    accelerator: Accelerator,
    *args: Any,
    parts: Mapping[str, str] | None = None,
    drive: Mapping[str, float] | None = None,
    key: Key[Array, ""] | None = None,
    **kwargs: Any,
) -> Estimate:
    """Estimates energy, latency and area of one call of a network on an accelerator.

    A site runs on the first part that accepts its chain of cores: cells on arrays of cells, codes
    and blocks on an array of multipliers that takes their widths, floats on a part that has floats.
    What digital logic does beside it (adapters, inputs that are turned or scaled, corrections) is
    its component "digital", on the first part for elements.
    Every other equation (functions, norms, lookups, sums of residuals, moves of a cache) runs on
    the first part that accepts those. Equations follow one another, and within one the part, its
    link and the levels of memory work at once. Turns of a while loop count once, and all branches
    of a choice. Nothing is measured.

    Of a network that rows or tokens leave each stage is estimated for what reaches it on these
    inputs. Each device of a pipeline is one such accelerator, and runs micro-batch by micro-batch.

    Args:
      net: Network; its cores say what each site is computed with.
      accelerator: Parts, memory and links.
      *args: Inputs (only shapes count, but where rows or tokens leave); without any, those of the
        traced example.
      parts: Name of the part for sites by pattern, as `Network.select` takes them; the first
        pattern that matches a site wins.
      drive: Mean of G · V² of the cells of analog sites by name, from `measure_drive`; None for 1
        everywhere, the fixed figures, which need no inputs and are the most that cells can draw.
      key: Random key, needed where exits are decided by cores that draw at every call.
      **kwargs: Keyword arguments, as in a call.

    Returns:
      What each site and every other equation spends; printing shows a table.

    Raises:
      ValueError: Sites that no part runs, by name; a part that cannot run a site it is given;
        weights that do not fit in their level; or a drive of a site that is not analog.

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
    prepared = prepared_call(net, args, kwargs, key, accelerator.activations)
    return estimate_prepared(net, accelerator, prepared, parts=parts, drive=drive)


def estimate_prepared(
    net: Network,
    accelerator: Accelerator,
    prepared: Sequence[Prepared],
    *,
    parts: Mapping[str, str] | None = None,
    drive: Mapping[str, float] | None = None,
) -> Estimate:
    """Estimates a call whose portions are known, such as those of the chip of a network.

    Args:
      net: Network; its cores say what each site is computed with.
      accelerator: Parts, memory and links.
      prepared: Portions of the call, and what their equations ask.
      parts: Name of the part for sites by pattern, as of `estimate`.
      drive: Mean of G · V² of the cells of analog sites by name, as of `estimate`.

    Raises:
      ValueError: As `estimate` raises.
    """
    works = [site_work(net, p.portion, accelerator.activations) for p in prepared]
    drive = drive or {}
    _check_drive(drive, works)
    chosen = assign_parts(net, accelerator, works, parts or {})
    portions = [p.portion for p in prepared]
    _check_room(accelerator, portions, works)
    found = [
        _sites_spent(accelerator, p, w, chosen, drive or {}) for p, w in _pairs(portions, works)
    ]
    others = [_rest_spent(accelerator, p) for p in prepared]
    notes = ["registers, control, clock and leakage are not counted"]
    if loops := sum(p.asked.loops for p in prepared):
        notes.append(f"turns of {loops} while loops are counted once")
    notes += _notes(net, portions)
    if _elements_part(accelerator, Work("beside", "elements")) is None:
        every = [work for own in works for work in own.values()]
        beside = {"convert": any(map(_is_coded, every)), "digital": any(map(_beside, every))}
        notes += [f"no part for {what!r}: not counted" for what, asked in beside.items() if asked]
    rest = [spent for spent, _ in others]
    pairs = zip(found, rest, strict=True)
    times = [sum(s.latency for s in (*a.values(), *b.values())) for a, b in pairs]
    return Estimate(
        _together(found),
        _together(rest),
        summed(left for _, left in others),
        tuple(notes),
        accelerator,
        _stages(portions, times) if "pipeline_shard" in net.cut_by else (),
    )


def _pairs(
    portions: Sequence[Portion], works: Sequence[Mapping[str, Work]]
) -> Iterator[tuple[Portion, Mapping[str, Work]]]:
    return zip(portions, works, strict=True)


def _sites_spent(
    accelerator: Accelerator,
    portion: Portion,
    works: Mapping[str, Work],
    chosen: Mapping[str, str],
    drive: Mapping[str, float],
) -> dict[str, SiteEstimate]:
    """What sites that have a part spend in a portion."""
    found: dict[str, SiteEstimate] = {}
    for name, part in chosen.items():
        if name in works:
            spent = _spent(accelerator, part, works[name]._replace(drive=drive.get(name, 1)))
            spent = spent.idle() if portion.rows == 0 else spent
            found[name] = _of_portion(spent, portion)
    return found


def _rest_spent(
    accelerator: Accelerator, prepared: Prepared
) -> tuple[dict[str, SiteEstimate], dict[str, float]]:
    """What equations that are no sites spend in a portion, and those that are not counted."""
    portion = prepared.portion
    spent, left = _rest(accelerator, prepared.asked)
    if portion.rows == 0:
        spent = {}
    times = portion.batches * portion.devices
    return (
        {name: _of_portion(s, portion) for name, s in spent.items()},
        {name: times * n for name, n in left.items()},
    )


def _of_portion(spent: SiteEstimate, portion: Portion) -> SiteEstimate:
    """What a site spends in all batches of a portion; cells that another one has take no area."""
    made = spent.scaled(portion.batches, portion.devices)
    return made._replace(area=0.0) if portion.again else made


def _notes(net: Network, portions: Sequence[Portion]) -> list[str]:
    """What a network in stages leaves out, and what reaches its stages."""
    notes: list[str] = []
    if not net.cut_by:
        return notes
    rows = [0] * (1 + portions[-1].stage)
    for p in portions:
        rows[p.stage] += (p.rows or 0) * p.batches * p.devices
    notes.append(f"rows in each stage: {', '.join(map(str, rows))}")
    if "exit_early" in net.cut_by:
        notes.append("what exits read features and uncertainties by is not counted")
    if "prune_tokens" in net.cut_by:
        notes.append("what tells which tokens leave is not counted")
    if "pipeline_shard" in net.cut_by:
        notes.append("what devices hand to each other is not counted")
    return notes


def _stages(portions: Sequence[Portion], times: Sequence[float]) -> tuple[StageEstimate, ...]:
    """How long the stages of each device take."""
    once = [0.0] * (1 + portions[-1].stage)
    for p, time in reversed([*zip(portions, times, strict=True)]):
        once[p.stage] = time / p.batches  # of its first portion
    found: list[StageEstimate] = []
    for device in range(1 + max(p.device for p in portions)):
        own = [(p, time) for p, time in zip(portions, times, strict=True) if p.device == device]
        first, last = own[0][0], own[-1][0]
        ahead, behind = sum(once[: first.stage]), sum(once[last.stage + 1 :])
        total = sum(time for _, time in own)
        found.append(StageEstimate(ahead, total, behind, first.devices))
    return tuple(found)


def _check_drive(drive: Mapping[str, float], works: Sequence[Mapping[str, Work]]) -> None:
    """Checks that drives are of analog sites.

    Raises:
      ValueError: One is not, or is negative.
    """
    analog = {n for own in works for n, work in own.items() if work.arithmetic == "analog"}
    for name, mean in drive.items():
        if name not in analog:
            raise ValueError(f"drive[{name!r}]={mean}: net has no analog site of this name")
        check_range(f"drive[{name!r}]", mean, 0)


def _together(tables: Sequence[Mapping[str, SiteEstimate]]) -> dict[str, SiteEstimate]:
    """Estimates by name, those of one name added."""
    found: dict[str, SiteEstimate] = {}
    for table in tables:
        for name, spent in table.items():
            found[name] = found[name].joined(spent) if name in found else spent
    return found


class Trial(NamedTuple):
    """An estimate of the sites that some part runs.

    Attributes:
      sites: What each of them spends.
      refused: Why no part runs the others, by name.
      rest: What the other equations spend, by primitive.
    """

    sites: dict[str, SiteEstimate]
    refused: dict[str, str]
    rest: dict[str, SiteEstimate]


def estimate_sites(
    net: Network,
    accelerator: Accelerator,
    prepared: Sequence[Prepared],
    *,
    parts: Mapping[str, str] | None = None,
) -> Trial:
    """Estimates the sites of a network that a part runs, and tells of each other why none does.

    Args:
      net: Network on one device.
      accelerator: Parts, memory and links.
      prepared: Portions of the call, and what their equations ask.
      parts: Name of the part for sites by pattern, as of `estimate`.

    Raises:
      ValueError: A part or a pattern that is unknown.
    """
    works = [site_work(net, p.portion, accelerator.activations) for p in prepared]
    chosen, refused = try_parts(net, accelerator, works, parts or {})
    portions = [p.portion for p in prepared]
    sites = [_sites_spent(accelerator, p, w, chosen, {}) for p, w in _pairs(portions, works)]
    rest = [_rest_spent(accelerator, p)[0] for p in prepared]
    return Trial(_together(sites), refused, _together(rest))


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
    if _is_coded(work):
        converted = _converted(accelerator, work)
        if converted is not None:
            components["convert"] = sum(converted.energy.values())
            times.append(converted.seconds)
    memory = {
        k: moved.read[k] * m.read + moved.written[k] * m.write_energy for k, m in levels.items()
    }
    bits = {k: moved.read[k] + moved.written[k] for k in levels}
    if beside := _beside(work):
        by = _elements_part(accelerator, beside)
        if by is not None:
            digital = _spent(accelerator, by, beside)
            components["digital"] = sum(digital.components.values())
            memory, bits = summed((memory, digital.memory)), summed((bits, digital.bits))
            times.append(digital.latency)
    return SiteEstimate(
        name,
        components,
        memory,
        bits,
        max(times),
        spent.area,
        spent.cycles,
        spent.utilization,
        work.runs,
    )


def _beside(work: Work) -> Work | None:
    """What digital logic does beside the hardware of a site, as its cores count it."""
    adds, multiplies, bits = (
        work.counts.get(f"digital_{what}", 0.0) for what in ("adds", "multiplies", "bits")
    )
    if not adds and not multiplies and not bits:
        return None
    return Work(
        "beside",
        "elements",
        bits=(1, 1, 1),
        sizes=(bits, 0, 0),
        operations={"add": adds, "multiply": multiplies},
    )


def _is_coded(work: Work) -> bool:
    """Whether inputs become codes and results are scaled."""
    return work.arithmetic in ("codes", "analog")


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
        found[work.name] = found[work.name].joined(spent) if work.name in found else spent
    return found, uncounted


def _check_room(
    accelerator: Accelerator, portions: Sequence[Portion], works: Sequence[Mapping[str, Work]]
) -> None:
    """Checks that the weights of each device fit in the level in which they lie.

    Raises:
      ValueError: They do not.
    """
    level = accelerator.weight_level
    room = accelerator.memory[level].size if level else None
    if room is None:
        return
    bits = dict[int, float]()
    for portion, own in zip(portions, works, strict=True):
        held = (w for w in own.values() if w.arithmetic != "analog" and w.copies)
        more = 0.0 if portion.again else sum(w.counts.get("weight_bits", 0.0) for w in held)
        bits[portion.device] = bits.get(portion.device, 0.0) + more
    if (most := max(bits.values())) > room:
        raise ValueError(
            f"weights={level!r}: the weights take {most:.3g} bits, and it holds {room:.3g}"
        )
