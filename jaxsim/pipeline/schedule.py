"""The order in which stages run micro-batches, and how long a step then takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from jaxsim.console.table import shown_as_table
from jaxsim.pipeline.tables import timeline_table

Schedule = Literal["gpipe", "1f1b", "interleaved", "zb-h1"]
"""Order in which a device runs forwards and backwards; `steps_of` says which is which."""

Part = Literal["all", "inputs", "weights"]
"""Which gradients a backward computes."""


class Step(NamedTuple):
    """What a device does next.

    Attributes:
      stage: Number of the stage, from 0.
      microbatch: Number of the micro-batch, from 0.
      backward: True for a backward.
      part: Which gradients a backward computes; "all" of a forward.
    """

    stage: int
    microbatch: int
    backward: bool
    part: Part = "all"


class Task(NamedTuple):
    """One forward or backward of one stage on one micro-batch.

    Attributes:
      stage: Number of the stage, from 0.
      microbatch: Number of the micro-batch, from 0.
      backward: True for a backward.
      start, end: Times in the unit of the durations.
      part: Which gradients a backward computes; "all" of a forward.
    """

    stage: int
    microbatch: int
    backward: bool
    start: Fraction
    end: Fraction
    part: Part = "all"


class Durations(NamedTuple):
    """How long each stage takes for a micro-batch, in whole numbers of any unit.

    Attributes:
      forward: Of forwards, by stage.
      backward: Of whole backwards, by stage.
      weights: Of the part of a backward that computes the gradients of weights, by stage.
    """

    forward: Sequence[int]
    backward: Sequence[int]
    weights: Sequence[int]

    def of(self, step: Step) -> int:
        """How long a step takes.

        Args:
          step: The step.
        """
        if not step.backward:
            return self.forward[step.stage]
        whole, weights = self.backward[step.stage], self.weights[step.stage]
        return {"all": whole, "weights": weights, "inputs": whole - weights}[step.part]


@shown_as_table
class Timeline(NamedTuple):
    """A simulated step of a pipeline.

    Attributes:
      tasks: Tasks in order of their starts.
      ticks: Length of the step, in forward passes of the slowest stage.
      bubble: Share of the devices' time in which they wait, in [0, 1].
      in_flight: For each stage, the most micro-batches it keeps activations of.
      peak_bytes: For each stage, bytes of activations at that moment: those kept for each
        micro-batch in flight, and those inside the stage that is being differentiated.
      devices: Number of devices D; stage k runs on device k modulo D.
    """

    tasks: tuple[Task, ...]
    ticks: float
    bubble: float
    in_flight: tuple[int, ...]
    peak_bytes: tuple[int, ...]
    devices: int

    def __rich__(self) -> Any:
        total, D = max(t.end for t in self.tasks), self.devices
        busy = [sum(t.end - t.start for t in self.tasks if t.stage % D == d) for d in range(D)]
        idle = [float(1 - busy[k % D] / total) for k in self.stages]
        return timeline_table(
            list(zip(self.stages, idle, self.in_flight, self.peak_bytes, strict=True)),
            ticks=self.ticks,
            bubble=self.bubble,
        )

    @property
    def stages(self) -> range:
        """Numbers of the stages."""
        return range(len(self.in_flight))


def steps_of(
    schedule: Schedule, device: int, devices: int, count: int, chunks: int = 1
) -> list[Step]:
    """Lists what one device does in a training step, in order.

    Args:
      schedule: "gpipe" is all forward, then all backward in reverse. "1f1b" starts each backward as
        early as it can, so that a stage keeps at most as many micro-batches as stages follow.
        "interleaved" is 1F1B on devices that run several stages each, taken up in turns of as many
        micro-batches as there are devices. "zb-h1" is 1F1B with backwards in two parts: that of the
        inputs, for which the stage before waits, and that of the weights, which the k-th stage
        leaves until k more micro-batches have come back, so that it fills what was a bubble and all
        stages keep equally many.
      device: Number of the device, from 0.
      devices: Number of devices.
      count: Number of micro-batches; for "interleaved" a multiple of `devices`.
      chunks: Stages a device runs, at `devices` from one another; 1 unless "interleaved".

    Source: Huang et al. (2019), GPipe, arXiv 1811.06965; Narayanan et al. (2019), PipeDream;
    Narayanan et al. (2021), arXiv 2104.04473, section 2.2; Qi et al. (2023), arXiv 2401.10241,
    section 2.1.
    """
    forward = [Step(device, m, False) for m in range(count)]
    back = [Step(device, m, True) for m in range(count)]
    ahead = min(devices - 1 - device, count)
    if schedule == "gpipe":
        return [*forward, *reversed(back)]
    if schedule == "interleaved":
        forward = list(_in_turns(device, devices, count, range(chunks)))
        back = [
            step._replace(backward=True)
            for step in _in_turns(device, devices, count, reversed(range(chunks)))
        ]
        ahead = min(2 * (devices - 1 - device) + (chunks - 1) * devices, len(forward))
    steps = forward[:ahead]
    for i, step in enumerate(back):
        steps += forward[ahead + i : ahead + i + 1]
        if schedule != "zb-h1":
            steps.append(step)
            continue
        steps.append(step._replace(part="inputs"))
        if i >= device:
            steps.append(back[i - device]._replace(part="weights"))
    if schedule == "zb-h1":
        steps += [w._replace(part="weights") for w in back[max(count - device, 0) :]]
    return steps


def _in_turns(device: int, devices: int, count: int, chunks: Iterable[int]) -> Iterator[Step]:
    """Forwards of a device's stages: each for as many micro-batches as there are devices."""
    order = list(chunks)
    for first in range(0, count, devices):
        for chunk in order:
            for m in range(first, first + devices):
                yield Step(chunk * devices + device, m, False)


