"""Orthogonal matrices of turned channels, learned by what rounding behind them loses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxsim.cores.partition import Partitioned
from jaxsim.cores.rotated import mixed_rows
from jaxsim.cores.step_slopes import step_slopes
from jaxsim.cores.wrapper import Wrapper, place_of
from jaxsim.inputs.batches import batches
from jaxsim.network.arguments import apply_call, call_arguments
from jaxsim.network.network import Network
from jaxsim.network.params import by_name, tensors, with_tensors
from jaxsim.network.transform import Transform
from jaxsim.numerics.arrays import own_promotion, placed_like
from jaxsim.numerics.cayley import cayley
from jaxsim.sparsity.channels.axes import AxisGroup, Symbol, map_along

Loss = Callable[[Any, Any], Array]
"""`(outputs, those of the float network) -> a number`, less where they are nearer."""

Matrix = Float[Array, "C C"] | Float[np.ndarray, "C C"]


class Turned(NamedTuple):
    """Channels that a matrix was put between, and where another would go.

    Attributes:
      unit: What stands for the channels in the axes of tensors.
      places: Path, axis and group of the axis, of each axis of a tensor that runs over them.
      mixed: Names of the sites whose core takes the matrix from both sides.
    """

    unit: Symbol
    places: tuple[tuple[str, int, AxisGroup], ...]
    mixed: tuple[str, ...]


def relative_error(outputs: Any, exact: Any) -> Float[Array, ""]:
    """Squared differences of float outputs, as a share of their squares.

    Args:
      outputs: Outputs of a network.
      exact: Those that they are to be.
    """
    pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(exact), strict=True)
    floats = [(y, z) for y, z in pairs if jnp.issubdtype(y.dtype, jnp.floating)]
    off = sum((jnp.sum(jnp.square(y - z)) for y, z in floats), jnp.float32(0))
    size = sum((jnp.sum(jnp.square(z)) for _, z in floats), jnp.float32(0))
    return off / jnp.maximum(size, 1e-30)


def turn_further(net: Network, turned: Sequence[Turned], matrices: Sequence[Matrix]) -> Network:
    """Puts another matrix between channels that are turned already.

    Args:
      net: Network whose channels are turned.
      turned: Groups of channels.
      matrices: Orthogonal matrix of each; those of NumPy multiply in double precision, those of JAX
        have derivatives.
    """
    held: dict[str, Any] = dict(tensors(net))
    before, cores, change = dict(held), dict(net.cores), dict[str, Any]()
    for one, matrix in zip(turned, matrices, strict=True):
        wide = isinstance(matrix, np.ndarray)
        for path, axis, label in one.places:
            own = np.asarray(held[path], np.float64) if wide else held[path]
            held[path] = map_along(own, axis, label, one.unit, partial(_times, matrix))
            change[path] = held[path]
        for name in one.mixed:
            cores[name] = tuple(_mixed_further(w, matrix) for w in cores[name])
    narrow = {
        path: placed_like(jnp.asarray(a, before[path].dtype), before[path])
        for path, a in change.items()
    }
    return dataclasses.replace(with_tensors(net, narrow), cores=cores)


def _times(matrix: Matrix, a: Any) -> Any:
    return a @ matrix


def _mixed_further(wrapper: Wrapper, matrix: Matrix) -> Wrapper:
    if wrapper.factory is not mixed_rows:
        return wrapper
    held: Any = wrapper.settings["matrix"]
    held = np.asarray(held, np.float64) if isinstance(matrix, np.ndarray) else held
    return Wrapper.of(mixed_rows, matrix=jnp.asarray(matrix.T @ held @ matrix, jnp.float32))


def learn_matrices(
    net: Network,
    turned: Sequence[Turned],
    data: Any,
    key: Key[Array, ""],
    *,
    learn_for: Transform,
    steps: int,
    rate: float,
    loss: Loss,
) -> Network:
    """Turns channels on, by matrices that a transform behind them loses less with.

    Args:
      net: Network whose channels are turned; the matrices begin with its own.
      turned: Groups of channels.
      data: Batch or iterable of batches, one a step.
      key: Random key of what the transform draws at a read.
      learn_for: Transform that is to follow.
      steps: Number of steps.
      rate: Angle that a channel turns by in a first step, in radians.
      loss: Of the outputs of the network that the transform makes.

    Raises:
      ValueError: The transform changes parameters, or the loss is not finite.
    """
    import optax  # which `import jaxsim` goes without

    chip = _followed(net, learn_for)
    lost, gradients = _functions_of(turned, loss)
    calls = [call_arguments(*batch) for batch in batches(data)]
    wide = [np.eye(one.unit.size) for one in turned]
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    state = optimizer.init(_narrow(wide))

    def look(step: int) -> float:
        given = [(call, jax.random.fold_in(key, i)) for i, call in enumerate(calls[:_LOOKED_AT])]
        found = [float(lost(net, chip, _narrow(wide), call, own)) for call, own in given]
        if not np.isfinite(found).all():
            raise ValueError(f"loss: {found} after {step} steps, must be finite")
        return sum(found)

    best, least = wide, look(0)
    for step in range(1, steps + 1):
        call, own = calls[(step - 1) % len(calls)], jax.random.fold_in(key, step)
        slopes = gradients(net, chip, _narrow(wide), call, own)
        moves: Any
        moves, state = optimizer.update(slopes, state)
        wide = [
            matrix @ cayley(_skew(np.asarray(move, np.float64)) / math.sqrt(len(matrix)))
            for matrix, move in zip(wide, moves, strict=True)
        ]
        if step % max(steps // _LOOKS, 1) == 0 or step == steps:
            now = look(step)
            best, least = (wide, now) if now < least else (best, least)
    return turn_further(net, turned, best)


_LOOKS, _LOOKED_AT = 10, 4
"""How often matrices are looked at while they are learned, and on how many of the batches. What is
lost jumps where numbers go over to other codes, so the last matrices need not be the best."""


def _narrow(matrices: Sequence[np.ndarray]) -> list[Array]:
    return [jnp.asarray(matrix, jnp.float32) for matrix in matrices]


def _functions_of(
    turned: Sequence[Turned], loss: Loss
) -> tuple[Callable[..., Array], Callable[..., list[Array]]]:
    """Compiled functions of the loss, and of its slopes along each orthogonal matrix."""

    def off(
        matrices: list[Array], net: Network, chip: Network, arguments: Partitioned, key: Any
    ) -> Array:
        exact = apply_call(arguments, net)
        return loss(apply_call(arguments, turn_further(chip, turned, matrices), key=key), exact)

    @jax.jit
    @own_promotion()
    def lost(net: Network, chip: Network, matrices: list[Array], *given: Any) -> Array:
        return off(matrices, net, chip, *given)

    @jax.jit
    @own_promotion()
    def gradients(net: Network, chip: Network, matrices: list[Array], *given: Any) -> list[Array]:
        slopes = jax.grad(off)(matrices, net, chip, *given)
        return [_skew(m.T @ slope) for m, slope in zip(matrices, slopes, strict=True)]

    return lost, gradients


def _skew(a: Any) -> Any:
    return (a - a.T) / 2


def _followed(net: Network, learn_for: Transform) -> Network:
    """What the transform makes of the network, its parameters as they were, with slopes."""
    chip = learn_for(net)
    if not isinstance(chip, Network):
        raise ValueError(f"learn_for={learn_for!r}: makes a {type(chip).__name__}, no network")
    before, after = by_name(net.params), by_name(chip.params)
    changed = [name for name, a in before.items() if after.get(name) is not a]
    if changed or chip.masks or chip.states:
        why = f"changes {changed[0]}" if changed else "prunes or deploys"
        raise ValueError(
            f"learn_for={learn_for!r}: {why}, and is to be found anew for each matrix; give what "
            "rounds (js.quantize), and put it behind rotate"
        )
    return dataclasses.replace(chip, cores={n: _sloped(c) for n, c in chip.cores.items()})


def _sloped(chain: tuple[Wrapper, ...]) -> tuple[Wrapper, ...]:
    """A chain whose rounding has the derivative of its steps."""
    at = min(place_of(chain, "codes"), place_of(chain, "floats"))
    if at == len(chain):
        return chain
    weights, inputs = chain[at].formats
    slopes = Wrapper.of(step_slopes, weights=weights, inputs=inputs)
    return (*chain[:at], slopes, *chain[at:])
