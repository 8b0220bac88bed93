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

    stages = len(timeline.in_flight)
    figure = Figure(figsize=(10.0, 1.2 + 0.45 * stages), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    unit = float(max(t.end for t in timeline.tasks)) / timeline.ticks
    for backward, label, color in ((False, "forward", "C0"), (True, "backward", "C1")):
        tasks = [t for t in timeline.tasks if t.backward == backward]
        starts = [float(t.start) / unit for t in tasks]
        widths = [float(t.end - t.start) / unit for t in tasks]
        rows = [t.stage for t in tasks]
        ax.barh(rows, widths, left=starts, color=color, edgecolor="white", label=label)
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
    with atomic.whole(path) as part:
        figure.savefig(part, dpi=150)
