"""Channels that masks leave empty and that still emit a constant, given to the layers behind them.

A kernel of zeros leaves its bias, or what a norm makes of zero, on the way through an activation.
Where every site that reads such a channel reads one number, the layer behind takes the product with
that number into its own bias, or off the mean of the batch norm behind it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.partition import Partitioned
from jaxsim.cores.wrapper import Wrapper
from jaxsim.inputs.batches import Batch
from jaxsim.network.deployment import deploy
from jaxsim.network.network import Network
from jaxsim.network.params import Tensors, tensors, with_tensors
from jaxsim.network.site import Site
from jaxsim.sparsity.channels.axes import kept_entries
from jaxsim.sparsity.channels.groups import Dependencies, Group, zero_entries


class Reader(NamedTuple):
    """State of a site whose input is watched; behind the axes of the weight's stack.

    Attributes:
      inner: what the inner core wrote.
      w: weights [B, K, N] of the site as a matrix product.
      entry: which entry of the weight's input axis each of its rows is, [B, K].
      lo, hi: least and largest number that met each row, [B, K].
    """

    inner: State
    w: Float[Array, "B K N"]
    entry: Array
    lo: Float[Array, "B K"]
    hi: Float[Array, "B K"]

    def moves(self, entries: Bool[np.ndarray, " size"]) -> bool:
        """Whether anything but one number meets a weight of these entries."""
        used = entries[np.asarray(self.entry)] & np.asarray(self.w != 0).any(-1)
        return bool(np.any(used & ~(np.asarray(self.lo) == np.asarray(self.hi))))

    def share(self, entries: Bool[np.ndarray, " size"]) -> Float[np.ndarray, "*stack outputs"]:
        """What the constants of these entries add to each output, of each layer of a stack."""
        w, lo = np.asarray(self.w, np.float64), np.asarray(self.lo, np.float64)
        rows = np.where(entries[np.asarray(self.entry)] & (w != 0).any(-1), lo, 0.0)
        added = np.einsum("...bk,...bkn->...bn", rows, w)
        return added.reshape(*added.shape[:-2], -1)


class Emitted(NamedTuple):
    """What can go of a group although it emits something.

    Attributes:
      gone: its entries.
      changes: biases and means that make up for it.
      held: entries that are empty and have to stay, as nothing can take their constant.
    """

    gone: Bool[np.ndarray, " size"]
    changes: Tensors
    held: Bool[np.ndarray, " size"]


def watched(net: Network, groups: Sequence[Group], arguments: Partitioned) -> dict[str, Reader]:
    """The sites that read groups, after a call: a `Reader` each, by name.

    Args:
      net: not transformed.
      groups: that are read.
      arguments: of the call.
    """
    sites = {
        site.name: (Wrapper.of(extremes, axis=axis),)
        for group in groups
        for site, axis in read_through(net, group)
    }
    if not sites:
        return {}
    args, kwargs = arguments.combine()
    fixed = net.defaults.combine()
    probed = dataclasses.replace(net, cores=sites, states={})
    return deploy(probed, calibrate=Batch(args, {**fixed, **kwargs})).states


def emitted(
    net: Network,
    found: Dependencies,
    group: Group,
    empty: Bool[np.ndarray, " size"],
    readers: Mapping[str, Reader],
    same: Callable[[Network], bool],
) -> Emitted:
    """Which empty entries of a group can go, and what has to change for it.

    Args:
      net: not transformed.
      found: its dependencies.
      group: the group.
      empty: entries that masks leave nothing of.
      readers: by `watched`.
      same: whether a network computes what this one does.
    """
    nothing = np.zeros(group.size, bool)
    sites = read_through(net, group)
    labels = {leaf.path: leaf.axes for leaf in found.leaves}
    unit = found.units[group.name]

    def entries(site: Site, axis: int, which: Bool[np.ndarray, " size"]) -> Any:
        axes = labels[f"params/{site.param}"][len(site.stack) :]
        return ~kept_entries(axes[axis], {unit: ~which})

    def one(c: int) -> Bool[np.ndarray, " size"]:
        return np.arange(group.size) == c

    constant, zero = nothing.copy(), nothing.copy()
    for c in map(int, np.flatnonzero(empty)):
        held = [(readers[s.name], entries(s, axis, one(c))) for s, axis in sites]
        constant[c] = not any(reader.moves(own) for reader, own in held)
        zero[c] = constant[c] and not any(reader.share(own).any() for reader, own in held)
    if not (constant & ~zero).any():
        return Emitted(constant, {}, nothing)
    shares = [(s, readers[s.name].share(entries(s, axis, constant))) for s, axis in sites]
    places = [_places(net, found, site, share) for site, share in shares]
    rest = zero_entries(net, found, {group.name: ~constant})
    for chosen in itertools.islice(itertools.product(*places), 64):
        changes: Tensors = {}
        for change in chosen:
            changes |= change
        if same(with_tensors(rest, changes)):
            return Emitted(constant, changes, nothing)
    return Emitted(zero, {}, constant & ~zero)


def read_through(net: Network, group: Group) -> list[tuple[Site, int]]:
    """Sites that sum over a group and the axis of their weight, which is one layer of a stack.

    None if one cannot be watched.

    Args:
      net: not transformed.
      group: what is read.
    """
    found: list[tuple[Site, int]] = []
    shapes = tensors(net)
    for member in group.members:
        if member.role != "in" or not member.path.startswith("params/"):
            continue
        param = member.path.removeprefix("params/")
        for site in (s for s in net.sites if s.multiplies and s.param == param):
            if (*site.stack, *site.w_shape) != shapes[member.path].shape:
                return []
            found.append((site, member.axis - len(site.stack)))
    return found


def _places(net: Network, found: Dependencies, site: Site, share: np.ndarray) -> list[Tensors]:
    """Every bias or mean that may take what is added to a site's outputs."""
    held, kernel = tensors(net), f"params/{site.param}"
    bias = kernel.rpartition("/")[0] + "/bias"
    places: list[Tensors] = []
    if bias in held and held[bias].size == share.size:
        places.append({bias: held[bias] + share.reshape(held[bias].shape).astype(held[bias].dtype)})
    out = (g for g in found.groups if any(m.path == kernel and m.role == "out" for m in g.members))
    means = dict.fromkeys(m.path for g in out for m in g.members if m.path.endswith("/mean"))
    for path in means:
        if held[path].size == share.size:
            off = share.reshape(held[path].shape).astype(held[path].dtype)
            places.append({path: held[path] - off})
    return places


