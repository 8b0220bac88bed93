"""What an analog-to-digital converter is, and the one of equal steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from jaxsim.formats.clipping import percentile as covering
from jaxsim.formats.grid import Range, observe_range
from jaxsim.numerics.checks import Count, check_range, checked_int, is_traced
from jaxsim.numerics.gradients import clip_ste, round_ste, zero_with_gradient_of
from jaxsim.numerics.scaling import divide, step_of

RangeRule = Literal["calibrated", "max", "granular"]

KINDS = ("flash", "pipeline", "sar", "cyclic", "ramp")
"""Ways to convert that the cost model tells apart."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Kind:
    """The way a converter converts, from which follows how many cycles a conversion takes.

    Attributes:
      name: "flash", "pipeline", "sar", "cyclic" or "ramp"; see `js.accelerators.AnalogArray`.
      split: Number of bits of the lower of two arrays of capacitors; None for one array.

    Examples:
      >>> import jaxsim as js
      >>> js.adc.sar(8).kind
      Kind(name='sar', split=None)
    """

    name: str
    split: int | None = None

    def __post_init__(self):
        if self.name not in KINDS:
            kinds = ", ".join(map(repr, KINDS))
            raise ValueError(f"name={self.name!r}: must be one of {kinds}")


class Column(NamedTuple):
    """Codes that meet in one column of an array, from which its largest output follows.

    Attributes:
      depth: Number of products summed in the column.
      x_lo, x_hi: Smallest and largest input code.
      w_hi: Largest magnitude of a weight code, one for each weight plane.

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> column = js.adc.Column(depth=4, x_lo=0, x_hi=15, w_hi=np.array([3.0]))
      >>> js.adc.uniform(8, span="max").span(column, 8, signed=False)[1].tolist()
      [180.0]
    """

    depth: int
    x_lo: int
    x_hi: int
    w_hi: np.ndarray


class ADC(NamedTuple):
    """An analog-to-digital converter at the end of a column, as functions.

    Numbers of a function that are to be traced are bound by `jax.tree_util.Partial`, as `uniform`
    does. `signed` is True behind a differential pair, whose outputs lie around zero.

    Attributes:
      convert: `(y, lo, hi, signed) -> y`, the digital values of analog ones [*] for a converter
        that spans [lo, hi], both broadcastable to `y`; in the units of `y`. With `parts` it takes
        them as a fifth argument, each array [..., *y's last axes].
      observe: `(y, axes, signed) -> Range`, the range of a converter that has seen `y`, over all
        axes but those of the weight planes, which stay as axes of size 1.
      span: `(column, bits, signed) -> (lo, hi)`, the range that follows from codes alone, one for
        each weight plane; None for a converter whose range is calibrated.
      bits: Resolution, above 0, by which conversions are charged.
      parts: `(key, arrays, columns) -> parts`, what differs from chip to chip and is drawn when
        the chip is written: a pytree of arrays [..., arrays or 1, columns or 1]. None where all
        converters are alike.
      noise: Standard deviation of what is added to each value before it is converted, as a share
        of hi - lo, drawn anew for each; None for none.
      kind: The way it converts, by which `js.accelerators.AnalogArray` knows how long that takes;
        None for what the array says.

    Examples:
      >>> import jaxsim as js
      >>> print(js.adc.uniform(8, span="max"))
      equal_steps, 8 bits, largest
    """

    convert: Callable[..., Float[Array, "*"]]
    observe: Callable[..., Range]
    span: Callable[..., tuple[Any, Any]] | None
    bits: float | Array
    parts: Callable[[Key[Array, ""], int, int], Any] | None = None
    noise: float | Array | None = None
    kind: Kind | None = None

    def __str__(self) -> str:
        name = _name_of(self.convert)
        bits = "traced" if is_traced(self.bits) else f"{np.asarray(self.bits):.4g}"
        span = "" if self.span is None else f", {_name_of(self.span)}"
        errors = _bound(self.convert) | _bound(self.parts) | {"noise": self.noise}
        errors |= _bound(self.span)
        shown = [f", {k} {_shown(v)}" for k, v in errors.items() if v is not None]
        return f"{name}, {bits} bits{span}{''.join(shown)}"


def _shown(number: Any) -> str:
    if isinstance(number, Count):
        return str(len(number))
    return "traced" if is_traced(number) else f"{np.asarray(number):.4g}"


def _name_of(function: Callable[..., Any]) -> str:
    while hasattr(function, "func"):
        function = cast(Any, function).func
    return getattr(function, "__name__", "adc").lstrip("_")


def _bound(function: Callable[..., Any] | None) -> dict[str, Any]:
    """Numbers that a function of a converter binds by name, such as the size of an error."""
    found: dict[str, Any] = {}
    for inner in getattr(function, "args", ()):
        found |= _bound(inner)
    return found | (function.keywords if isinstance(function, Partial) else {})


