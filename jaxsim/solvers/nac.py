"""Neural auto-curricula: meta-solvers learned by the gradient of their populations' NashConv."""

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
    """Objective of a meta-solver: the NashConv of its populations.

    Attributes:
      oracle: Oracle by which new agents answer.
      exploiter: Oracle that measures NashConv from below, as published, or None for the exact
        one, whose derivative takes the best response as a constant.
      start: Number of agents at first, at least 1.
      iterations: Number of agents that follow T, at least 1.
      window: Iterations between which derivatives flow; the population at the start of each window
        is a constant. It divides T.
      each: Whether the mean is over all iterations, or over the ends of the windows, as published.

    Examples:
      >>> import jaxsim.solvers as so
      >>> so.Objective(so.unrolled(5, 1.0), window=10).iterations
      20
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
      params: Parameters of the network.
      moments: State of the optimizer.
      step: Number of steps that have been made.

    Examples:
      >>> import jax
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> network = so.EquivariantMixing(rounds=1, width=4, start=0)
      >>> optimizer = so.meta_optimizer(0.01, steps=10)
      >>> state = so.init_meta(network, optimizer, jax.random.key(0))
      >>> int(state.step)
      0
    """

    params: Any
    moments: Any
    step: Array


Sampler = Callable[[Key[Array, ""]], Game]
"""Function from a random key to a game."""


def network_solver(network: nn.Module, params: Any) -> MetaSolver:
    """Makes a meta-solver of a network and its parameters.

    Args:
      network: Network from payoffs and the number of agents to weights.
      params: Parameters of the network.

    Examples:
      >>> import jax
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> network = so.EquivariantMixing(rounds=1, width=4, start=0)
      >>> optimizer = so.meta_optimizer(0.01, steps=10)
      >>> state = so.init_meta(network, optimizer, jax.random.key(0))
      >>> solver = so.network_solver(network, state.params)
      >>> solver(jg.rock_paper_scissors(), 3).shape
      (3,)
    """
    return Partial(network.apply, params)


def check_objective(objective: Objective) -> None:
    """Checks the numbers of an objective.

    Args:
      objective: The objective.

    Raises:
      ValueError: One is out of range.
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
    """Computes the objective in one game from one start, differentiable in the parameters.

    Args:
      network: Network from payoffs and the number of agents to weights.
      objective: Objective of the meta-solver.
      params: Parameters of the network.
      game: The game.
      key: Random key of the agents at first, of the oracle and of the exploiter.

    Source: Feng et al. (2021), arXiv 2106.02745, algorithm 1 and eq. 5–8.

    Examples:
      >>> import jax
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> network = so.EquivariantMixing(rounds=1, width=4, start=0)
      >>> optimizer = so.meta_optimizer(0.01, steps=10)
      >>> state = so.init_meta(network, optimizer, jax.random.key(0))
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> aim = so.Objective(so.exact(), iterations=1, window=1)
      >>> so.nac_loss(network, aim, state.params, game, jax.random.key(1)).shape
      ()
    """
    check_objective(objective)
    solver = network_solver(network, params)
    first, rest = jax.random.split(key)

    def gain(population: Population, weights: Array, key: Any) -> Array:
        opponent = game.mix(population.strategies, weights)
        if objective.exploiter is None:
            return nash_conv(game, opponent)
        return approximate_gain(game, opponent, objective.exploiter, key)

    def one(carry: tuple[Population, Array], key: Any) -> tuple[Any, Array]:
        answer, measure = jax.random.split(key)
        population = respond(game, *carry, objective.oracle, answer)
        weights = solver(population.payoffs, population.size)
        value = gain(population, weights, measure) if objective.each else jnp.zeros(())
        return (population, weights), value

    def window(population: Population, keys: Any) -> tuple[Population, Array]:
        population = lax.stop_gradient(population)
        weights = solver(population.payoffs, population.size)
        (population, weights), values = lax.scan(one, (population, weights), keys)
        if objective.each:
            return population, values.mean()
        return population, gain(population, weights, keys[-1])

    population = populate(game, first, objective.start, objective.iterations)
    windows = objective.iterations // objective.window
    keys = jax.random.split(rest, (windows, objective.window))
    return lax.scan(window, population, keys)[1].mean()


def meta_optimizer(
    rate: float, steps: int, *, clip: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Makes Adam with a clipped gradient and a rate that falls by a cosine to zero.

    Args:
      rate: Learning rate at the start, above 0.
      steps: Number of steps until the rate is 0, at least 1.
      clip: Largest norm of the gradient, above 0.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.solvers as so
      >>> optimizer = so.meta_optimizer(0.01, steps=100)
      >>> changes, _ = optimizer.update(jnp.ones(1), optimizer.init(jnp.ones(1)))
      >>> round(float(changes[0]), 3)
      -0.01
    """
    check_range("rate", rate, 0, above=True)
    check_range("clip", clip, 0, above=True)
    falling = optax.cosine_decay_schedule(rate, checked_int("steps", steps, 1))
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(falling))


