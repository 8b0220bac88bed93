"""Transformers over tokens, the plain neighbors of Neural Interpreters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxsim.models.relative_position import RelativePosition
from jaxsim.numerics.checks import checked_int


class Layer(nn.Module):
    """Attention and a perceptron, each normalized before and added after.

    Attributes:
      heads: Number of heads of the attention.
      ratio: Width of the perceptron over that of the tokens.
      positions: Whether attention has a bias by relative place.
    """

    heads: int
    ratio: int
    positions: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N d"], grid: tuple[int, int] | None
    ) -> Float[Array, "B N d"]:
        """The layer's output."""
        B, N, width = x.shape
        H = self.heads
        h = nn.LayerNorm(name="norm_a")(x)
        # Heads first, as in the Neural Interpreter.
        q, k, v = (
            jnp.swapaxes(nn.Dense(width, name=name)(h).reshape(B, N, H, width // H), 1, 2)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bhnk,bhmk->bhnm", q, k) * (width // H) ** -0.5
        if self.positions and grid is not None:
            scores = scores + RelativePosition(H, name="position")(grid, N)
        mixed = jnp.einsum("bhnm,bhmk->bhnk", jax.nn.softmax(scores), v)
        mixed = jnp.swapaxes(mixed, 1, 2).reshape(B, N, width)
        x = x + nn.Dense(width, name="mix")(mixed)
        h = nn.Dense(self.ratio * width, name="hidden")(nn.LayerNorm(name="norm_b")(x))
        return x + nn.Dense(width, name="output")(nn.gelu(h, approximate=False))


class Transformer(nn.Module):
    """Layers with separate weights over a set of tokens.

    Attributes:
      layers: Number of layers.
      heads: Number of heads of each attention; divides the width of the tokens.
      ratio: Width of each perceptron over that of the tokens.
      positions: Whether attention has a bias by relative place, where there is a grid.

    Source: Dosovitskiy et al. (2021), arXiv 2010.11929.
    """

    layers: int = 8
    heads: int = 4
    ratio: int = 4
    positions: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N d"], *, grid: tuple[int, int] | None = None
    ) -> tuple[Float[Array, "B N d"], None]:
        """The tokens, and None in place of a routing.

        Args:
          x: Tokens. Where there is a grid, the last H · W of them are its patches in row order.
          grid: Rows and columns of patches; None for a set.

        Raises:
          ValueError: A setting out of range, or a width that the heads do not divide.
        """
        for name in ("layers", "heads", "ratio"):
            checked_int(name, getattr(self, name), 1)
        if x.ndim != 3 or x.shape[-1] % self.heads:
            raise ValueError(f"x{list(x.shape)}: must be [B, N, d], d a multiple of {self.heads}")
        for i in range(self.layers):
            x = Layer(self.heads, self.ratio, self.positions, name=f"layer_{i}")(x, grid)
        return nn.LayerNorm(name="norm")(x), None
