"""Seeds of near-maximal influence, picked with a certificate."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from jaxsim.cascades.cover import count_hit, pick
from jaxsim.cascades.graph import ICGraph
from jaxsim.cascades.reverse import rr_sample
from jaxsim.cascades.sets import RRSets, cut, joined, round_theta

FIRST = 3  # sets that seeds are picked on for each set that certifies them
LEAP = 6  # sizes passed over at once: a factor of eight
PER_SEED, ENOUGH = 128, 8192  # sets to pick on from the start: fewer certify worse seeds
GREEDY_RATIO = 1 - 1 / math.e  # of the largest coverage that greedy seeds reach at least
PARTS = FIRST + 1
SMALLEST = PARTS * round_theta(1)
TYPICAL_RATIO = 0.72  # lower / upper that certificates of real graphs tend to


class IMResult(NamedTuple):
    """Seeds with bounds on their spread and on the best possible one.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0, 0], [1, 2], n=10)  # node 0 reaches two others
      >>> found = jc.maximize_influence(g, 1, jax.random.key(0))
      >>> found.lower <= 3 <= found.upper, found.certified
      (True, True)
    """

    seeds: Int[Array, " k"]
    """Best first."""
    spread: float
    """Unbiased estimate of the seeds' expected spread, in nodes."""
    lower: float
    """The seeds' spread is at least this, except with probability delta."""
    upper: float
    """No k seeds spread further than this, except with probability delta."""
    ratio: float
    """lower / upper."""
    n_rr: int
    """Reverse-reachable sets sampled in all."""
    certified: bool
    """The ratio reached 1 - 1/e - eps."""


def spread_at_least(covered: int, theta: int, n: int, a: float) -> float:
    """Bounds the spread of given seeds from below.

    Args:
      covered: Sets that the seeds hit, in a sample that was not used to pick them.
      theta: Number of sets in that sample.
      n: Number of nodes.
      a: Logarithm of 1 / (probability that the bound fails).

    Returns:
      Number of nodes.

    Source: Tang et al., "Online processing algorithms for influence maximization", SIGMOD 2018.
    """
    share = (math.sqrt(covered + 2 * a / 9) - math.sqrt(a / 2)) ** 2 - a / 18
    return max(share, 0.0) * n / theta


def spread_at_most(at_most: int, theta: int, n: int, a: float) -> float:
    """Bounds the spread of the best seeds from above.

    Args:
      at_most: Largest number of sets that any choice of seeds hits.
      theta: Number of sets in the sample.
      n: Number of nodes.
      a: Logarithm of 1 / (probability that the bound fails).

    Returns:
      Number of nodes.

    Source: Tang et al., "Online processing algorithms for influence maximization", SIGMOD 2018.
    """
    share = (math.sqrt(at_most + a / 2) + math.sqrt(a / 2)) ** 2
    return min(share * n / theta, float(n))