def init_meta(
    network: nn.Module, optimizer: optax.GradientTransformation, key: Key[Array, ""]
) -> MetaState:
    """Initializes a meta-solver and its optimizer.

    Args:
      network: Network from payoffs and the number of agents to weights.
      optimizer: An optax transformation.
      key: Random key of the parameters.

    Examples:
      >>> import jax
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> network = so.EquivariantMixing(rounds=1, width=4, start=0)
      >>> optimizer = so.meta_optimizer(0.01, steps=10)
      >>> state = so.init_meta(network, optimizer, jax.random.key(0))
      >>> int(state.step)
      0
    """

    @jax.jit  # by itself each operation of the network would be a program
    def start(key: Key[Array, ""]) -> MetaState:
        params = network.init(key, jnp.zeros((4, 4)), jnp.int32(2))
        return MetaState(params, optimizer.init(params), jnp.int32(0))

    return start(key)


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
    """Makes a compiled step of meta-training.

    Args:
      network: Network of the meta-solver, from payoffs and the number of agents to weights.
      objective: Objective of the meta-solver.
      sample: Function from a random key to a game.
      optimizer: An optax transformation.
      batch: Number of games a step, at least 1.
      gradient: Through the iterations, or by evolution strategies, which need values only and so
        take any oracle. "First order" is an oracle: `first_order(…)`; so is "implicit".
      sigma: Standard deviation of the perturbations of evolution strategies, above 0.
      pairs: Number of pairs of perturbations, at least 1.
      mesh: Device mesh of one axis over which the games of a step are divided; batch is a
        multiple of its size. Its devices may be of several processes.

    Returns:
      A function from a state and the key of the run to the next state and the mean objective; the
      games of a step depend on the key and the number of the step alone.

    Raises:
      ValueError: An option out of range.

    Examples:
      >>> import jax
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> network = so.EquivariantMixing(rounds=1, width=4, start=0)
      >>> optimizer = so.meta_optimizer(0.01, steps=10)
      >>> state = so.init_meta(network, optimizer, jax.random.key(0))
      >>> aim = so.Objective(so.exact(), iterations=1, window=1)
      >>> sample = lambda key: jg.games_of_skill(key, 4)
      >>> step = so.meta_step(network, aim, sample, optimizer, gradient="es", pairs=1, batch=2)
      >>> state, value = step(state, jax.random.key(1))
      >>> int(state.step), value.shape
      (1, ())
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

    gradients = _batch_gradients(network, objective, sample, gradient, sigma, pairs)
    if mesh is not None:
        gradients = _divide(gradients, mesh, batch)

    @own_promotion()
    def step(state: MetaState, key: Any) -> tuple[MetaState, Array]:
        games, noise = jax.random.split(jax.random.fold_in(key, state.step))
        value, grads = gradients(state.params, jax.random.split(games, batch), noise)
        changes, moments = optimizer.update(grads, state.moments, state.params)
        params = optax.apply_updates(state.params, changes)
        return MetaState(params, moments, state.step + 1), value

    # said beforehand, so that the first state, on one device, is not a program of its own
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, in_shardings=everywhere)


_Gradients = Callable[[Any, Any, Any], tuple[Array, Any]]
"""From parameters, keys of games and a key of perturbations to the mean objective and gradient."""


def _batch_gradients(
    network: nn.Module,
    objective: Objective,
    sample: Sampler,
    gradient: Literal["unrolled", "es"],
    sigma: float,
    pairs: int,
) -> _Gradients:
    def loss(params: Any, keys: Any) -> Array:
        def one(key: Any) -> Array:
            game, play = jax.random.split(key)
            return nac_loss(network, objective, params, sample(game), play)

        return jax.vmap(one)(keys).mean()

    def value_and_grad(params: Any, keys: Any, noise: Any) -> tuple[Array, Any]:
        if gradient == "es":
            return es_value_and_grad(loss, sigma=sigma, pairs=pairs)(noise, params, keys)
        return jax.value_and_grad(loss)(params, keys)

    return value_and_grad


def _divide(gradients: _Gradients, mesh: Mesh, batch: int) -> _Gradients:
    """The same, each device of a mesh with its share of the games."""
    axis = mesh.axis_names[0]

    def average(params: Any, keys: Any, noise: Any) -> tuple[Array, Any]:
        share = batch // mesh.size
        own = lax.dynamic_slice_in_dim(keys, lax.axis_index(axis) * share, share)
        return lax.pmean(gradients(params, own, noise), axis)

    return jax.shard_map(
        average,
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        # loops start from constants, which the check for varying axes does not accept
        check_vma=False,
    )
