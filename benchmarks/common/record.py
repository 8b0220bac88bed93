"""Results of benchmarks: a JSON file each, and the page of tables made from them."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common.paths import ROOT

# Short runs have a folder of their own, so that they never stand for what was measured in full.
SHORT = os.environ.get("JAXSIM_BENCHMARKS")
RESULTS = Path(SHORT, "results") if SHORT else ROOT / "benchmarks" / "results"
PAGE = Path(SHORT, "benchmarks.md") if SHORT else ROOT / "docs" / "benchmarks.md"
IMAGES = Path(SHORT, "images") if SHORT else ROOT / "docs" / "images"


class Table(NamedTuple):
    """One table of a result.

    Attributes:
      columns: headings.
      rows: cells, ready to print.
      title: what it shows; empty where the benchmark has one table.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""


def record(
    name: str,
    *tables: Table,
    question: str,
    baseline: str,
    notes: str = "",
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Prints tables and writes them, with the machine they were measured on, to results/NAME.json.

    Args:
      name: of the benchmark.
      *tables: what was measured.
      question: what it answers, one sentence.
      baseline: what it is compared with.
      notes: what a reader must know to judge it.
      settings: arguments of the run.
    """
    from rich.console import Console
    from rich.table import Table as RichTable

    for table in tables:
        shown = RichTable(*table.columns, title=table.title or question)
        for row in table.rows:
            shown.add_row(*map(str, row))
        Console().print(shown)
    result = {
        "name": name,
        "question": question,
        "baseline": baseline,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "load": os.getloadavg(),
        "settings": dict(settings or {}),
        "tables": [table._asdict() for table in tables],
        "notes": notes,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
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
    """Writes a page of every result, docs/benchmarks.md, and returns its path."""
    source = (
        "Short runs: they show that everything runs, and not what it reaches."
        if SHORT
        else "Made by `python -m benchmarks tables` from `benchmarks/results/`; do not edit."
    )
    parts = [
        "# Benchmarks",
        f"{source} Times are medians of warm calls, alternatives taken in turn in one process; "
        "compilation apart.",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        parts.append(f"## {result['name']}")
        parts.append(f"{result['question']} Baseline: {result['baseline']}.")
        for table in result["tables"]:
            head = "| " + " | ".join(table["columns"]) + " |"
            rule = "|" + "---|" * len(table["columns"])
            body = ["| " + " | ".join(map(str, row)) + " |" for row in table["rows"]]
            parts += [f"**{table['title']}**"] if table["title"] else []
            parts.append("\n".join([head, rule, *body]))
        if result["notes"]:
            parts.append(result["notes"])
        measured = f"{result['date']}; {result['machine']}"
        if "load" in result:
            measured += "; load average " + ", ".join(f"{x:.1f}" for x in result["load"])
        parts.append(f"*{measured}.*")
    PAGE.write_text("\n\n".join(parts) + "\n")
    return PAGE
