"""Networks and training states on disk, by orbax: arrays and plain metadata, never pickles."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import zlib
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.checkpoint.leaves import (
    abstract_tree,
    from_leaf_list,
    of_the_first_process,
    readable,
    shape_on,
    to_leaf_list,
    writable,
)
from jaxsim.checkpoint.packing import Form, pack, unpack
from jaxsim.cores.conductance import ConductanceState
from jaxsim.cores.mapping import differential
from jaxsim.cores.wrapper import Wrapper
from jaxsim.files import atomic
from jaxsim.network.calls import calls_within
from jaxsim.network.deployment import (
    NUMBERS,
    find_read_params,
    share_tables,
    without_unread_settings,
)
from jaxsim.network.leaves import path_name
from jaxsim.network.lookups import as_written, is_transposed
from jaxsim.network.network import Net, Network, data_fields
from jaxsim.network.params import param_names, with_params
from jaxsim.network.unheld import Absent, without_values
from jaxsim.network.writer import shard_like_weights, write_states
from jaxsim.numerics.arrays import whole_on_host
from jaxsim.numerics.packed import Packed

_FORMAT = 1


_PACKED = 2
"""Format of a deployed network, whose arrays are packed into one of bytes."""

_LEAN = 3
"""The same, of states without what reads do not need."""

_TIGHT = 4
"""The same, with codes of two bits four in a byte, which had been two."""

_JOINED = 5
"""The format of a deployed network now: it says how states are laid out, pairs of cells that are
read as one are held as their difference, and what two sites both hold is written once."""

_LAYOUTS = {_FORMAT: "plain", _PACKED: "plain", _LEAN: "lean", _TIGHT: "lean"}
"""The layout of states in formats that do not say it."""

_SAID = ("network", "deployed", "calibrated")
"""What metadata says of any network, beside the format."""


def save(path: str | Path, net: Network) -> None:
    """Writes a network's parameters, buffers, masks, settings and states to a new folder.

    A deployed network is packed: codes of b bits take b bits, and parameters that its calls read no
    more, because their sites read what was written, are left out.

    Args:
      path: Folder to make. It appears when it is complete and not before.
      net: Network, deployed or not. Where several processes hold it together, each of them calls
        this, with one folder that all see; the first writes.

    Raises:
      ValueError: The folder exists, or another thread or process is saving to it.
      OSError: It cannot be written; nothing of it is left.

    Examples:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.ones((2, 4))
      >>> net = js.quantize(4, 8)(js.trace(lambda w, x: x @ w, jnp.eye(4), x))
      >>> chip = js.deploy(net, calibrate=x)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     js.save(f"{folder}/chip", chip)
      ...     again = js.load(f"{folder}/chip", like=net)
      >>> bool((again(x) == chip(x)).all())
      True
    """
    folder = Path(path).absolute()
    again: list[list[int]] = []
    fields = data_fields(net)
    if net.deployed:
        fields, again = _stored_fields(net)
    leaves = to_leaf_list(fields)["leaves"]
    if jax.process_count() > 1:
        leaves = [whole_on_host(leaf) for leaf in leaves]
    with of_the_first_process(path):
        if jax.process_index() == 0:
            with atomic.locked("path", folder):
                if folder.exists():
                    raise ValueError(f"path={str(path)!r} exists; choose a new folder")
                _write(folder, net, leaves, again)


def _write(folder: Path, net: Network, leaves: list[Any], again: list[list[int]]) -> None:
    import orbax.checkpoint as ocp

    metadata: dict[str, Any] = {
        "network": describe(net),
        "deployed": net.deployed,
        "calibrated": net.calibrated,
    }
    content: Any = {"leaves": leaves}
    if net.deployed:
        metadata["layout"] = "lean" if _is_lean(net) else "plain"
        metadata["again"] = again
        repeated = {one[0] for one in again}
        content = pack([np.asarray(a) for i, a in enumerate(leaves) if i not in repeated])
        metadata["check"] = _check(content, metadata)
        content = {"packed": np.frombuffer(content, np.uint8)}
    metadata["format"] = _JOINED if net.deployed else _FORMAT
    part = folder.with_name(f"{folder.name}.orbax-checkpoint-tmp")  # as orbax calls it
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    alone = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="jaxsim_save"
    )
    try:
        # Not the asynchronous one: its threads outlive a failure and keep a process from ending.
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        with (
            writable(folder),
            ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer,
        ):
            content = ocp.args.StandardSave(content)
            checkpointer.save(folder, args=content, custom_metadata=metadata)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load(path: str | Path, like: Net) -> Net:
    """Reads a network that `save` wrote.

    Args:
      path: Folder that `save` made.
      like: The same model, traced and composed in the same way, not deployed. It brings the code,
        which is not checked beyond its sites, and the devices; every array comes from the folder.

    Returns:
      The network as it was saved, deployed if it was. Parameters that a deployed one reads no more
      are not stored; they are NaN and take no memory, as `deploy(keep_floats=False)` leaves them.

    Raises:
      ValueError: No such checkpoint, or one of another model or composition.

    Examples:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda w, x: x @ w, 2 * jnp.eye(4), jnp.ones((2, 4)))
      >>> like = js.trace(lambda w, x: x @ w, jnp.zeros((4, 4)), jnp.ones((2, 4)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     js.save(f"{folder}/net", net)
      ...     again = js.load(f"{folder}/net", like=like)
      >>> float(again(jnp.ones((2, 4))).sum())
      16.0
    """
    import orbax.checkpoint as ocp

    folder = Path(path).absolute()
    if like.deployed:
        raise ValueError("like: give the composed network, not a deployed one")
    with readable(path), ocp.StandardCheckpointer() as checkpointer:
        metadata: dict[str, Any] = checkpointer.metadata(folder).custom_metadata or {}
        form = metadata.get("format")
        if form not in (*_LAYOUTS, _JOINED) or not set(_SAID) <= set(metadata):
            raise ValueError(f"format {form}, this version reads {_FORMAT} to {_JOINED}")
        layout = _LAYOUTS.get(form) or metadata.get("layout")
        if layout not in ("plain", "lean"):
            raise ValueError(f"layout {layout!r}, this version reads 'plain' and 'lean'")
    saved, expected = [_nameable(line) for line in metadata["network"]], describe(like)
    if saved != expected:
        mine, theirs = (
            next((line for line in a if line not in b), "no more")
            for a, b in ((expected, saved), (saved, expected))
        )
        raise ValueError(
            f"path={str(path)!r} holds another network than like: it has {theirs}, like has {mine}"
        )
    now, then = like, like if form == _JOINED else _with_pairs(like, apart=True)
    if metadata["deployed"]:
        states = _written(then, layout)
        states = _in_pairs(states) if form == _LEAN else states
        states = shard_like_weights(like, states, shape_on)
        like = dataclasses.replace(
            then, states=states, deployed=True, calibrated=metadata["calibrated"]
        )
    if form != _FORMAT:
        chip = _load_packed(path, like, metadata)
    else:
        content = data_fields(like)
        target = abstract_tree(content, _default_sharding(like))
        with readable(path), ocp.StandardCheckpointer() as checkpointer:
            content = from_leaf_list(content, checkpointer.restore(folder, to_leaf_list(target)))
        chip = dataclasses.replace(like, **content)
    if metadata["deployed"] and form != _JOINED:
        tight = _tightened(chip.states, _written(then, layout))
        states = _joined(chip, tight, _written(now, layout))
        chip = dataclasses.replace(_with_pairs(chip, apart=False), states=states)
    return share_tables(chip)


def _written(net: Network, layout: Literal["plain", "lean"]) -> Any:
    """Shapes of the states that a network's sites write."""
    write = partial(write_states, layout=layout)
    return jax.eval_shape(write, net, jax.eval_shape(lambda: jax.random.key(0)))


def _in_pairs(states: Any) -> Any:
    """Shapes of states whose codes of two bits are two in a byte."""

    def paired(held: Any) -> Any:
        if not _is_packed(held) or held.bits == 4:
            return held
        return jax.eval_shape(lambda h: Packed.of(h.numbers(), h.axis, 4), held)

    return jax.tree.map(paired, states, is_leaf=_is_packed)


def _tightened(states: Any, like: Any) -> Any:
    """States with codes packed as those of others are."""

    def tight(wanted: Any, held: Any) -> Any:
        if not _is_packed(wanted) or wanted.bits == held.bits:
            return held
        return Packed.of(held.numbers(), held.axis, wanted.bits)

    return jax.tree.map(tight, like, states, is_leaf=_is_packed)


def _with_pairs(net: Net, *, apart: bool) -> Net:
    """A network whose pairs of cells are written as before the fifth format, or as they are now."""
    pair = Wrapper.of(differential, apart=True) if apart else Wrapper.of(differential)

    def chosen(wrapper: Wrapper) -> Wrapper:
        return pair if wrapper.name == "differential" else wrapper

    cores = {name: tuple(map(chosen, chain)) for name, chain in net.cores.items()}
    return dataclasses.replace(net, cores=cores)


def _joined(net: Network, states: Any, like: Any) -> Any:
    """States of earlier formats as they are written now, from the shapes of these."""
    stacks = {site.name: len(site.stack) for site in net.sites}

    def of_site(name: str) -> Any:
        axis = stacks[name]

        def reduced(a: Any, wanted: Any, of_two: Any) -> Any:
            if jnp.shape(a) == wanted.shape:
                return a
            return of_two(*(jnp.take(a, i, axis) for i in (0, 1))).astype(wanted.dtype)

        def join(wanted: Any, held: Any) -> Any:
            if not _is_noisy(wanted):
                return reduced(held, wanted, jnp.subtract)
            (cells,) = (w for w in net.cores[name] if w.name == "conductance")
            variance = jnp.square(cells.settings["device"].noise(held.variance))
            inner = jax.tree.map(join, wanted.inner, held.inner)
            return ConductanceState(inner, reduced(variance, wanted.variance, jnp.add))

        return jax.tree.map(join, like[name], states[name], is_leaf=_is_noisy)

    return {name: of_site(name) for name in states}


def _is_noisy(node: Any) -> bool:
    return isinstance(node, ConductanceState)


def _is_packed(node: Any) -> bool:
    return isinstance(node, Packed)


def _is_lean(net: Network) -> bool:
    """Whether a deployed network's states are as `deploy` writes them now."""
    like = dataclasses.replace(net, deployed=False, calibrated=False, states={}, absent=Absent())
    return jax.tree.structure(_written(like, "lean")) == jax.tree.structure(
        dict(net.states), is_leaf=is_transposed
    )


def _load_packed(path: str | Path, like: Net, metadata: dict[str, Any]) -> Net:
    """A deployed network from its packed arrays."""
    import orbax.checkpoint as ocp

    target = abstract_tree(_stored_fields(like)[0], _default_sharding(like))
    leaves = to_leaf_list(target)["leaves"]
    with readable(path):
        again = {i: (of, turned) for i, of, turned in metadata.get("again", [])}
    forms = [Form(tuple(leaf.shape), leaf.dtype) for i, leaf in enumerate(leaves) if i not in again]
    with readable(path), ocp.StandardCheckpointer() as checkpointer:
        packed = checkpointer.restore(Path(path).absolute())["packed"]
        content = np.asarray(packed).tobytes()
        if metadata.get("check") != _check(content, metadata):
            raise ValueError("its bytes are not those that were written")
        written = iter(unpack(content, forms))
        arrays = [None if i in again else next(written) for i in range(len(leaves))]
        for i, (of, turned) in again.items():
            arrays[i] = arrays[of].T if turned else arrays[of]
    placed = [jax.device_put(a, leaf.sharding) for a, leaf in zip(arrays, leaves, strict=True)]
    found = from_leaf_list(target, {"leaves": placed})
    kept = found.pop("params")
    unheld = tuple(name for name in param_names(like) if name not in kept)
    params = with_params(like, kept).params
    chip = dataclasses.replace(
        like, **found, params=without_values(params, unheld), absent=Absent(unheld)
    )
    return without_unread_settings(chip)


def _stored_fields(net: Network) -> tuple[dict[str, Any], list[list[int]]]:
    """The fields of a deployed network, of what it reads: other parameters are left out.

    Settings of cores that it does not read keep their places, as numbers that pack to nothing.

    Returns:
      The fields, and which of their leaves are others: its number, that of the other, and 1 where
      it is the other's transpose, else 0.
    """
    read, fields = find_read_params(net), data_fields(net)
    leaves = zip(param_names(net), jax.tree.leaves(net.params), strict=True)
    again: list[list[int]] = []
    known = not any(isinstance(a, jax.ShapeDtypeStruct) for a in jax.tree.leaves(net.states))
    if known:
        fields["cores"] = without_unread_settings(net).cores
    fields["params"] = {name: leaf for name, leaf in leaves if name in read}
    if known and _is_lean(net):
        again = _repeated(fields)
    return {**fields, "states": as_written(fields["states"])}, again


def _repeated(fields: dict[str, Any]) -> list[list[int]]:
    """Leaves of states that other leaves of them are, or whose transposes these are."""
    first: dict[int, int] = {}
    again, turned = list[list[int]](), list[tuple[int, Any]]()
    before = fields["states"]
    start = len(jax.tree.leaves({k: v for k, v in fields.items() if k < "states"}))
    for i, leaf in enumerate(jax.tree.leaves(before, is_leaf=is_transposed), start):
        if is_transposed(leaf):
            turned.append((i, leaf.held))
        elif isinstance(leaf, jax.Array) and leaf.size > NUMBERS:
            if id(leaf) in first:
                again.append([i, first[id(leaf)], 0])
            else:
                first[id(leaf)] = i
    return [*again, *([i, first[id(a)], 1] for i, a in turned if id(a) in first)]


def _check(content: bytes, metadata: dict[str, Any]) -> int:
    """A checksum of the packed arrays and of what is said of them."""
    said = [metadata[k] for k in (*_SAID, "layout", "again") if k in metadata]
    return zlib.crc32(content, zlib.crc32(json.dumps(said).encode()))


def _nameable(line: str) -> str:
    """A line of an earlier version, which said in what module a core was."""
    return re.sub(r"\bjaxsim(?:\.\w+)+\.(\w+\()", r"\1", line)


def describe(net: Network) -> list[str]:
    """Describes a network in lines: sites with the static part of their cores, masks, parameters.

    Two networks of the same lines can read one another's checkpoints.

    Args:
      net: Network of any kind.

    Returns:
      A line for each site, mask, array, cut, and what a transform adds to calls.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.checkpoint import describe
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(4)}, jnp.ones((2, 4)))
      >>> describe(net)
      ['w float32[][4, 4] ', '0/w float32[4, 4]']
    """
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
    calls = [line for call in calls_within(net.fn) for line in getattr(call, "lines", ())]
    return [*sites, *masks, *arrays, *calls, *net.cut_lines]


def _default_sharding(net: Network) -> jax.sharding.Sharding:
    """The sharding of arrays that have none: on the devices of the network's parameters."""
    shardings = [leaf.sharding for leaf in jax.tree.leaves(net.params) if hasattr(leaf, "sharding")]
    if shardings and isinstance(shardings[0], jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(shardings[0].mesh, jax.sharding.PartitionSpec())
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])
