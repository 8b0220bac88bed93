"""A Core is what a multiplication means; an Op is the multiplication, as a site of a model does it.

Shapes in this file: a weight may carry leading *planes* (signs, bit slices) and an input may too;
`Op.contract` computes all of them in one wide contraction and returns `[*input planes, *weight
planes, *output]`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Key, Num

from jaxsim.grid import Range
from jaxsim.numerics import is_traced, native
from jaxsim.values import PytreeValue

State = Any
"""What a core stores for one site: a pytree of arrays."""


class Core(NamedTuple):
    """What one contraction of an input with a weight means, as three pure functions.

    Attributes:
      write: `(op, w, key) -> state`, programmes the weights; done once at deployment.
      calibrate: `(op, state, x) -> state` of the same structure, sets ranges from what flows
        through. It sees the same `x` as `read` and reads without noise.
      read: `(op, state, x, key) -> y`, the contraction as this hardware does it.

    `key` is None where the caller gave none; a core that draws random numbers then raises.
    """

    write: Callable[[Op, Array, Key[Array, ""] | None], State]
    calibrate: Callable[[Op, State, Array], State]
    read: Callable[[Op, State, Array, Key[Array, ""] | None], Array]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["arrays"],
    meta_fields=["treedef", "static"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Parts(PytreeValue):
    """A pytree as its arrays and the rest, which is static; made by `Parts.of`.

    Attributes:
      treedef: its structure.
      static: its leaves, a marker where an array was.
      arrays: those arrays, in order.
    """

    treedef: Any
    static: tuple[Any, ...]
    arrays: tuple[Any, ...]

    @classmethod
    def of(cls, tree: Any, is_array: Callable[[Any], bool]) -> Parts:
        """Takes a pytree apart; `is_array` says which leaves are traced.

        Arrays of another byte order come into this machine's.
        """
        leaves, treedef = jax.tree.flatten(jax.tree.map(native, tree))
        static = tuple(_ARRAY if is_array(leaf) else leaf for leaf in leaves)
        return cls(treedef, static, tuple(leaf for leaf in leaves if is_array(leaf)))

    def whole(self) -> Any:
        """The pytree again."""
        arrays = iter(self.arrays)
        leaves = [next(arrays) if leaf is _ARRAY else leaf for leaf in self.static]
        return jax.tree.unflatten(self.treedef, leaves)


class _Place(enum.Enum):
    """What stands for an array among static leaves: one object, in every process."""

    ARRAY = enum.auto()


_ARRAY = _Place.ARRAY


@partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=["make"])
@dataclasses.dataclass(frozen=True, eq=False)
class Wrapper(PytreeValue):
    """A `Core -> Core` function with its settings, as data; made by `Wrapper.of`.

    Floats and arrays among the settings are leaves, everything else is static: two wrappers that
    differ only in numbers share one compiled programme.

    Attributes:
      make: `(core, **settings) -> Core`.
      parts: the settings.
    """

    make: Callable[..., Core]
    parts: Parts

    @classmethod
    def of(cls, make: Callable[..., Core], **settings: Any) -> Wrapper:
        """A wrapper with settings."""
        return cls(make, Parts.of(settings, _is_number))

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `make`."""
        return self.parts.whole()

    def __call__(self, core: Core) -> Core:
        """Wraps a core."""
        return self.make(core, **self.settings)

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={_short(v)}" for k, v in self.settings.items() if v is not None)
        return f"{made_by(self.make)}({shown})"

    def signature(self) -> str:
        """What is static of it, the same in every process and wherever jaxsim keeps the function.

        A function of jaxsim's is named alone, one from elsewhere with its module.
        """
        hidden = dataclasses.replace(self.parts, arrays=(math.nan,) * len(self.parts.arrays))
        shown = ", ".join(f"{k}={_short(v)}" for k, v in hidden.whole().items())
        module = self.make.__module__
        place = "" if module.partition(".")[0] == "jaxsim" else f"{module}."
        return f"{place}{made_by(self.make)}({shown})"


def made_by(make: Callable[..., Core]) -> str:
    """The name of a function that wraps a core."""
    return getattr(make, "__name__", repr(make))


def _is_number(value: Any) -> bool:
    return isinstance(value, float | np.floating | jax.Array | np.ndarray)


