"""Affine values: the real numbers that integers stand for, known before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Numbers = Float[np.ndarray, "..."]


class Floats(NamedTuple):
    """Value that a call computes as the model does.

    An argument, what is computed of arguments before a site has quantized it, or integers that
    comparing others has found.
    """


class Counted(NamedTuple):
    """Integers that the model computes of shapes alone, as numbers of rows; a call does of its own.

    Attributes:
      value: Value for the shapes at conversion, which is a constant beside integers.
    """

    value: np.ndarray


class Affine(NamedTuple):
    """Integers q of some shape that stand for `clip(q scale + shift, lo, hi)`.

    Every array is float64, of the rank of q, and has size 1 along axes it does not vary over.

    Attributes:
      shape: Shape of q.
      scale: Factor of q.
      shift: Term added to q scale.
      lo: Least number, -inf where none is set.
      hi: Largest number, inf where none is set.
      min_code: Least q.
      max_code: Largest q.
    """

    shape: tuple[int, ...]
    scale: Numbers
    shift: Numbers
    lo: Numbers
    hi: Numbers
    min_code: Numbers
    max_code: Numbers

    @property
    def bounds(self) -> tuple[Numbers, Numbers]:
        """Least and largest number that can occur."""
        a, b = (self.scale * q + self.shift for q in (self.min_code, self.max_code))
        return np.clip(np.minimum(a, b), self.lo, self.hi), np.clip(
            np.maximum(a, b), self.lo, self.hi
        )

    @property
    def is_clipped(self) -> bool:
        """True if a bound is set."""
        return bool(np.isfinite(self.lo).any() or np.isfinite(self.hi).any())

    @property
    def is_monotonic(self) -> bool:
        """True if a larger integer never stands for a smaller number."""
        return bool((self.scale >= 0).all())

    @property
    def is_pure_scale(self) -> bool:
        """True if the numbers are the integers times one scale that is not negative."""
        return (
            self.scale.size == 1
            and self.is_monotonic
            and not self.shift.any()
            and not self.is_clipped
        )

    @property
    def arrays(self) -> tuple[Numbers, ...]:
        """All fields but the shape."""
        return self[1:]

    def constant_along(self, axes: Sequence[int]) -> bool:
        """Tells if nothing varies along some axes.

        Args:
          axes: Axes of q.
        """
        return all(a.shape[axis] == 1 for a in self.arrays for axis in axes)


def affine(shape: Sequence[int], scale: Any, shift: Any, min_code: Any, max_code: Any) -> Affine:
    """Makes integers of a shape that nothing clips.

    Args:
      shape: Shape of q.
      scale: Factor of q; a scalar, or an array that broadcasts to the shape.
      shift: Term added.
      min_code: Least q.
      max_code: Largest q.
    """
    arrays = (compact(a, len(shape)) for a in (scale, shift, -np.inf, np.inf, min_code, max_code))
    return Affine(tuple(shape), *arrays)


def compact(a: Any, ndim: int) -> Numbers:
    """Reduces an array to one entry along the axes it does not vary over.

    Args:
      a: Array of rank `ndim`, or a scalar.
      ndim: Rank of the result.
    """
    a = np.asarray(a, np.float64)
    a = a.reshape((1,) * ndim) if a.ndim == 0 else a
    for axis in range(a.ndim):
        if a.shape[axis] > 1 and (a == a.take([0], axis)).all():
            a = a.take([0], axis)
    return a


def scale_and_shift(value: Affine, factor: Numbers, term: Numbers, shape: Sequence[int]) -> Affine:
    """Computes `value * factor + term`, of the shape it is broadcast to.

    Args:
      value: Integers and what they stand for.
      factor: Factor, of the rank of the value.
      term: Term added, of the rank of the value.
      shape: Shape of the result.
    """
    with np.errstate(invalid="ignore"):
        ends = [np.where(factor == 0, 0.0, end * factor) for end in (value.lo, value.hi)]
    return value._replace(
        shape=tuple(shape),
        scale=value.scale * factor,
        shift=value.shift * factor + term,
        lo=np.minimum(*ends) + term,
        hi=np.maximum(*ends) + term,
    )


def clip(value: Affine, lo: Numbers, hi: Numbers, shape: Sequence[int]) -> Affine:
    """Computes `minimum(maximum(value, lo), hi)`, of the shape it is broadcast to.

    Args:
      value: Integers and what they stand for.
      lo: Least number.
      hi: Largest number.
      shape: Shape of the result.
    """
    ends = (np.minimum(np.maximum(end, lo), hi) for end in (value.lo, value.hi))
    return value._replace(shape=tuple(shape), lo=next(ends), hi=next(ends))


def rearrange(
    value: Affine, layout: Callable[[np.ndarray], np.ndarray], shape: Sequence[int]
) -> Affine:
    """Moves integers to other positions, with what they stand for.

    Args:
      value: Integers and what they stand for.
      layout: Function that moves the entries of an array of the value's shape.
      shape: Shape of the result.
    """

    def moved_array(a: Numbers) -> Numbers:
        if a.size == 1:
            return a.reshape((1,) * len(shape))
        return compact(layout(np.broadcast_to(a, value.shape)), len(shape))

    return Affine(tuple(shape), *map(moved_array, value.arrays))


def concatenate(values: Sequence[Affine], axis: int) -> Affine:
    """Puts several values beside one another.

    Args:
      values: Integers and what they stand for, at least one.
      axis: Axis along which they are joined.
    """
    shape = list(values[0].shape)
    shape[axis] = sum(value.shape[axis] for value in values)

    def beside(arrays: tuple[Numbers, ...]) -> Numbers:
        sizes = np.broadcast_shapes(*(a.take([0], axis).shape for a in arrays))
        wide = [
            np.broadcast_to(a, (*sizes[:axis], value.shape[axis], *sizes[axis + 1 :]))
            for a, value in zip(arrays, values, strict=True)
        ]
        return compact(np.concatenate(wide, axis), len(shape))

    return Affine(tuple(shape), *map(beside, zip(*(value.arrays for value in values), strict=True)))


def common_step(values: Sequence[Affine], largest: float) -> float:
    """Computes the step of a grid without a shift that holds several values.

    It is no finer than a `Rescale` to it can be.

    Args:
      values: Integers and what they stand for.
      largest: Largest magnitude of a code on the grid.
    """
    amplitude = max(float(np.abs(end).max()) for value in values for end in value.bounds)
    scale = max(float(np.abs(value.scale).max()) for value in values)
    shift = max(float(np.abs(value.shift).max()) for value in values)
    step = max(amplitude / largest, scale / 2.0**14, shift / 2.0**26)
    return step if step > 0 else 1.0
