"""The order in which stages run micro-batches, and what a pipeline's time is spent on."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from jaxsim.console.table import render
from jaxsim.pipeline.tables import timeline_table

Schedule = Literal["gpipe", "1f1b"]


class Task(NamedTuple):
    """One stage's work on one micro-batch.

    Attributes:
      stage: which stage.
      microbatch: which micro-batch.
      backward: backward or forward.
      start, end: when, in the unit of the durations.
    """

    stage: int
    microbatch: int
    backward: bool
    start: Fraction
    end: Fraction


class Timeline(NamedTuple):
    """A simulated step of a pipeline.

    Attributes:
      tasks: in order of their starts.
      ticks: length of the step, in forward passes of the slowest stage.
      bubble: share of the stages' time in which they wait.
      in_flight: for each stage, the most micro-batches it keeps activations of.
      peak_bytes: for each stage, bytes of activations at that moment: those kept for each
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
        """The stages."""
        return range(len(self.in_flight))


def tasks_of(schedule: Schedule, stage: int, stages: int, count: int) -> list[tuple[bool, int]]:
    """What one stage does, in order: (backward, micro-batch).

    Args:
      schedule: "gpipe" is all forward, then all backward in reverse; "1f1b" starts each backward
        as early as it can, so that a stage keeps at most as many micro-batches as stages follow.
      stage: which one.
      stages: how many there are.
      count: number of micro-batches.

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
    """When each task runs if each stage does its tasks in order as soon as it can.

    Args:
      schedule: of the tasks.
      count: number of micro-batches.
      forward: durations by stage, whole numbers of any unit.
      backward: the same of the backwards.

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
    """One step of a pipeline, without running it.

    Args:
      schedule: of the tasks.
      count: number of micro-batches.
      forward: durations by stage, whole numbers of any unit.
      backward: the same of the backwards.
      kept: bytes that a stage keeps from a micro-batch's forward to its backward.
      inside: further bytes while a stage is differentiated.
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
