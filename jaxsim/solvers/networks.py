"""Meta-solvers that are networks: from payoffs among any number of agents to weights of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxsim.solvers.mixing import filled, nash, scaled


class ConvMixing(nn.Module):
    """Convolutions along each row, their mean over rows, convolutions over both.

    Rows are in order of arrival, and the weights depend on it.

    Attributes:
      features: of the hidden layers of each stack.

    Source: Feng et al. (2021), arXiv 2106.02745, appendix, and its code.
    """

    features: tuple[int, ...] = (8, 16, 8)

    @nn.compact
    def __call__(self, payoffs: Float[Array, "N N"], size: Int[Array, ""]) -> Float[Array, " N"]:
        """Weights of the agents."""
        mask = filled(payoffs, size)
        x = jnp.where(mask[:, None] & mask, payoffs, 0)[..., None]
        rows = _stack(self.features, x, mask)
        whole = jnp.where(mask[:, None, None], rows, 0).sum(0) / size
        both = jnp.concatenate([rows, jnp.broadcast_to(whole, rows.shape)], -1)
        logits = _stack(self.features, both, mask)[..., 0].sum(-1) / size
        return masked_softmax(logits, mask)


class Recurrent(nn.Module):
    """A gated recurrent unit along the last axis but one; its state after the last agent.

    Attributes:
      width: of the state.

    Source: Cho et al. (2014), arXiv 1406.1078, with the reset behind the product as in cuDNN.
    """

    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "... N F"], mask: Bool[Array, " N"]
    ) -> Float[Array, "... W"]:
        """The last state."""
        # what is fed in is known beforehand: one product for all steps
        fed = jnp.moveaxis(nn.Dense(3 * self.width)(x), -2, 0)
        lasting = nn.initializers.orthogonal()
        weights = self.param("state", lasting, (self.width, 3 * self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))

        def step(h: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
            given, there = now
            held = h @ weights
            reset, update, new = jnp.split(given, 3, -1)
            from_reset, from_update, from_new = jnp.split(held, 3, -1)
            new = jnp.tanh(new + jax.nn.sigmoid(reset + from_reset) * (from_new + bias))
            share = jax.nn.sigmoid(update + from_update)
            return jnp.where(there, share * h + (1 - share) * new, h), None

        start = jnp.zeros((*fed.shape[1:-1], self.width), fed.dtype)
        return lax.scan(step, start, (fed, mask), unroll=2)[0]


class GRUMixing(nn.Module):
    """A recurrent unit along each row, another over the rows, a perceptron on both.

    Rows are in order of arrival, and the weights depend on it.

    Attributes:
      width: of the units.

    Source: Feng et al. (2021), arXiv 2106.02745, appendix, and its code.
    """

    width: int = 32

    @nn.compact
    def __call__(self, payoffs: Float[Array, "N N"], size: Int[Array, ""]) -> Float[Array, " N"]:
        """Weights of the agents."""
        mask = filled(payoffs, size)
        x = nn.Dense(self.width)(jnp.where(mask[:, None] & mask, payoffs, 0)[..., None])
        rows = Recurrent(self.width)(x, mask)
        whole = Recurrent(self.width)(rows, mask)
        both = jnp.concatenate([rows, jnp.broadcast_to(whole, rows.shape)], -1)
        hidden = nn.relu(nn.Dense(64)(nn.relu(nn.Dense(64)(both))))
        return masked_softmax(nn.Dense(1)(hidden)[:, 0], mask)


class EquivariantMixing(nn.Module):
    """Rounds of play among the agents: each sees what it has against the mixture, and moves.

    The weights follow the agents when these are renumbered together with their ages, and payoffs
    are taken over the largest, so that only their proportions count. The last layer starts at zero:
    before training the rounds are those of multiplicative weights, from the uniform or the Nash
    mixture.

    Attributes:
      rounds: of play.
      width: numbers that an agent carries from one to the next.
      start: iterations of the Nash mixture that the rounds start from, a constant of the gradient;
        0 to start from the uniform one.
    """

    rounds: int = 6
    width: int = 24
    start: int = 200

    @nn.compact
    def __call__(
        self,
        payoffs: Float[Array, "N N"],
        size: Int[Array, ""],
        age: Int[Array, " N"] | None = None,
    ) -> Float[Array, " N"]:
        """Weights of the agents; `age` counts back from the latest, by row unless it is given."""
        mask = filled(payoffs, size)
        if age is None:
            age = size - 1 - jnp.arange(len(payoffs))
        else:
            mask = age >= 0
        a, old = scaled(payoffs, mask), jnp.maximum(age, 0).astype(payoffs.dtype)
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
    """Softmax over the agents that there are, 0 for the others."""
    return jax.nn.softmax(jnp.where(mask, logits, -jnp.inf))


def _stack(features: tuple[int, ...], x: Array, mask: Array) -> Array:
    """Convolutions of five columns without bias; what is no agent is zero again after each."""
    for width in (*features, 1):
        # five shifted products: XLA's CPU backend runs convolutions slowly inside a scan
        kernel = nn.Dense(width, use_bias=False)
        wide = jnp.pad(x, ((0, 0), (2, 2), (0, 0)))
        n = x.shape[1]
        taps = jnp.concatenate([wide[:, i : i + n] for i in range(5)], -1)
        x = nn.leaky_relu(kernel(taps)) * mask[None, :, None]
    return x
