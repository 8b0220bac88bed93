"""Images as patches for any body that maps tokens to tokens."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxsim.numerics.checks import checked_int


class Vision(nn.Module):
    """Classifier of images by a class token beside the patches.

    Each task has a class token and a head of its own and shares the rest, so that a model learns
    several sets of images, or a new one, with one body.

    Attributes:
      body: Tokens [B, N, d] to tokens and a routing, as `NeuralInterpreter` and `Transformer` do.
      tasks: Number of classes of each task.
      patch: Side of a patch in pixels.
      width: Width of a token, d.
    """

    body: nn.Module
    tasks: tuple[int, ...] = (10,)
    patch: int = 4
    width: int = 96

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        *,
        task: int = 0,
        routing: bool = False,
        **call: Any,
    ) -> Any:
        """Logits of a task, [B, classes].

        Args:
          x: Images; both sides are multiples of the patch.
          task: Number of the task, from 0.
          routing: Whether to return the body's routing as well.
          **call: Arguments of the body, such as `iterations` and `functions`.

        Raises:
          ValueError: No such task, or sides that the patch does not divide.
        """
        checked_int("patch", self.patch, 1)
        checked_int("width", self.width, 1)
        task = checked_int("task", task, 0, len(self.tasks) - 1)
        if x.ndim != 4 or x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"x{list(x.shape)}: must be [B, H, W, C], both sides multiples of {self.patch}"
            )
        B, P = x.shape[0], self.patch
        grid = (x.shape[1] // P, x.shape[2] // P)
        cut = (
            x.reshape(B, grid[0], P, grid[1], P, -1)
            .swapaxes(2, 3)
            .reshape(B, grid[0] * grid[1], -1)
        )
        patches = nn.Dense(self.width, name="patches")(cut)
        token = self.param(
            "class_tokens", nn.initializers.normal(1.0), (len(self.tasks), self.width)
        )[task]
        tokens = jnp.concatenate([jnp.broadcast_to(token, (B, 1, self.width)), patches], 1)
        y, routed = self.body(tokens, grid=grid, **call)  # pyright: ignore[reportCallIssue]
        heads = [nn.Dense(classes, name=f"head_{i}") for i, classes in enumerate(self.tasks)]
        if self.is_initializing():
            for head in heads:
                head(y[:, 0])
        logits = heads[task](y[:, 0])
        return (logits, routed) if routing else logits
