"""Accuracies over seeds: as cells, and compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.common.record import Table
from jaxsim.collaborative.statistics import holm, paired_test


def mean_and_deviation(scores: list[float]) -> str:
    """Scores in percent as a cell."""
    return f"{np.mean(scores):.2f} ± {np.std(scores, ddof=1):.2f}"


def comparisons(
    found: Mapping[tuple[str, str], list[float]],
    pairs: tuple[tuple[str, str], ...],
    sets: tuple[str, ...],
) -> Table:
    """Paired differences, their p values corrected together."""
    tests = []
    for name in sets:
        for a, b in pairs:
            n = min(len(found[name, a]), len(found[name, b]))
            tests.append((name, a, b, paired_test(found[name, a][:n], found[name, b][:n])))
    corrected = holm([test.t_p for *_, test in tests])
    rows = [
        [
            name,
            f"{a} − {b}",
            f"{t.mean:+.2f} ± {t.half_width:.2f}",
            f"{t.t_p:.2g}",
            f"{p:.2g}",
            f"{t.wilcoxon_p:.2g}",
            f"{t.wins}/{t.n}",
            ("higher" if t.mean > 0 else "lower") if p < 0.05 else "not established",
        ]
        for (name, a, b, t), p in zip(tests, corrected, strict=True)
    ]
    columns = ["set", "difference", "points, 95 %", "t p", "Holm p", "Wilcoxon p", "wins", "at 5 %"]
    return Table(columns, rows, f"Paired over seeds; Holm over {len(tests)} comparisons")
