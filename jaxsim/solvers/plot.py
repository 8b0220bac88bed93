"""Figures of exploitability over iterations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxsim.files import atomic


def nash_conv_curves(
    path: str | Path,
    found: Mapping[str, Float[np.ndarray, "games T1"]],
    *,
    title: str,
    along: str = "iterations",
) -> None:
    """Draws NashConv after each iteration, with standard errors over games, to a PNG.

    Args:
      path: File to write.
      found: NashConv of each game after 0, 1, … iterations, by name of the meta-solver.
      title: Title of the figure.
      along: Label of the horizontal axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for name, games in found.items():
        mean, count = games.mean(0), np.arange(games.shape[1])
        error = games.std(0, ddof=1) / np.sqrt(len(games)) if len(games) > 1 else 0 * mean
        (line,) = ax.plot(count, mean, label=name)
        ax.fill_between(count, mean - error, mean + error, color=line.get_color(), alpha=0.2)
    ax.set_xlabel(along)
    ax.set_ylabel("NashConv")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    figure.suptitle(title)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic.whole(path) as part:
        figure.savefig(part, dpi=150)
