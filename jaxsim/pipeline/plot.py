"""A pipeline's timeline as a figure."""

from __future__ import annotations

from pathlib import Path

from jaxsim.files import atomic
from jaxsim.pipeline.schedule import Timeline


def gantt(path: str | Path, timeline: Timeline, *, title: str = "") -> None:
    """Writes a figure of a simulated step: when each stage runs which micro-batch, to a PNG.

    Args:
      path: File to write.
      timeline: Simulated step, from `simulate_schedule`.
      title: Title of the figure; by default the length of the step and its bubble.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    devices = timeline.devices
    figure = Figure(figsize=(10.0, 1.2 + 0.45 * devices), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    unit = float(max(t.end for t in timeline.tasks)) / timeline.ticks
    kinds = {
        "forward": [t for t in timeline.tasks if not t.backward],
        "backward": [t for t in timeline.tasks if t.backward and t.part == "all"],
        "of inputs": [t for t in timeline.tasks if t.part == "inputs"],
        "of weights": [t for t in timeline.tasks if t.part == "weights"],
    }
    for i, (label, tasks) in enumerate((name, found) for name, found in kinds.items() if found):
        starts = [float(t.start) / unit for t in tasks]
        widths = [float(t.end - t.start) / unit for t in tasks]
        rows = [t.stage % devices for t in tasks]
        ax.barh(rows, widths, left=starts, color=f"C{i}", edgecolor="white", label=label)
        for task, start, width in zip(tasks, starts, widths, strict=True):
            middle = start + width / 2
            ax.text(
                middle,
                task.stage % devices,
                str(task.microbatch),
                ha="center",
                va="center",
                fontsize=7,
            )
    ax.set_yticks(range(devices))
    ax.set_ylim(devices - 0.5, -0.5)
    ax.set_ylabel("device")
    ax.set_xlabel("ticks")
    ax.legend(frameon=False, ncols=3, loc="upper right", bbox_to_anchor=(1, 1.25))
    shown = f"{timeline.ticks:.4g} ticks, {timeline.bubble:.1%} idle"
    ax.set_title(title or shown, loc="left")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic.whole(path) as part:
        figure.savefig(part, dpi=150)
