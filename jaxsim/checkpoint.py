"""Networks and training states on disk, by orbax: arrays and plain metadata, never pickles."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsim import files
from jaxsim.network import (
    Network,
    beside_weights,
    data_fields,
    param_names,
    params_read,
    path_name,
    write_states,
)
from jaxsim.packing import Form, pack, unpack

_FORMAT = 1
_PACKED = 2
"""Format of a deployed network, whose arrays are packed into one of bytes."""


def save(path: str | Path, net: Network) -> None:
    """Writes a network's parameters, buffers, masks, settings and states to a new folder.

    A deployed network is packed: codes of b bits take b bits, and parameters that its calls read no
    more, because their sites read what was written, are left out.

    Args:
      path: folder to make. It appears when it is complete and not before.
      net: deployed or not. Arrays of a deployed one must be on devices of this process.

    Raises:
      ValueError: the folder exists, or another thread or process is saving to it.
      OSError: it cannot be written; nothing of it is left.
    """
    folder = Path(path).absolute()
    with files.locked("path", folder):
        if folder.exists():
            raise ValueError(f"path={str(path)!r} exists; choose a new folder")
        _write(folder, net)


def _write(folder: Path, net: Network) -> None:
    import orbax.checkpoint as ocp

    metadata: dict[str, Any] = {
        "network": describe(net),
        "deployed": net.deployed,
        "calibrated": net.calibrated,
    }
    content = _boxed(data_fields(net))
    if net.deployed:
        content = pack([np.asarray(leaf) for leaf in _boxed(_stored(net))["leaves"]])
        metadata["check"] = _check(content, metadata)
        content = {"packed": jnp.frombuffer(content, jnp.uint8)}
    metadata["format"] = _PACKED if net.deployed else _FORMAT
    part = folder.with_name(f"{folder.name}.orbax-checkpoint-tmp")  # as orbax calls it
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    try:
        # Not the asynchronous one: its threads outlive a failure and keep a process from ending.
        with _writable(folder), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            content = ocp.args.StandardSave(content)
            checkpointer.save(folder, args=content, custom_metadata=metadata)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load(path: str | Path, like: Network) -> Network:
    """Reads a network that `save` wrote.

    Args:
      path: the folder.
      like: the same model, traced and composed in the same way, not deployed. It brings the code,
        which is not checked beyond its sites, and the devices; every array comes from the folder.

    Returns:
      The network as it was saved, deployed if it was. Parameters that a deployed one reads no more
      are not stored, and are NaN.

    Raises:
      ValueError: no such checkpoint, or one of another model or composition.
    """
    import orbax.checkpoint as ocp

    folder = Path(path).absolute()
    if like.deployed:
        raise ValueError("like: give the composed network, not a deployed one")
    with _readable(path), ocp.StandardCheckpointer() as checkpointer:
        metadata: dict[str, Any] = checkpointer.metadata(folder).custom_metadata or {}
        form = metadata.get("format")
        if form not in (_FORMAT, _PACKED) or not {"network", "deployed"} <= set(metadata):
            raise ValueError(f"format {form}, this version reads {_FORMAT} and {_PACKED}")
    saved, expected = [_nameable(line) for line in metadata["network"]], describe(like)
    if saved != expected:
        mine, theirs = (
            next((line for line in a if line not in b), "no more")
            for a, b in ((expected, saved), (saved, expected))
        )
        raise ValueError(
            f"path={str(path)!r} holds another network than like: it has {theirs}, like has {mine}"
        )
    if metadata["deployed"]:
        states = jax.eval_shape(write_states, like, jax.eval_shape(lambda: jax.random.key(0)))
        states = beside_weights(like, states, _on)
        like = dataclasses.replace(
            like, states=states, deployed=True, calibrated=metadata["calibrated"]
        )
    if form == _PACKED:
        return _unpacked(path, like, metadata)
    content = data_fields(like)
    target = _abstract(content, _home(like))
    with _readable(path), ocp.StandardCheckpointer() as checkpointer:
        content = _unboxed(content, checkpointer.restore(folder, _boxed(target)))
    return dataclasses.replace(like, **content)


def _unpacked(path: str | Path, like: Network, metadata: dict[str, Any]) -> Network:
    """A deployed network from its packed arrays."""
    import orbax.checkpoint as ocp

    target = _abstract(_stored(like), _home(like))
    leaves = _boxed(target)["leaves"]
    forms = [Form(tuple(leaf.shape), leaf.dtype) for leaf in leaves]
    with _readable(path), ocp.StandardCheckpointer() as checkpointer:
        packed = checkpointer.restore(Path(path).absolute())["packed"]
        content = np.asarray(packed).tobytes()
        if metadata.get("check") != _check(content, metadata):
            raise ValueError("its bytes are not those that were written")
        arrays = unpack(content, forms)
    placed = [jax.device_put(a, leaf.sharding) for a, leaf in zip(arrays, leaves, strict=True)]
    found = _unboxed(target, {"leaves": placed})
    kept = found["params"]
    params = [
        kept.get(name, jnp.full(jnp.shape(leaf), jnp.nan, jnp.result_type(leaf)))
        for name, leaf in zip(param_names(like), jax.tree.leaves(like.params), strict=True)
    ]
    found["params"] = jax.tree.unflatten(jax.tree.structure(like.params), params)
    return dataclasses.replace(like, **found)


def _stored(net: Network) -> dict[str, Any]:
    """What is stored of a deployed network: all but the parameters that it does not read."""
    read = params_read(net)
    leaves = zip(param_names(net), jax.tree.leaves(net.params), strict=True)
    return {**data_fields(net), "params": {name: leaf for name, leaf in leaves if name in read}}


def _check(content: bytes, metadata: dict[str, Any]) -> int:
    """A checksum of the packed arrays and of what is said of them."""
    said = [metadata[k] for k in ("network", "deployed", "calibrated")]
    return zlib.crc32(content, zlib.crc32(json.dumps(said).encode()))


class Trail(NamedTuple):
    """Numbered checkpoints of a long run, of which the newest is kept.

    Attributes:
      manager: an orbax `CheckpointManager`.
    """

    manager: Any

    def newest(self, like: Any) -> tuple[int, Any]:
        """The number and content of the newest checkpoint; 0 and `like` where there is none.

        Its arrays lie where those of `like` do and are committed there if those are, so that what
        was compiled for `like` is not compiled again. Neither has weak types.

        Raises:
          ValueError: the newest one does not hold what `like` does.
        """
        import orbax.checkpoint as ocp

        step = self.manager.latest_step()
        if step is None:
            return 0, jax.tree.map(lambda a: a.astype(a.dtype) if _is_weak(a) else a, like)
        target = _abstract(like, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        with _readable(self.manager.directory):
            kept = self.manager.restore(step, args=ocp.args.StandardRestore(_boxed(target)))
        return step, _unboxed(like, kept)

    def add(self, step: int, tree: Any) -> None:
        """Writes a checkpoint; it counts once it is complete.

        Raises:
          OSError: it cannot be written; the newest one is still the one before.
        """
        import orbax.checkpoint as ocp

        with _writable(Path(self.manager.directory)):
            self.manager.save(step, args=ocp.args.StandardSave(_boxed(tree)))


@contextmanager
def trail(
    folder: str | Path, *, run: Mapping[str, Any], read_only: bool = False
) -> Generator[Trail]:
    """Opens a folder of numbered checkpoints, which is locked until the end.

    Args:
      folder: made if need be.
      run: what tells the run from others, by name, as JSON holds it; kept in the folder.
      read_only: neither lock nor make the folder: another process may be adding checkpoints.

    Raises:
      ValueError: the folder belongs to another run, or another process writes to it.
    """
    import orbax.checkpoint as ocp

    with contextlib.ExitStack() as stack:
        path = Path(folder).absolute()
        if not read_only:
            stack.enter_context(files.locked("checkpoints", path))
            path.mkdir(exist_ok=True)
        _check_note(folder, run, write=not read_only)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else 1,
            enable_async_checkpointing=False,
            read_only=read_only,
        )
        manager = ocp.CheckpointManager(path, options=options)
        stack.callback(manager.close)
        yield Trail(manager)


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
        files.write_text(note, json.dumps(run))


def _nameable(line: str) -> str:
    """A line of an earlier version, which said in what module a core was."""
    return re.sub(r"\bjaxsim(?:\.\w+)+\.(\w+\()", r"\1", line)


def describe(net: Network) -> list[str]:
    """A network in lines: each site with the static part of its core, masks, parameters, exits."""
    sites = [
        f"{s.name} {s.dtype}{list(s.stack)}{list(s.w_shape)} "
        + " ".join(w.signature() for w in net.cores.get(s.name, ()))
        for s in net.sites
    ]
    masks = [f"mask of {name}" for name in sorted(net.masks)]
    arrays = [
        f"{path_name(path)} {jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path((net.params, net.buffers))
    ]
    return [*sites, *masks, *arrays, *net.cut_lines]


def _home(net: Network) -> jax.sharding.Sharding:
    """Where a network's arrays go that do not say: on the devices of its parameters."""
    shardings = [leaf.sharding for leaf in jax.tree.leaves(net.params) if hasattr(leaf, "sharding")]
    if shardings and isinstance(shardings[0], jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(shardings[0].mesh, jax.sharding.PartitionSpec())
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _abstract(tree: Any, home: jax.sharding.Sharding) -> Any:
    """Shapes of the arrays, each with the sharding it has, or `home`."""

    def shape(a: Any) -> jax.ShapeDtypeStruct:
        placed = getattr(a, "sharding", None)
        kept = placed if isinstance(placed, jax.sharding.NamedSharding) else home
        return _on(a, kept)

    return jax.tree.map(shape, tree)


def _on(a: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a), sharding=sharding)


