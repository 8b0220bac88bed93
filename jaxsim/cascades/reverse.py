"""Reverse-reachable sets: nodes that could have activated a random node."""

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, UInt32

from jaxsim.cascades import skips
from jaxsim.cascades.graph import ICGraph
from jaxsim.cascades.host import loops_for
from jaxsim.cascades.lanes import sample as sample_bits
from jaxsim.cascades.sets import MemberLists, RRSets, check_bits, round_theta
from jaxsim.numerics import memory


def rr_sample(g: ICGraph, key: PRNGKeyArray, theta: int, lanes: int = 256) -> RRSets:
    """Samples reverse-reachable sets of uniformly random roots.

    Every set has random numbers of its own, and every set that is started is finished, since
    dropping long ones would bias the sample. In-edges are skipped geometrically at the largest
    probability of the node's in-edges, then thinned to their own.

    On a CPU where numba is installed (extra `cascades`) a compiled loop samples set after set;
    elsewhere, and inside `jit`, lanes work on one set each. Both give the same sets, and the first
    of them do not depend on how many there are; with traced probabilities they are the same but
    for rounding.

    Args:
      g: A graph of at least one node.
      key: Random key.
      theta: Number of sets, at least 1; rounded up to a multiple of 512.
      lanes: Sets at work at once, at least 1; more suit wider machines. The sets do not depend
        on it, nor does the compiled loop.

    Returns:
      The sets.

    Raises:
      ValueError: An empty graph, or a count below one.
      MemoryError: The members, or the queues of lanes, exceed `memory.LIMIT`.

    Source: Borgs et al., "Maximizing Social Influence in Nearly Optimal Time", SODA 2014 (reverse
    reachability); Guo et al., "Influence Maximization Revisited", SIGMOD 2020 (geometric skips).

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> jc.rr_sample(jc.from_edges([0], [1]), jax.random.key(0), 600).theta
      1024
    """
    if g.n < 1:
        raise ValueError(f"g has {g.n} nodes; allowed: at least 1")
    if theta < 1 or lanes < 1:
        raise ValueError(f"theta = {theta}, lanes = {lanes}; allowed: at least 1")
    theta = round_theta(theta)
    seed = _seed(key)
    loops = loops_for(g, seed)
    if loops is not None:
        return RRSets(_sample_lists(g, seed, theta, loops))
    check_bits(g.n, theta)
    memory.check(f"queues of lanes = {lanes} over n = {g.n} nodes", 4 * lanes * g.n, "use fewer")
    return RRSets(sample_bits(g, g.skips, seed, theta, lanes))


@jax.jit
def _seed(key: PRNGKeyArray) -> UInt32[Array, " seeds"]:
    return jax.random.bits(key, (skips.SEEDS,), jnp.uint32)


def _sample_lists(
    g: ICGraph, seed: UInt32[Array, " seeds"], theta: int, loops: ModuleType
) -> MemberLists:
    what = f"members of theta = {theta} sets over n = {g.n} nodes"
    hint = "sample fewer sets at a time, or raise the limit"
    memory.check(what, 12 * theta, hint)  # each has one, and a place where it begins
    nodes, start, done = loops.sample(
        np.asarray(g.in_start),
        np.asarray(g.src),
        *g.skips,
        skips.logarithms(),
        np.asarray(seed),
        theta,
        memory.LIMIT // 4,
    )
    used = int(start[done])
    memory.check(what, 4 * used * theta // done, hint)
    return MemberLists(nodes[:used], start, g.n)
