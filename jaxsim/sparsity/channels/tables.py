"""The printed table of groups of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def groups_table(rows: Sequence[tuple[str, int, list[str], list[str], list[str], str]]) -> Any:
    """Builds a rich table of groups of channels.

    Args:
      rows: A tuple for each group (name, size, weights that make it, weights that sum over it,
        other parameters and buffers, why it stays or "").
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
