"""Meta-solvers: functions from the payoffs among a population to a mixture of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import Count, check_range, checked_count

MetaSolver = Callable[[Float[Array, "N N"], Int[Array, ""]], Float[Array, " N"]]
"""From antisymmetric payoffs, of which the first `size` rows and columns are filled, and `size` to
weights that sum to 1 and are 0 from `size` on; rows are in order of arrival. A `Partial`."""


def uniform() -> MetaSolver:
    """Makes the uniform meta-solver: the next agent answers as in fictitious play.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.solvers as so
      >>> so.uniform()(jnp.zeros((4, 4)), jnp.int32(2)).tolist()  # two agents, room for four
      [0.5, 0.5, 0.0, 0.0]
    """
    return Partial(_uniform)


def latest() -> MetaSolver:
    """Makes the meta-solver of self-play: the latest agent alone.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.solvers as so
      >>> so.latest()(jnp.zeros((4, 4)), jnp.int32(2)).tolist()
      [0.0, 1.0, 0.0, 0.0]
    """
    return Partial(_latest)


def nash(iterations: int = 1000) -> MetaSolver:
    """Makes a meta-solver that finds a Nash equilibrium by predictive regret matching+.

    The mixture is the mean of the iterates, weighted by the square of their number. On metagames of
    22 agents of games of skill, the NashConv within the population that is left after 1000
    iterations is tested to be below 0.005 of the largest payoff.

    Args:
      iterations: Number of iterations, at least 1.

    Source: Farina, Kroer and Sandholm (2021), arXiv 2007.14358, algorithm 2.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> payoffs, size = jnp.asarray(jg.rock_paper_scissors()), jnp.int32(3)
      >>> [round(3 * w, 2) for w in so.nash()(payoffs, size).tolist()]
      [1.0, 1.0, 1.0]
    """
    return Partial(_nash, checked_count("iterations", iterations))


def nash_lp() -> MetaSolver:
    """Makes a meta-solver that finds a Nash equilibrium by a linear program on the host.

    The program is solved by scipy's HiGHS, in double precision.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> payoffs, size = jnp.asarray(jg.rock_paper_scissors()), jnp.int32(3)
      >>> [round(3 * w, 3) for w in so.nash_lp()(payoffs, size).tolist()]
      [1.0, 1.0, 1.0]
    """
    return Partial(_nash_lp)


def rectified(iterations: int = 1000) -> MetaSolver:
    """Makes the meta-solver of PSRO-rN, for one new agent an iteration.

    Agent i of the Nash mixture p would train against the agents that it beats, each as often as
    p_j max(M_ij, 0); here these are averaged over p_i. Where nothing in the mixture beats anything
    in it, as where one agent beats all, it is the mixture itself; and so it is where what is won is
    no more than twice what the mixture leaves to win, since the solver is no more exact than that.
    As a *report* of the population the Nash mixture is meant: give `psro` the argument `report`.

    Args:
      iterations: Iterations of `nash`, at least 1.

    Source: Balduzzi et al. (2019), arXiv 1901.08106, algorithm 4.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> payoffs, size = jnp.asarray(jg.rock_paper_scissors()), jnp.int32(3)
      >>> weights = so.rectified()(payoffs, size)
      >>> weights.shape, round(float(weights.sum()), 3)
      ((3,), 1.0)
    """
    return Partial(_rectified, nash(iterations))


def projected_replicator(
    iterations: int = 2000, *, rate: float | Array = 0.1, least: float | Array = 1e-3
) -> MetaSolver:
    """Makes the meta-solver of projected replicator dynamics.

    Each agent keeps a least weight; the mixture is the mean over the iterations.

    Args:
      iterations: Number of iterations, at least 1.
      rate: Size of a step where the largest payoff is 1, above 0. Traced.
      least: Weight of each agent times their number, in [0, 1]. Traced.

    Source: Lanctot et al. (2017), arXiv 1711.00832, section 3.1.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> payoffs, size = jnp.asarray(jg.rock_paper_scissors()), jnp.int32(3)
      >>> [round(3 * w, 2) for w in so.projected_replicator()(payoffs, size).tolist()]
      [1.0, 1.0, 1.0]
    """
    check_range("rate", rate, 0, above=True)
    check_range("least", least, 0, 1)
    steps = checked_count("iterations", iterations)
    return Partial(_replicator, steps, jnp.asarray(rate), jnp.asarray(least))


def agent_mask(payoffs: Float[Array, "N N"], size: Int[Array, ""]) -> Array:
    """Marks the agents that have arrived [N].

    Args:
      payoffs: Payoffs among the agents, [N, N], antisymmetric.
      size: Number of agents that have arrived.
    """
    return jnp.arange(len(payoffs)) < size


@own_promotion()
def _uniform(payoffs: Array, size: Array) -> Array:
    return agent_mask(payoffs, size) / jnp.asarray(size, payoffs.dtype)


@own_promotion()
def _latest(payoffs: Array, size: Array) -> Array:
    return jax.nn.one_hot(size - 1, len(payoffs), dtype=payoffs.dtype)


def scale_payoffs(payoffs: Float[Array, "N N"], mask: Array) -> Float[Array, "N N"]:
    """Divides payoffs among the agents that have arrived by the largest of them.

    Args:
      payoffs: Payoffs among the agents, [N, N], antisymmetric.
      mask: Agents that have arrived, [N].
    """
    a = jnp.where(mask[:, None] & mask, payoffs, 0)
    top = jnp.abs(a).max()
    return a / jnp.where(top > 0, top, 1)


@own_promotion()
def _nash(steps: Count, payoffs: Array, size: Array) -> Array:
    # nothing flows back through the iterations: the mixture is a constant of the meta-gradient
    a, mask = lax.stop_gradient(payoffs), agent_mask(payoffs, size)
    a = scale_payoffs(a, mask)
    even = _uniform(a, size)

    def mixture(regret: Array) -> Array:
        positive = jnp.where(mask, jnp.maximum(regret, 0), 0)
        total = positive.sum()
        return jnp.where(total > 0, positive / jnp.where(total > 0, total, 1), even)

    def one(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        regret, last, total = carry
        x = mixture(regret + last)
        # the game is symmetric: both players do the same, and x·(a x) is 0
        gain = a @ x
        weight = (i + 1.0) ** 2
        return jnp.maximum(regret + gain, 0) * mask, gain, total + weight * x

    zeros = jnp.zeros_like(even)
    total = lax.fori_loop(0, len(steps), one, (zeros, zeros, zeros))[2]
    return total / total.sum()


def solve_lp(payoffs: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " n"]:
    """Finds the row player's equilibrium of a zero-sum matrix game by a linear program.

    Args:
      payoffs: Payoffs of the row player, [n, n].

    Raises:
      RuntimeError: HiGHS found no optimum.
    """
    from scipy.optimize import linprog

    n, m = payoffs.shape
    top = np.abs(payoffs).max() or 1.0
    found = linprog(
        np.append(np.zeros(n), -1.0),
        A_ub=np.concatenate([-payoffs.T / top, np.ones((m, 1))], 1),
        b_ub=np.zeros(m),
        A_eq=np.append(np.ones(n), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * n + [(None, None)],
        method="highs",
    )
    if found.status != 0:
        raise RuntimeError(f"HiGHS found no equilibrium: {found.message}")
    x = np.maximum(found.x[:n], 0)
    return x / x.sum()


@own_promotion()
def _nash_lp(payoffs: Array, size: Array) -> Array:
    def solve(payoffs: Any, size: Any) -> np.ndarray:
        a, n = np.asarray(payoffs, float), int(size)
        out = np.zeros(len(a), np.asarray(payoffs).dtype)
        out[:n] = solve_lp(a[:n, :n])
        return out

    like = jax.ShapeDtypeStruct(payoffs.shape[:1], payoffs.dtype)
    return jax.pure_callback(
        solve, like, lax.stop_gradient(payoffs), size, vmap_method="sequential"
    )


@own_promotion()
def _rectified(solver: MetaSolver, payoffs: Array, size: Array) -> Array:
    p, mask = solver(payoffs, size), agent_mask(payoffs, size)
    a = scale_payoffs(payoffs, mask)
    often = p * (p @ jnp.maximum(a, 0))
    total, error = often.sum(), jnp.max(a @ p, initial=0)
    # what is as small as the solver's own error is made of what it failed to leave out
    known = total > 2 * error + 16 * len(p) * jnp.finfo(p.dtype).eps
    return jnp.where(known, often / jnp.where(known, total, 1), p)


@own_promotion()
def _replicator(steps: Count, rate: Array, least: Array, payoffs: Array, size: Array) -> Array:
    mask = agent_mask(payoffs, size)
    a = scale_payoffs(lax.stop_gradient(payoffs), mask)
    floor = least / size * mask

    def one(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, total = carry
        x = _project_to_simplex(x + rate * x * (a @ x), floor, mask)
        return x, total + x

    x = _uniform(a, size)
    total = lax.fori_loop(0, len(steps), one, (x, jnp.zeros_like(x)))[1]
    return total / total.sum()


def _project_to_simplex(x: Array, floor: Array, mask: Array) -> Array:
    """The nearest point that sums to 1 and is nowhere below `floor`."""
    over = jnp.where(mask, x - floor, -jnp.inf)
    room = 1 - floor.sum()
    order = -jnp.sort(-over)
    before = jnp.cumsum(order) - room
    count = jnp.arange(1, len(x) + 1)
    # at least the largest: where the floors are all there is, rounding may leave room for none
    kept = jnp.maximum(jnp.sum(order * count > before), 1)
    return floor + jnp.where(mask, jnp.maximum(over - before[kept - 1] / kept, 0), 0)
