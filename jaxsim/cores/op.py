"""One contraction as a core sees it: its geometry and how it is to be computed."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

from jaxsim.cores.geometry import Geometry, leading_axes
from jaxsim.formats.grid import Range
from jaxsim.numerics.awaited import awaited


def _is_integer(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.integer)


Meter = dict[str, float]
"""What a core spends at one site, by name; see `Op.count`."""


@dataclasses.dataclass(frozen=True)
class Op:
    """One contraction of an input with a weight, as a core sees it.

    Wrappers hand an inner core an `Op` that differs in what the numbers are: `dataclasses.replace`
    and `Op.codes` make it.

    Attributes:
      geometry: dimension numbers, `Dot` or `Conv`.
      integer: codes may be held and contracted as integers (no gradient flows this way).
      ranges: "stored" once `calibrate` has set them, "batch" where each batch sets its own (before
        deployment, and at dynamic sites), "missing" when deployed without calibration.
      w_lo, w_hi: smallest and largest code of the weight, as arrays with one axis for each weight
        plane (of size 1 where all planes agree); None while the weight is a float.
      code_bits: bits that a stored code takes, where they are not those of its range.
      x_lo, x_hi: smallest and largest code of the input; None while it is a float.
      masked: the weight is pruned: its zeros stay zero, whatever the format has for them.
      filled: how many zeros were added behind the last products to fill a tile up, of the input
        and of each output's weights; they stay zero likewise.
      deterministic: a read of calibration, in which nothing random happens.
      scan_index: which slice of a stacked weight this is, an index for each axis of the stack.
      w_range: range of the weight's grid where it is set from outside, as for an operand that each
        call writes; None for that of the weight itself.
      rows: at a calibration of experts, how often each row of the site's own input is multiplied
        by this weight, as it broadcasts to that input; None where every row is, once.
      layout: how a state is laid out: "plain" with all that belongs to it; "lean", at deployment,
        without what its reads do not need; "paired" also with codes of four bits two in a byte,
        or of two bits four, where reads make floats of the codes anyway.
      meter: where `count` adds, during a cost walk.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.cores.geometry import Dot
      >>> op = js.Op(Dot((1,), (), (0,), (), 2, (3, 2)))  # [B, 3] @ [3, 2]
      >>> op.depth, op.contract(jnp.ones((4, 3)), jnp.ones((3, 2))).tolist()[0]
      (3, [3.0, 3.0])
    """

    geometry: Geometry
    integer: bool = False
    ranges: Literal["batch", "stored", "missing"] = "batch"
    w_lo: np.ndarray | None = None
    w_hi: np.ndarray | None = None
    code_bits: int | None = None
    x_lo: int | None = None
    x_hi: int | None = None
    masked: bool = False
    filled: int = 0
    deterministic: bool = False
    scan_index: tuple[Any, ...] = ()
    w_range: Range | None = None
    rows: Any = None
    layout: Literal["plain", "lean", "paired"] = "plain"
    meter: Meter | None = None

    def contract(self, x: Num[Array, "..."], w: Num[Array, "..."]) -> Num[Array, "..."]:
        """The site's own bilinear map over all planes.

        Args:
          x: input, with any leading planes.
          w: weight, with any leading planes.

        Returns:
          `[*x planes, *w planes, *output]`; exact int32 if both operands are integers.
        """
        if _is_integer(x) and _is_integer(w):
            y = self._exact(x, w)
        else:
            floats = [a.dtype for a in (x, w) if not _is_integer(a)]
            common, wide = jnp.result_type(*floats), self.geometry.dtype
            wide = None if wide is None else jnp.promote_types(common, wide)
            y = self._apply(x, w, common, wide)
        self.count("macs", y.size * self.depth)
        return y

    def _exact(self, x: Int[Array, "..."], w: Int[Array, "..."]) -> Int[Array, "..."]:
        """An integer contraction, in the fastest arithmetic that is exact."""
        common = jnp.promote_types(x.dtype, w.dtype)
        # Only 8-bit integers have a fast path.
        if common != jnp.int8 and self.exact_in_floats(x):
            return self._apply(x, w, jnp.float32, jnp.float32).astype(jnp.int32)
        return self._apply(x, w, common, jnp.int32)

    def _apply(self, x: Array, w: Array, common: Any, wide: Any) -> Array:
        """The product in a common type of both operands."""
        batched = _is_integer(w) and getattr(self.geometry, "w_batch", ())
        if w.dtype != common or self.w_planes(w) or batched:
            w = awaited(w, x)  # here, or by XLA, it is written anew
        return self.geometry.apply(x.astype(common), w.astype(common), wide)

    def exact_in_floats(self, x: Int[Array, "..."]) -> bool:
        """Tells if float32 holds every sum of products of these codes: all are below 2^24.

        Args:
          x: integer input.
        """
        w_most = 2**15
        if self.w_lo is not None and self.w_hi is not None:
            w_most = int(np.maximum(-self.w_lo, self.w_hi).max())
        held = jnp.iinfo(x.dtype).max + 1
        x_most = held if self.x_hi is None else max(abs(self.x_hi), abs(self.x_lo or 0))
        return self.depth * x_most * w_most < 2**24

    def row_sum(self, x: Num[Array, "..."]) -> Num[Array, "..."]:
        """The sum of the inputs of each output: a contraction with a weight of ones.

        Args:
          x: input, with any leading planes.

        Returns:
          `[*x planes, *ones, *y]`, broadcastable to the output, a one for each weight plane.
        """
        total = self.geometry.row_sum(x, jnp.int32 if _is_integer(x) else None)
        first = self.x_planes(x)
        return jnp.expand_dims(total, tuple(range(first, first + self.planes)))

    def column_sum(self, w: Num[Array, "..."]) -> Num[Array, "..."]:
        """The sum of the weights of each output, broadcastable to the output."""
        total = jnp.int32 if _is_integer(w) else None
        return self.to_output(jnp.sum(w, self.geometry.contracted, keepdims=True, dtype=total))

    def channel_shape(self) -> tuple[int, ...]:
        """Shape of one number an output channel, as `to_output` takes it."""
        summed = self.geometry.contracted
        return tuple(1 if a in summed else n for a, n in enumerate(self.geometry.w_shape))

    def scale_axes(self, per: str) -> tuple[int, ...]:
        """Axes of the weight that share a scale: all of them per "tensor", else the contracted."""
        return (
            tuple(range(len(self.geometry.w_shape)))
            if per == "tensor"
            else self.geometry.contracted
        )

    def to_output(self, s: Num[Array, "..."]) -> Num[Array, "..."]:
        """A weight-shaped array, contracted axes of size 1, as it broadcasts to the output."""
        return self.geometry.to_output(s)

    def pad(self, x: Num[Array, "..."], zero: Any = 0) -> tuple[Num[Array, "..."], Op]:
        """The input with its padding made explicit, and the op that pads nothing more.

        Args:
          x: input, with any leading planes.
          zero: what stands for zero in it.
        """
        x, geometry = self.geometry.pad(x, zero)
        return x, dataclasses.replace(self, geometry=geometry)

    @property
    def planes(self) -> int:
        """Number of leading plane axes of a weight of codes."""
        return 0 if self.w_hi is None else self.w_hi.ndim

    @property
    def depth(self) -> int:
        """Number of products summed in one output."""
        return math.prod(self.geometry.w_shape[a] for a in self.geometry.contracted)

    def x_planes(self, x: Num[Array, "..."]) -> int:
        """Number of leading plane axes of an input: where the weight planes of a result begin."""
        return x.ndim - self.geometry.x_ndim

    def w_planes(self, w: Num[Array, "..."]) -> tuple[int, ...]:
        """Sizes of the leading plane axes of a weight."""
        return leading_axes(w, len(self.geometry.w_shape))

    def codes(self, lo: Any, hi: Any) -> Op:
        """This op with a weight of codes in [lo, hi], arrays over the planes."""
        layout = "lean" if self.layout == "paired" else self.layout
        ends = {"w_lo": np.asarray(lo), "w_hi": np.asarray(hi)}
        return dataclasses.replace(self, **ends, code_bits=None, layout=layout)

    def inputs(self, lo: int, hi: int) -> Op:
        """This op with an input of codes in [lo, hi]."""
        return dataclasses.replace(self, x_lo=lo, x_hi=hi)

    def slice_for_layer(self, setting: Array) -> Array:
        """This slice's part of a setting whose leading axes are those of the weight's stack."""
        return setting[self.scan_index]

    def range(self, what: str, stored: Range, batch: Callable[[], Range]) -> Range:
        """The range to use at this read.

        Args:
          what: whose range it is, for the error.
          stored: the calibrated range.
          batch: computes the range of the values at hand.

        Raises:
          ValueError: deployed without calibration.
        """
        if self.ranges == "missing":
            raise ValueError(f"calibrate=None: {what} needs deploy(net, calibrate=inputs)")
        return stored if self.ranges == "stored" else batch()

    def count_digital(self, *, adds: float = 0, multiplies: float = 0, bits: float = 0) -> None:
        """Counts what digital logic does beside the hardware of a site in one read.

        Args:
          adds: Additions, signs changed and the like.
          multiplies: Multiplications.
          bits: Bits that it reads beside inputs and outputs: factors, adapters.
        """
        amounts = {"digital_adds": adds, "digital_multiplies": multiplies, "digital_bits": bits}
        for what, amount in amounts.items():
            if amount:
                self.count(what, amount)

    def count(self, what: str, amount: float) -> None:
        """Adds to the meter of a cost walk; does nothing otherwise.

        Args:
          what: name of the column in `Network.cost`, for instance "conversions".
          amount: how often one call spends it at this site.
        """
        if self.meter is not None:
            self.meter[what] = self.meter.get(what, 0) + amount

    def __getattr__(self, name: str) -> Any:
        if name not in _OLD_NAMES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        new = _OLD_NAMES[name]
        warnings.warn(
            f"Op.{name} is now called {new}; the old name goes in the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(self, new)


_OLD_NAMES = {
    "at": "scan_index",
    "own": "slice_for_layer",
    "per_output": "channel_shape",
    "quiet": "deterministic",
    "sharing": "scale_axes",
}
