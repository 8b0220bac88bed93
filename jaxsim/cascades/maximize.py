"""Seeds of near-maximal influence, with a certificate."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from jaxsim.cascades.cover import coverage, max_cover
from jaxsim.cascades.graph import ICGraph
from jaxsim.cascades.reverse import RRSets, empty_sets, round_theta, rr_sample
from jaxsim.numerics.arrays import own_promotion

FIRST = 3  # sets that seeds are picked on for each set that certifies them
LEAP = 6  # sizes passed over at once: a factor of eight
PER_SEED, ENOUGH = 128, 8192  # sets to pick on from the start: fewer certify worse seeds
TYPICAL_RATIO = 0.72  # lower / upper that certificates of real graphs tend to


class IMResult(NamedTuple):
    """Seeds and how good they are known to be."""

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
    """Bound the spread of given seeds from below.

    Args:
        covered: sets that the seeds hit, in a sample that was not used to pick them.
        theta: number of sets in that sample.
        n: number of nodes.
        a: log of 1 / (probability that the bound fails).

    Returns:
        Number of nodes.

    Source: Tang et al., "Online processing algorithms for influence maximization", SIGMOD 2018.
    """
    share = (math.sqrt(covered + 2 * a / 9) - math.sqrt(a / 2)) ** 2 - a / 18
    return max(share, 0.0) * n / theta


def spread_at_most(at_most: int, theta: int, n: int, a: float) -> float:
    """Bound the spread of the best seeds from above.

    Args:
        at_most: no choice of seeds hits more sets than this.
        theta: number of sets in the sample.
        n: number of nodes.
        a: log of 1 / (probability that the bound fails).

    Returns:
        Number of nodes.

    Source: Tang et al., "Online processing algorithms for influence maximization", SIGMOD 2018.
    """
    share = (math.sqrt(at_most + a / 2) + math.sqrt(a / 2)) ** 2
    return min(share * n / theta, float(n))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


@jax.jit
@own_promotion()
def _grow(first: RRSets, second: RRSets, new: RRSets) -> tuple[RRSets, RRSets]:
    middle = new.mem.shape[0] * FIRST // (FIRST + 1)
    return (
        RRSets(jnp.concatenate([first.mem, new.mem[:middle]])),
        RRSets(jnp.concatenate([second.mem, new.mem[middle:]])),
    )


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
    """Pick k seeds whose expected spread is provably near the maximum.

    Two independent samples of reverse-reachable sets grow until the seeds that cover most of the
    first are certified on the second. The first is three times as large: it decides how good they
    are.

    Args:
        g: the graph (independent cascade).
        k: number of seeds.
        key: random key.
        eps: stop at a ratio of 1 - 1/e - eps.
        delta: probability that the certificate is wrong; 1/n by default.
        max_rr: the most sets to sample in all; the result may then not be certified.
        lanes: see `rr_sample`.
        progress: after each growth of the samples, called with the state of the search.

    Returns:
        Seeds, bounds and whether they are certified.

    Raises:
        ValueError: k, eps, delta or max_rr out of range.
        MemoryError: more sets are needed than fit; set `max_rr` to stop before that.

    Source: Tang et al., "Online processing algorithms for influence maximization", SIGMOD 2018.
    """
    n = g.n
    if not 1 <= k <= n:
        raise ValueError(f"k = {k}; allowed: 1 to n = {n}")
    limit = 1 - 1 / math.e
    if not 0 < eps < limit:
        raise ValueError(f"eps = {eps}; allowed: above 0, below 1 - 1/e = {limit:.4f}")
    delta = 1 / max(n, 2) if delta is None else delta
    if not 0 < delta < 1:
        raise ValueError(f"delta = {delta}; allowed: above 0, below 1")
    parts = FIRST + 1
    smallest = parts * round_theta(1)
    if max_rr is not None and max_rr < smallest:
        raise ValueError(f"max_rr = {max_rr}; allowed: at least {smallest}, four chunks of sets")

    log = math.log(6 / delta)
    theta = 4 / parts * (limit * math.sqrt(log) + math.sqrt(limit * (_log_choose(n, k) + log))) ** 2
    theta = max(theta, min(PER_SEED * k, ENOUGH) / FIRST)
    rounds = max(1, math.ceil(math.log2(n / (k * eps**2))))
    # Sizes grow by factors of 3/2 and 4/3 in turn: 1, 1.5, 2, 3, 4, 6, ...
    factors = [2 ** (i // 2) * (1 + i % 2 / 2) for i in range(2 * rounds + 1)]
    sizes = sorted({round_theta(math.ceil(theta * factor)) for factor in factors})
    a = math.log(3 * len(sizes) / delta)
    if max_rr is not None:
        sizes = [s for s in sizes if parts * s <= max_rr] or [max_rr // smallest * round_theta(1)]

    result = None
    first = second = empty_sets(g)
    i = 0
    while i < len(sizes):
        size = sizes[i]
        # Both samples come from one call, so that the long sets of one overlap the other's.
        new = rr_sample(g, jax.random.fold_in(key, i), parts * (size - second.theta), lanes)
        first, second = _grow(first, second, new)
        cover = max_cover(first, k)
        covered, at_most = jax.device_get((coverage(second, cover.seeds), cover.at_most))
        lower = spread_at_least(int(covered), size, n, a)
        upper = spread_at_most(int(at_most), FIRST * size, n, a)
        result = IMResult(
            seeds=cover.seeds,
            spread=float(covered) * n / size,
            lower=lower,
            upper=upper,
            ratio=lower / upper,
            n_rr=parts * size,
            certified=lower >= (limit - eps) * upper,
        )
        if progress is not None:
            progress(result)
        if result.certified:
            break
        # The gap to what a large sample would show closes with the root of its size. This only
        # says which sizes to leave out; the union bound over all of them still holds.
        growth = ((TYPICAL_RATIO - result.ratio) / (TYPICAL_RATIO - limit + eps)) ** 2
        i, last = i + 1, min(i + LEAP, len(sizes) - 1)
        while i < last and sizes[i] < growth * size:
            i += 1
    assert result is not None
    return result