def _boxed(tree: Any) -> dict[str, list[Any]]:
    """The leaves as orbax takes them: in a list, random keys as their data."""
    return {"leaves": [_key_data(leaf) for leaf in jax.tree.leaves(tree)]}


def _unboxed(like: Any, boxed: dict[str, list[Any]]) -> Any:
    leaves, treedef = jax.tree.flatten(like)
    arrays = [_as_placed(a, leaf) for a, leaf in zip(boxed["leaves"], leaves, strict=True)]
    return jax.tree.unflatten(
        treedef,
        [
            jax.random.wrap_key_data(a, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else a
            for a, leaf in zip(arrays, leaves, strict=True)
        ],
    )


def _as_placed(a: Any, leaf: Any) -> Any:
    """An array that is bound to the default device only if that of the network is.

    What is read from disk is bound to the device it was put on, and calls of it compile anew.
    """
    bound = getattr(leaf, "committed", False) or not isinstance(a, jax.Array)
    if bound or a.sharding != jax.sharding.SingleDeviceSharding(jax.devices()[0]):
        return a
    return jnp.asarray(np.asarray(a))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _key_data(leaf: Any) -> Array | jax.ShapeDtypeStruct:
    if not _is_key(leaf):
        return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.key_data(leaf)


def _is_weak(leaf: Any) -> bool:
    return bool(getattr(leaf, "weak_type", False))


@contextmanager
def _readable(path: Any) -> Generator[None]:
    """Turns what orbax and tensorstore raise on a bad checkpoint into a ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"path={str(path)!r} is not a readable checkpoint: {error}") from error


@contextmanager
def _writable(folder: Path) -> Generator[None]:
    """Turns what orbax and tensorstore raise of a disk into an OSError of one line."""
    said = logging.getLogger("absl")

    def of_a_thread(record: logging.LogRecord) -> bool:
        return "_SignalingThread" not in record.getMessage()

    said.addFilter(of_a_thread)  # a traceback a thread, of what is raised here all the same
    try:
        yield
    except Exception as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(code[1])) if code else str(error).split("\n")[0]
        raise OSError(f"{str(folder)!r} cannot be written: {reason}") from error
    finally:
        said.removeFilter(of_a_thread)
