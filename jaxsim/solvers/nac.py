"""Neural auto-curricula: a meta-solver learned by the gradient of what it leads to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from jaxsim.games.game import Game, nash_conv
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.solvers.es import es_value_and_grad
from jaxsim.solvers.mixing import MetaSolver
from jaxsim.solvers.psro import Population, approximate_gain, populate, respond
from jaxsim.solvers.responses import Oracle


class Objective(NamedTuple):
    """What a meta-solver is to make small: the NashConv of its populations.

    Attributes:
      oracle: how new agents answer.
      exploiter: an oracle that measures NashConv from below, as published, or None for the exact
        one, whose derivative is that of the best response held still.
      start: agents at first.
      iterations: that follow, T.
      window: iterations between which derivatives flow; the population at the start of each window
        is a constant. It divides T.
      each: whether the mean is over all iterations, or over the ends of the windows, as published.
    """

    oracle: Oracle
    exploiter: Oracle | None = None
    start: int = 2
    iterations: int = 20
    window: int = 5
    each: bool = False


class MetaState(NamedTuple):
    """A meta-solver that is being trained.

    Attributes:
      params: of the network.
      moments: of the optimiser.
      step: how many have been made.
    """

    params: Any
    moments: Any
    step: Array


Sampler = Callable[[Key[Array, ""]], Game]
"""A game from a key."""


def network_solver(network: nn.Module, params: Any) -> MetaSolver:
    """A network with its parameters as a meta-solver."""
    return Partial(network.apply, params)


def check_objective(objective: Objective) -> None:
    """Checks the numbers of an objective.

    Raises:
      ValueError: one is out of range.
    """
    checked_int("start", objective.start, 1)
    iterations = checked_int("iterations", objective.iterations, 1)
    window = checked_int("window", objective.window, 1)
    if iterations % window:
        raise ValueError(f"window={window}: must divide iterations={iterations}")


@own_promotion()
def nac_loss(
    network: nn.Module, objective: Objective, params: Any, game: Game, key: Key[Array, ""]
) -> Float[Array, ""]:
    """The objective of one game and one start, differentiable in the parameters.

    Args:
      network: from payoffs and their number to weights.
      objective: what is measured.
      params: of the network.
      game: one game.
      key: of the agents at first, of the oracle and of the exploiter.

    Source: Feng et al. (2021), arXiv 2106.02745, algorithm 1 and eq. 5–8.
    """
    check_objective(objective)
    solver = network_solver(network, params)
    first, rest = jax.random.split(key)

    def measured(population: Population, weights: Array, key: Any) -> Array:
        opponent = game.mix(population.strategies, weights)
        if objective.exploiter is None:
            return nash_conv(game, opponent)
        return approximate_gain(game, opponent, objective.exploiter, key)

    def one(carry: tuple[Population, Array], key: Any) -> tuple[Any, Array]:
        answer, measure = jax.random.split(key)
        population = respond(game, *carry, objective.oracle, answer)
        weights = solver(population.payoffs, population.size)
        value = measured(population, weights, measure) if objective.each else jnp.zeros(())
        return (population, weights), value

    def window(population: Population, keys: Any) -> tuple[Population, Array]:
        population = lax.stop_gradient(population)
        weights = solver(population.payoffs, population.size)
        (population, weights), values = lax.scan(one, (population, weights), keys)
        if objective.each:
            return population, values.mean()
        return population, measured(population, weights, keys[-1])

    population = populate(game, first, objective.start, objective.iterations)
    windows = objective.iterations // objective.window
    keys = jax.random.split(rest, (windows, objective.window))
    return lax.scan(window, population, keys)[1].mean()


def meta_optimizer(
    rate: float, steps: int, *, clip: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Adam with a clipped gradient and a rate that falls by a cosine to nothing.

    Args:
      rate: at the start, above 0.
      steps: until it is 0, at least 1.
      clip: largest norm of the gradient, above 0.
    """
    check_range("rate", rate, 0, above=True)
    check_range("clip", clip, 0, above=True)
    falling = optax.cosine_decay_schedule(rate, checked_int("steps", steps, 1))
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(falling))


