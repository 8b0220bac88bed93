"""Evolution strategies: a gradient from values alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range, checked_int


def es_value_and_grad(
    f: Callable[..., Float[Array, ""]], *, sigma: float | Array = 0.1, pairs: int = 15
) -> Callable[..., tuple[Float[Array, ""], Any]]:
    """The value of f smoothed by a Gaussian and its gradient, by antithetic pairs.

    Args:
      f: of parameters and anything else; every perturbation gets the same rest, random keys too.
      sigma: standard deviation of the perturbations, above 0. Traced.
      pairs: at least 1.

    Returns:
      A function of a key, parameters and the rest of f's arguments to the mean of f over the
      perturbations and a gradient like the parameters.

    Source: Salimans et al. (2017), arXiv 1703.03864, section 2.1.
    """
    check_range("sigma", sigma, 0, above=True)
    pairs = checked_int("pairs", pairs, 1)

    @own_promotion()
    def estimate(key: Key[Array, ""], params: Any, *rest: Any) -> tuple[Array, Any]:
        flat, shaped = ravel_pytree(params)
        noise = jax.random.normal(key, (pairs, len(flat)), flat.dtype)
        both = jnp.concatenate([noise, -noise])
        values = jax.vmap(lambda e: f(shaped(flat + sigma * e), *rest))(both)
        gain = (values[:pairs] - values[pairs:]) @ noise / (2 * pairs * sigma)
        return values.mean(), shaped(gain)

    return estimate
