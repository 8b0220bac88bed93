"""Scales of blocks of short elements, searched for what they cost."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.cores.observers import Moments
from jaxsim.formats.microscaling import ELEMENTS, Microscaled, round_element

_TIMES = (0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.07, 1.15, 1.25, 1.35, 1.5, 2.0)
"""What the largest weight's scale of a block is multiplied by, to look for a better one."""


def with_best_scales(form: Microscaled, state: Moments, cost: Callable[[Array], Array]) -> Moments:
    """Moments with the scale of each block that costs least, among some around its first one.

    Args:
      form: Format of the weights.
      state: Moments of a site.
      cost: Of what rounding adds to weights [..., B, K / rows, rows, N], for each block
        [..., B, K / rows, 1, N].
    """
    kind, (first, tensor) = form.kind, state.ends
    *stack, B, K, N = state.w.shape
    blocks = state.w.reshape(*stack, B, K // form.rows, form.rows, N)
    all_ = tensor.reshape(*stack, 1, 1, 1, 1)
    start = first.reshape(*stack, B, K // form.rows, 1, N)

    def of(scales: Array) -> Array:
        step = scales * all_
        held = round_element(kind, blocks / jnp.where(step > 0, step, 1)) * step
        return cost(held - blocks)

    best, least = start, of(start)
    for times in (0.5, 2.0) if form.scale == "e8m0" else _TIMES:
        scales = start * times
        if form.scale == "e4m3":
            scales = round_element(ELEMENTS["e4m3"], scales)
        new = of(scales)
        best, least = jnp.where(new < least, scales, best), jnp.minimum(new, least)
    step = jnp.broadcast_to(best * all_, blocks.shape).reshape(state.w.shape)
    return state._replace(scale=step, ends=(best.reshape(first.shape), tensor))
