"""Attention bias by where one patch lies from another."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float


class RelativePosition(nn.Module):
    """A learned bias for each distance in rows and each in columns, added up.

    Tokens before the patches, as class tokens are, have no place and no bias.

    Attributes:
      heads: Number of heads of the attention.
      width: Width of the embedding of a distance, which heads read.

    Source: Cordonnier et al. (2020), arXiv 1911.03584, section 3, with a free table.
    """

    heads: int
    width: int = 32

    @nn.compact
    def __call__(
        self,
        grid: tuple[int, int],
        tokens: int,
        codes: Float[Array, "U c"] | None = None,
    ) -> Float[Array, "U H N N"]:
        """The bias, for one set of functions or, without codes, for one (U = 1).

        Args:
          grid: Rows and columns of patches.
          tokens: N; the last ones are the patches, in row order.
          codes: Codes of the functions, by which they read distances; None for the same bias
            everywhere.

        Raises:
          ValueError: Fewer tokens than patches.
        """
        rows, columns = grid
        before = tokens - rows * columns
        if before < 0:
            raise ValueError(f"tokens={tokens}: must be at least the {rows} × {columns} patches")
        bias = [self._along(*side, codes) for side in (("row", rows), ("column", columns))]
        across = bias[0][:, :, :, None, :, None] + bias[1][:, :, None, :, None, :]
        N = rows * columns
        square = across.reshape(*across.shape[:2], N, N)
        return jnp.pad(square, ((0, 0), (0, 0), (before, 0), (before, 0)))

    def _along(
        self, name: str, size: int, codes: Float[Array, "U c"] | None
    ) -> Float[Array, "U H size size"]:
        table = self.param(name, nn.initializers.normal(1.0), (2 * size - 1, self.width))
        init = nn.initializers.lecun_normal()
        heads = self.param(f"{name}_heads", init, (self.width, self.heads))
        if codes is None:
            scores = (table @ heads).T[None]
        else:
            read = self.param(f"{name}_codes", init, (codes.shape[-1], self.width))
            scores = jnp.einsum("pc,ch,uc->uhp", table, heads, codes @ read)
        places = np.arange(size)[None] - np.arange(size)[:, None] + size - 1
        return scores[:, :, places]
