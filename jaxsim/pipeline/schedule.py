"""Schedules: the order in which stages run micro-batches, and how long a step then takes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from jaxsim.console.table import render
from jaxsim.pipeline.tables import timeline_table

Schedule = Literal["gpipe", "1f1b"]


class Task(NamedTuple):
    """One forward or backward of one stage on one micro-batch.

    Attributes:
      stage: Number of the stage, from 0.
      microbatch: Number of the micro-batch, from 0.
      backward: True for a backward.
      start, end: Times in the unit of the durations.
    """

    stage: int
    microbatch: int
    backward: bool
    start: Fraction
    end: Fraction


class Timeline(NamedTuple):
    """A simulated step of a pipeline.

    Attributes:
      tasks: Tasks in order of their starts.
      ticks: Length of the step, in forward passes of the slowest stage.
      bubble: Share of the stages' time in which they wait, in [0, 1].
      in_flight: For each stage, the most micro-batches it keeps activations of.
      peak_bytes: For each stage, bytes of activations at that moment: those kept for each
        micro-batch in flight, and those inside the stage that is being differentiated.
    """

    tasks: tuple[Task, ...]
    ticks: float
    bubble: float
    in_flight: tuple[int, ...]
    peak_bytes: tuple[int, ...]

    def __str__(self) -> str:
        return render(self.__rich__())

    def __rich__(self) -> Any:
        busy = [sum(t.end - t.start for t in self.tasks if t.stage == k) for k in self.stages]
        total = max(t.end for t in self.tasks)
        idle = [float(1 - b / total) for b in busy]
        return timeline_table(
            list(zip(self.stages, idle, self.in_flight, self.peak_bytes, strict=True)),
            ticks=self.ticks,
            bubble=self.bubble,
        )

    @property
    def stages(self) -> range:
        """Numbers of the stages."""
        return range(len(self.in_flight))


def tasks_of(schedule: Schedule, stage: int, stages: int, count: int) -> list[tuple[bool, int]]:
    """Lists the tasks of one stage in order, as (backward, micro-batch).

    Args:
      schedule: "gpipe" is all forward, then all backward in reverse; "1f1b" starts each backward
        as early as it can, so that a stage keeps at most as many micro-batches as stages follow.
      stage: Number of the stage, from 0.
      stages: Number of stages.
      count: Number of micro-batches.

    Source: Huang et al. (2019), arXiv 1811.06965; Narayanan et al. (2019), PipeDream.
    """
    if schedule == "gpipe":
        return [(False, m) for m in range(count)] + [(True, m) for m in reversed(range(count))]
    ahead = min(stages - 1 - stage, count)
    steady = [pair for i in range(count - ahead) for pair in ((False, ahead + i), (True, i))]
    drain = [(True, m) for m in range(count - ahead, count)]
    return [(False, m) for m in range(ahead)] + steady + drain


def run_through(
    schedule: Schedule, count: int, forward: Sequence[int], backward: Sequence[int]
) -> list[Task]:
    """Times each task, if each stage does its tasks in order as soon as it can.

    Args:
      schedule: Order of the tasks.
      count: Number of micro-batches.
      forward: Durations of forwards by stage, whole numbers of any unit.
      backward: Durations of backwards, in the same unit.

    Returns:
      The tasks in order of their starts, earlier stages first.
    """
    stages = len(forward)
    queues = [tasks_of(schedule, k, stages, count) for k in range(stages)]
    free = [Fraction(0)] * stages
    done: dict[tuple[int, int, bool], Fraction] = {}
    tasks: list[Task] = []
    while any(queues):
        for k, queue in enumerate(queues):
            while queue:
                back, m = queue[0]
                needs = _before(k, m, back, stages)
                if any(task not in done for task in needs):
                    break
                start = max([free[k], *(done[task] for task in needs)])
                free[k] = done[k, m, back] = start + (backward if back else forward)[k]
                tasks.append(Task(k, m, back, start, free[k]))
                queue.pop(0)
    return sorted(tasks, key=lambda task: (task.start, task.stage))


def simulate(
    schedule: Schedule,
    count: int,
    forward: Sequence[int],
    backward: Sequence[int],
    kept: Sequence[int],
    inside: Sequence[int],
) -> Timeline:
    """Simulates one step of a pipeline, without running it.

    Args:
      schedule: Order of the tasks.
      count: Number of micro-batches.
      forward: Durations of forwards by stage, whole numbers of any unit.
      backward: Durations of backwards, in the same unit.
      kept: Bytes by stage kept from a micro-batch's forward to its backward.
      inside: Further bytes by stage while it is differentiated.

    Examples:
      >>> from jaxsim.pipeline.schedule import simulate
      >>> timeline = simulate("1f1b", 4, [1, 1], [2, 2], [0, 0], [0, 0])
      >>> timeline.ticks, timeline.bubble, timeline.in_flight
      (15.0, 0.2, (2, 1))
    """
    tasks = run_through(schedule, count, forward, backward)
    total = max(task.end for task in tasks)
    busy = sum(task.end - task.start for task in tasks)
    flights: list[int] = []
    for k in range(len(forward)):
        now = most = 0
        for back, _ in tasks_of(schedule, k, len(forward), count):
            now += -1 if back else 1
            most = max(most, now)
        flights.append(most)
    return Timeline(
        tasks=tuple(tasks),
        ticks=float(total / max(forward)),
        bubble=float(1 - busy / (len(forward) * total)),
        in_flight=tuple(flights),
        peak_bytes=tuple(n * b + i for n, b, i in zip(flights, kept, inside, strict=True)),
    )


def _before(stage: int, m: int, backward: bool, stages: int) -> list[tuple[int, int, bool]]:
    """The tasks of other stages, or its own forward, that a task waits for."""
    if not backward:
        return [(stage - 1, m, False)] if stage else []
    return [(stage + 1, m, True) if stage < stages - 1 else (stage, m, False)]
