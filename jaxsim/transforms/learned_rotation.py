"""Orthogonal matrices of turned channels, learned by what rounding behind them loses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxsim.checkpoint.log import program_digest, run_digest
from jaxsim.checkpoint.resumable import resumable
from jaxsim.cores.partition import Partitioned
from jaxsim.cores.rotated import mixed_rows
from jaxsim.cores.step_slopes import step_slopes
from jaxsim.cores.wrapper import Wrapper, place_of
from jaxsim.inputs.batches import batches
from jaxsim.network.arguments import apply_call, call_arguments
from jaxsim.network.network import Net, Network
from jaxsim.network.params import by_name, tensors, with_tensors
from jaxsim.numerics.arrays import own_promotion, placed_like
from jaxsim.numerics.cayley import cayley
from jaxsim.sparsity.channels.axes import Layout, Symbol, group_around, map_along

Loss = Callable[[Any, Any], Array]
"""`(outputs, those of the float network) -> a number`, less where they are nearer."""

Matrix = Float[Array, "C C"] | Float[np.ndarray, "C C"]


class Turned(NamedTuple):
    """Channels that a matrix was put between, and where another would go; static, by what it holds.

    Attributes:
      size: Number of channels.
      places: Path, axis and layout of the axis around the channels, of each axis of a tensor that
        runs over them.
      mixed: Names of the sites whose core takes the matrix from both sides.
    """

    size: int
    places: tuple[tuple[str, int, Layout], ...]
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


def turn_further(net: Net, turned: Sequence[Turned], matrices: Sequence[Matrix]) -> Net:
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
        wide, unit = isinstance(matrix, np.ndarray), Symbol(one.size)
        for path, axis, layout in one.places:
            own = np.asarray(held[path], np.float64) if wide else held[path]
            group = group_around(layout, unit)
            held[path] = map_along(own, axis, group, unit, partial(_times, matrix))
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
    net: Net,
    turned: Sequence[Turned],
    data: Any,
    key: Key[Array, ""],
    *,
    learn_for: Callable[[Network], Network],
    steps: int,
    rate: float,
    loss: Loss,
    checkpoints: str | Path | None,
) -> Net:
    """Turns channels on, by matrices that a transform behind them loses less with.

    Args:
      net: Network whose channels are turned; the matrices begin with its own.
      turned: Groups of channels.
      data: Batch or iterable of batches, one a step.
      key: Random key of what the transform draws at a read.
      learn_for: Callable[[Network], Network] that is to follow.
      steps: Number of steps.
      rate: Angle that a channel turns by in a first step, in radians.
      loss: Of the outputs of the network that the transform makes.
      checkpoints: Folder to write to and to go on from where a run was stopped; None for none.

    Raises:
      ValueError: The transform changes parameters, the loss is not finite, or checkpoints of
        another run.
    """
    import optax  # which `import jaxsim` goes without

    chip, turned = _followed(net, learn_for), tuple(turned)
    calls = [call_arguments(*batch) for batch in batches(data)]
    wide = [np.eye(one.size) for one in turned]
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    every = max(steps // _LOOKS, 1)

    def given(i: int, step: int) -> tuple[Partitioned, Any]:
        return calls[i % len(calls)], jax.random.fold_in(key, step)

    def look(wide: list[np.ndarray], step: int) -> float:
        own = [given(i, i) for i in range(min(len(calls), _LOOKED_AT))]
        found = [float(_lost(turned, loss, net, chip, _narrow(wide), *one)) for one in own]
        if not np.isfinite(found).all():
            raise ValueError(f"loss: {found} after {step} steps, must be finite")
        return sum(found)

    def advance(at: _Learning, step: int) -> tuple[_Learning, Any]:
        slopes = _gradients(turned, loss, net, chip, _narrow(at.wide), *given(step - 1, step))
        moves: Any
        moves, state = optimizer.update(slopes, at.state)
        wide = [
            matrix @ cayley(_skew(np.asarray(move, np.float64)) / math.sqrt(len(matrix)))
            for matrix, move in zip(at.wide, moves, strict=True)
        ]
        at = at._replace(wide=wide, state=state)
        if step % every == 0 or step == steps:
            now = look(wide, step)
            at = at._replace(best=wide, least=now) if now < at.least else at
        return at, at.least

    run: dict[str, Any] = {}
    if checkpoints is not None:
        program, _ = program_digest(
            _gradients, turned, loss, net, chip, _narrow(wide), *given(0, 0)
        )
        run = {
            "networks": run_digest((net, chip)),
            "inputs": run_digest(calls),
            "key": run_digest(key),
            "program": program,
            "steps": run_digest((), steps, rate),
            "version of JAX": jax.__version__,
        }
    found = resumable(
        advance,
        _Learning(wide, optimizer.init(_narrow(wide)), wide, look(wide, 0)),
        lambda done: range(done + 1, steps + 1),
        steps=steps,
        folder=checkpoints,
        run=run,
        every=every,
        content=_Learning.content,
        with_content=_Learning.of_content,
        label="turning",
        quiet=True,
    )
    return turn_further(net, turned, found.best)


class _Learning(NamedTuple):
    """Matrices while they are learned.

    Attributes:
      wide: Matrices after the last step.
      state: State of the optimizer.
      best: Those that lost least of what was looked at.
      least: What they lose.
    """

    wide: list[np.ndarray]
    state: Any
    best: list[np.ndarray]
    least: float

    def content(self) -> Any:
        """The arrays of a checkpoint, doubles as pairs of words."""
        return _words(self.wide), self.state, _words(self.best), _words([np.float64(self.least)])

    def of_content(self, content: Any) -> _Learning:
        """The matrices of a checkpoint."""
        wide, state, best, (least,) = content
        return _Learning(_doubles(wide), state, _doubles(best), _doubles([least])[0].item())


def _words(doubles: Sequence[Any]) -> list[np.ndarray]:
    return [np.atleast_1d(np.ascontiguousarray(a)).view(np.uint32) for a in doubles]


def _doubles(words: Sequence[Any]) -> list[np.ndarray]:
    return [np.ascontiguousarray(a).view(np.float64) for a in words]


_LOOKS, _LOOKED_AT = 10, 4
"""How often matrices are looked at while they are learned, and on how many of the batches. What is
lost jumps where numbers go over to other codes, so the last matrices need not be the best."""


def _narrow(matrices: Sequence[np.ndarray]) -> list[Array]:
    return [jnp.asarray(matrix, jnp.float32) for matrix in matrices]


def _off(
    matrices: list[Array],
    turned: tuple[Turned, ...],
    loss: Loss,
    net: Network,
    chip: Network,
    arguments: Partitioned,
    key: Any,
) -> Array:
    """The loss of a network that is turned on, against the one in floats."""
    exact = apply_call(arguments, net)
    return loss(apply_call(arguments, turn_further(chip, turned, matrices), key=key), exact)


@partial(jax.jit, static_argnums=(0, 1))
@own_promotion()
def _lost(
    turned: tuple[Turned, ...],
    loss: Loss,
    net: Network,
    chip: Network,
    matrices: list[Array],
    arguments: Partitioned,
    key: Any,
) -> Array:
    return _off(matrices, turned, loss, net, chip, arguments, key)


@partial(jax.jit, static_argnums=(0, 1))
@own_promotion()
def _gradients(
    turned: tuple[Turned, ...],
    loss: Loss,
    net: Network,
    chip: Network,
    matrices: list[Array],
    arguments: Partitioned,
    key: Any,
) -> list[Array]:
    """Slopes along each orthogonal matrix."""
    slopes = jax.grad(_off)(matrices, turned, loss, net, chip, arguments, key)
    return [_skew(m.T @ slope) for m, slope in zip(matrices, slopes, strict=True)]


def _skew(a: Any) -> Any:
    return (a - a.T) / 2


def _followed(net: Network, learn_for: Callable[[Network], Network]) -> Network:
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