def run_through(
    schedule: Schedule, count: int, durations: Durations, chunks: int = 1
) -> list[Task]:
    """Times each task, if each device does its steps in order as soon as it can.

    Args:
      schedule: Order of the tasks.
      count: Number of micro-batches.
      durations: How long each stage takes.
      chunks: Stages a device runs.

    Returns:
      The tasks in order of their starts, earlier stages first.
    """
    stages = len(durations.forward)
    devices = stages // chunks
    queues = [deque(steps_of(schedule, d, devices, count, chunks)) for d in range(devices)]
    free = [Fraction(0)] * devices
    done: dict[Step, Fraction] = {}
    tasks: list[Task] = []
    while any(queues):
        for d, queue in enumerate(queues):
            while queue:
                step = queue[0]
                needs = _before(step, stages, "inputs" if schedule == "zb-h1" else "all")
                if any(task not in done for task in needs):
                    break
                start = max([free[d], *(done[task] for task in needs)])
                free[d] = done[step] = start + durations.of(step)
                k, m, back, part = queue.popleft()
                tasks.append(Task(k, m, back, start, free[d], part))
    return sorted(tasks, key=lambda task: (task.start, task.stage))


def simulate(
    schedule: Schedule,
    count: int,
    forward: Sequence[int],
    backward: Sequence[int],
    kept: Sequence[int],
    inside: Sequence[int],
    *,
    weights: Sequence[int] | None = None,
    chunks: int = 1,
) -> Timeline:
    """Simulates one step of a pipeline, without running it.

    Args:
      schedule: Order of the tasks.
      count: Number of micro-batches.
      forward: Durations of forwards by stage, whole numbers of any unit.
      backward: Durations of backwards, in the same unit.
      kept: Bytes by stage kept from a micro-batch's forward to its backward.
      inside: Further bytes by stage while it is differentiated.
      weights: Durations of the part of backwards that is of weights; as the forwards by default.
      chunks: Stages a device runs.

    Examples:
      >>> from jaxsim.pipeline.schedule import simulate
      >>> timeline = simulate("1f1b", 4, [1, 1], [2, 2], [0, 0], [0, 0])
      >>> timeline.ticks, timeline.bubble, timeline.in_flight
      (15.0, 0.2, (2, 1))
      >>> simulate("zb-h1", 4, [1, 1], [2, 2], [0, 0], [0, 0]).ticks
      13.0
    """
    durations = Durations(forward, backward, forward if weights is None else weights)
    tasks = run_through(schedule, count, durations, chunks)
    total = max(task.end for task in tasks)
    busy = sum(task.end - task.start for task in tasks)
    devices = len(forward) // chunks
    flights = [0] * len(forward)
    for d in range(devices):
        now = [0] * len(forward)
        for step in steps_of(schedule, d, devices, count, chunks):
            if step.part != "inputs":
                now[step.stage] += -1 if step.backward else 1
            flights[step.stage] = max(flights[step.stage], now[step.stage])
    return Timeline(
        tasks=tuple(tasks),
        ticks=float(total / max(forward)),
        bubble=float(1 - busy / (devices * total)),
        in_flight=tuple(flights),
        peak_bytes=tuple(n * b + i for n, b, i in zip(flights, kept, inside, strict=True)),
        devices=devices,
    )


def _before(step: Step, stages: int, part: Part) -> list[Step]:
    """The steps of other stages, or its own before, that one waits for."""
    k, m, backward, own = step
    if not backward:
        return [Step(k - 1, m, False)] if k else []
    if own == "weights":
        return [Step(k, m, True, "inputs")]
    return [Step(k + 1, m, True, part) if k < stages - 1 else Step(k, m, False)]
