"""Checkpoints of a long run, so that it goes on where it was stopped."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsim.checkpoint.leaves import (
    abstract_tree,
    from_leaf_list,
    is_weak,
    of_the_first_process,
    place_whole,
    readable,
    said_by_the_first,
    shape_on,
    to_leaf_list,
    writable,
)
from jaxsim.files import atomic
from jaxsim.numerics.arrays import whole_on_host


class RunCheckpointer(NamedTuple):
    """Numbered checkpoints of a long run, of which the newest is kept.

    Of several processes that run together each calls every method; the first reads and writes.

    Attributes:
      folder: Path of the folder.
      manager: An orbax `CheckpointManager`; None in processes behind the first.

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

    folder: Path
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
        number = 0 if self.manager is None else self.manager.latest_step() or 0
        number = int(said_by_the_first(np.asarray(number)))
        if number == 0:
            return 0, jax.tree.map(lambda a: a.astype(a.dtype) if is_weak(a) else a, like)
        if jax.process_count() == 1:
            target = abstract_tree(like, _home())
            content = self._read(number, to_leaf_list(target))
            return number, from_leaf_list(like, content)
        leaves = to_leaf_list(like)["leaves"]
        arrays = [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
        with of_the_first_process(self.folder, "read"):
            if self.manager is not None:
                targets = [shape_on(leaf, _home()) for leaf in leaves]
                arrays = [np.asarray(a) for a in self._read(number, {"leaves": targets})["leaves"]]
        arrays = [said_by_the_first(a) for a in arrays]
        placed = [place_whole(a, leaf) for a, leaf in zip(arrays, leaves, strict=True)]
        return number, from_leaf_list(like, {"leaves": placed})

    def _read(self, number: int, target: dict[str, list[Any]]) -> Any:
        import orbax.checkpoint as ocp

        with readable(self.manager.directory):
            return self.manager.restore(number, args=ocp.args.StandardRestore(target))

    def add(self, number: int, tree: Any) -> None:
        """Writes a checkpoint; it counts once it is complete.

        Args:
          number: Steps or epochs done, above that of every checkpoint before.
          tree: Arrays to keep.

        Raises:
          OSError: It cannot be written; the newest one is still the one before.
        """
        import orbax.checkpoint as ocp

        content = to_leaf_list(tree)
        if jax.process_count() > 1:
            content = {"leaves": [whole_on_host(leaf) for leaf in content["leaves"]]}
        with of_the_first_process(self.folder):
            if self.manager is not None:
                with writable(self.folder):
                    self.manager.save(number, args=ocp.args.StandardSave(content))


def _home() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


@contextmanager
def run_checkpoints(
    folder: str | Path, *, run: Mapping[str, Any], read_only: bool = False
) -> Generator[RunCheckpointer]:
    """Opens a folder of numbered checkpoints, which is locked until the end.

    Processes that run together open it together; the first locks it, and what it raises is an error
    in all of them.

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

    path, manager = Path(folder).absolute(), None
    alone = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="jaxsim_run"
        )
    with contextlib.ExitStack() as stack:
        with of_the_first_process(folder, "opened"):
            if jax.process_index() == 0:
                if not read_only:
                    stack.enter_context(atomic.locked("checkpoints", path))
                    path.mkdir(exist_ok=True)
                _check_note(folder, run, write=not read_only)
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=None if read_only else 1,
                    enable_async_checkpointing=False,
                    read_only=read_only,
                    create=False,
                    multiprocessing_options=alone,
                )
                manager = ocp.CheckpointManager(path, options=options)
                stack.callback(manager.close)
        yield RunCheckpointer(path, manager)


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