def extremes(core: Core, *, axis: int) -> Core:
    """Notes the least and the largest number that meets each weight.

    Args:
      core: contracts.
      axis: of the weight, its input channels.
    """

    def write(op: Op, w: Array, key: Any) -> Reader:
        matmul, shape = op.geometry.as_matmul(), [1] * w.ndim
        shape[axis] = w.shape[axis]
        entry = jnp.broadcast_to(jnp.arange(w.shape[axis]).reshape(shape), w.shape)
        rows = matmul.w(w)
        nothing = jnp.full(rows.shape[:-1], jnp.inf, jnp.float32)
        return Reader(core.write(op, w, key), rows, matmul.w(entry)[..., 0], nothing, -nothing)

    def calibrate(op: Op, state: Reader, x: Array) -> Reader:
        rows = op.geometry.as_matmul().x(x.astype(jnp.float32))
        lo, hi = (jnp.asarray(end, jnp.float32) for end in (rows.min(-2), rows.max(-2)))
        inner = core.calibrate(op, state.inner, x)
        return Reader(
            inner, state.w, state.entry, jnp.minimum(state.lo, lo), jnp.maximum(state.hi, hi)
        )

    def read(op: Op, state: Reader, x: Array, key: Any) -> Array:
        return core.read(op, state.inner, x, key)

    return Core(write, calibrate, read)
