"""Test accuracy beside FLOPs: pruning, exit, and both."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.common.record import IMAGES, Table, record
from benchmarks.common.spread import mean_and_error
from benchmarks.topics.pyramid.settings import NAMES, PyramidSettings
from benchmarks.topics.pyramid.sweeps import (
    ALL,
    FAMILIES,
    LOSSES,
    all_sweeps,
    at_setting,
    chosen_setting,
)
from jaxsim.staged.speed import Speed


def accuracy(settings: PyramidSettings) -> None:
    """Test accuracy beside FLOPs: both, exit alone, pruning alone."""
    found = all_sweeps(settings)
    tables: list[Table] = []
    for name in settings.data:
        sweeps = found[name]
        whole = [at_setting(s["exits test"], *ALL) for s in sweeps]
        reached = mean_and_error(100 * np.array([w.accuracy for w in whole]))
        rows: list[list[Any]] = [["nothing", "", reached, "", "1", f"{whole[0].layer:.2f}"]]
        for family, (kind, fits) in FAMILIES.items():
            for loss in LOSSES:
                setting = chosen_setting(sweeps, kind, fits, loss)
                settled = [at_setting(s[f"{kind} test"], *setting) for s in sweeps]
                pairs = list(zip(settled, whole, strict=True))
                rows.append(
                    [
                        family,
                        f"{100 * loss:g}",
                        mean_and_error(100 * np.array([s.accuracy for s in settled])),
                        mean_and_error(100 * np.array([s.accuracy - w.accuracy for s, w in pairs])),
                        mean_and_error(np.array([w.flops / s.flops for s, w in pairs])),
                        f"{np.mean([s.layer for s in settled]):.2f}",
                    ]
                )
        columns = ["what is left out", "may cost, points", "test accuracy, %"]
        columns += ["to the whole, points", "GFLOPs, times fewer", "mean exit"]
        tables.append(Table(columns, rows, NAMES[name]))
        _plot(name, sweeps)
    record(
        "pyramid_accuracy",
        *tables,
        question="How many FLOPs do token pruning and early exit save at what accuracy?",
        baseline="the same MiniLM fine-tuned for as many steps, everything computed",
        notes="all-MiniLM-L6-v2, 6 layers, mean over tokens. AG News: 4600 rows of its test file "
        "to train, 1000 to choose, 2000 to report (the training file is not at hand: no figure "
        "compares with published ones). SST-2: its own 6920, 872 and 1821. Whole: 1 epoch, then "
        "1.25 at half the rate; pyramid: the same epoch, 0.5 of soft and 0.75 of hard thresholds, "
        "both drawn to what the whole says as well; students by self-distillation with tokens left "
        "out. A factor of the levels and the threshold are chosen, one pair for all seeds: the "
        "fewest FLOPs that cost so much on the validation rows on average over seeds. "
        f"{settings.seeds} seeds, mean ± standard error; FLOPs as `simulate` counts them.",
        settings={"seeds": settings.seeds},
    )


def _plot(name: str, sweeps: list[dict[str, list[Speed]]]) -> None:
    """Accuracy over FLOPs on test rows, means over seeds of the settings on the edge."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 4))
    whole = np.mean([at_setting(s["exits test"], *ALL).flops for s in sweeps])
    for family, (kind, fits) in FAMILIES.items():
        every = [[s for s in sweep[f"{kind} test"] if fits(s)] for sweep in sweeps]
        values = np.array([[(s.flops, s.accuracy) for s in one] for one in every]).mean(0)
        values = values[np.argsort(values[:, 0])]
        edge = values[values[:, 1] >= np.maximum.accumulate(values[:, 1])]
        ax.plot(100 * edge[:, 0] / whole, 100 * edge[:, 1], marker="o", ms=3, label=family)
    ax.set(xlabel="FLOPs, % of the whole", ylabel="test accuracy, %", title=NAMES[name])
    ax.legend()
    fig.tight_layout()
    fig.savefig(IMAGES / f"pyramid_{name}.png", dpi=120)
    plt.close(fig)