def uniform(
    bits: float | Array,
    *,
    span: RangeRule | float | Array = "calibrated",
    percentile: float | Array = 99.98,
    gain_error: float | Array | None = None,
    offset: float | Array | None = None,
    noise: float | Array | None = None,
    columns_per_adc: int = 1,
) -> ADC:
    """A converter of equal steps.

    Behind a differential pair it is symmetric with an exact zero and has 2^bits - 2 steps,
    otherwise 2^bits - 1 steps from the lower to the upper end.

    Args:
      bits: Resolution, 1 to 16. Traced, so that a sweep over it compiles once.
      span: "calibrated" covers what was seen at calibration, the ranges of slices widened until
        they differ by powers of two, so that shifts add them; "max" covers all that the array
        could yield; "granular" makes a step one unit of input and weight codes and clips what
        lies beyond. A number is the range itself, in currents of one full cell whose row is driven
        fully, above 0: one for all arrays, in training and on a chip (`js.common_span` measures
        it). Traced.
      percentile: Share of the calibration values, in percent, that a calibrated range covers, in
        (0, 100]. Traced.
      gain_error: Standard deviation of the relative gain of a converter, at least 0; None for
        none. Traced.
      offset: Standard deviation of what a converter adds, as a share of its range hi - lo, at least
        0; None for none. Traced.
      noise: Standard deviation of what each conversion adds, as a share of the range, at least 0;
        None for none. Traced.
      columns_per_adc: Number of columns of an array that share a converter, and its errors.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> adc = js.adc.uniform(2)
      >>> adc.convert(jnp.array([0.1, 1.4, 9.0]), 0.0, 3.0, signed=False).tolist()
      [0.0, 1.0, 3.0]

    Source: Xiao et al. (2022), arXiv 2109.01262, p. 39 (calibrated range).
    """
    check_range("bits", bits, 1, 16)
    errors = numbers(gain_error=gain_error, offset=offset)
    adc = equal_steps_adc(jnp.asarray(bits, jnp.float32), _checked(span, percentile), span)
    each = drawn(Partial(_errors, **errors), errors, columns_per_adc)
    return adc._replace(parts=each, **numbers(noise=noise))


def equal_steps_adc(
    bits: float | Array, percentile: float | Array, span: RangeRule | float | Array
) -> ADC:
    """A converter of equal steps by its numbers, which are not looked at."""
    seen = Partial(_percentile, percentile)
    return ADC(Partial(_equal_steps, bits), seen, _span_of(span), bits)


def circuit(
    convert: Callable[..., Array],
    bits: int,
    span: RangeRule | float | Array,
    percentile: float | Array,
    parts: Callable[..., Any] | None,
    noise: float | Array | None,
    kind: str,
    split: int | None = None,
) -> ADC:
    """A converter that a circuit makes, over a range as `uniform` has it."""
    seen = Partial(_percentile, _checked(span, percentile))
    own, drawn = Kind(kind, split), numbers(noise=noise).get("noise")
    return ADC(convert, seen, _span_of(span), bits, parts, drawn, own)


def _checked(span: RangeRule | float | Array, percentile: float | Array) -> Float[Array, ""]:
    check_range("percentile", percentile, 0, 100, above=True)
    if not isinstance(span, str):
        if np.ndim(span) > 0:
            raise ValueError(f"span: an array {list(np.shape(span))}; must be one number")
        check_range("span", span, 0, above=True)
    elif span not in _SPANS:
        raise ValueError(f"span={span!r}: must be 'calibrated', 'max' or 'granular', or a number")
    return jnp.asarray(percentile, jnp.float32)


def _span_of(span: RangeRule | float | Array) -> Callable[..., tuple[Any, Any]] | None:
    if isinstance(span, str):
        return _SPANS[span]
    return Partial(_full_cells, cells=jnp.asarray(span, jnp.float32))


def numbers(**given: float | Array | None) -> dict[str, Array]:
    """Those of some errors that are given, at least 0, as traced numbers."""
    for name, value in given.items():
        if value is not None:
            check_range(name, value, 0)
    return {k: jnp.asarray(v, jnp.float32) for k, v in given.items() if v is not None}


def amplifier_gain(amplifier: float | Array | None) -> Array | None:
    """The open-loop gain of an amplifier, above 0, as a traced number; None for an ideal one."""
    if amplifier is None:
        return None
    check_range("amplifier", amplifier, 0, above=True)
    return jnp.asarray(amplifier, jnp.float32)


def drawn(
    each: Callable[..., Any], errors: dict[str, Array], columns_per_adc: int
) -> Callable[..., Any] | None:
    """`ADC.parts` of converters that serve some columns each; None where nothing differs.

    Args:
      each: `(key, arrays, converters) -> parts`, with as many numbers in an array as converters.
      errors: what is drawn; nothing is where it is empty.
      columns_per_adc: number of columns of an array that share a converter, at least 1.
    """
    shared = checked_int("columns_per_adc", columns_per_adc, 1)
    if not errors:
        return None
    return each if shared == 1 else Partial(_shared, each, Count(shared))


