"""Influence maximization from samples: cascades in, seeds out."""

import warnings
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from jaxsim.cascades.infer import NetworkEstimate, check_cascades, infer_network
from jaxsim.cascades.maximize import maximize_influence
from jaxsim.cascades.sample import Cascades
from jaxsim.cascades.simulate import simulate_ic
from jaxsim.numerics.arrays import own_promotion

SIMULATIONS = 8192  # cascades that "best_of" estimates a spread from


class IMSResult(NamedTuple):
    """Seeds, both candidates for them, and the network that was learned.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0, 0, 0], [1, 2, 3], 0.9, 5)
      >>> seen = jc.sample_cascades(g, 0.2, jax.random.key(0), 2000)
      >>> found = jc.ims(seen, 1, jax.random.key(1))
      >>> found.branch, found.seeds.tolist()
      ('learned', [0])
    """

    seeds: Int[Array, " k"]
    """The answer: `T1` or `T2`."""
    branch: Literal["learned", "observed"]
    """Which of the two it is."""
    T1: Int[Array, " k"]
    """Seeds maximized on the estimated graph."""
    T2: Int[Array, " k"]
    """Seeds of one random observed cascade, cut or padded to k."""
    U: Bool[Array, " n"]
    """Nodes whose in-edges cannot be learned, left out of the estimated graph."""
    c_hat: float
    """Mean number of observed seeds per seed allowed; the guarantee of "mixed" weakens above 1."""
    estimate: NetworkEstimate
    """What was learned."""


@own_promotion()
def ims(
    c: Cascades,
    k: int,
    key: PRNGKeyArray,
    *,
    mode: Literal["learn", "mixed", "best_of"] = "learn",
    eps: float = 0.1,
    tau: float | None = None,
    z: float = 3.0,
) -> IMSResult:
    """Picks k influential seeds from observed cascades alone.

    Nodes that are nearly always active at step 1 hide their in-edges. The observed seeds reach
    them all the same, so that either the learned seeds or those of a random cascade do well.

    Args:
      c: Observed cascades, at least one; two unless `mode` is "learn".
      k: Number of seeds, 1 to n.
      key: Random key.
      mode: "learn" maximizes on the estimated graph. "mixed" returns that or the seeds of a
        random cascade, by the toss of a coin. "best_of" compares the estimated spread of the
        first with the mean observed spread scaled down to k seeds: a heuristic of this
        package, without a guarantee.
      eps: Slack of the certificate, above 0 and below 1 - 1/e, as in `maximize_influence`.
      tau: Limit below which nodes are unlearnable, as in `infer_network`.
      z: Standard errors that an edge must exceed, as in `NetworkEstimate.to_graph`.

    Returns:
      Seeds, both candidates and the estimate.

    Raises:
      ValueError: k or mode out of range, or no cascades (two are needed to hold one out).

    Source: Chen, Sun, Zhang, Zhang, "Network Inference and Influence Maximization from Samples",
    ICML 2021.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0, 0, 0], [1, 2, 3], 0.9, 5)
      >>> seen = jc.sample_cascades(g, 0.2, jax.random.key(0), 2000)
      >>> found = jc.ims(seen, 1, jax.random.key(1))
      >>> found.seeds.tolist()
      [0]
    """
    check_cascades(c)
    if not 1 <= k <= c.n:
        raise ValueError(f"k = {k}; allowed: 1 to n = {c.n}")
    if mode not in ("learn", "mixed", "best_of"):
        raise ValueError(f"mode = {mode!r}; allowed: 'learn', 'mixed', 'best_of'")
    if mode != "learn" and c.t < 2:
        raise ValueError(f"c holds {c.t} cascade; allowed: at least 2, one is held out")
    draw, cut, search, coin, run = jax.random.split(key, 5)
    chosen = int(jax.random.randint(draw, (), 0, c.t))
    c_hat = float(c.S0.sum()) / c.t / k
    if c_hat > 1:
        warnings.warn(
            f"cascades have {c_hat:.2f} k seeds on average; the guarantee of a cut cascade "
            "weakens accordingly",
            stacklevel=2,
        )
    # The cascade that T2 comes from must not have been learned from.
    rest = c if mode == "learn" else _without(c, chosen)
    estimate = infer_network(rest, tau=tau)
    usable = estimate.identifiable & ~estimate.unlearnable[None]
    graph = estimate._replace(identifiable=usable).to_graph(z=z)
    t1 = maximize_influence(graph, k, search, eps=eps).seeds
    t2 = _cut_or_pad(np.flatnonzero(np.asarray(c.S0[chosen])), t1, k, cut)
    if mode == "learn":
        learned = True
    elif mode == "mixed":
        learned = bool(jax.random.bernoulli(coin))
    else:
        observed = float(c.final_size.mean()) * min(1.0, 1 / c_hat if c_hat else 1.0)
        learned = float(simulate_ic(graph, t1, run, SIMULATIONS).mean) >= observed
    return IMSResult(
        seeds=t1 if learned else t2,
        branch="learned" if learned else "observed",
        T1=t1,
        T2=t2,
        U=estimate.unlearnable,
        c_hat=c_hat,
        estimate=estimate,
    )


def _without(c: Cascades, i: int) -> Cascades:
    return jax.tree.map(lambda x: jnp.concatenate([x[:i], x[i + 1 :]]), c)


def _cut_or_pad(
    seeds: Int[np.ndarray, " s"], spare: Int[Array, " k"], k: int, key: PRNGKeyArray
) -> Int[Array, " k"]:
    """Takes a random k-subset, or fills up with the first spare nodes that are not in yet."""
    ids = np.asarray(jax.random.permutation(key, seeds))[:k]
    fill = [v for v in np.asarray(spare) if v not in set(ids.tolist())]
    return jnp.asarray(np.concatenate([ids, fill])[:k], jnp.int32)
