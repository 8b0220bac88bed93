"""Networks that choose the panel which completes a matrix, by any body of tokens."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxsim.numerics.checks import checked_int

PANELS, CHOICES = 8, 8


class PanelPixels(nn.Module):
    """A token from a gray picture, by convolutions that halve it.

    Attributes:
      width: Width of the token.
      features: Channels of each convolution.
    """

    width: int = 96
    features: tuple[int, ...] = (16, 32, 32)

    @nn.compact
    def __call__(self, x: Float[Array, "P H W"]) -> Float[Array, "P width"]:
        """Tokens of pictures with pixels in [0, 1]."""
        y = 1 - x[..., None]
        for features in self.features:
            y = nn.relu(nn.GroupNorm(4)(nn.Conv(features, (3, 3), (2, 2))(y)))
        return nn.Dense(self.width)(y.reshape(len(y), -1))


class PanelSymbols(nn.Module):
    """A token from the symbols of a panel: a sum of what each value was learned to mean.

    Attributes:
      width: Width of the token.
      levels: Number of values that any symbol may take.
    """

    width: int = 96
    levels: int = 16

    @nn.compact
    def __call__(self, x: Int[Array, "P C 4"]) -> Float[Array, "P width"]:
        """Tokens of symbols."""
        flat = x.reshape(x.shape[0], -1)
        at = flat + self.levels * jnp.arange(flat.shape[1])
        return nn.Embed(self.levels * flat.shape[1], self.width)(at).sum(1)


class Reasoner(nn.Module):
    """A score for each choice: how well it completes the matrix.

    The eight panels and one choice are a set of nine tokens and a class token, whose last state is
    read. Every choice is scored alike and apart, so their order does not matter.

    Attributes:
      body: Tokens [B, N, d] to tokens and a routing, as `NeuralInterpreter` and `Transformer` do.
      panel: Module that makes a token of a panel.
      width: Width of a token, d.
      context: False shows the seven other choices in place of the matrix, without an order: a
        control, which can do no better than chance where choices tell nothing alone.
    """

    body: nn.Module
    panel: nn.Module
    width: int = 96
    context: bool = True

    @nn.compact
    def __call__(self, x: Any, *, routing: bool = False, **call: Any) -> Any:
        """Scores, [B, 8].

        Args:
          x: Eight panels of the matrix, then eight choices, [B, 16, …].
          routing: Whether to return the body's routing as well.
          **call: Arguments of the body.

        Raises:
          ValueError: Not sixteen panels.
        """
        checked_int("width", self.width, 1)
        if x.ndim < 3 or x.shape[1] != PANELS + CHOICES:
            raise ValueError(f"x{list(x.shape)}: must be [B, {PANELS + CHOICES}, …] panels")
        B, width = x.shape[0], self.width
        tokens = self.panel(x.reshape(-1, *x.shape[2:]))  # pyright: ignore[reportCallIssue]
        tokens = tokens.reshape(B, PANELS + CHOICES, width)
        normal = nn.initializers.normal(1.0)
        start = self.param("class_token", normal, (width,))
        if self.context:
            places = self.param("places", normal, (PANELS + 1, width))
            shown = np.stack([[*range(PANELS), PANELS + i] for i in range(CHOICES)])
        else:
            # The choice itself has a place; the others share one.
            places = self.param("places", normal, (2, width))[
                jnp.asarray([0] * (CHOICES - 1) + [1])
            ]
            others = [[j for j in range(CHOICES) if j != i] for i in range(CHOICES)]
            shown = PANELS + np.stack([[*rest, i] for i, rest in enumerate(others)])
        sets = (tokens[:, shown] + places).reshape(B * CHOICES, shown.shape[1], width)
        first = jnp.broadcast_to(start, (B * CHOICES, 1, width))
        y, routed = self.body(jnp.concatenate([first, sets], 1), **call)  # pyright: ignore[reportCallIssue]
        scores = nn.Dense(1, name="score")(y[:, 0]).reshape(B, CHOICES)
        return (scores, routed) if routing else scores