# one call to the device where the function itself makes several
_fold_in = jax.jit(jax.random.fold_in)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def maximize_influence(
    g: ICGraph,
    k: int,
    key: PRNGKeyArray,
    *,
    eps: float = 0.1,
    delta: float | None = None,
    max_rr: int | None = None,
    lanes: int = 256,
    progress: Callable[[IMResult], None] | None = None,
) -> IMResult:
    """Picks k seeds whose expected spread is provably near the maximum.

    Two independent samples of reverse-reachable sets grow until the seeds that cover most of the
    first are certified on the second. The first is three times as large: it decides how good they
    are.

    Args:
      g: The graph, of independent cascades.
      k: Number of seeds, 1 to n.
      key: Random key.
      eps: Slack at which to stop: the ratio reaches 1 - 1/e - eps; above 0, below 1 - 1/e.
      delta: Probability that the certificate is wrong, in (0, 1); 1/n by default.
      max_rr: Largest number of sets to sample in all, at least 2048; the result may then not
        be certified.
      lanes: Sets at work at once, as in `rr_sample`.
      progress: Function called with the state of the search after each growth of the samples.

    Returns:
      Seeds, bounds and whether they are certified.

    Raises:
      ValueError: k, eps, delta or max_rr out of range.
      MemoryError: More sets are needed than fit; set `max_rr` to stop before that.

    Source: Tang et al., "Online processing algorithms for influence maximization", SIGMOD 2018.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0, 0], [1, 2], n=10)  # node 0 reaches two others
      >>> found = jc.maximize_influence(g, 1, jax.random.key(0))
      >>> found.seeds.tolist(), found.certified
      ([0], True)
    """
    n = g.n
    if not 1 <= k <= n:
        raise ValueError(f"k = {k}; allowed: 1 to n = {n}")
    if not 0 < eps < GREEDY_RATIO:
        raise ValueError(f"eps = {eps}; allowed: above 0, below 1 - 1/e = {GREEDY_RATIO:.4f}")
    delta = 1 / max(n, 2) if delta is None else delta
    if not 0 < delta < 1:
        raise ValueError(f"delta = {delta}; allowed: above 0, below 1")
    if max_rr is not None and max_rr < SMALLEST:
        raise ValueError(f"max_rr = {max_rr}; allowed: at least {SMALLEST}, four chunks of sets")
    sizes = _sizes(n, k, eps, delta)
    # The bounds hold together at all sizes, those that `max_rr` leaves out included.
    a = math.log(3 * len(sizes) / delta)
    if max_rr is not None:
        fitting = [s for s in sizes if PARTS * s <= max_rr]
        sizes = fitting or [max_rr // SMALLEST * round_theta(1)]

    result = first = second = None
    i = 0
    while i < len(sizes):
        # Both samples come from one call, so that the long sets of one overlap the other's.
        missing = sizes[i] - (second.theta if second else 0)
        new = rr_sample(g, _fold_in(key, i), PARTS * missing, lanes)
        more, rest = cut(new, FIRST * missing)
        first = joined(first, more) if first else more
        second = joined(second, rest) if second else rest
        result = _certify(first, second, n, k, a, eps)
        if progress is not None:
            progress(result)
        if result.certified:
            break
        i = _next_size(sizes, i, result.ratio, eps)
    assert result is not None
    return result


def _sizes(n: int, k: int, eps: float, delta: float) -> list[int]:
    """Sizes of the certifying sample to try, from the smallest to one that surely suffices."""
    log = math.log(6 / delta)
    root = math.sqrt(GREEDY_RATIO * (_log_choose(n, k) + log))
    theta = 4 / PARTS * (GREEDY_RATIO * math.sqrt(log) + root) ** 2
    theta = max(theta, min(PER_SEED * k, ENOUGH) / FIRST)
    rounds = math.ceil(math.log2(n / (k * eps**2)))
    # Sizes grow by factors of 3/2 and 4/3 in turn: 1, 1.5, 2, 3, 4, 6, ...
    factors = [2 ** (i // 2) * (1 + i % 2 / 2) for i in range(2 * rounds + 1)]
    return sorted({round_theta(math.ceil(theta * factor)) for factor in factors})


def _certify(first: RRSets, second: RRSets, n: int, k: int, a: float, eps: float) -> IMResult:
    """Seeds picked on the first sample, with bounds from both."""
    size = second.theta
    seeds, _, at_most = pick(first, k)
    covered, at_most = jax.device_get((count_hit(second, seeds), at_most))
    lower = spread_at_least(int(covered), size, n, a)
    upper = spread_at_most(int(at_most), FIRST * size, n, a)
    return IMResult(
        seeds=jnp.asarray(seeds),
        spread=float(covered) * n / size,
        lower=lower,
        upper=upper,
        ratio=lower / upper,
        n_rr=PARTS * size,
        certified=lower >= (GREEDY_RATIO - eps) * upper,
    )


def _next_size(sizes: list[int], i: int, ratio: float, eps: float) -> int:
    """Index of the size to try after `sizes[i]`, past those that are too small to certify."""
    # The gap to what a large sample would show closes with the root of its size. This only
    # says which sizes to leave out; the union bound over all of them still holds.
    growth = ((TYPICAL_RATIO - ratio) / (TYPICAL_RATIO - GREEDY_RATIO + eps)) ** 2
    at, last = i + 1, min(i + LEAP, len(sizes) - 1)
    while at < last and sizes[at] < growth * sizes[i]:
        at += 1
    return at
