"""Printed tables of an estimate."""

from __future__ import annotations

from typing import Any

from jaxsim.console.table import si


def estimate_table(found: Any) -> Any:
    """Builds rich tables of an estimate: its sites, parts, components and levels of memory.

    Args:
      found: The estimate.
    """
    from rich.console import Group

    return Group(_sites(found), _parts(found), _energies(found))


def seconds(time: float) -> str:
    """Formats a time with three digits and its unit.

    Args:
      time: Time, in s.

    Examples:
      >>> from jaxsim.accelerators.table import seconds
      >>> seconds(2.5e-5)
      '25 µs'
    """
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")):
        if time >= factor or factor == 1e-9:
            return f"{time / factor:.3g} {unit}"
    return f"{time:.3g} s"


def _sites(found: Any) -> Any:
    from rich.table import Table

    left = ", ".join(f"{name} ({si(n)})" for name, n in found.uncounted.items())
    notes = "; ".join((*found.notes, *([f"not counted: {left}"] if left else [])))
    table = Table(title="one call · analytic model, not a measurement", caption=notes)
    table.add_column("site", style="bold", overflow="fold")
    table.add_column("part")
    for column in ("pJ", "share", "time", "cycles", "used", "mm²"):
        table.add_column(column, justify="right")
    total = found.energy or 1.0
    for rows in (found.sites, found.rest):
        for name, s in rows.items():
            share, used = f"{s.energy / total:.1%}", f"{s.utilization:.0%}"
            times = (seconds(s.latency), si(s.cycles), used)
            table.add_row(name, s.part, si(s.energy), share, *times, f"{s.area:.3g}")
        table.add_section()
    cycles = sum(s.cycles for s in (*found.sites.values(), *found.rest.values()))
    numbers = (si(found.energy), "100%", seconds(found.latency), si(cycles), "")
    table.add_row("all", "", *numbers, f"{found.area:.3g}")
    return table


def _parts(found: Any) -> Any:
    from rich.table import Table

    table = Table(title="by part")
    table.add_column("part", style="bold")
    for column in ("sites", "pJ", "time", "used", "mm²"):
        table.add_column(column, justify="right")
    for name, p in found.parts.items():
        numbers = (si(p.energy), seconds(p.latency), f"{p.utilization:.0%}", f"{p.area:.3g}")
        table.add_row(name, str(len(p.sites)), *numbers)
    return table


def _energies(found: Any) -> Any:
    from rich.table import Table

    table = Table(title="by component and level of memory")
    table.add_column("", style="bold")
    for column in ("pJ", "share", "bits"):
        table.add_column(column, justify="right")
    total = found.energy or 1.0
    for name, energy in found.components.items():
        table.add_row(name, si(energy), f"{energy / total:.1%}", "")
    table.add_section()
    for name, energy in found.memory.items():
        table.add_row(name, si(energy), f"{energy / total:.1%}", si(found.bits[name]))
    return table
