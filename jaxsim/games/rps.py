"""Rock, paper and scissors in the plane: modes on a circle, each stronger than half the others."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from jaxsim.games.game import Game
from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import checked_int

RADIUS = 2.8722
"""Radius of the circle of modes."""
SHARPNESS = 0.54
"""Sharpness of each mode: exp(-SHARPNESS·distance²/2)."""
_SIDE = 97
"""Points a side of the grid on which the best response is looked for."""


@own_promotion()
def rps_mixture(key: Key[Array, ""], modes: int = 7) -> Game:
    """Makes a non-transitive mixture of modes in the plane, turned by a random angle.

    An agent is a point [2], its strategy how strongly it is felt at each mode and a one [K + 1].
    The payoff of p against q is pᵀ C q + Σ (p - q) / 2: mode i beats the (K - 1) / 2 modes before
    it, and being felt more is worth something too. `best` is over all points of the plane: the best
    point of a grid of spacing 0.1, then Newton's method, so to float32 where the grid sees the
    right hill.

    Args:
      key: Random key of the angle.
      modes: Number of modes K, odd, at least 3.

    Raises:
      ValueError: modes is not odd.

    Source: Perez-Nieves et al. (2021), arXiv 2103.07927, section 6; the constants are those of the
      code of Feng et al. (2021), arXiv 2106.02745.

    Examples:
      >>> import jax
      >>> import jaxsim.games as jg
      >>> game = jg.rps_mixture(jax.random.key(0), modes=3)
      >>> game.strategy(game.init(jax.random.key(1))).shape
      (4,)
    """
    modes = checked_int("modes", modes, 3)
    memory.check(f"modes={modes}", 4 * (modes + 1) ** 2, "lower it")
    if modes % 2 == 0:
        raise ValueError(f"modes={modes}: must be odd")
    turn = jax.random.uniform(key, (), maxval=2 * math.pi)
    angles = turn + 2 * math.pi * jnp.arange(modes) / modes
    means = RADIUS * jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)
    ahead = (np.arange(modes)[None] - np.arange(modes)[:, None]) % modes
    beats = np.where(ahead == 0, 0, np.where(ahead <= modes // 2, -1, 1))
    whole = np.zeros((modes + 1, modes + 1), np.float32)
    whole[:modes, :modes] = beats
    whole[:modes, modes], whole[modes, :modes] = 0.5, -0.5
    table = jnp.asarray(whole)
    return Game(
        Partial(_init),
        Partial(_felt, means),
        Partial(_mix, table),
        Partial(jnp.dot),
        Partial(_best, means),
        Partial(_respond, means),
    )


@own_promotion()
def _init(key: Array) -> Array:
    return 0.01 * jax.random.normal(key, (2,))


@own_promotion()
def _felt(means: Array, x: Array) -> Array:
    # SHARPNESS stands where a covariance would be inverted, as in the published code
    density = jnp.exp(-SHARPNESS / 2 * jnp.sum((x - means) ** 2, -1))
    return jnp.concatenate([density, jnp.ones(1, density.dtype)])


@own_promotion()
def _mix(table: Array, strategies: Array, weights: Array) -> Array:
    return table @ (weights @ strategies)


@own_promotion()
def _respond(means: Array, opponent: Float[Array, " K1"]) -> Float[Array, "2"]:
    def worth(x: Array) -> Array:
        return _felt(means, x) @ opponent

    # on the line of the grid, densities are products of one factor a coordinate
    line = jnp.linspace(-RADIUS - 2, RADIUS + 2, _SIDE)
    factors = jnp.exp(-SHARPNESS / 2 * (line - means[..., None]) ** 2)
    grid = jnp.einsum("k,ki,kj->ij", opponent[:-1], factors[:, 0], factors[:, 1])
    best = jnp.argmax(grid)
    start = jnp.stack([line[best // _SIDE], line[best % _SIDE]])

    def newton(_: Array, x: Array) -> Array:
        slope, bend = jax.grad(worth)(x), jax.hessian(worth)(x)
        at = x - jnp.linalg.solve(bend - 1e-6 * jnp.eye(2), slope)
        return jnp.where(worth(at) >= worth(x), at, x)  # only uphill

    return lax.fori_loop(0, 5, newton, start)


@own_promotion()
def _best(means: Array, opponent: Array) -> Array:
    return _felt(means, lax.stop_gradient(_respond(means, opponent))) @ opponent