def init_meta(
    network: nn.Module, optimizer: optax.GradientTransformation, key: Key[Array, ""]
) -> MetaState:
    """A meta-solver before training."""
    params = network.init(key, jnp.zeros((4, 4)), jnp.int32(2))
    return MetaState(params, optimizer.init(params), jnp.int32(0))


def meta_step(
    network: nn.Module,
    objective: Objective,
    sample: Sampler,
    optimizer: optax.GradientTransformation,
    *,
    batch: int = 16,
    gradient: Literal["unrolled", "es"] = "unrolled",
    sigma: float = 0.1,
    pairs: int = 15,
    mesh: Mesh | None = None,
) -> Callable[[MetaState, Key[Array, ""]], tuple[MetaState, Float[Array, ""]]]:
    """One step of meta-training, compiled.

    Args:
      network: the meta-solver.
      objective: what it is trained for.
      sample: a game from a key.
      optimizer: an optax transformation.
      batch: games a step, at least 1.
      gradient: through the iterations, or by evolution strategies, which need values only and so
        take any oracle. "First order" is an oracle: `first_order(…)`; so is "implicit".
      sigma: of the perturbations of evolution strategies.
      pairs: of them.
      mesh: of one axis, over which the games of a step are divided; batch is a multiple of its
        size. Its devices may be of several processes.

    Returns:
      From a state and the key of the run to the next state and the mean objective; the games of a
      step depend on the key and the number of the step alone.

    Raises:
      ValueError: an option out of range.
    """
    check_objective(objective)
    batch = checked_int("batch", batch, 1)
    if gradient not in ("unrolled", "es"):
        raise ValueError(f"gradient={gradient!r}: must be 'unrolled' or 'es'")
    if mesh is not None and (len(mesh.axis_names) != 1 or batch % mesh.size):
        raise ValueError(
            f"mesh: axes {mesh.axis_names} of {mesh.size} devices for a batch of {batch}; must "
            "have one axis that divides the batch"
        )

    def loss(params: Any, keys: Any) -> Array:
        def one(key: Any) -> Array:
            game, play = jax.random.split(key)
            return nac_loss(network, objective, params, sample(game), play)

        return jax.vmap(one)(keys).mean()

    def value_and_grad(params: Any, keys: Any, noise: Any) -> tuple[Array, Any]:
        if gradient == "es":
            return es_value_and_grad(loss, sigma=sigma, pairs=pairs)(noise, params, keys)
        return jax.value_and_grad(loss)(params, keys)

    gradients = value_and_grad
    if mesh is not None:
        axis = mesh.axis_names[0]

        def averaged(params: Any, keys: Any, noise: Any) -> tuple[Array, Any]:
            share = batch // mesh.size
            own = lax.dynamic_slice_in_dim(keys, lax.axis_index(axis) * share, share)
            return lax.pmean(value_and_grad(params, own, noise), axis)

        gradients = jax.shard_map(
            averaged,
            mesh=mesh,
            in_specs=PartitionSpec(),
            out_specs=PartitionSpec(),
            # loops start from constants, which the check for varying axes does not accept
            check_vma=False,
        )

    @own_promotion()
    def step(state: MetaState, key: Any) -> tuple[MetaState, Array]:
        games, noise = jax.random.split(jax.random.fold_in(key, state.step))
        value, grads = gradients(state.params, jax.random.split(games, batch), noise)
        changes, moments = optimizer.update(grads, state.moments, state.params)
        params = optax.apply_updates(state.params, changes)
        return MetaState(params, moments, state.step + 1), value

    # said beforehand, so that the first state, on one device, is not a programme of its own
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, in_shardings=everywhere)
