"""What a contraction is, whatever computes it, and that of a general product of two arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


class Geometry(Protocol):
    """How one primitive lays out its operands: the part of an `Op` that knows dimension numbers."""

    @property
    def w_shape(self) -> tuple[int, ...]:
        """Shape of the weight, without planes."""
        ...

    @property
    def x_ndim(self) -> int:
        """Rank of the input, without planes."""
        ...

    @property
    def contracted(self) -> tuple[int, ...]:
        """Axes of the weight that are summed over."""
        ...

    @property
    def dtype(self) -> Any:
        """Accumulation dtype of floats, None for theirs."""
        ...

    @property
    def channels(self) -> int:
        """Input channels of each group or batch entry."""
        ...

    def to_x(self, s: Array) -> Array:
        """One number an input channel [B, C] as it broadcasts to the input."""
        ...

    def to_w(self, s: Array) -> Array:
        """One number an input channel [B, C] as it broadcasts to the weight."""
        ...

    def apply(self, x: Array, w: Array, dtype: Any) -> Array:
        """The contraction `[*x planes, *w planes, *output]`."""
        ...

    @property
    def x_summed(self) -> tuple[int, ...]:
        """Axes of the input that an output mixes: all but one example's of a convolution."""
        ...

    def to_output(self, s: Array) -> Array:
        """A weight-shaped array, contracted axes of size 1, as it broadcasts to the output."""
        ...

    def x_to_output(self, s: Array) -> Array:
        """An input-shaped array, summed axes of size 1, as it broadcasts to the output."""
        ...

    def row_sum(self, x: Array, dtype: Any) -> Array:
        """The sum of the inputs of each output, broadcastable to the output."""
        ...

    def pad(self, x: Array, zero: Any = 0) -> tuple[Array, Geometry]:
        """The input with `zero` where the primitive pads, and the geometry that pads nothing."""
        ...

    def as_matmul(self) -> Matmul:
        """This contraction as a batched matrix product."""
        ...


class Matmul(NamedTuple):
    """A contraction as a batched matrix product.

    Attributes:
      geometry: that of `[B, M, K] @ [B, K, N] -> [B, M, N]`, B running over groups and batch
        dimensions.
      x: from the site's input to [..., B, M, K] (patches, for a convolution).
      w: from the site's weight to [..., B, K, N].
      y: from [..., B, M, N], and the shape of the input without planes, back to the site's output.
    """

    geometry: Dot
    x: Callable[[Array], Array]
    w: Callable[[Array], Array]
    y: Callable[[Array, Sequence[int]], Array]


