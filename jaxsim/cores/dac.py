"""Digital-to-analog converters that drive the rows of arrays (`js.dac`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.random import fold_in
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from jaxsim.cores.adc.capacitors import amplified, bit_weights, unit_errors
from jaxsim.cores.adc.converter import amplifier_gain, numbers
from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.product import Subtraction, subtraction_of, subtracts
from jaxsim.cores.role import role
from jaxsim.numerics.checks import MissingKeyError
from jaxsim.numerics.gradients import zero_with_gradient_of

__all__ = ["DAC", "capacitive"]


class DAC(NamedTuple):
    """A digital-to-analog converter in front of the rows, as functions.

    One curve serves all rows of a site, as that of a reference which they share.

    Attributes:
      convert: `(x, bits, parts) -> x`, what drives the rows for codes [*] of so many magnitude
        bits, in units of a code; `parts` is None where there are none.
      parts: `(key, bits) -> parts`, what is drawn when the chip is written: a pytree of arrays.
        None where nothing is.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> soft = js.dac.DAC(lambda x, bits, parts: x - 1e-3 * x**3 / 4**bits)
      >>> bool(soft.convert(jnp.array([127.0]), 7, None)[0] < 127)
      True
    """

    convert: Callable[..., Float[Array, "*"]]
    parts: Callable[[Key[Array, ""], int], Any] | None = None

    def __str__(self) -> str:
        function = self.convert
        while hasattr(function, "func"):
            function = function.func  # pyright: ignore[reportFunctionMemberAccess]
        return getattr(function, "__name__", "dac").lstrip("_")


def capacitive(
    *, mismatch: float | Array | None = None, amplifier: float | Array | None = None
) -> DAC:
    """Binary-weighted capacitors, one for each magnitude bit of an input code.

    The sign of a code is that of the reference. Without errors it is linear, bit for bit.

    Args:
      mismatch: Standard deviation of a capacitor of one unit, relative to it, at least 0; one of n
        units has sqrt(n) times that. None for ideal ones. Traced.
      amplifier: Open-loop gain of the amplifier behind the capacitors, above 0; None for an ideal
        one. Traced.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> dac = js.dac.capacitive(mismatch=0.1)
      >>> x = dac.convert(jnp.array([0.0, 3.0, -3.0]), 2, dac.parts(jax.random.key(0), 2))
      >>> x[0].item(), bool(x[1] == -x[2]), bool(x[1] == 3)
      (0.0, True, False)
    """
    errors = numbers(mismatch=mismatch)
    parts = Partial(_capacitors, **errors) if errors else None
    return DAC(Partial(capacitor_levels, amplifier=amplifier_gain(amplifier)), parts)


def _capacitors(key: Key[Array, ""], bits: int, *, mismatch: Array) -> Float[Array, " b"]:
    return unit_errors(key, bits, mismatch, 1, 1)[:, 0, 0]


def capacitor_levels(
    x: Array, bits: int, parts: Array | None, *, amplifier: Array | None
) -> Float[Array, "*"]:
    """`DAC.convert` of `capacitive`."""
    magnitude = jnp.abs(lax.stop_gradient(x))
    level = jnp.zeros_like(magnitude)
    for k, weight in enumerate(bit_weights(parts, bits)):
        level = level + jnp.floor(magnitude / 2.0**k) % 2 * weight
    level = amplified(level, bits, amplifier)
    return jnp.sign(x) * level + zero_with_gradient_of(x)


class DriverState(NamedTuple):
    """State behind drivers that differ from chip to chip.

    Attributes:
      inner: What the inner core wrote.
      parts: What `DAC.parts` drew.
    """

    inner: State
    parts: Any


OWN = 0xDAC
"""What the key of a site is folded with for its drivers."""


@role("inputs")
def drivers(core: Core, *, dac: DAC) -> Core:
    """Drives rows by what a converter makes of input codes.

    What is taken off digitally, such as the share of an offset, is computed from the codes.

    Args:
      core: Contracts what drives the rows.
      dac: The converter.
    """

    def bits_of(op: Op) -> int:
        """Magnitude bits of the largest code."""
        if op.x_lo is None or op.x_hi is None:
            raise ValueError("drivers: the input is a float; wrap it in quantized(inputs=…)")
        return max(-op.x_lo, op.x_hi, 1).bit_length()

    def driven(op: Op, state: State, x: Array) -> tuple[State, Array]:
        inner, parts = (state, None) if dac.parts is None else state
        return inner, dac.convert(x.astype(jnp.float32), bits_of(op), parts)

    def write(op: Op, w: Array, key: Any) -> State:
        inner = core.write(op, w, key)
        if dac.parts is None:
            return inner
        if key is None:
            raise MissingKeyError("drivers that differ from chip to chip need a key")
        return DriverState(inner, dac.parts(fold_in(key, OWN), bits_of(op)))

    def calibrate(op: Op, state: State, x: Array) -> State:
        inner, v = driven(op, state, x)
        inner = core.calibrate(op, inner, v)
        return inner if dac.parts is None else state._replace(inner=inner)

    of = subtraction_of(core)

    def difference(state: State) -> State:
        assert of is not None
        return of.of(state) if dac.parts is None else state._replace(inner=of.of(state.inner))

    @subtracts(None if of is None else Subtraction(write, difference))
    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        inner, v = driven(op, state, x)
        return core.read(op, inner, v, key)

    return Core(write, calibrate, read)
