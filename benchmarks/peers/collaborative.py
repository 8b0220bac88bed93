"""Peers of collaborative heads: a softmax classifier, and leave-one-out codes by refits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import jaxsim.collaborative as jcol
from jaxsim.models.coconet import mean_pool


class Classifier(nn.Module):
    """A backbone, pooling, and a softmax classifier of scaled features."""

    backbone: nn.Module
    classes: int
    pool: Callable[[jax.Array], jax.Array] = mean_pool
    scale: float = 1.0

    def setup(self) -> None:
        """The last layer."""
        self.dense = nn.Dense(self.classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        return self.dense(self.scale * self.features(x))

    def features(self, x: jax.Array) -> jax.Array:
        """Features that the last layer reads."""
        return self.pool(self.backbone(x))


def refits(X: jax.Array, lam: Any) -> jax.Array:
    """Each sample's code from the others, solved anew in the smaller dimension."""
    N = len(X)

    def one(i: Any) -> jax.Array:
        others = jnp.where(jnp.arange(N - 1) < i, jnp.arange(N - 1), jnp.arange(1, N))
        return jcol.ridge_codes(X[others], X[i][None], lam)[0]

    return jax.lax.map(one, jnp.arange(N))
