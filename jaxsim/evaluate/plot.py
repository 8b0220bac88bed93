"""Figures of accuracies."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxsim.files import atomic


class Curve(NamedTuple):
    """Accuracy along one setting.

    Attributes:
      x: Values of the setting, [N].
      accuracy: Accuracies in [0, 1], [N, trials], one column per programming of the chip.

    Examples:
      >>> import numpy as np
      >>> from jaxsim.evaluate import Curve
      >>> bits = Curve([4, 8], np.array([[0.70, 0.74], [0.90, 0.92]]))
      >>> [round(float(mean), 2) for mean in bits.accuracy.mean(1)]
      [0.72, 0.91]
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
    """Draws accuracy curves with standard errors and writes them to a PNG.

    Args:
      path: File to write.
      panels: Curves by name, for each panel by the label of its horizontal axis.
      reference: Accuracy drawn across, in [0, 1].
      title: Title of the figure.
      baseline: Name of what has the accuracy drawn across.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> import numpy as np
      >>> from jaxsim.evaluate import Curve, accuracy_curves
      >>> path = Path(tempfile.mkdtemp()) / "bits.png"
      >>> bits = Curve([4, 8], np.array([[0.70, 0.74], [0.90, 0.92]]))
      >>> accuracy_curves(path, {"bits": {"ADC": bits}}, reference=0.93, title="Converters")
      >>> path.exists()
      True
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
    with atomic.whole(path) as part:
        figure.savefig(part, dpi=150)


def accuracy_bars(
    path: str | Path,
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    reference: float,
    title: str,
    baseline: str = "float",
) -> None:
    """Draws accuracies of several chips under several conditions and writes them to a PNG.

    Args:
      path: File to write.
      groups: Accuracies [trials] in [0, 1] by condition, for each chip.
      reference: Accuracy drawn across, in [0, 1].
      title: Title of the figure.
      baseline: Name of what has the accuracy drawn across.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from jaxsim.evaluate import accuracy_bars
      >>> path = Path(tempfile.mkdtemp()) / "chips.png"
      >>> groups = {"first": {"new": [0.90, 0.92], "a year old": [0.81, 0.79]}}
      >>> accuracy_bars(path, groups, reference=0.93, title="Chips")
      >>> path.exists()
      True
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
    with atomic.whole(path) as part:
        figure.savefig(part, dpi=150)
