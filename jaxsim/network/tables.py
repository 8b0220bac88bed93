"""Printed tables of networks, their cuts and their costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jaxsim.console.table import si


def cuts_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """Builds a rich table of the cuts of a network.

    Args:
      title: Title of the table.
      columns: Headings of the columns.
      rows: A value for each column.
    """
    from rich.table import Table

    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*map(str, row))
    return table


def sites_table(
    rows: Iterable[Sequence[Any]],
    unreached: Sequence[str],
    coverage: str,
    *,
    deployed: bool,
    calibrated: bool,
) -> Any:
    """Builds a rich table of a network's sites.

    Args:
      rows: A tuple for each site (name, kind, weight shape, stack, input shape, MACs, wrappers,
        density); the density in [0, 1], None while it is traced.
      unreached: Contractions that are not sites, each in a phrase.
      coverage: How far the transforms reach, in a line.
      deployed: True if weights are written.
      calibrated: True if ranges are stored.
    """
    from rich.table import Table

    stage = "not deployed"
    if deployed:
        stage = "deployed, calibrated" if calibrated else "deployed"
    others = f"not sites: {'; '.join(unreached)}\n" if unreached else ""
    table = Table(title=f"jaxsim.Network · {stage}", caption=others + coverage)
    table.add_column("site", style="bold", overflow="fold")
    table.add_column("kind")
    table.add_column("weight", justify="right")
    table.add_column("input", justify="right")
    table.add_column("MACs", justify="right")
    table.add_column("kept", justify="right")
    table.add_column("hardware, outermost first")
    for name, kind, weight, stack, inputs, macs, wrappers, density in rows:
        shape = "×".join(map(str, weight))
        table.add_row(
            name,
            kind,
            f"{'×'.join(map(str, stack))} · {shape}" if stack else shape,
            "×".join(map(str, inputs)),
            si(macs),
            "traced" if density is None else "all" if density == 1 else f"{density:.1%}",
            " → ".join(map(repr, wrappers)) or "float",
        )
    return table


def coverage_table(rows: Iterable[Sequence[Any]], line: str) -> Any:
    """Builds a rich table of which parameters are reached.

    Args:
      rows: A tuple for each (name, entries, MACs, how far it is reached, whether it is frozen,
        reason).
      line: How far all of them are, in a line.
    """
    from rich.table import Table

    table = Table(title="reach of the transforms, by parameter", caption=line)
    table.add_column("parameter", style="bold", overflow="fold")
    for column in ("params", "MACs"):
        table.add_column(column, justify="right")
    table.add_column("reached")
    table.add_column("why not", overflow="fold")
    for name, params, macs, reach, frozen, reason in rows:
        shown = f"{reach}, frozen" if frozen else reach
        table.add_row(name, si(params), si(macs), shown, reason)
    return table


def cost_table(rows: Sequence[tuple[str, int, int, dict[str, float]]]) -> Any:
    """Builds a rich table of what sites spend.

    Args:
      rows: A tuple for each site (name, parameters, nonzero parameters, counts by name).
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