@dataclasses.dataclass(frozen=True)
class Dot:
    """A `dot_general` with any dimension numbers, the weight on either side.

    Attributes:
      x_contract, x_batch, w_contract, w_batch: dimension numbers of the input and the weight.
      x_ndim: rank of the input without planes.
      w_shape: shape of the weight without planes.
      weight_first: the weight is the left operand.
      precision, dtype: as in `lax.dot_general`, used for floats.
    """

    x_contract: tuple[int, ...]
    x_batch: tuple[int, ...]
    w_contract: tuple[int, ...]
    w_batch: tuple[int, ...]
    x_ndim: int
    w_shape: tuple[int, ...]
    weight_first: bool = False
    precision: Any = None
    dtype: Any = None

    @property
    def contracted(self) -> tuple[int, ...]:
        """Axes of the weight that are summed over."""
        return self.w_contract

    @property
    def x_free(self) -> tuple[int, ...]:
        """Axes of the input that appear in the output alone."""
        return other_axes(self.x_ndim, self.x_contract + self.x_batch)

    @property
    def w_free(self) -> tuple[int, ...]:
        """Axes of the weight that appear in the output alone."""
        return other_axes(len(self.w_shape), self.w_contract + self.w_batch)

    def apply(self, x: Array, w: Array, dtype: Any) -> Array:
        """The product `[*x planes, *w planes, *y]`."""
        if self._slow_row(x, w):
            rows = jnp.pad(x[None], [(0, 2)] + [(0, 0)] * x.ndim)
            return self.apply(rows, w, dtype)[0]
        xp, wp, batch = x.ndim - self.x_ndim, w.ndim - len(self.w_shape), len(self.x_batch)
        sides = (
            (x, [a + xp for a in self.x_contract], [a + xp for a in self.x_batch]),
            (w, [a + wp for a in self.w_contract], [a + wp for a in self.w_batch]),
        )
        (a, ac, ab), (b, bc, bb) = sides[::-1] if self.weight_first else sides
        y = lax.dot_general(
            a, b, ((ac, bc), (ab, bb)), precision=self.precision, preferred_element_type=dtype
        )
        x_axes, w_axes = list(range(xp)), list(range(wp))
        if self.weight_first:
            w_axes = [batch + i for i in w_axes]
            x_axes = [batch + wp + len(self.w_free) + i for i in x_axes]
        else:
            x_axes = [batch + i for i in x_axes]
            w_axes = [batch + xp + len(self.x_free) + i for i in w_axes]
        return jnp.moveaxis(y, x_axes + w_axes, range(xp + wp))

    def _slow_row(self, x: Array, w: Array) -> bool:
        """Tells if it is a row of bytes, which takes XLA on a CPU twice as long as three rows."""
        if jax.default_backend() != "cpu" or not x.dtype == w.dtype == jnp.int8:
            return False
        inside = [x.shape[x.ndim - self.x_ndim + a] for a in self.x_contract + self.x_batch]
        return x.size == math.prod(inside)

    @property
    def channels(self) -> int:
        """Products of a sum: each is a channel."""
        return math.prod(self.w_shape[a] for a in self.w_contract)

    def to_x(self, s: Array) -> Array:
        """One number an input channel [B, C] as it broadcasts to the input."""
        return self._placed(s, self.x_batch + self.x_contract, self.x_ndim)

    def to_w(self, s: Array) -> Array:
        """One number an input channel [B, C] as it broadcasts to the weight."""
        return self._placed(s, self.w_batch + self.w_contract, len(self.w_shape))

    def _placed(self, s: Array, axes: tuple[int, ...], ndim: int) -> Array:
        s = s.reshape([self.w_shape[a] for a in self.w_batch + self.w_contract])
        return jnp.expand_dims(
            jnp.transpose(s, sorted(range(s.ndim), key=axes.__getitem__)), other_axes(ndim, axes)
        )

    def to_output(self, s: Array) -> Array:
        """A weight-shaped array, contracted axes of size 1, as it broadcasts to the output."""
        s = jnp.squeeze(
            jnp.transpose(s, self.w_batch + self.w_contract + self.w_free),
            tuple(range(len(self.w_batch), len(self.w_batch) + len(self.w_contract))),
        )
        ones = (1,) * len(self.x_free)
        split = len(self.w_batch)
        free = s.shape[split:]
        return s.reshape(s.shape[:split] + (free + ones if self.weight_first else ones + free))

    @property
    def x_summed(self) -> tuple[int, ...]:
        """Axes of the input that an output mixes."""
        return self.x_contract

    def x_to_output(self, s: Array) -> Array:
        """An input-shaped array, summed axes of size 1, as it broadcasts to the output."""
        order = self.x_batch + self.x_contract + self.x_free
        first = len(self.x_batch)
        s = jnp.squeeze(jnp.transpose(s, order), tuple(range(first, first + len(self.x_contract))))
        ones, rows = (1,) * len(self.w_free), s.shape[first:]
        return s.reshape(s.shape[:first] + (ones + rows if self.weight_first else rows + ones))

    def row_sum(self, x: Array, dtype: Any) -> Array:
        """The sum of the inputs of each output: the product with a weight of ones."""
        unit = tuple(1 if a in self.w_free else n for a, n in enumerate(self.w_shape))
        return self.apply(x, jnp.ones(unit, x.dtype), dtype)

    def pad(self, x: Array, zero: Any = 0) -> tuple[Array, Dot]:
        """Nothing to pad."""
        return x, self

    def as_matmul(self) -> Matmul:
        """This product as `[B, M, K] @ [B, K, N]`."""
        batch = [self.w_shape[a] for a in self.w_batch]
        columns = [self.w_shape[a] for a in self.w_free]
        depth = [self.w_shape[a] for a in self.w_contract]
        B, K, N = map(math.prod, (batch, depth, columns))

        def x_to(x: Array) -> Array:
            M = math.prod(x.shape[x.ndim - self.x_ndim + a] for a in self.x_free)
            x = permute_last(x, self.x_batch + self.x_free + self.x_contract)
            return x.reshape(*leading_axes(x, self.x_ndim), B, M, K)

        def w_to(w: Array) -> Array:
            w = permute_last(w, self.w_batch + self.w_contract + self.w_free)
            return w.reshape(*leading_axes(w, len(self.w_shape)), B, K, N)

        def y_from(y: Array, x_shape: Sequence[int]) -> Array:
            lead, rows = leading_axes(y, 3), [x_shape[a] for a in self.x_free]
            if self.weight_first:
                return jnp.swapaxes(y, -1, -2).reshape(*lead, *batch, *columns, *rows)
            return y.reshape(*lead, *batch, *rows, *columns)

        geometry = Dot((2,), (0,), (1,), (0,), 3, (B, K, N), False, self.precision, self.dtype)
        return Matmul(geometry, x_to, w_to, y_from)


def other_axes(ndim: int, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes of a rank that are not among `axes`, in order."""
    return tuple(a for a in range(ndim) if a not in axes)


def leading_axes(x: Array, ndim: int) -> tuple[int, ...]:
    """Sizes of the axes before the last `ndim`: the planes of an operand."""
    return x.shape[: x.ndim - ndim]


def permute_last(x: Array, order: Sequence[int]) -> Array:
    """An array with its last axes in another order."""
    lead = x.ndim - len(order)
    return jnp.transpose(x, (*range(lead), *(lead + a for a in order)))