def _short(value: Any) -> str:
    if _is_number(value) and np.ndim(value) == 0:
        return "traced" if is_traced(value) else f"{value:.4g}"
    if _is_number(value):
        return f"array{list(np.shape(value))}"
    if isinstance(value, str) or not callable(value):
        return str(value)
    return getattr(value, "__name__", repr(value))


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
        return _others(self.x_ndim, self.x_contract + self.x_batch)

    @property
    def w_free(self) -> tuple[int, ...]:
        """Axes of the weight that appear in the output alone."""
        return _others(len(self.w_shape), self.w_contract + self.w_batch)

    def apply(self, x: Array, w: Array, dtype: Any) -> Array:
        """The product `[*x planes, *w planes, *y]`."""
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
            jnp.transpose(s, sorted(range(s.ndim), key=axes.__getitem__)), _others(ndim, axes)
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
            x = _permute_last(x, self.x_batch + self.x_free + self.x_contract)
            return x.reshape(*_lead(x, self.x_ndim), B, M, K)

        def w_to(w: Array) -> Array:
            w = _permute_last(w, self.w_batch + self.w_contract + self.w_free)
            return w.reshape(*_lead(w, len(self.w_shape)), B, K, N)

        def y_from(y: Array, x_shape: Sequence[int]) -> Array:
            lead, rows = _lead(y, 3), [x_shape[a] for a in self.x_free]
            if self.weight_first:
                return jnp.swapaxes(y, -1, -2).reshape(*lead, *batch, *columns, *rows)
            return y.reshape(*lead, *batch, *rows, *columns)

        geometry = Dot((2,), (0,), (1,), (0,), 3, (B, K, N), False, self.precision, self.dtype)
        return Matmul(geometry, x_to, w_to, y_from)


