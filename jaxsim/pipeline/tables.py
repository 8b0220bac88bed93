"""Printed tables of a pipeline: stages, timeline, memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxsim.console.table import si


def stages_table(rows: Sequence[Sequence[Any]], *, micro: int) -> Any:
    """Lays out a rich table of a pipeline's stages.

    Args:
      rows: (First site, equations, FLOPs, parameters, bytes that enter, devices) by stage.
      micro: Rows of a micro-batch.
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
    """Lays out a rich table of a simulated step.

    Args:
      rows: (Stage, idle share, micro-batches in flight, peak bytes) by stage.
      ticks: Length of the step.
      bubble: Idle share of all stages, in [0, 1].
    """
    from rich.table import Table

    table = Table(title=f"one step · {ticks:.4g} ticks · bubble {bubble:.1%}")
    for column in ("stage", "idle", "in flight", "peak bytes of activations"):
        table.add_column(column, justify="right")
    for stage, idle, flights, peak in rows:
        table.add_row(str(stage), f"{idle:.1%}", str(flights), si(peak))
    return table


def memory_table(rows: Sequence[Sequence[int]], *, count: int, micro: int) -> Any:
    """Lays out a rich table of a pipeline's memory.

    Args:
      rows: (Parameters, gradients, kept, in flight, temporary, results, peak) by stage, bytes.
      count: Number of micro-batches.
      micro: Rows of each.
    """
    from rich.table import Table

    table = Table(title=f"bytes of one step · {count} micro-batches of {micro}")
    names = ("params", "gradients", "kept", "in flight", "temporary", "results", "peak")
    for column in ("stage", *names):
        table.add_column(column, justify="right")
    for stage, row in enumerate(rows):
        table.add_row(str(stage), *map(si, row))
    return table
