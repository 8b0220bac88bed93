"""Channels turned by orthogonal matrices, so that none is much larger than the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxsim.cores.geometry import Dot
from jaxsim.cores.rotated import mixed_rows, rotated_inputs
from jaxsim.cores.wrapper import Wrapper
from jaxsim.inputs.batches import Batch, batches, reusable_batches
from jaxsim.internals import inner_jaxprs
from jaxsim.network.arguments import require_key
from jaxsim.network.moves import UNCHANGED
from jaxsim.network.network import Net, Network, trace_call
from jaxsim.network.plan import contractions
from jaxsim.network.site import Site
from jaxsim.network.transform import Transform, transformable
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.numerics.hadamard import orthogonal_factors, random_signs
from jaxsim.sparsity.channels.axes import Symbol, layout_around, map_along, symbols
from jaxsim.sparsity.channels.axis_rules import describe_place
from jaxsim.sparsity.channels.groups import Dependencies, Group, dependencies
from jaxsim.sparsity.channels.propagate import Leaf
from jaxsim.transforms.learned_rotation import Loss, Turned, learn_matrices, relative_error
from jaxsim.transforms.readers import Readers
from jaxsim.transforms.rescaling import TOLERANCE, Trials, on_devices, on_host, trials_of
from jaxsim.transforms.turned_scores import makers_of, products_of_scores, turn_scores
from jaxsim.values.calls import shown_as_called


@shown_as_called
def rotate(
    inputs: Any,
    key: Key[Array, ""],
    *,
    groups: str | Sequence[str] | None = None,
    online: str | Sequence[str] = (),
    scores: bool = False,
    learn_for: Callable[[Network], Network] | None = None,
    steps: int = 100,
    rate: float = 0.05,
    loss: Loss = relative_error,
    checkpoints: str | Path | None = None,
) -> Transform:
    """Turns channels by Hadamard matrices, random or learned: outliers are spread over all of them.

    Channels are turned by changing parameters alone, where what makes them is linear in what reads
    them: the residual stream of a decoder, and the widths of values. Every kernel that writes or
    reads such channels, every table and every bias takes the matrix; a scale of theirs (of an
    RMSNorm) goes into the kernels behind it first. The network computes what it did. Where a kernel
    that takes a scale is also a table that is looked up (a tied head), it takes the scale at its
    site alone.

    Which channels go together is read from the equations, as `dependencies` does; whether a matrix
    may stand between is found by trial: no output may change.

    Inputs of `online` sites are turned at each read instead, and their weights to match. That works
    behind any function, and costs a few additions a number.

    With `scores`, queries and keys of every attention are turned by one matrix for all heads, so
    that their products stay: in the parameters where nothing but sums stands between, else in each
    call behind what does (rotary positions, norms). Keys that go into a cache that the call takes
    and returns are turned before, once, so that the cache holds turned ones, in whatever format: an
    empty one is to be given. That matrix is Hadamard's without signs, the same for every network.

    Sizes m · 2^k are turned by a Hadamard matrix where one of order m · 2^j is known (12, 20, 28,
    36, …: so 576 and 1536), else by the Kronecker product of a random orthogonal matrix of m rows
    and Sylvester's; signs are random.

    With `learn_for`, matrices that go into parameters begin there and are learned: what is to
    follow (`js.quantize(…)`) is applied, and each step turns channels on, by Cayley's transform, so
    that its outputs come nearer to those of the float network. Matrices stay orthogonal, so what a
    network in floats computes stays too, and the transform is still to be applied behind. What it
    measures itself (as `smooth` does), it measures once while matrices are learned.

    Args:
      inputs: On which outputs are compared: a batch (an array, a tuple of positional arguments, or
        a dict of keyword arguments) or an iterable of batches; a few inputs are enough. To learn
        by, one batch a step, in turn: many are better; the first alone is compared on then.
      key: Random key of signs and matrices.
      groups: Patterns of names of groups of channels, as `js.dependencies` prints them, all of
        which must be turned; None for those that can be, `()` for none.
      online: Patterns of the sites whose inputs are turned at each read.
      scores: Whether queries and keys are turned.
      learn_for: Transform of what is to follow, by whose errors matrices are learned; it may not
        change parameters. None for random ones.
      steps: Number of steps to learn in, at least 1.
      rate: Angle by which channels turn in a first step, in radians, above 0; falls to 0 as a
        cosine does.
      loss: Function `(outputs, those of the float network) -> number` to make small, such as a
        divergence of logits.
      checkpoints: Folder to write to while matrices are learned, and to go on from where a run was
        stopped; None for none.

    Raises:
      ValueError: `key` is no random key, or a number out of range; when applied, pruned parameters
        or transformed sites among those to change, a pattern that matches nothing, a group that
        something mixes that is not linear, nothing to turn, an online site that sums over more axes
        than one, `scores` of a network without attention, that is cut or whose cache is in codes or
        read by something else, a `learn_for` that changes parameters or has no group to learn, a
        loss that is not finite, or checkpoints of another run.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.models.llama import tiny
      >>> model, ids = tiny(), jnp.arange(24).reshape(2, 12)
      >>> net = js.trace(model, jax.jit(model.init)(jax.random.key(0), ids), ids)
      >>> turned = js.rotate(ids, jax.random.key(1))(net)
      >>> bool(jnp.allclose(turned(ids), net(ids), atol=1e-5))
      True
      >>> bool(jnp.allclose(turned.params["embedding"], net.params["embedding"]))
      False

    Source: Ashkboos et al. (2024), arXiv 2404.00456, also for queries and keys; Ashkboos et al.
    (2024), arXiv 2401.15024, for the scale of a norm; Liu et al. (2024), SpinQuant, arXiv
    2405.16406, for learned matrices.
    """
    require_key(key, "signs")
    data = reusable_batches(inputs)
    if learn_for is not None and not callable(learn_for):
        raise ValueError(f"learn_for={learn_for!r}: must be a transform, such as js.quantize(4, 4)")
    steps = checked_int("steps", steps, 1)
    check_range("rate", rate, 0, above=True)
    if checkpoints is not None and learn_for is None:
        raise ValueError(f"checkpoints={str(checkpoints)!r}: matrices are learned by learn_for=")
    if not isinstance(scores, bool):
        raise ValueError(f"scores={scores!r}: must be True or False")

    def apply(net: Net) -> Net:
        transformable(net, "rotate", "*")
        if net.focus is not None:
            raise ValueError(
                "rotate inside rules: channels run through sites that the rule leaves out; choose "
                "them by groups="
            )
        if net.masks:
            raise ValueError(
                f"rotate: {next(iter(net.masks))} is pruned, and turned weights have no zeros "
                "where it has; put it before prune"
            )
        if net.cores:
            raise ValueError(
                f"rotate cannot follow the cores at {next(iter(net.cores))}: put it before quantize"
            )
        live = _online_sites(net, online)
        keys = products_of_scores(net) if scores else {}
        compared = data if learn_for is None else Batch(*next(batches(data)))
        turning = _Turning(net, compared, key)
        refused: dict[str, str] = {}
        for group in turning.candidates(groups):
            why = turning.turn(group)
            if why:
                refused[group.name] = why
        if refused and (groups is not None or not (turning.done or live or keys)):
            name, why = next(iter(refused.items()))
            raise ValueError(f"rotate: the channels {name} cannot be turned: {why}")
        if not (turning.done or live or keys):
            raise ValueError("rotate: no site reads channels that another makes")
        done = turning.turn_scores(keys)
        keys = {name: at for name, at in keys.items() if name not in done}
        net = turn_scores(turning.net, keys) if keys else turning.net
        cores = dict(net.cores)
        for i, (site, size) in enumerate(live):
            own = jax.random.fold_in(jax.random.fold_in(key, 1), i)
            outer, inner = orthogonal_factors(jax.random.fold_in(own, 1), size)
            signs = random_signs(own, size)
            wrapper = Wrapper.of(rotated_inputs, signs=signs, outer=outer, inner=inner)
            cores[site.name] = (*cores.get(site.name, ()), wrapper)
        net = dataclasses.replace(net, cores=cores)
        if learn_for is None:
            return net
        if not turning.done:
            raise ValueError("rotate: learn_for, and no channels whose matrix parameters take")
        own = jax.random.fold_in(key, 2)
        settings: dict[str, Any] = {"steps": steps, "rate": rate, "loss": loss}
        settings |= {"learn_for": learn_for, "checkpoints": checkpoints}
        return learn_matrices(net, turning.done, data, own, **settings)

    return apply


def _online_sites(net: Network, online: str | Sequence[str]) -> list[tuple[Site, int]]:
    """The sites whose inputs are turned at each read, and how many numbers each sums over."""
    if not isinstance(online, str) and not online:
        return []
    chosen = transformable(net, "rotate", online)
    geometries = {
        c.site.name: c.op.geometry for c in contractions(trace_call(net, net.example).plan)
    }
    found: list[tuple[Site, int]] = []
    for site in chosen:
        geometry = geometries[site.name]
        if site.kind != "dot" or not isinstance(geometry, Dot) or len(geometry.contracted) != 1:
            raise ValueError(
                f"online: {site.name} is no product that sums over one axis, along which its "
                "inputs could be turned"
            )
        found.append((site, geometry.w_shape[geometry.contracted[0]]))
    return found


class _Turning(Generic[Net]):
    """Turns groups of channels of a network, one after the other."""

    def __init__(self, net: Net, data: Any, key: Key[Array, ""]):
        self.net, self.data, self.key = net, data, key
        self.before = net
        self.done: list[Turned] = []
        self.units: list[Symbol] = []

    @cached_property
    def found(self) -> Dependencies:
        """Groups of channels."""
        return dependencies(self.before)

    @cached_property
    def trials(self) -> Trials:
        """The network as it was, on some inputs."""
        return trials_of(self.before, self.data)

    def candidates(self, patterns: str | Sequence[str] | None) -> list[Group]:
        """The groups that something makes and something sums over, or those that are named."""
        if patterns is not None:
            none = not isinstance(patterns, str) and not patterns
            return [] if none else list(self.found.select(patterns))
        roles = [(group, {m.role for m in group.members}) for group in self.found.groups]
        return [group for group, own in roles if {"out", "in"} <= own]

    def turn_scores(self, names: Iterable[str]) -> set[str]:
        """Turns queries and keys in the parameters where that can be.

        Args:
          names: Names of the products of scores.

        Returns:
          Names of those whose queries and keys are turned.
        """
        done = set[str]()
        for name, (width, kernels) in makers_of(self.net, names).items():
            for group in self.found.groups:
                roles = {m.path: m.role for m in group.members}
                made = all(roles.get(f"params/{kernel}") == "out" for kernel in kernels)
                if not made or "in" in roles.values() or group.size != width:
                    continue
                unit = self.found.units[group.name]
                if any(one is unit for one in self.units) or not self.turn(group):
                    done.add(name)
        return done

    def turn(self, group: Group) -> str:
        """Turns the channels of a group; the reason if that cannot be."""
        unit = self.found.units[group.name]
        key = jax.random.fold_in(self.key, self.found.groups.index(group))
        outer, inner = orthogonal_factors(jax.random.fold_in(key, 1), group.size)
        mixed = np.kron(outer.astype(np.float64), inner)
        matrix = random_signs(key, group.size)[:, None] * mixed
        leaves = {leaf.path: leaf for leaf in self.found.leaves}
        held = on_host(self.net)
        change = {m.path: held[m.path].astype(np.float64) for m in group.members}
        scales, cores = self._fold_scales(group, leaves, change, matrix)

        def turned(a: np.ndarray) -> np.ndarray:
            return a @ matrix

        places = tuple(
            (path, axis, label)
            for path in change
            if path not in scales
            for axis, label in enumerate(leaves[path].axes)
        )
        for path, axis, label in places:
            change[path] = map_along(change[path], axis, label, unit, turned)
        narrow = {path: a.astype(np.float32) for path, a in change.items()}
        net = on_devices(self.net, narrow)
        net = dataclasses.replace(net, cores={**net.cores, **cores})
        if (off := self.trials.difference(net)) > TOLERANCE:
            return (
                f"{_mixing(self.found, unit)}, and outputs would change by {off:.1e} of the largest"
            )
        self.net = net
        around = tuple((path, axis, layout_around(label, unit)) for path, axis, label in places)
        self.done.append(Turned(group.size, around, tuple(cores)))
        self.units.append(unit)
        return ""

    def _fold_scales(
        self,
        group: Group,
        leaves: Mapping[str, Leaf],
        change: dict[str, np.ndarray],
        matrix: np.ndarray,
    ) -> tuple[set[str], dict[str, tuple[Wrapper, ...]]]:
        """Takes what scales channels into the kernels that read them.

        Args:
          group: Group of the channels.
          leaves: Axes of all parameters and buffers.
          change: Those of the group; scales become ones, and kernels take them.
          matrix: The matrix that channels are to be turned by.

        Returns:
          Paths of the scales, and the cores of sites that take one by themselves.
        """
        unit = self.found.units[group.name]
        kernels = {m.path for m in group.members if m.role == "in"}
        sites = [s for s in self.net.sites if s.multiplies and f"params/{s.param}" in kernels]
        vectors = [
            m.path
            for m in group.members
            if m.role == "" and symbols(leaves[m.path].axes[-1]) == [unit]
        ]
        scales, cores = set[str](), dict[str, tuple[Wrapper, ...]]()
        readers = Readers(self.net, self.data) if vectors else None
        for path in vectors:
            into = [] if readers is None else readers.of([path], sites)
            if not into:
                continue  # added, not multiplied: it is turned as channels are
            scale, names = change[path], {site.name for site in into}
            scales.add(path)
            change[path] = np.ones_like(scale)
            for kernel in dict.fromkeys(f"params/{site.param}" for site in into):
                own = [site for site in into if f"params/{site.param}" == kernel]
                if all(names.issuperset(site.shared) for site in own):
                    for axis, (label, role) in enumerate(
                        zip(leaves[kernel].axes, leaves[kernel].roles, strict=True)
                    ):
                        if role == "in":
                            times = partial(_scaled, scale)
                            change[kernel] = map_along(change[kernel], axis, label, unit, times)
                elif not np.all(scale == 1):
                    both = (matrix.T * scale[..., None, :]) @ matrix
                    wrapper = Wrapper.of(mixed_rows, matrix=jnp.asarray(both, jnp.float32))
                    cores |= {site.name: (wrapper,) for site in own}
        return scales, cores


def _scaled(scale: np.ndarray, a: np.ndarray) -> np.ndarray:
    """An array times [*stack, C], its first axes those of the stack and its last that of C."""
    between = (1,) * (a.ndim - scale.ndim)
    return a * scale.reshape(*scale.shape[:-1], *between, scale.shape[-1])


_MOVES = {
    *("add", "add_any", "broadcast_in_dim", "concatenate", "cond", "convert_element_type"),
    *("custom_jvp_call", "custom_vjp_call", "div", "dot_general", "dynamic_slice", "gather"),
    *("dynamic_update_slice", "integer_pow", "jit", "mul", "neg", "pad", "pjit", "reduce_sum"),
    *("remat", "reshape", "rev", "scan", "select_n", "slice", "split", "square", "squeeze"),
    *("stack", "sub", "tile", "transpose", "unstack", "while", *UNCHANGED),
}
"""Primitives that are linear, or may be part of something that is, such as a norm."""


def _mixing(found: Dependencies, unit: Symbol) -> str:
    """What is done to channels that a matrix could not follow, in words."""
    for eqn, axes in zip(_results(found.jaxpr), found.made, strict=True):
        if eqn.primitive.name not in _MOVES and any(unit in symbols(a) for a in axes):
            return f"{describe_place(eqn)} is not linear in them"
    return "what reads them is not linear in them, such as a norm that takes off their mean"


def _results(jaxpr: jex.Jaxpr) -> Iterator[jex.JaxprEqn]:
    """The equation of each result, those inside others first."""
    for eqn in jaxpr.eqns:
        for inner, _ in inner_jaxprs(eqn):
            yield from _results(inner)
        yield from (eqn for _ in eqn.outvars)
