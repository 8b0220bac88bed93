"""Tables for people: the sites of a network."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any


def cuts_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """A rich table of where a network is cut.

    Args:
      title: what the cuts are.
      columns: of the table.
      rows: a value for each column.
    """
    from rich.table import Table

    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*map(str, row))
    return table


def html(renderable: Any) -> str:
    """What rich shows, as HTML for a notebook."""
    from rich.console import Console

    console = Console(record=True, file=io.StringIO(), width=120)
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def sites_table(
    rows: Iterable[Sequence[Any]],
    unreached: Sequence[str],
    *,
    deployed: bool,
    calibrated: bool,
) -> Any:
    """A rich table of a network's sites.

    Args:
      rows: (name, kind, weight shape, stack, input shape, MACs, wrappers, density) by site; the
        density in [0, 1], None while it is traced.
      unreached: what is no site, each in a phrase.
      deployed: weights are written.
      calibrated: ranges are stored.
    """
    from rich.table import Table

    stage = "not deployed"
    if deployed:
        stage = "deployed, calibrated" if calibrated else "deployed"
    caption = "not sites: " + "; ".join(unreached) if unreached else None
    table = Table(title=f"jaxsim.Network · {stage}", caption=caption)
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


def stages_table(rows: Sequence[Sequence[Any]], *, micro: int) -> Any:
    """A rich table of a pipeline's stages.

    Args:
      rows: (first site, equations, FLOPs, parameters, bytes that enter, devices) by stage.
      micro: size of a micro-batch.
    """
    from rich.table import Table

    table = Table(title=f"stages · micro-batches of {micro}")
    table.add_column("begins with", style="bold", overflow="fold")
    for column in ("equations", "FLOPs", "params", "boundary bytes", "devices"):
        table.add_column(column, justify="right")
    for name, equations, flops, params, boundary, devices in rows:
        places = ", ".join(map(str, devices))
        table.add_row(name, str(equations), si(flops), si(params), si(boundary), places)
    return table


def timeline_table(
    rows: Sequence[tuple[int, float, int, int]], *, ticks: float, bubble: float
) -> Any:
    """A rich table of a simulated step.

    Args:
      rows: (stage, idle share, micro-batches in flight, peak bytes) by stage.
      ticks: length of the step.
      bubble: idle share of all stages.
    """
    from rich.table import Table

    table = Table(title=f"one step · {ticks:.4g} ticks · bubble {bubble:.1%}")
    for column in ("stage", "idle", "in flight", "peak bytes of activations"):
        table.add_column(column, justify="right")
    for stage, idle, flights, peak in rows:
        table.add_row(str(stage), f"{idle:.1%}", str(flights), si(peak))
    return table


def memory_table(rows: Sequence[Sequence[int]], *, count: int, micro: int) -> Any:
    """A rich table of a pipeline's memory.

    Args:
      rows: (parameters, gradients, kept, in flight, temporary, results, peak) by stage, bytes.
      count: number of micro-batches.
      micro: size of each.
    """
    from rich.table import Table

    table = Table(title=f"bytes of one step · {count} micro-batches of {micro}")
    names = ("params", "gradients", "kept", "in flight", "temporary", "results", "peak")
    for column in ("stage", *names):
        table.add_column(column, justify="right")
    for stage, row in enumerate(rows):
        table.add_row(str(stage), *map(si, row))
    return table


def groups_table(rows: Sequence[tuple[str, int, list[str], list[str], list[str], str]]) -> Any:
    """A rich table of groups of channels.

    Args:
      rows: (name, size, weights that make them, weights that sum over them, other parameters and
        buffers, why they stay or "") by group.
    """
    from rich.table import Table

    free = sum(not reason for *_, reason in rows)
    table = Table(title=f"groups of channels · {free} of {len(rows)} can shrink")
    table.add_column("group", style="bold", overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("made by", overflow="fold")
    table.add_column("read by", overflow="fold")
    table.add_column("others", justify="right")
    table.add_column("stay because", overflow="fold")
    for name, size, made, read, others, reason in rows:
        lines = ["\n".join(dict.fromkeys(paths)) for paths in (made, read)]
        table.add_row(name, str(size), *lines, str(len(others)), reason)
    return table


def sparsity_table(
    rows: Sequence[tuple[str, int, int, float, dict[str, int | None], str]],
    *,
    compression: float,
    useful: float,
) -> Any:
    """A rich table of what sparse weights save.

    Args:
      rows: (name, entries, nonzero entries, MACs, bits by format, best format) by weight.
      compression: of all weights, each in its best format.
      useful: share of the MACs whose weight is not zero.
    """
    from rich.table import Table

    table = Table(
        title=f"sparse weights, bits by format · {compression:.2f}x smaller · {useful:.1%} of the "
        "MACs"
    )
    table.add_column("weight", style="bold", no_wrap=True)
    for column in ("entries", "nonzero", "density", "MACs"):
        table.add_column(column, justify="right")
    for column in rows[0][4] if rows else ():
        table.add_column(column, justify="right")
    table.add_column("fewest bits")
    for name, size, nonzero, macs, bits, best in rows:
        held = ["–" if b is None else si(b) for b in bits.values()]
        density = f"{nonzero / size:.1%}"
        table.add_row(name, si(size), si(nonzero), density, si(macs), *held, best)
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
