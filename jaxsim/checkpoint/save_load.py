"""Networks and training states on disk, by orbax: arrays and plain metadata, never pickles."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.checkpoint.leaves import abstract_tree, boxed, readable, shape_on, unboxed, writable
from jaxsim.checkpoint.packing import Form, pack, unpack
from jaxsim.files import atomic
from jaxsim.network.deployment import find_read_params
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Network, data_fields
from jaxsim.network.params import param_names
from jaxsim.network.writer import shard_like_weights, write_states

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
    with atomic.locked("path", folder):
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
    content = boxed(data_fields(net))
    if net.deployed:
        content = pack([np.asarray(leaf) for leaf in boxed(_stored(net))["leaves"]])
        metadata["check"] = _check(content, metadata)
        content = {"packed": jnp.frombuffer(content, jnp.uint8)}
    metadata["format"] = _PACKED if net.deployed else _FORMAT
    part = folder.with_name(f"{folder.name}.orbax-checkpoint-tmp")  # as orbax calls it
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    try:
        # Not the asynchronous one: its threads outlive a failure and keep a process from ending.
        with writable(folder), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
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
    with readable(path), ocp.StandardCheckpointer() as checkpointer:
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
        states = shard_like_weights(like, states, shape_on)
        like = dataclasses.replace(
            like, states=states, deployed=True, calibrated=metadata["calibrated"]
        )
    if form == _PACKED:
        return _unpacked(path, like, metadata)
    content = data_fields(like)
    target = abstract_tree(content, _home(like))
    with readable(path), ocp.StandardCheckpointer() as checkpointer:
        content = unboxed(content, checkpointer.restore(folder, boxed(target)))
    return dataclasses.replace(like, **content)


def _unpacked(path: str | Path, like: Network, metadata: dict[str, Any]) -> Network:
    """A deployed network from its packed arrays."""
    import orbax.checkpoint as ocp

    target = abstract_tree(_stored(like), _home(like))
    leaves = boxed(target)["leaves"]
    forms = [Form(tuple(leaf.shape), leaf.dtype) for leaf in leaves]
    with readable(path), ocp.StandardCheckpointer() as checkpointer:
        packed = checkpointer.restore(Path(path).absolute())["packed"]
        content = np.asarray(packed).tobytes()
        if metadata.get("check") != _check(content, metadata):
            raise ValueError("its bytes are not those that were written")
        arrays = unpack(content, forms)
    placed = [jax.device_put(a, leaf.sharding) for a, leaf in zip(arrays, leaves, strict=True)]
    found = unboxed(target, {"leaves": placed})
    kept = found["params"]
    params = [
        kept.get(name, jnp.full(jnp.shape(leaf), jnp.nan, jnp.result_type(leaf)))
        for name, leaf in zip(param_names(like), jax.tree.leaves(like.params), strict=True)
    ]
    found["params"] = jax.tree.unflatten(jax.tree.structure(like.params), params)
    return dataclasses.replace(like, **found)


def _stored(net: Network) -> dict[str, Any]:
    """What is stored of a deployed network: all but the parameters that it does not read."""
    read = find_read_params(net)
    leaves = zip(param_names(net), jax.tree.leaves(net.params), strict=True)
    return {**data_fields(net), "params": {name: leaf for name, leaf in leaves if name in read}}


def _check(content: bytes, metadata: dict[str, Any]) -> int:
    """A checksum of the packed arrays and of what is said of them."""
    said = [metadata[k] for k in ("network", "deployed", "calibrated")]
    return zlib.crc32(content, zlib.crc32(json.dumps(said).encode()))


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