@dataclasses.dataclass(frozen=True)
class Conv:
    """A `conv_general_dilated` with strides, padding, dilations and feature groups.

    Attributes:
      strides, padding, lhs_dilation, rhs_dilation, groups: as in `lax.conv_general_dilated`.
      x_spec, w_spec, y_spec: its `ConvDimensionNumbers`: positions of (batch, feature, *spatial),
        (out feature, in feature, *spatial) and (batch, feature, *spatial).
      w_shape: shape of the kernel without planes.
      precision, dtype: as in `lax.conv_general_dilated`, used for floats.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    x_spec: tuple[int, ...]
    w_spec: tuple[int, ...]
    y_spec: tuple[int, ...]
    w_shape: tuple[int, ...]
    precision: Any = None
    dtype: Any = None

    @property
    def x_ndim(self) -> int:
        """Rank of the input without planes."""
        return len(self.x_spec)

    @property
    def contracted(self) -> tuple[int, ...]:
        """Axes of the kernel that are summed over."""
        return self.w_spec[1:]

    def apply(self, x: Array, w: Array, dtype: Any) -> Array:
        """The convolution `[*x planes, *w planes, *y]`.

        Weight planes become output features beside one another within each group, input planes
        become further images: one wide convolution computes them all.
        """
        x_planes, w_planes = _lead(x, self.x_ndim), _lead(w, len(self.w_shape))
        P, out = math.prod(w_planes), w.shape[len(w_planes) + self.w_spec[0]]
        if w_planes:
            axis = len(w_planes) + self.w_spec[0]
            w = jnp.moveaxis(w.reshape(P, *w.shape[len(w_planes) :]), 1 + self.w_spec[0], -1)
            w = w.reshape(*w.shape[:-1], self.groups, out // self.groups)
            w = jnp.moveaxis(w, 0, -2)
            w = jnp.moveaxis(w.reshape(*w.shape[:-3], P * out), -1, axis - len(w_planes))
        n, batch = self.x_spec[0], x.shape[len(x_planes) + self.x_spec[0]]
        if x_planes:
            count = math.prod(x_planes)
            x = jnp.moveaxis(x.reshape(count, *x.shape[len(x_planes) :]), 0, n)
            x = x.reshape(*x.shape[:n], count * batch, *x.shape[n + 2 :])
        y = dataclasses.replace(self, w_shape=w.shape)._folded(x, w, dtype)
        n, c = self.y_spec[0], self.y_spec[1]
        if w_planes:
            y = jnp.moveaxis(y, c, -1)
            y = y.reshape(*y.shape[:-1], self.groups, P, out // self.groups)
            y = jnp.moveaxis(y, -2, 0)
            y = jnp.moveaxis(y.reshape(*y.shape[:-2], out), -1, 1 + c)
            y = y.reshape(*w_planes, *y.shape[1:])
        if x_planes:
            n += len(w_planes)
            y = y.reshape(*y.shape[:n], math.prod(x_planes), batch, *y.shape[n + 1 :])
            y = jnp.moveaxis(y, n, 0)
            y = y.reshape(*x_planes, *y.shape[1:])
        return y

    def _folded(self, x: Array, w: Array, dtype: Any) -> Array:
        """The convolution without planes; of int8, by what XLA's CPU backend is fast at.

        It runs depthwise convolutions 20 to 60 times slower than as a sum over taps, those of few
        features up to 10 times slower than as a product of patches, and groups twice.
        """
        inputs, outputs = (self.w_shape[a] for a in (self.w_spec[1], self.w_spec[0]))
        if x.dtype == w.dtype == jnp.int8:
            if inputs == 1 < self.groups:
                return self._by_taps(x, w, dtype)
            few = inputs <= 24 and inputs * outputs <= 256
            if few or self.groups > 1 or self._pointwise:
                matmul = self.as_matmul()
                return matmul.y(matmul.geometry.apply(matmul.x(x), matmul.w(w), dtype), x.shape)
        if self.cut_and_extended:
            x, self = self.pad(x)
        return lax.conv_general_dilated(
            x,
            w,
            self.strides,
            self.padding,
            self.lhs_dilation,
            self.rhs_dilation,
            lax.ConvDimensionNumbers(self.x_spec, self.w_spec, self.y_spec),
            self.groups,
            precision=self.precision,
            preferred_element_type=dtype,
        )

    @property
    def cut_and_extended(self) -> bool:
        """Whether padding takes some away and adds some: XLA's CPU convolution is wrong there.

        It is padded by hand. Seen in XLA of JAX 0.10 with padding (-1, 1).
        """
        ends = [end for pair in self.padding for end in pair]
        return min(ends, default=0) < 0 < max(ends, default=0)

    @property
    def _pointwise(self) -> bool:
        """Whether a window is one number of each feature."""
        return all(self.w_shape[a] == 1 for a in self.w_spec[2:])

    def _by_taps(self, x: Array, w: Array, dtype: Any) -> Array:
        """A convolution of one input feature a group, as a sum over the taps of the kernel."""
        windows, size = self._windows(x)
        w = jnp.transpose(w, (*self.w_spec[2:], self.w_spec[1], self.w_spec[0]))
        w = w.reshape(-1, self.groups, w.shape[-1] // self.groups).astype(dtype)
        products = (x[..., None].astype(dtype) * tap for x, tap in zip(windows, w, strict=True))
        y = functools.reduce(jnp.add, products)
        return self._from_last(y.reshape(y.shape[0], *size, y.shape[-2] * y.shape[-1]))

    def _windows(self, x: Array) -> tuple[list[Array], list[int]]:
        """For each tap of the kernel what it meets, `[*planes, batch, *y size, features]`."""
        x, plain = self.pad(x)
        x = _permute_last(x, (plain.x_spec[0], *plain.x_spec[2:], plain.x_spec[1]))
        kernel = [self.w_shape[a] for a in self.w_spec[2:]]
        size = x.shape[-1 - len(kernel) : -1]
        steps = list(zip(size, kernel, self.strides, self.rhs_dilation, strict=True))
        spans = [max((n - (k - 1) * d - 1) // s + 1, 0) for n, k, s, d in steps]
        windows: list[Array] = []
        for offset in np.ndindex(*kernel):
            cut = tuple(
                slice(o * d, o * d + (m - 1) * s + 1 if m else o * d, s)
                for o, m, (_, _, s, d) in zip(offset, spans, steps, strict=True)
            )
            windows.append(x[(..., *cut, slice(None))])
        return windows, spans

    def _from_last(self, y: Array) -> Array:
        """An output `[*planes, batch, *size, features]`, as the primitive lays it out."""
        order = (self.y_spec[0], *self.y_spec[2:], self.y_spec[1])
        return _permute_last(y, tuple(int(a) for a in np.argsort(order)))

    @property
    def channels(self) -> int:
        """Features of each group."""
        return self.w_shape[self.w_spec[1]]

    def to_x(self, s: Array) -> Array:
        """One number an input channel [groups, C] as it broadcasts to the input."""
        return jnp.expand_dims(s.reshape(-1), _others(self.x_ndim, self.x_spec[1:2]))

    def to_w(self, s: Array) -> Array:
        """One number an input channel [groups, C] as it broadcasts to the kernel."""
        s = jnp.repeat(s, self.w_shape[self.w_spec[0]] // self.groups, axis=0)
        s = s if self.w_spec[0] < self.w_spec[1] else s.T
        return jnp.expand_dims(s, self.w_spec[2:])

    def to_output(self, s: Array) -> Array:
        """A kernel-shaped array, contracted axes of size 1, as it broadcasts to the output."""
        shape = [1] * len(self.y_spec)
        shape[self.y_spec[1]] = s.size
        return s.reshape(shape)

    @property
    def x_summed(self) -> tuple[int, ...]:
        """All axes but the batch: windows overlap."""
        return self.x_spec[1:]

    def x_to_output(self, s: Array) -> Array:
        """An input-shaped array, summed axes of size 1, as it broadcasts to the output."""
        shape = [1] * len(self.y_spec)
        shape[self.y_spec[0]] = s.size
        return s.reshape(shape)

    def row_sum(self, x: Array, dtype: Any) -> Array:
        """The sum over each window, by a convolution with one output feature a group."""
        out = self.w_spec[0]
        unit = tuple(self.groups if a == out else n for a, n in enumerate(self.w_shape))
        y = self.apply(x, jnp.ones(unit, x.dtype), dtype)
        if self.groups == 1:
            return y
        features = y.ndim - self.x_ndim + self.y_spec[1]
        return jnp.repeat(y, self.w_shape[out] // self.groups, axis=features)

    def pad(self, x: Array, zero: Any = 0) -> tuple[Array, Conv]:
        """The padded and dilated input, and the convolution that pads nothing."""
        config = [(0, 0, 0)] * self.x_ndim
        for axis, (lo, hi), dilation in zip(
            self.x_spec[2:], self.padding, self.lhs_dilation, strict=True
        ):
            config[axis] = (lo, hi, dilation - 1)
        lead = x.ndim - self.x_ndim
        x = lax.pad(x, jnp.asarray(zero, x.dtype), [(0, 0, 0)] * lead + config)
        spatial = len(self.strides)
        plain = dataclasses.replace(self, padding=((0, 0),) * spatial, lhs_dilation=(1,) * spatial)
        return x, plain

    def as_matmul(self) -> Matmul:
        """This convolution as `[groups, M, K] @ [groups, K, N]`, M running over all windows."""
        G, out = self.groups, self.w_shape[self.w_spec[0]]
        K, N = math.prod(self.w_shape[a] for a in self.contracted), out // G

        def x_to(x: Array) -> Array:
            windows, _ = self._windows(x)
            lead, features = _lead(x, self.x_ndim), windows[0].shape[-1]
            M = math.prod(windows[0].shape[len(lead) : -1])
            patches = jnp.stack(windows, -2).reshape(*lead, M, len(windows), G, features // G)
            return jnp.moveaxis(patches, -2, len(lead)).reshape(*lead, G, M, K)

        def w_to(w: Array) -> Array:
            w = _permute_last(w, (*self.w_spec[2:], self.w_spec[1], self.w_spec[0]))
            lead = _lead(w, len(self.w_shape))
            return jnp.moveaxis(w.reshape(*lead, K, G, N), -2, -3)

        def y_from(y: Array, x_shape: Sequence[int]) -> Array:
            lead = _lead(y, 3)
            probe = jax.eval_shape(
                lambda x, w: self.apply(x, w, None),
                jax.ShapeDtypeStruct(tuple(x_shape), jnp.float32),
                jax.ShapeDtypeStruct(self.w_shape, jnp.float32),
            )
            batch, _, *out_size = (probe.shape[a] for a in self.y_spec)
            return self._from_last(jnp.moveaxis(y, -3, -2).reshape(*lead, batch, *out_size, out))

        geometry = Dot((2,), (0,), (1,), (0,), 3, (G, K, N), False, self.precision, self.dtype)
        return Matmul(geometry, x_to, w_to, y_from)


def _is_integer(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.integer)


def _others(ndim: int, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a not in axes)


def _lead(x: Array, ndim: int) -> tuple[int, ...]:
    return x.shape[: x.ndim - ndim]


def _permute_last(x: Array, order: Sequence[int]) -> Array:
    lead = x.ndim - len(order)
    return jnp.transpose(x, (*range(lead), *(lead + a for a in order)))


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
      quiet: a read of calibration, in which nothing random happens.
      at: which slice of a stacked weight this is, an index for each axis of the stack.
      meter: where `count` adds, during a cost walk.
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
    quiet: bool = False
    at: tuple[Any, ...] = ()
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
            y = self.geometry.apply(x.astype(common), w.astype(common), wide)
        self.count("macs", y.size * self.depth)
        return y

    def _exact(self, x: Int[Array, "..."], w: Int[Array, "..."]) -> Int[Array, "..."]:
        """An integer contraction, in the fastest arithmetic that is exact."""
        common = jnp.promote_types(x.dtype, w.dtype)
        if common != jnp.int8:
            # Only 8-bit integers have a fast path; floats are exact below 2^24.
            w_most = 2**15 if self.w_hi is None else int(np.abs(self.w_hi).max())
            held = jnp.iinfo(x.dtype).max + 1
            x_most = held if self.x_hi is None else max(abs(self.x_hi), abs(self.x_lo or 0))
            if self.depth * x_most * w_most < 2**24:
                y = self.geometry.apply(x.astype(jnp.float32), w.astype(jnp.float32), jnp.float32)
                return y.astype(jnp.int32)
        return self.geometry.apply(x.astype(common), w.astype(common), jnp.int32)

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

    def per_output(self) -> tuple[int, ...]:
        """Shape of one number an output channel, as `to_output` takes it."""
        summed = self.geometry.contracted
        return tuple(1 if a in summed else n for a, n in enumerate(self.geometry.w_shape))

    def sharing(self, per: str) -> tuple[int, ...]:
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
        return _lead(w, len(self.geometry.w_shape))

    def codes(self, lo: Any, hi: Any) -> Op:
        """This op with a weight of codes in [lo, hi], arrays over the planes."""
        return dataclasses.replace(self, w_lo=np.asarray(lo), w_hi=np.asarray(hi), code_bits=None)

    def inputs(self, lo: int, hi: int) -> Op:
        """This op with an input of codes in [lo, hi]."""
        return dataclasses.replace(self, x_lo=lo, x_hi=hi)

    def own(self, setting: Array) -> Array:
        """This slice's part of a setting whose leading axes are those of the weight's stack."""
        return setting[self.at]

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

    def count(self, what: str, amount: float) -> None:
        """Adds to the meter of a cost walk; does nothing otherwise.

        Args:
          what: name of the column in `Network.cost`, for instance "conversions".
          amount: how often one call spends it at this site.
        """
        if self.meter is not None:
            self.meter[what] = self.meter.get(what, 0) + amount


def _write_float(op: Op, w: Array, key: Any) -> Array:
    bits = 8 * w.dtype.itemsize if op.w_hi is None or op.w_lo is None else op.code_bits
    if bits is None:
        levels = np.broadcast_to(op.w_hi - op.w_lo + 1, op.w_planes(w) or (1,))  # pyright: ignore
        op.count("weight_bits", float(np.ceil(np.log2(levels)).mean()) * w.size)
    else:
        op.count("weight_bits", bits * w.size)
    op.count("cells", w.size)
    return w


float_core = Core(
    write=_write_float,
    calibrate=lambda op, state, x: state,
    read=lambda op, state, x, key: op.contract(x, state),
)
"""The contraction as the model does it; exact int32 where both operands are integer codes."""


def build(wrappers: Sequence[Wrapper]) -> Core:
    """The core that a chain of wrappers makes, the first one outermost."""
    core = float_core
    for wrapper in reversed(wrappers):
        core = wrapper(core)
    return core
