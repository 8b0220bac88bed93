"""What integers stand for: real numbers by scale and shift, known before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Numbers = Float[np.ndarray, "..."]


class Affine(NamedTuple):
    """Integers q of some shape that stand for `clip(q scale + shift, lo, hi)`.

    Every array is float64, of the rank of q, and has size 1 along axes it does not vary over.

    Attributes:
      shape: of q.
      scale: what q is multiplied by.
      shift: what is then added.
      lo: smallest number, -inf where none is set.
      hi: largest number, inf where none is set.
      least: smallest q.
      most: largest q.
    """

    shape: tuple[int, ...]
    scale: Numbers
    shift: Numbers
    lo: Numbers
    hi: Numbers
    least: Numbers
    most: Numbers

    @property
    def ends(self) -> tuple[Numbers, Numbers]:
        """The smallest and the largest number there can be."""
        a, b = (self.scale * q + self.shift for q in (self.least, self.most))
        return np.clip(np.minimum(a, b), self.lo, self.hi), np.clip(
            np.maximum(a, b), self.lo, self.hi
        )

    @property
    def clipped(self) -> bool:
        """Whether an end is set."""
        return bool(np.isfinite(self.lo).any() or np.isfinite(self.hi).any())

    @property
    def rising(self) -> bool:
        """Whether a larger integer never stands for a smaller number."""
        return bool((self.scale >= 0).all())

    @property
    def bare(self) -> bool:
        """Whether the numbers are the integers times one positive scale."""
        return self.scale.size == 1 and self.rising and not self.shift.any() and not self.clipped

    @property
    def arrays(self) -> tuple[Numbers, ...]:
        """All but the shape."""
        return self[1:]

    def constant_along(self, axes: Sequence[int]) -> bool:
        """Whether nothing varies along these axes."""
        return all(a.shape[axis] == 1 for a in self.arrays for axis in axes)


def affine(shape: Sequence[int], scale: Any, shift: Any, least: Any, most: Any) -> Affine:
    """Integers of a shape that nothing clips."""
    arrays = (compact(a, len(shape)) for a in (scale, shift, -np.inf, np.inf, least, most))
    return Affine(tuple(shape), *arrays)


def compact(a: Any, ndim: int) -> Numbers:
    """An array of rank `ndim`, or a scalar, with one entry along the axes it does not vary over."""
    a = np.asarray(a, np.float64)
    a = a.reshape((1,) * ndim) if a.ndim == 0 else a
    for axis in range(a.ndim):
        if a.shape[axis] > 1 and (a == a.take([0], axis)).all():
            a = a.take([0], axis)
    return a


def moved(value: Affine, factor: Numbers, term: Numbers, shape: Sequence[int]) -> Affine:
    """`value * factor + term`, of the shape it is broadcast to."""
    with np.errstate(invalid="ignore"):
        ends = [np.where(factor == 0, 0.0, end * factor) for end in (value.lo, value.hi)]
    return value._replace(
        shape=tuple(shape),
        scale=value.scale * factor,
        shift=value.shift * factor + term,
        lo=np.minimum(*ends) + term,
        hi=np.maximum(*ends) + term,
    )


def clipped(value: Affine, lo: Numbers, hi: Numbers, shape: Sequence[int]) -> Affine:
    """`minimum(maximum(value, lo), hi)`, of the shape it is broadcast to."""
    ends = (np.minimum(np.maximum(end, lo), hi) for end in (value.lo, value.hi))
    return value._replace(shape=tuple(shape), lo=next(ends), hi=next(ends))


def laid_out(
    value: Affine, layout: Callable[[np.ndarray], np.ndarray], shape: Sequence[int]
) -> Affine:
    """The same numbers elsewhere: `layout` moves an array of the value's shape."""

    def moved_array(a: Numbers) -> Numbers:
        if a.size == 1:
            return a.reshape((1,) * len(shape))
        return compact(layout(np.broadcast_to(a, value.shape)), len(shape))

    return Affine(tuple(shape), *map(moved_array, value.arrays))


def joined(values: Sequence[Affine], axis: int) -> Affine:
    """Several beside one another."""
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
    """The step of a grid without a shift that holds several to within `largest` codes.

    It is no finer than a `Rescale` to it can be.
    """
    amplitude = max(float(np.abs(end).max()) for value in values for end in value.ends)
    scale = max(float(np.abs(value.scale).max()) for value in values)
    shift = max(float(np.abs(value.shift).max()) for value in values)
    step = max(amplitude / largest, scale / 2.0**14, shift / 2.0**26)
    return step if step > 0 else 1.0
