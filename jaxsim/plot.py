"""Figures, by matplotlib without a screen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxsim import files
from jaxsim.schedule import Timeline


class Curve(NamedTuple):
    """Accuracy along one setting.

    Attributes:
      x: the setting [N].
      accuracy: shares, one row a programming [N, trials].
    """

    x: Sequence[float]
    accuracy: Float[np.ndarray, "N trials"]


def accuracy_curves(
    path: str | Path,
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    reference: float,
    title: str,
    baseline: str = "float",
) -> None:
    """Writes a figure of accuracy curves with standard errors to a PNG.

    Args:
      path: file to write.
      panels: for each panel's horizontal axis, its curves by name.
      reference: accuracy drawn across.
      title: of the figure.
      baseline: what has that accuracy.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    markers = ("o", "s", "^", "D", "v", "P", "X")
    for ax, (label, curves) in zip(axes, panels.items(), strict=True):
        for marker, (name, curve) in zip(itertools.cycle(markers), curves.items(), strict=False):
            trials = curve.accuracy.shape[1]
            spread = curve.accuracy.std(1, ddof=1) if trials > 1 else np.zeros(len(curve.x))
            ax.errorbar(
                curve.x,
                100 * curve.accuracy.mean(1),
                yerr=100 * spread / np.sqrt(trials),
                marker=marker,
                markersize=4,
                capsize=3,
                label=name,
            )
        ax.axhline(100 * reference, color="0.5", linestyle=":", label=baseline)
        ax.set_xlabel(label)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    axes[0].set_ylabel("accuracy, %")
    figure.suptitle(title)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as part:
        figure.savefig(part, dpi=150)


def accuracy_bars(
    path: str | Path,
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    reference: float,
    title: str,
    baseline: str = "float",
) -> None:
    """Writes a figure of accuracies of several chips under several conditions to a PNG.

    Args:
      path: file to write.
      groups: for each chip, the accuracies [trials] under each condition, as shares.
      reference: accuracy drawn across.
      title: of the figure.
      baseline: what has that accuracy.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    conditions = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure = Figure(figsize=(1.6 + 1.5 * len(conditions), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    width = 0.8 / len(groups)
    for i, (name, group) in enumerate(groups.items()):
        places = [conditions.index(c) + (i - (len(groups) - 1) / 2) * width for c in group]
        percent = [100 * np.asarray(trials) for trials in group.values()]
        errors = [p.std(ddof=1) / np.sqrt(len(p)) if len(p) > 1 else 0.0 for p in percent]
        ax.bar(places, [p.mean() for p in percent], width, yerr=errors, capsize=2, label=name)
    ax.axhline(100 * reference, color="0.5", linestyle=":", label=baseline)
    ax.set_xticks(range(len(conditions)), [c.replace(", ", ",\n") for c in conditions])
    ax.set_ylabel("accuracy, %")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as part:
        figure.savefig(part, dpi=150)


def gantt(path: str | Path, timeline: Timeline, *, title: str = "") -> None:
    """Writes a figure of a simulated step: when each stage runs which micro-batch, to a PNG.

    Args:
      path: file to write.
      timeline: from `simulate_schedule`.
      title: of the figure; by default the length of the step and its bubble.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = len(timeline.in_flight)
    figure = Figure(figsize=(10.0, 1.2 + 0.45 * stages), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    unit = float(max(t.end for t in timeline.tasks)) / timeline.ticks
    for backward, label, colour in ((False, "forward", "C0"), (True, "backward", "C1")):
        tasks = [t for t in timeline.tasks if t.backward == backward]
        starts = [float(t.start) / unit for t in tasks]
        widths = [float(t.end - t.start) / unit for t in tasks]
        rows = [t.stage for t in tasks]
        ax.barh(rows, widths, left=starts, color=colour, edgecolor="white", label=label)
        for task, start, width in zip(tasks, starts, widths, strict=True):
            middle = start + width / 2
            ax.text(middle, task.stage, str(task.microbatch), ha="center", va="center", fontsize=7)
    ax.set_yticks(range(stages))
    ax.set_ylim(stages - 0.5, -0.5)
    ax.set_ylabel("stage")
    ax.set_xlabel("ticks")
    ax.legend(frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.25))
    shown = f"{timeline.ticks:.4g} ticks, {timeline.bubble:.1%} idle"
    ax.set_title(title or shown, loc="left")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as part:
        figure.savefig(part, dpi=150)


def nash_conv_curves(
    path: str | Path,
    found: Mapping[str, Float[np.ndarray, "games T1"]],
    *,
    title: str,
    along: str = "iterations",
) -> None:
    """Writes a figure of NashConv after each iteration, with standard errors over games, to a PNG.

    Args:
      path: file to write.
      found: NashConv of each game after 0, 1, … iterations, by name of the meta-solver.
      title: of the figure.
      along: what the horizontal axis counts.
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
    with files.whole(path) as part:
        figure.savefig(part, dpi=150)


def routing_maps(
    path: str | Path,
    images: Float[np.ndarray, "B H W"],
    affinity: Float[np.ndarray, "I U B N"],
) -> None:
    """Writes a figure of which function takes which patch, iteration by iteration, to a PNG.

    A patch has the colour of the function with the largest share, the fainter the nearer that share
    is to an equal one.

    Args:
      path: file to write.
      images: grey levels.
      affinity: share of each function in each token, the patches of a square behind whatever other
        tokens there are: a script of `Routing.affinity`.

    Raises:
      ValueError: not one affinity an image.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    iterations, functions, rows, tokens = affinity.shape
    if len(images) != rows:
        raise ValueError(f"images: {len(images)} of them for affinities of {rows}")
    side = math.isqrt(tokens)
    colours = colormaps["tab10"](np.arange(functions) % 10)[:, :3]
    figure = Figure(figsize=(1.3 * (iterations + 1), 1.3 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, iterations + 1, squeeze=False)
    for row, (image, line) in enumerate(zip(images, axes, strict=True)):
        line[0].imshow(image, cmap="gray_r")
        for i, ax in enumerate(line[1:]):
            share = affinity[i, :, row, tokens - side**2 :]
            surplus = (share.max(0) - 1 / functions) / (1 - 1 / functions)
            strength = np.clip(surplus, 0, 1)[:, None]
            shown = 1 - strength * (1 - colours[share.argmax(0)])
            ax.imshow(shown.reshape(side, side, 3))
            if row == 0:
                ax.set_title(f"iteration {i + 1}", fontsize=8)
        for ax in line:
            ax.set_xticks([])
            ax.set_yticks([])
    handles = [Patch(color=c, label=f"function {u + 1}") for u, c in enumerate(colours)]
    figure.legend(handles=handles, loc="outside lower center", ncols=functions, fontsize=8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as part:
        figure.savefig(part, dpi=120)
