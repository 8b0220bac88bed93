"""Meta-solvers that are networks: from payoffs among any number of agents to weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxsim.numerics.arrays import own_promotion
from jaxsim.solvers.mixing import agent_mask, nash, scale_payoffs


class ConvMixing(nn.Module):
    """Meta-solver of convolutions along each row, their mean over rows, and both.

    Rows are in order of arrival, and the weights depend on it.

    Attributes:
      features: Number of features of the hidden layers of each stack.

    Source: Feng et al. (2021), arXiv 2106.02745, appendix, and its code.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> payoffs, size = jnp.asarray(jg.rock_paper_scissors()), jnp.int32(3)
      >>> network = so.ConvMixing((4,))
      >>> weights, params = jax.jit(network.init_with_output)(jax.random.key(0), payoffs, size)
      >>> weights.shape, round(float(weights.sum()), 3)
      ((3,), 1.0)
    """

    features: tuple[int, ...] = (8, 16, 8)

    @nn.compact
    @own_promotion()
    def __call__(self, payoffs: Float[Array, "N N"], size: Int[Array, ""]) -> Float[Array, " N"]:
        """Weights of the agents."""
        mask = agent_mask(payoffs, size)
        x = jnp.where(mask[:, None] & mask, payoffs, 0)[..., None]
        rows = _stack(self.features, x, mask)
        whole = jnp.where(mask[:, None, None], rows, 0).sum(0) / size
        both = jnp.concatenate([rows, jnp.broadcast_to(whole, rows.shape)], -1)
        logits = _stack(self.features, both, mask)[..., 0].sum(-1) / size
        return masked_softmax(logits, mask)


class Unit(NamedTuple):
    """Weights of a gated recurrent unit; G = 3 W for the reset, the update and the new state.

    Attributes:
      into: Weights of the input, [F, G].
      shift: Bias of the input, [G].
      state: Weights of the state, [W, G].
      bias: Bias of the state's part of the new state, [W].
    """

    into: Float[Array, "F G"]
    shift: Float[Array, " G"]
    state: Float[Array, "W G"]
    bias: Float[Array, " W"]


@jax.custom_vjp
@own_promotion()
def recurrent(
    unit: Unit, x: Float[Array, "N B F"], there: Bool[Array, " N"]
) -> Float[Array, "B W"]:
    """Computes the last state of a gated recurrent unit along the first axis.

    Its derivative is written out: XLA's CPU backend computes exponentials in a loop four times
    slower than outside, so the gates are made anew behind the loop, all at once.

    Args:
      unit: Weights of the unit.
      x: Inputs, [N, B, F].
      there: Steps that count, [N]; the others leave the state as it is.

    Source: Cho et al. (2014), arXiv 1406.1078, with the reset behind the product as in cuDNN.
    """
    return _states(unit, x, there)[0]


def _gates(unit: Unit, x: Array, held: Array) -> tuple[Array, Array, Array]:
    (a, b, c), (d, e, f) = (jnp.split(y, 3, -1) for y in (x @ unit.into + unit.shift, held))
    reset = jax.nn.sigmoid(a + d)
    return reset, jax.nn.sigmoid(b + e), jnp.tanh(c + reset * (f + unit.bias))


def _states(unit: Unit, x: Array, there: Array) -> tuple[Array, Array]:
    """The last state and that before each step."""

    def step(h: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        _, update, new = _gates(unit, now[0], h @ unit.state)
        return jnp.where(now[1], update * h + (1 - update) * new, h), h

    return lax.scan(step, jnp.zeros((x.shape[1], len(unit.bias)), x.dtype), (x, there), unroll=32)


@own_promotion()
def _forward(unit: Unit, x: Array, there: Array) -> tuple[Array, Any]:
    last, before = _states(unit, x, there)
    return last, (unit, x, there, before)


@own_promotion()
def _backward(kept: tuple[Unit, Array, Array, Array], slope: Array) -> tuple[Unit, Array, None]:
    unit, x, there, before = kept
    width, on = len(unit.bias), there[:, None, None]
    held = before @ unit.state
    reset, update, new = _gates(unit, x, held)
    to_new = jnp.where(on, (1 - update) * (1 - new**2), 0)
    to_update = jnp.where(on, (before - new) * update * (1 - update), 0)
    to_reset = to_new * (held[..., -width:] + unit.bias) * reset * (1 - reset)
    factors = jnp.stack([to_reset, to_update, to_new * reset], -2)

    def step(slope: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        moved = (now[0] * slope[:, None]).reshape(len(slope), -1)
        return now[1] * slope + moved @ unit.state.T, slope

    slopes = lax.scan(step, slope, (factors, jnp.where(on, update, 1)), reverse=True)[1]
    parts = factors * slopes[..., None, :]
    through = parts.reshape(-1, 3 * width)
    given = jnp.concatenate([parts[..., 0, :], parts[..., 1, :], to_new * slopes], -1)
    flat = given.reshape(-1, 3 * width)
    return (
        Unit(
            x.reshape(len(flat), -1).T @ flat,
            flat.sum(0),
            before.reshape(len(flat), -1).T @ through,
            through[:, -width:].sum(0),
        ),
        given @ unit.into.T,
        None,
    )


recurrent.defvjp(_forward, _backward)


class GRUMixing(nn.Module):
    """Meta-solver of a recurrent unit along each row, another over the rows, and a perceptron.

    Rows are in order of arrival, and the weights depend on it.

    Attributes:
      width: Width of the units.

    Source: Feng et al. (2021), arXiv 2106.02745, appendix, and its code.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> payoffs, size = jnp.asarray(jg.rock_paper_scissors()), jnp.int32(3)
      >>> network = so.GRUMixing(width=4)
      >>> weights, params = jax.jit(network.init_with_output)(jax.random.key(0), payoffs, size)
      >>> weights.shape, round(float(weights.sum()), 3)
      ((3,), 1.0)
    """

    width: int = 32

    @nn.compact
    @own_promotion()
    def __call__(self, payoffs: Float[Array, "N N"], size: Int[Array, ""]) -> Float[Array, " N"]:
        """Weights of the agents."""
        mask = agent_mask(payoffs, size)
        a = jnp.where(mask[:, None] & mask, payoffs, 0)
        first, shift = self._layer("first", 1, self.width)
        unit = self._unit("rows")
        # the first layer and the unit's own are one product: nothing is between them
        unit = unit._replace(into=first @ unit.into, shift=shift @ unit.into + unit.shift)
        rows = recurrent(unit, a.T[..., None], mask)
        whole = recurrent(self._unit("whole"), rows[:, None], mask)
        both = jnp.concatenate([rows, jnp.broadcast_to(whole, rows.shape)], -1)
        hidden = nn.relu(nn.Dense(64)(nn.relu(nn.Dense(64)(both))))
        return masked_softmax(nn.Dense(1)(hidden)[:, 0], mask)

    def _layer(self, name: str, features: int, width: int) -> tuple[Array, Array]:
        kernel = self.param(f"{name}_kernel", nn.initializers.lecun_normal(), (features, width))
        return kernel, self.param(f"{name}_bias", nn.initializers.zeros, (width,))

    def _unit(self, name: str) -> Unit:
        into, shift = self._layer(name, self.width, 3 * self.width)
        square = nn.initializers.orthogonal()
        state = self.param(f"{name}_state", square, (self.width, 3 * self.width))
        bias = self.param(f"{name}_new", nn.initializers.zeros, (self.width,))
        return Unit(into, shift, state, bias)


class EquivariantMixing(nn.Module):
    """Meta-solver of rounds of play among the agents, in which each sees its gain and moves.

    The weights follow the agents when these are renumbered together with their ages, and payoffs
    are taken over the largest, so that only their proportions count. The last layer starts at zero:
    before training the rounds are those of multiplicative weights, from the uniform or the Nash
    mixture.

    Attributes:
      rounds: Number of rounds of play.
      width: Numbers that an agent carries from one round to the next.
      start: Iterations of the Nash mixture that the rounds start from, a constant of the gradient;
        0 to start from the uniform one.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> payoffs, size = jnp.asarray(jg.rock_paper_scissors()), jnp.int32(3)
      >>> network = so.EquivariantMixing(rounds=1, width=4)
      >>> weights, params = jax.jit(network.init_with_output)(jax.random.key(0), payoffs, size)
      >>> weights.shape, round(float(weights.sum()), 3)
      ((3,), 1.0)
    """

    rounds: int = 6
    width: int = 24
    start: int = 200

    @nn.compact
    @own_promotion()
    def __call__(
        self,
        payoffs: Float[Array, "N N"],
        size: Int[Array, ""],
        age: Int[Array, " N"] | None = None,
    ) -> Float[Array, " N"]:
        """Weights of the agents; `age` counts back from the latest, by row unless it is given."""
        mask = agent_mask(payoffs, size)
        if age is None:
            age = size - 1 - jnp.arange(len(payoffs))
        else:
            mask = age >= 0
        a, old = scale_payoffs(payoffs, mask), jnp.maximum(age, 0).astype(payoffs.dtype)
        count = jnp.asarray(size, payoffs.dtype)
        even = mask / count
        base = nash(self.start)(payoffs, size) if self.start else even
        logits = jnp.log(jnp.maximum(base, 1e-3 / count))
        told = [
            even @ a.T,
            jnp.where(mask, a, -1).max(-1),
            jnp.where(mask, a, 1).min(-1),
            jnp.sqrt((a**2) @ even + 1e-6),
            a @ base,
            base * count / 4,
            old / count,
            jnp.exp(-old),
            jnp.exp(-old / 4),
            jnp.broadcast_to(count / 20, old.shape),
            jnp.broadcast_to(1 / count, old.shape),
        ]
        h = nn.tanh(nn.Dense(self.width)(jnp.stack(told, -1)))
        speed = self.param("speed", nn.initializers.constant(1.0), (self.rounds,))
        for i in range(self.rounds):
            p = masked_softmax(logits, mask)
            gain = a @ p
            carried = h * (p * count)[:, None]
            heard = a @ carried / count
            mean = jnp.broadcast_to(even @ h, h.shape)
            seen = jnp.concatenate(
                [h, heard, mean, gain[:, None], (logits - (even @ logits))[:, None] / 4], -1
            )
            h = h + nn.tanh(nn.Dense(self.width)(nn.relu(nn.Dense(self.width)(seen))))
            move = nn.Dense(1, kernel_init=nn.initializers.zeros)(h)[:, 0]
            logits = logits + speed[i] * gain + move
        return masked_softmax(logits, mask)


def masked_softmax(logits: Float[Array, " N"], mask: Array) -> Float[Array, " N"]:
    """Computes the softmax over the agents that have arrived, 0 for the others.

    Args:
      logits: Logits of all agents, [N].
      mask: Agents that have arrived, [N].
    """
    return jax.nn.softmax(jnp.where(mask, logits, -jnp.inf))


def _stack(features: tuple[int, ...], x: Array, mask: Array) -> Array:
    """Convolutions of five columns without bias; columns without an agent are zeroed after each."""
    for width in (*features, 1):
        # five shifted products: XLA's CPU backend runs convolutions slowly inside a scan
        kernel = nn.Dense(width, use_bias=False)
        wide = jnp.pad(x, ((0, 0), (2, 2), (0, 0)))
        n = x.shape[1]
        taps = jnp.concatenate([wide[:, i : i + n] for i in range(5)], -1)
        x = nn.leaky_relu(kernel(taps)) * mask[None, :, None]
    return x
