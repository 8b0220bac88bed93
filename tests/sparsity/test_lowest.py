"""The lowest scores are those that a stable sort puts first, at hand and traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.sparsity import lowest


def drawn(rng, shape, kind):
    a = rng.normal(size=shape).astype(np.float32)
    match kind:
        case "ties":
            return np.round(a)
        case "dead":
            return np.where(rng.random(shape) < 0.5, -np.inf, a).astype(np.float32)
        case "zeros":
            return np.where(rng.random(shape) < 0.7, rng.choice([-0.0, 0.0], shape), a).astype("f4")
    return a


def places(a):
    """How many stand before each in a stable sort, where zeros are equal."""
    return np.argsort(np.argsort(a.ravel() + 0.0, kind="stable"), kind="stable").reshape(a.shape)


@pytest.mark.parametrize("kind", ["apart", "ties", "dead", "zeros"])
def test_counts_and_places_are_those_of_a_stable_sort(monkeypatch, kind):
    rng = np.random.default_rng(0)
    for trial in range(60):
        monkeypatch.setattr(lowest, "BLOCK", int(rng.integers(1, 20)))
        monkeypatch.setattr(lowest, "SAMPLE", int(rng.integers(4, 40)))
        arrays = [
            drawn(rng, (b, n), kind) for b, n in zip((1, 2, 3), rng.integers(1, 40, 3), strict=True)
        ]
        count = int(rng.integers(0, 1 + sum(a.size for a in arrays)))
        count = (0, sum(a.size for a in arrays), count)[min(trial, 2)]
        order = places(np.concatenate([a.ravel() for a in arrays]))
        parts = np.split(order < count, np.cumsum([a.size for a in arrays])[:-1])
        found = lowest.count_lowest_by_row([jnp.asarray(a) for a in arrays], jnp.int32(count))
        for a, part, mine in zip(arrays, parts, found, strict=True):
            np.testing.assert_array_equal(mine, part.reshape(a.shape).sum(1))
            stay = lowest.leave_lowest(jnp.asarray(a), mine)
            expected = [places(row) >= n for row, n in zip(a, np.asarray(mine), strict=True)]
            np.testing.assert_array_equal(stay, expected)


@pytest.mark.parametrize("kind", ["apart", "ties", "dead", "zeros"])
def test_what_is_traced_is_told_apart_as_what_is_at_hand(kind):
    rng = np.random.default_rng(1)
    arrays = [jnp.asarray(drawn(rng, (2, n), kind)) for n in (7, 30)]

    @jax.jit
    def traced(arrays, count):
        counts = lowest.count_lowest_by_row(arrays, count)
        return counts, [lowest.leave_lowest(*pair) for pair in zip(arrays, counts, strict=True)]

    for count in (0, 1, 20, 50, 74):
        counts, stay = traced(arrays, jnp.int32(count))
        found = lowest.count_lowest_by_row(arrays, jnp.int32(count))
        assert sum(int(c.sum()) for c in counts) == count
        for a, b, c, s in zip(counts, found, arrays, stay, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(s, lowest.leave_lowest(c, b))


def test_a_bracket_that_misses_is_widened(monkeypatch):
    """A sample of every fourth score, which are the large ones, tells nothing of the others."""
    monkeypatch.setattr(lowest, "SAMPLE", 1000)
    a = np.arange(4000, dtype=np.float32)
    a[::4] += 1e6
    for count in (1, 500, 2500, 3001, 4000):
        stay = np.asarray(lowest.leave_lowest(jnp.asarray(a)[None], jnp.asarray([count])))[0]
        np.testing.assert_array_equal(stay, places(a) >= count)


def test_what_is_no_number_comes_last():
    a = jnp.asarray([[jnp.nan, 1.0, jnp.inf, -jnp.nan, 0.0]])
    for count, stay in ((2, [1, 0, 1, 1, 0]), (3, [1, 0, 0, 1, 0]), (4, [0, 0, 0, 1, 0])):
        assert lowest.leave_lowest(a, jnp.asarray([count]))[0].tolist() == [bool(s) for s in stay]
