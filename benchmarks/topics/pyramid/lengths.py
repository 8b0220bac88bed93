"""What pruning, exits and both save on short texts and on long ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.common.record import IMAGES, Table, record
from benchmarks.common.spread import mean_and_error, standard_error
from benchmarks.common.texts import corpus_of
from benchmarks.topics.pyramid.settings import NAMES, PyramidSettings
from benchmarks.topics.pyramid.sweeps import (
    ALL,
    FAMILIES,
    QUARTERS,
    all_sweeps,
    at_setting,
    chosen_setting,
)

LOSS = 0.005
"""Accuracy that a setting may cost on the validation rows."""


def lengths(settings: PyramidSettings) -> None:
    """FLOPs and accuracy by quarters of the test rows, from the shortest to the longest."""
    found = all_sweeps(settings)
    tables: list[Table] = []
    drawn: list[tuple[str, str, float, np.ndarray]] = []
    for name in settings.data:
        sweeps = found[name]
        sorted_lengths = np.sort(corpus_of(name, settings.texts).test.lengths)
        quarters = np.array_split(sorted_lengths, QUARTERS)
        one = {f: chosen_setting(sweeps, k, fits, LOSS) for f, (k, fits) in FAMILIES.items()}
        rows: list[list[Any]] = []
        for i, tokens in enumerate(quarters):
            whole = [at_setting(s[f"exits test {i}"], *ALL) for s in sweeps]
            for family, (kind, fits) in FAMILIES.items():
                own = chosen_setting(sweeps, kind, fits, LOSS, f" {i}")
                cells: list[str] = []
                for setting in (one[family], own):
                    settled = [at_setting(s[f"{kind} test {i}"], *setting) for s in sweeps]
                    pairs = list(zip(settled, whole, strict=True))
                    fewer = np.array([w.flops / s.flops for s, w in pairs])
                    points = 100 * np.array([s.accuracy - w.accuracy for s, w in pairs])
                    cells += [mean_and_error(fewer), mean_and_error(points)]
                    if setting == one[family]:
                        drawn.append((name, family, float(np.mean(tokens)), fewer))
                rows.append([f"{tokens[0]} to {tokens[-1]}", family, *cells])
        columns = ["tokens", "what is left out", "times fewer", "points"]
        columns += ["own setting: times fewer", "own setting: points"]
        tables.append(Table(columns, rows, NAMES[name]))
    _plot(drawn)
    record(
        "pyramid_lengths",
        *tables,
        question="Do short texts and long ones prefer to lose tokens or to leave early?",
        baseline="the same MiniLM fine-tuned for as many steps, everything computed",
        notes="Networks and sweeps of the accuracy part. Test rows in quarters by their number of "
        "tokens. One setting: the fewest FLOPs that cost half a point on all validation rows, on "
        "average over seeds. Own setting: the same of the validation rows of that quarter, which "
        "are few. A row of the joined set is one to eight texts of AG News of one class. "
        f"{settings.seeds} seeds, mean ± standard error.",
        settings={"seeds": settings.seeds},
    )


def _plot(drawn: list[tuple[str, str, float, np.ndarray]]) -> None:
    """FLOPs saved over tokens, a line a family and set."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    fig, ax = plt.subplots(figsize=(6, 4))
    colors = dict(zip(FAMILIES, ("tab:blue", "tab:orange", "tab:green"), strict=True))
    styles = dict(zip(NAMES, ("-", "--", ":"), strict=True))
    for name in dict.fromkeys(n for n, *_ in drawn):
        for family, color in colors.items():
            points = {x: values for n, f, x, values in drawn if (n, f) == (name, family)}
            means = [float(values.mean()) for values in points.values()]
            errors = [standard_error(v) if len(v) > 1 else 0 for v in points.values()]
            ax.errorbar(
                list(points),
                means,
                yerr=errors,
                color=color,
                linestyle=styles[name],
                marker="o",
                ms=3,
                label=f"{NAMES[name]}: {family}",
            )
    ax.set(xscale="log", xlabel="tokens of a text, mean of a quarter", ylabel="GFLOPs, times fewer")
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(ScalarFormatter())
    ax.legend(fontsize=7, handlelength=4)
    fig.tight_layout()
    fig.savefig(IMAGES / "pyramid_lengths.png", dpi=120)
    plt.close(fig)
