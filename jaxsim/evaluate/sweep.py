"""Sweeps: one function of many settings, or of many chips, as one program on all devices."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from jaxsim.numerics.checks import checked_int

Way = Literal["map", "vmap"]
"""How settings run on a device: one after the other, or as one batch."""

_ROUNDS = 3
"""How often each way is timed, in turn; the fastest run counts."""


def sweep(
    function: Callable[..., Any],
    settings: Iterable[Any],
    *shared: Any,
    way: Literal["auto", "map", "vmap"] = "auto",
    at_once: int = 8,
    mesh: Mesh | None = None,
) -> Any:
    """Computes a function of each of many settings, such as chips of one structure, in one program.

    One program serves a sweep of any length over `at_once`, and every later sweep of this function.
    Arrays that are the same object in all settings are held once, those of the others for `at_once`
    settings a device.

    Args:
      function: Function of one setting and of what they share, made of JAX operations; the program
        is kept for this very function, so define it once.
      settings: Settings, at least one: numbers, keys, deployed networks, or trees of these, all of
        one structure; or an array of them along its first axis.
      *shared: What all settings share, such as data, as further arguments of the function.
      way: How a device computes them: one after the other ("map"), as one batch ("vmap"), or the
        one that is faster here ("auto"), timed on the first of them and remembered. Results may
        differ in their last bits.
      at_once: Most settings that a device holds at a time, at least 1.
      mesh: Devices over which settings are divided, along all its axes; None for one device.

    Returns:
      What the function returns, with the settings as the first axis of every array.

    Raises:
      ValueError: No function, no setting, settings of several structures or shapes, or an argument
        out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.linspace(-1, 1, 32).reshape(8, 4)
      >>> net = js.trace(lambda p, x: jnp.tanh(x @ p["w"]), {"w": jnp.eye(4)}, x)
      >>> cells = js.compose(js.quantize(8, 8), js.analog(cells=js.cells.independent(0.1)))(net)
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> chips = [js.deploy(cells, key=key, calibrate=x) for key in keys]
      >>> js.sweep(lambda chip, x: jnp.std(chip(x) - net(x)), chips, x).shape
      (3,)
    """
    if not callable(function):
        raise ValueError(f"function={function!r}: must be a function of one setting")
    if way not in ("auto", "map", "vmap"):
        raise ValueError(f"way={way!r}: must be one of 'auto', 'map', 'vmap'")
    at_once, listed = checked_int("at_once", at_once, 1), _Settings.of(settings, shared)
    programs = _programs(function, mesh)
    chosen = programs.fastest(listed, at_once) if way == "auto" else way
    devices = 1 if mesh is None else mesh.size
    size = devices * min(at_once, -(-len(listed.rows) // devices))
    listed = programs.placed(listed)
    found = [
        programs.run(chosen, listed, start, size) for start in range(0, len(listed.rows), size)
    ]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


def fastest_way(
    function: Callable[..., Any],
    settings: Iterable[Any],
    *shared: Any,
    at_once: int = 8,
    mesh: Mesh | None = None,
) -> Way:
    """Times both ways of a sweep on its first settings.

    Args:
      function: Function of one setting and of what they share.
      settings: Settings, as `sweep` takes them.
      *shared: What they share.
      at_once: Most settings that a device holds at a time, at least 1.
      mesh: Devices over which settings are divided; None for one device.
    """
    return _programs(function, mesh).fastest(_Settings.of(settings, shared), at_once)


class _Settings(NamedTuple):
    """Settings of one structure, taken apart.

    Attributes:
      structure: Their structure.
      alike: True for each leaf that is the same object in all of several.
      held: These leaves, and what all settings share.
      rows: The other leaves of each setting.
    """

    structure: Any
    alike: tuple[bool, ...]
    held: tuple[list[Any], tuple[Any, ...]]
    rows: list[list[Any]]

    @classmethod
    def of(cls, settings: Iterable[Any], shared: tuple[Any, ...]) -> _Settings:
        """Takes settings apart.

        Raises:
          ValueError: There is none, they hold no number, or they differ in more than numbers.
        """
        flat = [jax.tree.flatten(setting) for setting in settings]
        if not flat or not flat[0][0]:
            raise ValueError("settings: there is none that holds a number; give one at least")
        (first, structure), shapes = flat[0], [_shapes(leaves) for leaves, _ in flat]
        for i, (_, own) in enumerate(flat):
            if own != structure or shapes[i] != shapes[0]:
                what = "arrays of other shapes" if own == structure else "another structure"
                raise ValueError(
                    f"settings: number {i} has {what} than number 0; one program computes "
                    "settings that differ in numbers alone"
                )
        columns = zip(*(leaves for leaves, _ in flat), strict=True)
        alike = [all(a is column[0] for a in column) for column in columns]
        if all(alike):  # of one setting it is not known what others would share
            alike = [False] * len(alike)
        rows = [[a for a, same in zip(own, alike, strict=True) if not same] for own, _ in flat]
        held = [a for a, same in zip(first, alike, strict=True) if same]
        return cls(structure, tuple(alike), (held, shared), rows)

    @property
    def kind(self) -> Any:
        """What programs depend on, hashable."""
        held, structure = jax.tree.flatten(self.held)
        return self.structure, self.alike, structure, _shapes(held), _shapes(self.rows[0])


def _shapes(leaves: Sequence[Any]) -> tuple[Any, ...]:
    return tuple((np.shape(a), jnp.result_type(a)) for a in leaves)


class _Programs:
    """Programs of one function on some devices, and which way was faster."""

    def __init__(self, function: Callable[..., Any], mesh: Mesh | None):
        """Has compiled and timed none."""
        self.function, self.mesh = function, mesh
        self.known: dict[Any, Way] = {}
        self.compiled = jax.jit(self._computed, static_argnums=(0, 1, 2))

    def fastest(self, settings: _Settings, at_once: int) -> Way:
        """The faster way for settings like these; nothing is timed where a device has one."""
        devices = 1 if self.mesh is None else self.mesh.size
        each = min(at_once, -(-len(settings.rows) // devices))
        if each == 1:
            return "map"
        key = settings.kind, each
        if key not in self.known:
            ways: tuple[Way, Way] = ("map", "vmap")
            seconds, settings = dict.fromkeys(ways, np.inf), self.placed(settings)
            for turn in range(1 + _ROUNDS):
                for way in ways:
                    clock = time.perf_counter()
                    jax.block_until_ready(self.run(way, settings, 0, devices * each))
                    if turn:  # the first compiles
                        seconds[way] = min(seconds[way], time.perf_counter() - clock)
            self.known[key] = "vmap" if seconds["vmap"] < seconds["map"] else "map"
        return self.known[key]

    def placed(self, settings: _Settings) -> _Settings:
        """Settings whose common arrays are on all devices."""
        if self.mesh is None:
            return settings
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return settings._replace(held=jax.device_put(settings.held, everywhere))

    def run(self, way: Way, settings: _Settings, start: int, size: int) -> Any:
        """Results of the settings from one on, of `size` at most."""
        rows = settings.rows[start : start + size]
        filled = zip(*rows, *[rows[-1]] * (size - len(rows)), strict=True)
        stacked = [jnp.stack([jnp.asarray(a) for a in column]) for column in filled]
        if self.mesh is not None:
            cut = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
            stacked = jax.device_put(stacked, cut)
        known = settings.structure, settings.alike
        found = self.compiled(way, *known, settings.held, stacked, np.int32(len(rows)))
        return jax.tree.map(lambda a: a[: len(rows)], found)

    def _computed(
        self,
        way: Way,
        structure: Any,
        alike: tuple[bool, ...],
        held: tuple[list[Any], tuple[Any, ...]],
        stacked: list[Array],
        count: Int[Array, ""],
    ) -> Any:
        def one(held: tuple[list[Any], tuple[Any, ...]], own: list[Array]) -> Any:
            leaves, shared = (iter(own), iter(held[0])), held[1]
            whole = jax.tree.unflatten(structure, [next(leaves[same]) for same in alike])
            return jax.tree.map(jnp.asarray, self.function(whole, *shared))

        def several(held: Any, stacked: list[Array], count: Int[Array, ""]) -> Any:
            own = functools.partial(one, held)
            return jax.vmap(own)(stacked) if way == "vmap" else _in_turn(own, stacked, count)

        if self.mesh is None:
            return several(held, stacked, count)
        names = self.mesh.axis_names

        def of_device(held: Any, stacked: list[Array], count: Int[Array, ""]) -> Any:
            each = len(stacked[0])
            left = count - jax.lax.axis_index(names) * each
            return several(held, stacked, jnp.clip(left, 0, each))

        cut, whole = PartitionSpec(names), PartitionSpec()
        return jax.shard_map(
            of_device,
            mesh=self.mesh,
            in_specs=(whole, cut, whole),
            out_specs=cut,
            check_vma=False,
        )(held, stacked, count)


def _in_turn(
    function: Callable[[list[Array]], Any], stacked: list[Array], count: Int[Array, ""]
) -> Any:
    """What `lax.map` computes, of the first `count` settings alone; zero for what fills up."""
    rows = len(stacked[0])

    def at(i: Any) -> list[Array]:
        return [jax.lax.dynamic_index_in_dim(a, i, keepdims=False) for a in stacked]

    shapes = jax.eval_shape(function, jax.eval_shape(at, 0))
    nothing = jax.tree.map(lambda a: jnp.zeros((rows, *a.shape), a.dtype), shapes)

    def turn(i: Any, found: Any) -> Any:
        return jax.tree.map(lambda all, new: all.at[i].set(new), found, function(at(i)))

    return jax.lax.fori_loop(0, count, turn, nothing)


@functools.lru_cache(maxsize=64)
def _programs(function: Callable[..., Any], mesh: Mesh | None) -> _Programs:
    """Programs of a function, kept for later sweeps of it."""
    return _Programs(function, mesh)
