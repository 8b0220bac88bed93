"""Checkpoints of a long run, so that it goes on where it was stopped."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxsim.checkpoint.leaves import (
    abstract_tree,
    from_leaf_list,
    is_weak,
    readable,
    to_leaf_list,
    writable,
)
from jaxsim.files import atomic


class RunCheckpointer(NamedTuple):
    """Numbered checkpoints of a long run, of which the newest is kept.

    Attributes:
      manager: An orbax `CheckpointManager`.

    Examples:
      >>> import tempfile
      >>> import numpy as np
      >>> from jaxsim.checkpoint import run_checkpoints
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with run_checkpoints(f"{folder}/run", run={"seed": 1}) as kept:
      ...         kept.add(5, {"w": np.ones(2)})
      ...     with run_checkpoints(f"{folder}/run", run={"seed": 1}) as kept:
      ...         number, tree = kept.newest({"w": np.zeros(2)})
      >>> number, tree["w"].tolist()
      (5, [1.0, 1.0])
    """

    manager: Any

    def newest(self, like: Any) -> tuple[int, Any]:
        """Reads the newest checkpoint: its number and content; 0 and `like` where there is none.

        Its arrays lie where those of `like` do and are committed there if those are, so that what
        was compiled for `like` is not compiled again. Neither has weak types.

        Args:
          like: Tree of arrays of the shapes, dtypes and devices that are expected.

        Raises:
          ValueError: The newest one does not hold what `like` does.
        """
        import orbax.checkpoint as ocp

        number = self.manager.latest_step()
        if number is None:
            return 0, jax.tree.map(lambda a: a.astype(a.dtype) if is_weak(a) else a, like)
        target = abstract_tree(like, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        with readable(self.manager.directory):
            content = self.manager.restore(
                number, args=ocp.args.StandardRestore(to_leaf_list(target))
            )
        return number, from_leaf_list(like, content)

    def add(self, number: int, tree: Any) -> None:
        """Writes a checkpoint; it counts once it is complete.

        Args:
          number: Steps or epochs done, above that of every checkpoint before.
          tree: Arrays to keep.

        Raises:
          OSError: It cannot be written; the newest one is still the one before.
        """
        import orbax.checkpoint as ocp

        with writable(Path(self.manager.directory)):
            self.manager.save(number, args=ocp.args.StandardSave(to_leaf_list(tree)))


@contextmanager
def run_checkpoints(
    folder: str | Path, *, run: Mapping[str, Any], read_only: bool = False
) -> Generator[RunCheckpointer]:
    """Opens a folder of numbered checkpoints, which is locked until the end.

    Args:
      folder: Path of the folder, made if need be.
      run: Settings and digests that tell the run from others, by name, as JSON holds them; kept in
        the folder.
      read_only: Neither lock nor make the folder: another process may be adding checkpoints.

    Yields:
      A `RunCheckpointer` of the folder.

    Raises:
      ValueError: The folder belongs to another run, or another process writes to it.

    Examples:
      >>> import tempfile
      >>> from jaxsim.checkpoint import run_checkpoints
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with run_checkpoints(f"{folder}/run", run={"seed": 1}) as kept:
      ...         kept.newest({"w": 0.0})
      (0, {'w': 0.0})
    """
    import orbax.checkpoint as ocp

    with contextlib.ExitStack() as stack:
        path = Path(folder).absolute()
        if not read_only:
            stack.enter_context(atomic.locked("checkpoints", path))
            path.mkdir(exist_ok=True)
        _check_note(folder, run, write=not read_only)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else 1,
            enable_async_checkpointing=False,
            read_only=read_only,
        )
        manager = ocp.CheckpointManager(path, options=options)
        stack.callback(manager.close)
        yield RunCheckpointer(manager)


def _check_note(folder: str | Path, run: Mapping[str, Any], *, write: bool) -> None:
    """Compares what tells a run from others with the note in its folder, or writes the note."""
    note, run = Path(folder) / "run.txt", json.loads(json.dumps(run))
    # A note that a full disk has cut to nothing tells nothing.
    if text := note.read_text(encoding="utf-8") if note.exists() else "":
        try:
            kept = json.loads(text)
        except json.JSONDecodeError:
            kept = None
        if kept == run:
            return
        what = "of another run"
        if isinstance(kept, dict):
            names = [n for n in {**run, **kept} if kept.get(n) != run.get(n)]
            what += f" (other {', '.join(names)})"
        raise ValueError(f"checkpoints={str(folder)!r} are {what}; choose a new folder")
    if write:
        atomic.write_text(note, json.dumps(run))
