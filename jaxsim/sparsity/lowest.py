"""The lowest of many scores, found by selection: nothing is sorted, and no copy is held.

On a CPU the numbers are read where they lie, by NumPy in short blocks; elsewhere, and where they
are traced, the last of the lowest is found by bisection on the bits of the floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxsim.numerics.checks import is_traced

BLOCK = 2**16
"""Scores that are read at a time, so that what is made of them stays in the cache."""

SAMPLE = 2**16
"""Scores that bracket the last of the lowest, of which then only those between are looked at."""


def count_lowest_by_row(
    scores: Sequence[Float[Array, "B U"]], count: Int[Array, ""]
) -> list[Int[Array, " B"]]:
    """Counts of each row how many of its scores are among the lowest of all rows together.

    Args:
      scores: Scores of rows, in order; earlier ones go first among equals.
      count: Number of the lowest, at most that of all scores.
    """
    if not all(map(_on_host, (*scores, count))) or any(map(_some_nan, map(np.asarray, scores))):
        return _count_traced(list(scores), count)
    arrays, left = [np.asarray(s) for s in scores], int(count)
    last = _select([a.ravel() for a in arrays], left)
    below = [[_count_below(row, last) for row in a] for a in arrays]
    ties = left - sum(map(sum, below))
    found: list[Array] = []
    for a, counts in zip(arrays, below, strict=True):
        for i, row in enumerate(a):
            equal = min(ties, _count_equal(row, last)) if ties else 0
            counts[i] += equal
            ties -= equal
        found.append(jnp.asarray(counts, jnp.int32))
    return found


def leave_lowest(scores: Float[Array, "B U"], counts: Int[Array, " B"]) -> Bool[Array, "B U"]:
    """Finds the scores of each row that stay where so many of its lowest go.

    Args:
      scores: Scores; earlier ones go first among equals.
      counts: Number of those that go, of each row.
    """
    if not (_on_host(scores) and _on_host(counts)) or _some_nan(np.asarray(scores)):
        return _leave_traced(scores, counts)
    rows = np.asarray(scores)
    stay = np.empty(rows.shape, bool)
    for row, mine, count in zip(rows, stay, np.asarray(counts).tolist(), strict=True):
        last = _select([row], count)
        ties = count - _count_below(row, last)
        for at in range(0, row.size, BLOCK):
            block, out = row[at : at + BLOCK], mine[at : at + BLOCK]
            np.greater_equal(block, last, out=out)
            if ties:
                equal = np.flatnonzero(block == last)[:ties]
                out[equal] = False
                ties -= equal.size
    return jnp.asarray(stay)


def _on_host(a: Any) -> bool:
    """Whether an array's numbers lie in the memory of this process, in one piece."""
    if is_traced(a):
        return False
    if not isinstance(a, jax.Array):
        return True
    (*others, device) = a.devices()
    return not others and device.platform == "cpu" and a.is_fully_addressable


def _blocks(a: np.ndarray) -> Iterator[np.ndarray]:
    flat = a.reshape(-1)
    for at in range(0, flat.size, BLOCK):
        yield flat[at : at + BLOCK]


def _some_nan(a: np.ndarray) -> bool:
    return any(bool(np.isnan(block).any()) for block in _blocks(a))


def _count_below(a: np.ndarray, value: Any) -> int:
    return sum(int(np.count_nonzero(block < value)) for block in _blocks(a))


def _count_equal(a: np.ndarray, value: Any) -> int:
    return sum(int(np.count_nonzero(block == value)) for block in _blocks(a))


def _select(arrays: Sequence[np.ndarray], count: int) -> Any:
    """Finds the last of the `count` lowest numbers; minus infinity where there are none.

    A sorted sample brackets it, and the numbers within the bracket are told apart by a partition.
    """
    if count <= 0:
        return -np.inf
    size = sum(a.size for a in arrays)
    step = max(1, size // SAMPLE)
    sample = np.sort(np.concatenate([a[::step] for a in arrays]).astype(np.float32))
    place, margin = count * sample.size / size, 8 * int(sample.size**0.5)
    first, end = int(place) - margin, int(place) + margin
    while True:
        lo = sample[first] if first > 0 else -np.inf
        hi = sample[end] if end < sample.size else np.inf
        below, equal, inside = 0, 0, []
        for a in arrays:
            for block in _blocks(a):
                below += int(np.count_nonzero(block < lo))
                equal += int(np.count_nonzero(block == lo))
                inside.append(block[(block > lo) & (block <= hi)])
        if below < count <= below + equal:
            return lo
        among = np.concatenate(inside)
        at = count - below - equal
        if 0 < at <= among.size:
            return np.partition(among, at - 1)[at - 1]
        first, end = (-1, end) if at <= 0 else (first, sample.size)


@jax.jit
def _count_traced(scores: list[Array], count: Array) -> list[Array]:
    ordered = [_order(s) for s in scores]
    last = _bisect(lambda middle: sum(jnp.sum(o <= middle) for o in ordered), count)
    below = [jnp.sum(o < last, -1, dtype=jnp.int32) for o in ordered]
    ties = count - sum(map(jnp.sum, below))
    found: list[Array] = []
    for o, mine in zip(ordered, below, strict=True):
        equal = jnp.sum(o == last, -1, dtype=jnp.int32)
        before = jnp.cumsum(equal) - equal
        found.append(mine + jnp.clip(ties - before, 0, equal))
        ties = ties - jnp.sum(equal)
    return found


@jax.jit
def _leave_traced(scores: Array, counts: Array) -> Array:
    o = _order(scores)
    last = _bisect(lambda middle: jnp.sum(o <= middle[:, None], -1), counts)[:, None]
    ties = counts[:, None] - jnp.sum(o < last, -1, keepdims=True)
    equal = o == last
    return (o > last) | (equal & (jnp.cumsum(equal, -1) > ties))


def _order(scores: Array) -> Array:
    """Integers that sort as scores do: zeros are equal, and what is no number comes last."""
    scores = scores.astype(jnp.float32)
    bits = lax.bitcast_convert_type(jnp.where(scores == 0, 0.0, scores), jnp.int32)
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return jnp.where(jnp.isnan(scores), 2**31 - 1, order)


def _bisect(up_to: Any, count: Array) -> Array:
    """Finds the least integer up to which there are `count`; the least of all for none."""

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        lo, hi = ends
        middle = (lo & hi) + ((lo ^ hi) >> 1)
        enough = up_to(middle) >= count
        return jnp.where(enough, lo, middle + 1), jnp.where(enough, middle, hi)

    lowest = jnp.full(jnp.shape(count), -(2**31), jnp.int32)
    return lax.fori_loop(0, 32, halve, (lowest, jnp.full_like(lowest, 2**31 - 1)))[0]
