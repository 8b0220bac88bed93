"""Expectation values from a finite number of shots."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxsim.numerics.checks import MissingKeyError, checked_int
from jaxsim.quantum.heisenberg import signs
from jaxsim.quantum.kernel import CircuitKernel, expval, probabilities


def sample(
    kernel: CircuitKernel,
    theta: Float[Array, "... n"],
    shots: int,
    key: Key[Array, ""] | None,
    *,
    joint: bool = False,
) -> Float[Array, "... n"]:
    """Samples the mean of Z of every wire over a number of shots.

    Args:
      kernel: Circuit of n wires, from `compile_circuit`.
      theta: Angles of RY in radians, one for each wire on the last axis.
      shots: Number of shots, at least 1.
      key: Random key.
      joint: Whether all wires are read in the same shots, as on a device, so that their errors
        are correlated; otherwise each wire has its own shots. The distribution of each mean is
        the same.

    Raises:
      ValueError: shots below 1, no key, what `expval` or `probabilities` raise, or a derivative:
        a sample has none.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.quantum as jq
      >>> kernel = jq.compile_circuit(jq.basic_entangling(jnp.zeros((1, 2))))
      >>> jq.sample(kernel, jnp.zeros(2), 10, jax.random.key(0)).tolist()  # certain outcomes
      [1.0, 1.0]
    """
    shots = checked_int("shots", shots, 1)
    if key is None:
        raise MissingKeyError("shots need a key of jax.random")
    if joint:
        chance = jnp.clip(_without_derivative(probabilities(kernel, theta)), 0, 1)
        chance = chance / chance.sum(-1, keepdims=True)
        counts = jax.random.multinomial(key, shots, chance, dtype=chance.dtype)
        return counts @ jnp.asarray(signs(kernel.n_wires), chance.dtype) / shots
    mean = _without_derivative(expval(kernel, theta))
    up = jax.random.binomial(key, shots, jnp.clip((1 + mean) / 2, 0, 1), dtype=mean.dtype)
    return 2 * up / shots - 1


@jax.custom_jvp
def _without_derivative(y: Any) -> Any:
    return y


@_without_derivative.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise ValueError(
        "shots: a sampled expectation value has no derivative; differentiate without shots"
    )
