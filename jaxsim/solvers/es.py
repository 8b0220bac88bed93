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
    """Makes an estimator of f smoothed by a Gaussian and of its gradient, by antithetic pairs.

    Args:
      f: Function of parameters and anything else; every perturbation gets the same rest, random
        keys too.
      sigma: Standard deviation of the perturbations, above 0. Traced.
      pairs: Number of pairs of perturbations, at least 1.

    Returns:
      A function of a key, parameters and the rest of f's arguments to the mean of f over the
      perturbations and a gradient like the parameters.

    Source: Salimans et al. (2017), arXiv 1703.03864, section 2.1.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.solvers as so
      >>> estimate = so.es_value_and_grad(lambda x: 3 * x.sum(), pairs=8)
      >>> value, grad = estimate(jax.random.key(0), jnp.zeros(1))
      >>> value.shape, grad.shape, bool(grad[0] > 0)
      ((), (1,), True)
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
