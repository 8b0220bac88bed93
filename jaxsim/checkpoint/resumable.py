"""A loop of steps that goes on where it was stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import Array, Float

from jaxsim.checkpoint.resume import run_checkpoints
from jaxsim.console.progress import progress

S = TypeVar("S")
B = TypeVar("B")


def resumable(
    step: Callable[[S, B], tuple[S, Float[Array, ""]]],
    state: S,
    batches: Callable[[int], Iterable[B]],
    *,
    steps: int,
    folder: str | Path | None = None,
    run: Mapping[str, Any] | None = None,
    every: int = 1,
    steps_per_number: int = 1,
    content: Callable[[S], Any] = lambda state: state,
    with_content: Callable[[S, Any], S] = lambda state, content: content,
    on_open: Callable[[], None] = lambda: None,
    label: str,
    value: str = "loss",
    quiet: bool = False,
) -> S:
    """Takes a state through steps, with checkpoints to resume from and a progress bar.

    Where a step depends on its state and batch alone, and a batch on its number alone, a run that
    was stopped in any way and is started again ends with the bits of one that was not.

    Args:
      step: `(state, batch) -> (state, number to show)`.
      state: What the first step of all is given.
      batches: From a number of steps that are done, the batches of the steps that are left.
      steps: Number of steps in all.
      folder: Folder of checkpoints to write to and to resume from; None for none.
      run: Settings and digests that tell the run from others, as `run_checkpoints` takes them.
      every: Steps from one checkpoint to the next, at least 1; the last step has one too.
      steps_per_number: Steps that a checkpoint's number counts as one, those of an epoch for
        instance; it divides `every` and `steps`.
      content: The arrays of a state that a checkpoint holds.
      with_content: The state with other such arrays.
      on_open: Called once the folder is known to be of this run, and locked.
      label: Text before the progress bar.
      value: Name of the number behind it.
      quiet: Show no progress bar.

    Returns:
      The state after the last step.

    Raises:
      ValueError: Checkpoints of another run, or a folder that another process writes to.

    Examples:
      >>> import jax.numpy as jnp
      >>> def step(total, batch):
      ...     return total + batch, total
      >>> total = resumable(
      ...     step, jnp.zeros(()), lambda done: range(done, 4), steps=4, label="sum", quiet=True
      ... )
      >>> float(total)
      6.0
    """
    with contextlib.ExitStack() as stack:
        done, kept = 0, None
        if folder is not None:
            kept = stack.enter_context(run_checkpoints(folder, run=run or {}))
            on_open()
            number, tree = kept.newest(content(state))
            done, state = number * steps_per_number, with_content(state, tree)
        advance = stack.enter_context(progress(label, steps, done, value, quiet=quiet))
        for count, batch in enumerate(batches(done), done + 1):
            state, number = step(state, batch)
            advance(number)
            if kept is not None and (count % every == 0 or count == steps):
                kept.add(count // steps_per_number, content(state))
    return state
