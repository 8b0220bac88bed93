"""The geometry of a convolution."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxsim.cores.geometry import Dot, Matmul, leading_axes, other_axes, permute_last

TAPPED = (jnp.float32, jnp.float64)
"""Floats whose depthwise convolutions may be summed over taps; halves would be rounded each."""


@dataclasses.dataclass(frozen=True)
class Conv:
    """A `conv_general_dilated` with strides, padding, dilations and feature groups.

    Attributes:
      strides, padding, lhs_dilation, rhs_dilation, groups: as in `lax.conv_general_dilated`.
      x_spec, w_spec, y_spec: its `ConvDimensionNumbers`: positions of (batch, feature, *spatial),
        (out feature, in feature, *spatial) and (batch, feature, *spatial).
      w_shape: shape of the kernel without planes.
      precision, dtype: as in `lax.conv_general_dilated`, used for floats.
      tapped: whether depthwise convolutions of floats are summed over the taps of their kernels, in
        an order of their own; a model's own convolutions are not.
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
    tapped: bool = False

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
        x_planes, w_planes = leading_axes(x, self.x_ndim), leading_axes(w, len(self.w_shape))
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
        """The convolution without planes, by what XLA's CPU backend is fast at.

        It runs depthwise convolutions 20 to 60 times slower than as a sum over taps, and of int8
        those of few features up to 10 times slower than as a product of patches, and groups twice.
        """
        inputs, outputs = (self.w_shape[a] for a in (self.w_spec[1], self.w_spec[0]))
        tapped = x.dtype == jnp.int8 or (self.tapped and x.dtype in TAPPED)
        if inputs == 1 < self.groups and x.dtype == w.dtype and tapped:
            asked = jnp.dtype(dtype or x.dtype)
            return self._by_taps(x, w, jnp.promote_types(x.dtype, asked)).astype(asked)
        if x.dtype == w.dtype == jnp.int8:
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
        x = permute_last(x, (plain.x_spec[0], *plain.x_spec[2:], plain.x_spec[1]))
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
        return permute_last(y, tuple(int(a) for a in np.argsort(order)))

    @property
    def channels(self) -> int:
        """Features of each group."""
        return self.w_shape[self.w_spec[1]]

    def to_x(self, s: Array) -> Array:
        """One number an input channel [groups, C] as it broadcasts to the input."""
        return jnp.expand_dims(s.reshape(-1), other_axes(self.x_ndim, self.x_spec[1:2]))

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
        tapped = dataclasses.replace(self, tapped=True)  # no model says in which order these add
        y = tapped.apply(x, jnp.ones(unit, x.dtype), dtype)
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
            lead, features = leading_axes(x, self.x_ndim), windows[0].shape[-1]
            M = math.prod(windows[0].shape[len(lead) : -1])
            patches = jnp.stack(windows, -2).reshape(*lead, M, len(windows), G, features // G)
            return jnp.moveaxis(patches, -2, len(lead)).reshape(*lead, G, M, K)

        def w_to(w: Array) -> Array:
            w = permute_last(w, (*self.w_spec[2:], self.w_spec[1], self.w_spec[0]))
            lead = leading_axes(w, len(self.w_shape))
            return jnp.moveaxis(w.reshape(*lead, K, G, N), -2, -3)

        def y_from(y: Array, x_shape: Sequence[int]) -> Array:
            lead = leading_axes(y, 3)
            probe = jax.eval_shape(
                lambda x, w: self.apply(x, w, None),
                jax.ShapeDtypeStruct(tuple(x_shape), jnp.float32),
                jax.ShapeDtypeStruct(self.w_shape, jnp.float32),
            )
            batch, _, *out_size = (probe.shape[a] for a in self.y_spec)
            return self._from_last(jnp.moveaxis(y, -3, -2).reshape(*lead, batch, *out_size, out))

        geometry = Dot((2,), (0,), (1,), (0,), 3, (G, K, N), False, self.precision, self.dtype)
        return Matmul(geometry, x_to, w_to, y_from)