def _shared(each: Any, shared: Count, key: Key[Array, ""], arrays: int, columns: int) -> Any:
    parts = each(key, arrays, -(-columns // len(shared)))
    return jax.tree.map(
        lambda a: a if a.shape[-1] == 1 else jnp.repeat(a, len(shared), -1)[..., :columns], parts
    )


def _errors(key: Key[Array, ""], arrays: int, columns: int, **errors: Array) -> dict[str, Array]:
    """Of each kind of error a number for each converter."""
    return {
        name: sigma * jax.random.normal(jax.random.fold_in(key, i), (arrays, columns))
        for i, (name, sigma) in enumerate(sorted(errors.items()))
    }


def steps_of(bits: float | Array, signed: bool) -> Float[Array, ""]:
    """The number of steps from the lower to the upper end."""
    levels = 2.0 ** jnp.asarray(bits, jnp.float32)
    return levels - 2 if signed else levels - 1


def _equal_steps(
    bits: float | Array, y: Array, lo: Array, hi: Array, signed: bool, parts: Any = None
) -> Array:
    if parts is not None:
        y = y * (1 + parts.get("gain_error", 0.0)) + parts.get("offset", 0.0) * (hi - lo)
    u, lsb, steps = in_steps(y, lo, hi, bits, signed)
    ends = (-steps / 2, steps / 2) if signed else (0, steps)
    y = clip_ste(round_ste(u), *ends) * lsb
    return y if signed else lo + y


def in_steps(
    y: Array, lo: Array, hi: Array, bits: float | Array, signed: bool
) -> tuple[Array, Array, Array]:
    """Values in units of a step, from zero or, unsigned, the lower end; the step; their number."""
    steps = steps_of(bits, signed)
    lsb = step_of(hi - lo, steps, empty=1.0)
    return (divide(y, lsb) if signed else divide(y - lo, lsb)), lsb, steps


def from_codes(
    code: Array, u: Array, lsb: Array, ends: tuple[Array, Array], steps: Array, signed: bool
) -> Float[Array, "..."]:
    """What codes stand for, with the derivative that a converter of equal steps has.

    Args:
      code: what the circuit decided.
      u: what it was given, in steps; what is no number stays none.
      lsb: the step.
      ends: of the range; where it is empty, nothing was seen, and codes are zero.
      steps: their number.
      signed: whether codes count from zero, else from the lower end.
    """
    lo, hi = ends
    least, most = (-steps / 2, steps / 2) if signed else (0, steps)
    code = jnp.where(hi > lo, lax.stop_gradient(code), 0)
    code = jnp.where(u == u, code, jnp.nan)
    y = (code + zero_with_gradient_of(clip_ste(round_ste(u), least, most))) * lsb
    return y if signed else lo + y


def _percentile(percentile: float | Array, y: Array, axes: Sequence[int], signed: bool) -> Range:
    return observe_range(y, axes=list(axes), clip=covering(percentile), symmetric=signed)


def _largest(column: Column, bits: float | Array, signed: bool) -> tuple[Any, Any]:
    lo, hi = (column.depth * end * column.w_hi for end in (column.x_lo, column.x_hi))
    return (-np.maximum(-lo, hi), np.maximum(-lo, hi)) if signed else (lo, hi)


def _full_cells(
    column: Column, bits: float | Array, signed: bool, *, cells: Array
) -> tuple[Any, Any]:
    lo, hi = (cells * end * column.w_hi for end in (column.x_lo, column.x_hi))
    return (-jnp.maximum(-lo, hi), jnp.maximum(-lo, hi)) if signed else (lo, hi)


def _unit_step(column: Column, bits: float | Array, signed: bool) -> tuple[Any, Any]:
    steps = steps_of(bits, signed)
    below = jnp.floor(steps / 2 + 0.5) if signed or column.x_lo < 0 else 0.0
    return -below + 0 * column.w_hi, steps - below + 0 * column.w_hi


_SPANS: dict[str, Callable[..., tuple[Any, Any]] | None] = {
    "calibrated": None,
    "max": _largest,
    "granular": _unit_step,
}


def fpg_bits(weight_bits: int, input_bits: int, rows: int) -> int:
    """Bits that an unsigned column can need: with them a converter loses nothing.

    The difference of a pair of columns needs one more, for its sign.

    Args:
      weight_bits: of one cell, at least 1.
      input_bits: applied in one conversion, at least 1: of one digit, or of the whole input where
        the digits are added before the converter.
      rows: of the array, at least 1.

    Raises:
      ValueError: an argument out of range.

    Examples:
      >>> import jaxsim as js
      >>> js.fpg_bits(weight_bits=2, input_bits=1, rows=1024)
      12

    Source: Xiao et al. (2022), arXiv 2109.01262, eq. 2 and 3 (full-precision guarantee).
    """
    weight_bits = checked_int("weight_bits", weight_bits, 1)
    input_bits = checked_int("input_bits", input_bits, 1)
    rows = checked_int("rows", rows, 1)
    both = weight_bits > 1 and input_bits > 1
    return weight_bits + input_bits + math.ceil(math.log2(rows)) - (0 if both else 1)
