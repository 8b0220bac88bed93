"""Results of benchmarks: a JSON file each, and the page of tables made from them."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def record(
    name: str,
    *,
    question: str,
    baseline: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    notes: str = "",
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Prints a table and writes it, with the machine it was measured on, to results/NAME.json.

    Args:
      name: of the benchmark.
      question: what it answers, one sentence.
      baseline: what it is compared with.
      columns: headings.
      rows: cells, ready to print.
      notes: what a reader must know to judge it.
      settings: arguments of the run.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=question, caption=notes)
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)
    result = {
        "name": name,
        "question": question,
        "baseline": baseline,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "settings": dict(settings or {}),
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "notes": notes,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def machine() -> str:
    """The processor, cores, system and versions a result was measured with."""
    import jax

    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    device = jax.devices()[0]
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()}, Python "
        f"{platform.python_version()}, jax {version('jax')} on {device.platform}, flax "
        f"{version('flax')}"
    )


def write_tables() -> Path:
    """Writes docs/benchmarks.md from every result, and returns its path."""
    parts = [
        "# Benchmarks",
        "Made by `python -m benchmarks tables` from `benchmarks/results/`; do not edit. Times are "
        "medians of warm calls, alternatives taken in turn in one process; compilation apart.",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        head = "| " + " | ".join(result["columns"]) + " |"
        rule = "|" + "---|" * len(result["columns"])
        body = ["| " + " | ".join(map(str, row)) + " |" for row in result["rows"]]
        parts += [
            f"## {result['name']}",
            f"{result['question']} Baseline: {result['baseline']}.",
            "\n".join([head, rule, *body]),
        ]
        if result["notes"]:
            parts.append(result["notes"])
        parts.append(f"*{result['date']}; {result['machine']}.*")
    PAGE.write_text("\n\n".join(parts) + "\n")
    return PAGE
