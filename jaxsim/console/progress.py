"""Progress bars of long runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

from jaxtyping import Array, Float


@contextlib.contextmanager
def progress(
    label: str, total: int, done: int, value: str, *, quiet: bool
) -> Generator[Callable[[Float[Array, ""]], None]]:
    """Shows a progress bar with a number, read only now and then so that steps run ahead.

    Args:
      label: Text before the bar.
      total: Number of steps.
      done: Number of steps made before.
      value: Name of the number.
      quiet: Whether to show nothing.

    Yields:
      A function to call with the number after each step.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(value + " {task.fields[value]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=quiet) as bar:
        count = done
        task = bar.add_task(label, total=total, completed=count, value=float("nan"))

        def advance(number: Array) -> None:
            nonlocal count
            count += 1
            if count % 20 == 0 or count == total:
                bar.update(task, completed=count, value=float(number))

        yield advance
