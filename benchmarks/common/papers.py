"""The page of what papers claim, and of what the records say of it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common.claims import CLAIMS
from benchmarks.common.paths import ROOT
from benchmarks.common.results import Results

PAGE = ROOT / "docs" / "papers.md"

INTRODUCTION = (
    "The systems of jaxsim come from papers. Of several only the abstract could be read; nothing "
    "else of theirs is quoted, and their figures, from their own hardware and data, stand beside "
    "ours and not against them. A verdict follows from a record by the rule beside it: **holds**, "
    "**holds in part** (some of what the rule asks for), **not seen** (none of it), or "
    "**not recorded**. `python -m benchmarks tables` makes this page from `benchmarks/results/`, "
    "and the command of a row, behind `python -m benchmarks`, makes its record; do not edit."
)


def write_page(results: Results | None = None, path: Path = PAGE) -> Path:
    """Writes the page of verdicts and returns its path.

    Args:
      results: The records; None for those of the repository.
      path: Where to.
    """
    results = Results() if results is None else results
    lines = ["| claim | verdict | measured here | it holds if | command |", "|---|---|---|---|---|"]
    parts, paper = (
        [
            "---\nhide: [toc]\n---\n",
            "# What papers claim, and what was measured here\n",
            INTRODUCTION + "\n",
        ],
        "",
    )
    table: list[str] = []
    for claim in CLAIMS:
        if claim.paper != paper:
            parts += ["\n".join(table) + "\n"] if table else []
            parts.append(f"## {claim.paper}\n")
            paper, table = claim.paper, list(lines)
        try:
            verdict, measured = claim.judge(results)
        except FileNotFoundError:
            verdict, measured = "not recorded", "–"
        cells = (
            claim.says,
            f"**{verdict}**",
            f"{measured} ([more]({claim.page}))",
            claim.rule,
            f"`{claim.command}`",
        )
        table.append("| " + " | ".join(cells) + " |")
    parts.append("\n".join(table) + "\n")
    path.write_text("\n".join(parts))
    return path
