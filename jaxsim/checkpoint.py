"""Networks and training states on disk, by orbax: arrays and plain metadata, never pickles."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.network import Network, path_name, write_states

_FORMAT = 1


def save(path: str | Path, net: Network) -> None:
    """Writes a network's parameters, buffers, masks, settings and states to a new folder.

    Args:
      path: folder to make. It appears when it is complete and not before.
      net: deployed or not.

    Raises:
      ValueError: the folder exists.
    """
    import orbax.checkpoint as ocp

    folder = Path(path).absolute()
    if folder.exists():
        raise ValueError(f"path={str(path)!r} exists; choose a new folder")
    stage = {"deployed": net.deployed, "calibrated": net.calibrated}
    metadata = {"format": _FORMAT, "network": describe(net), **stage}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, _boxed(_content(net)), custom_metadata=metadata)


def load(path: str | Path, like: Network) -> Network:
    """Reads a network that `save` wrote.

    Args:
      path: the folder.
      like: the same model, traced and composed in the same way, not deployed. It brings the code,
        which is not checked beyond its sites, and the devices; every array comes from the folder.

    Returns:
      The network as it was saved, deployed if it was.

    Raises:
      ValueError: no such checkpoint, or one of another model or composition.
    """
    import orbax.checkpoint as ocp

    folder = Path(path).absolute()
    if like.deployed:
        raise ValueError("like: give the composed network, not a deployed one")
    with _readable(path), ocp.StandardCheckpointer() as checkpointer:
        metadata: dict[str, Any] = checkpointer.metadata(folder).custom_metadata or {}
        if metadata.get("format") != _FORMAT or "network" not in metadata:
            raise ValueError(f"format {metadata.get('format')}, this version reads {_FORMAT}")
    saved, expected = metadata["network"], describe(like)
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
        like = dataclasses.replace(
            like, states=states, deployed=True, calibrated=metadata["calibrated"]
        )
    content = _content(like)
    target = _abstract(content, _home(like))
    with _readable(path), ocp.StandardCheckpointer() as checkpointer:
        content = _unboxed(content, checkpointer.restore(folder, _boxed(target)))
    return dataclasses.replace(like, **content)


class Trail(NamedTuple):
    """Numbered checkpoints of a long run, of which the newest is kept.

    Attributes:
      manager: an orbax `CheckpointManager`.
    """

    manager: Any

    def newest(self, like: Any) -> tuple[int, Any]:
        """The number and content of the newest checkpoint; 0 and `like` where there is none.

        Raises:
          ValueError: the newest one does not hold what `like` does.
        """
        import orbax.checkpoint as ocp

        step = self.manager.latest_step()
        if step is None:
            return 0, like
        target = _abstract(like, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        with _readable(self.manager.directory):
            kept = self.manager.restore(step, args=ocp.args.StandardRestore(_boxed(target)))
        return step, _unboxed(like, kept)

    def add(self, step: int, tree: Any) -> None:
        """Writes a checkpoint; it counts once it is complete."""
        import orbax.checkpoint as ocp

        self.manager.save(step, args=ocp.args.StandardSave(_boxed(tree)))


@contextmanager
def trail(folder: str | Path, *, run: str) -> Generator[Trail]:
    """Opens a folder of numbered checkpoints, and finishes writing at the end.

    Args:
      folder: made if need be.
      run: what tells the run from others; kept in the folder.

    Raises:
      ValueError: the folder belongs to another run.
    """
    import orbax.checkpoint as ocp

    note = Path(folder) / "run.txt"
    if note.exists() and note.read_text() != run:
        raise ValueError(f"checkpoints={str(folder)!r} are of another run; choose a new folder")
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(run)
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)
    try:
        yield Trail(manager)
    finally:
        manager.wait_until_finished()
        manager.close()


def _content(net: Network) -> dict[str, Any]:
    return {k: getattr(net, k) for k in ("params", "buffers", "masks", "cores", "states")}


def describe(net: Network) -> list[str]:
    """A network in lines: each site with the static part of its core, each mask and parameter."""
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
    return [*sites, *masks, *arrays]


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
        return jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a), sharding=kept)

    return jax.tree.map(shape, tree)


def _boxed(tree: Any) -> dict[str, list[Any]]:
    """The leaves as orbax takes them: in a list, random keys as their data."""
    return {"leaves": [_key_data(leaf) for leaf in jax.tree.leaves(tree)]}


def _unboxed(like: Any, boxed: dict[str, list[Any]]) -> Any:
    leaves, treedef = jax.tree.flatten(like)
    return jax.tree.unflatten(
        treedef,
        [
            jax.random.wrap_key_data(a, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else a
            for a, leaf in zip(boxed["leaves"], leaves, strict=True)
        ],
    )


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _key_data(leaf: Any) -> Array | jax.ShapeDtypeStruct:
    if not _is_key(leaf):
        return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.key_data(leaf)


@contextmanager
def _readable(path: Any) -> Generator[None]:
    """Turns what orbax and tensorstore raise on a bad checkpoint into a ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"path={str(path)!r} is not a readable checkpoint: {error}") from error
