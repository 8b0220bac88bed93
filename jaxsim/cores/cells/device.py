"""Memory cells: what programming a conductance yields, and what reading it adds.

Conductances are relative to the largest one: a cell holds g in [1 / on_off, 1].
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from jaxsim.numerics.checks import check_range, is_traced
from jaxsim.numerics.hashing import hashed_normal

Conductance = Float[Array, "..."]


class Aging(NamedTuple):
    """What becomes of cells after they were programmed, as functions.

    Attributes:
      draw: `(g, key) -> fate`, what is decided about [*] cells when they are programmed to g, for
        instance how fast each will drift: a pytree of arrays. `key` is that of `program`: fold it.
      at: `(g, fate, time) -> g`, the conductances at `time`, in seconds after the first read, of
        cells whose programming reached g.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> fading = js.cells.Aging(lambda g, key: (), lambda g, fate, time: g * 0.9 ** (time / 3600))
      >>> device = js.cells.Device(lambda g, key: g, aging=fading)
      >>> round(float(device.aging.at(jnp.ones(()), (), 7200.0)), 2)
      0.81
    """

    draw: Callable[[Conductance, Key[Array, ""]], Any]
    at: Callable[[Conductance, Any, Any], Conductance]


class Pulses(NamedTuple):
    """How many pulses programming takes.

    Attributes:
      taken: `(g, key) -> n`, the number for each of [*] cells that `program` programs to g with
        that key.
      most: their largest number.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> device = js.cells.verified(js.cells.independent(0.0), tolerance=0.01, pulses=5)
      >>> device.pulses.taken(jnp.ones(2), jax.random.key(0)).tolist(), device.pulses.most
      ([1.0, 1.0], 5)
    """

    taken: Callable[[Conductance, Key[Array, ""]], Conductance]
    most: int


class _Device(NamedTuple):
    program: Callable[[Conductance, Key[Array, ""]], Conductance]
    on_off: float | Array | None = None
    noise: Callable[[Conductance], Conductance] | None = None
    aging: Aging | None = None
    pulses: Pulses | None = None


class Device(_Device):
    """A memory device: what programming and reading its cells yields.

    Attributes:
      program: `(g, key) -> g`, the conductances reached when [*] cells are programmed to g, with
        g and result in units of the largest conductance.
      on_off: Ratio of the largest to the smallest conductance, above 1; None for infinity.
      noise: `g -> sigma`, the standard deviation of [*] cells from one read to the next, in the
        same units; None where reads repeat.
      aging: what becomes of the cells later, see `js.age`; None where they stay.
      pulses: how many pulses programming takes, see `js.count_pulses`; None where nothing counts.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> levels = js.cells.Device(lambda g, key: jnp.round(3 * g) / 3, on_off=100.0)
      >>> levels.program(jnp.array([0.1, 0.5]), None).tolist()[0]
      0.0
    """

    __slots__ = ()

    def __new__(
        cls,
        program: Callable[[Conductance, Key[Array, ""]], Conductance] | None = None,
        on_off: float | Array | None = None,
        noise: Callable[[Conductance], Conductance] | None = None,
        aging: Aging | None = None,
        pulses: Pulses | None = None,
        *,
        programme: Callable[[Conductance, Key[Array, ""]], Conductance] | None = None,
    ) -> Device:
        """Makes a device; `programme` is the old name of `program`, for one release.

        Raises:
          ValueError: Neither is given, or both.
        """
        if programme is not None:
            warnings.warn("Device: programme is now program", DeprecationWarning, stacklevel=2)
        if (program is None) == (programme is None):
            raise ValueError("program=None: expected a function (g, key) -> g")
        return super().__new__(cls, program or programme, on_off, noise, aging, pulses)  # pyright: ignore

    @property
    def programme(self) -> Callable[[Conductance, Key[Array, ""]], Conductance]:
        """`program` by its old name, for one release."""
        warnings.warn("Device.programme is now Device.program", DeprecationWarning, stacklevel=2)
        return self.program

    def __str__(self) -> str:
        shown = _shown(self) + ("" if self.aging is None else ", ages")
        if self.on_off is None:
            return shown
        if is_traced(self.on_off) or np.ndim(self.on_off):
            return f"{shown}, on/off {'traced' if is_traced(self.on_off) else 'several'}"
        return f"{shown}, on/off {self.on_off:.4g}"

    def __repr__(self) -> str:
        return _call(self) or f"Device({self})"


def _call(device: Device) -> str:
    """The call that makes a device of one kind of error; empty for any other."""
    kinds = dict[str, tuple[int, float]]()
    for name, spread in (("sigma", deviation_of(device)), ("noise", device.noise)):
        kind = _SPREADS.get(cast(Any, getattr(spread, "func", None)))
        if kind is None and (name == "sigma" or spread is not None):
            return ""
        if kind is not None:
            terms: Any = cast(Any, spread).keywords["terms"]
            if is_traced(terms) or np.shape(terms) != (3,) or np.count_nonzero(terms) != 1:
                return ""
            kinds[name] = kind, float(terms[kind])
    others = device.aging is not None or device.pulses is not None
    ratio: Any = 0.0 if device.on_off is None else device.on_off
    if (
        others
        or is_traced(ratio)
        or np.ndim(ratio)
        or len({kind for kind, _ in kinds.values()}) != 1
    ):
        return ""
    given = {name: value for name, (_, value) in kinds.items()}
    if device.on_off is not None:
        given["on_off"] = float(device.on_off)
    (kind,) = {kind for kind, _ in kinds.values()}
    shown = ", ".join(f"{name}={value:.6g}" for name, value in given.items())
    return f"{('independent', 'proportional', 'inverse')[kind]}({shown})"


def _shown(device: Device) -> str:
    """The name of what programs a device, and of what it is made of."""
    program: Any = device.program
    function = getattr(program, "func", program)
    if function is _gaussian:
        terms = program.args[0].keywords["terms"]
        return "traced" if is_traced(terms) else _formula(np.asarray(terms))
    name = getattr(function, "__name__", "device").lstrip("_")
    inner = [_shown(a) for a in getattr(program, "args", ()) if isinstance(a, Device)]
    return " ".join([name, *inner])


def independent(
    sigma: float | Array, *, on_off: float | Array | None = None, noise: float | Array | None = None
) -> Device:
    """Errors that do not depend on the state: N(0, sigma) in units of the largest conductance.

    Args:
      sigma: standard deviation, at least 0. Traced.
      on_off: ratio of the largest to the smallest conductance, above 1; None for infinity. Traced.
      noise: standard deviation from read to read, of the same kind; None for none. Traced.

    Raises:
      ValueError: sigma, on_off or noise out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.cells.independent(0.02).program(jnp.ones(3), jax.random.key(0)).shape
      (3,)

    Source: Xiao et al. (2022), arXiv 2109.01262, §5.
    """
    return _generic(0, sigma, on_off, noise)


def proportional(
    sigma: float | Array, *, on_off: float | Array | None = None, noise: float | Array | None = None
) -> Device:
    """Errors proportional to the state: N(0, sigma · g).

    Args:
      sigma: relative standard deviation, at least 0. Traced.
      on_off: ratio of the largest to the smallest conductance, above 1; None for infinity. Traced.
      noise: relative standard deviation from read to read; None for none. Traced.

    Raises:
      ValueError: sigma, on_off or noise out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.cells.proportional(0.02, on_off=100.0).program(jnp.ones(3), jax.random.key(0)).shape
      (3,)

    Source: Xiao et al. (2022), arXiv 2109.01262, §5.
    """
    return _generic(1, sigma, on_off, noise)


def inverse(
    sigma: float | Array, *, on_off: float | Array | None = None, noise: float | Array | None = None
) -> Device:
    """Errors inversely proportional to the state: N(0, sigma / g), none where nothing is stored.

    Args:
      sigma: standard deviation at the largest conductance, at least 0. Traced.
      on_off: ratio of the largest to the smallest conductance, above 1; None for infinity. Traced.
      noise: standard deviation from read to read, of the same kind; None for none. Traced.

    Raises:
      ValueError: sigma, on_off or noise out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.cells.inverse(0.02).program(jnp.ones(3), jax.random.key(0)).shape
      (3,)
    """
    return _generic(2, sigma, on_off, noise)


def _generic(
    kind: int, sigma: float | Array, on_off: float | Array | None, noise: float | Array | None
) -> Device:
    """A device whose deviations are one of `_SPREADS`."""
    spread = tuple(_SPREADS)[kind]

    def of(size: float | Array) -> Partial:
        return Partial(spread, terms=jnp.zeros(3).at[kind].set(size))

    check_range("sigma", sigma, 0)
    if on_off is not None:
        check_range("on_off", on_off, 1, above=True)
        on_off = jnp.asarray(on_off, jnp.float32)
    program = Partial(_gaussian, of(sigma))
    if noise is None:
        return Device(program, on_off)
    check_range("noise", noise, 0)
    return Device(program, on_off, of(noise))


def _gaussian(spread: Callable[[Array], Array], g: Array, key: Key[Array, ""]) -> Array:
    return g + spread(g) * normal(key, g.shape)


def _constant(g: Array, *, terms: Float[Array, "3"]) -> Array:
    return jnp.broadcast_to(terms[0], g.shape)


def _relative(g: Array, *, terms: Float[Array, "3"]) -> Array:
    return terms[1] * g


def _reciprocal(g: Array, *, terms: Float[Array, "3"]) -> Array:
    """The deviation c / g where something is stored, else none."""
    stored = g > 0
    return jnp.where(stored, terms[2] / jnp.where(stored, g, 1), 0)


_SPREADS = {_constant: 0, _relative: 1, _reciprocal: 2}
"""Deviations of a conductance, and the term that is the size of each."""


def deviation_of(device: Device) -> Callable[[Conductance], Conductance] | None:
    """The deviation of errors that a device adds to what is programmed, independent and normal.

    Args:
      device: any.

    Returns:
      `g -> sigma`, or None for a device that programs in another way.
    """
    program: Any = device.program
    function = getattr(program, "func", None)
    return program.args[0] if function is _gaussian else None


def _formula(terms: np.ndarray) -> str:
    powers = ("", " g", " / g")
    parts = [f"{c:.4g}{power}" for c, power in zip(np.ravel(terms), powers, strict=False) if c]
    return "σ = " + (" + ".join(parts) or "0")


def normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Independent standard normal numbers.

    Examples:
      >>> import jax
      >>> import jaxsim as js
      >>> js.cells.normal(jax.random.key(0), (2, 3)).shape
      (2, 3)
    """
    return hashed_normal(key, shape)
