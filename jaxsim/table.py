"""Tables for people: the sites of a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jaxsim.numerics import is_traced


def sites_table(rows: Iterable[Sequence[Any]], *, deployed: bool, calibrated: bool) -> Any:
    """A rich table of a network's sites.

    Args:
      rows: (name, kind, weight shape, stack, input shape, MACs, wrappers, mask or None) by site.
      deployed: weights are written.
      calibrated: ranges are stored.
    """
    from rich.table import Table

    stage = "not deployed"
    if deployed:
        stage = "deployed, calibrated" if calibrated else "deployed"
    table = Table(title=f"jaxsim.Network · {stage}")
    table.add_column("site", style="bold", overflow="fold")
    table.add_column("kind")
    table.add_column("weight", justify="right")
    table.add_column("input", justify="right")
    table.add_column("MACs", justify="right")
    table.add_column("kept", justify="right")
    table.add_column("hardware, outermost first")
    for name, kind, weight, stack, inputs, macs, wrappers, mask in rows:
        shape = "×".join(map(str, weight))
        table.add_row(
            name,
            kind,
            f"{'×'.join(map(str, stack))} · {shape}" if stack else shape,
            "×".join(map(str, inputs)),
            si(macs),
            "all" if mask is None else "traced" if is_traced(mask) else f"{float(mask.mean()):.1%}",
            " → ".join(map(repr, wrappers)) or "float",
        )
    return table


def cost_table(rows: Sequence[tuple[str, int, int, dict[str, float]]]) -> Any:
    """A rich table of what sites spend.

    Args:
      rows: (name, parameters, nonzero parameters, what is spent) by site.
    """
    from rich.table import Table

    spent = list(dict.fromkeys(what for row in rows for what in row[3]))
    table = Table(title="cost of one call, by site")
    table.add_column("site", style="bold", overflow="fold")
    for column in ("params", "nonzero", *spent):
        table.add_column(column.replace("_", " "), justify="right")
    for name, params, nonzero, amounts in rows:
        cells = [params, nonzero, *(amounts.get(what, 0) for what in spent)]
        table.add_row(name, *map(si, cells))
    return table


def si(number: float) -> str:
    """A count with three digits and k, M, G or T behind it."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.3g}"


def render(table: Any) -> str:
    """A rich table as plain text."""
    from rich.console import Console

    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
