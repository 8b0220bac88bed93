"""Lottery tickets: prune, and go back to an early point of the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxsim.network.network import Network
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_called, check_range
from jaxsim.sparsity.criterion import magnitude
from jaxsim.sparsity.distribution import Distribution, global_
from jaxsim.sparsity.masks import make_masks, select_kept
from jaxsim.sparsity.optimizers.masked import (
    SparseState,
    all_masks,
    apply_masks,
    get_params,
    negate,
    set_params,
    step_within,
)
from jaxsim.sparsity.pattern import unstructured
from jaxsim.sparsity.schedule import Schedule

if TYPE_CHECKING:
    from optax import GradientTransformation


class Early(NamedTuple):
    """Training state that a lottery rewinds to.

    Attributes:
      params: Parameters.
      inner: State of the wrapped optimizer, its count of steps included.
    """

    params: Any
    inner: Any


def lottery(
    inner: GradientTransformation,
    net: Network,
    schedule: Schedule,
    *,
    at: int | Array = 0,
    rewind: Literal["weights", "rate"] = "weights",
    distribution: Distribution | None = None,
    sites: str | Sequence[str] = "*",
) -> GradientTransformation:
    """Prunes by magnitude at each round, and rewinds to the state of an early step.

    The wrapped optimizer goes back to its state of that step, so its learning rate is repeated;
    "weights" also gives the weights that remain their early values.

    Args:
      inner: Optimizer, whose own schedule is that of one round.
      net: Network that is trained.
      schedule: Schedule of the rounds, as in `gradual`; the first comes after `at`.
      at: Step to rewind to, at least 0.
      rewind: "weights", or "rate" to keep the values of the weights.
      distribution: Distribution over layers, as in `js.prune`.
      sites: Patterns of the sites to prune.

    Raises:
      ValueError: An argument out of range, or sites that do not fit the network.

    Source: Frankle et al. (2019), arXiv 1903.01611, for weights; Renda, Frankle and Carbin (2020),
    arXiv 2003.02389, for the rate.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((4, 2))}, jnp.ones((1, 4)))
      >>> rounds = js.sparsity.iterative(0.75, begin=10, every=10, rounds=2)
      >>> optimizer = js.sparsity.lottery(optax.sgd(0.1), net, rounds)
      >>> int(optimizer.init(net.params).masks["w"].sum())
      8
    """
    import optax

    check_called("schedule", schedule)
    check_called("distribution", distribution)
    check_range("at", at, 0, whole=True)
    if rewind not in ("weights", "rate"):
        raise ValueError(f"rewind={rewind!r}: must be 'weights' or 'rate'")
    if schedule.sparsity is None:
        raise ValueError("schedule: give it a sparsity")
    target = schedule.sparsity
    shared = global_() if distribution is None else distribution
    start = all_masks(net, sites)

    @own_promotion()
    def init(params: Any) -> SparseState:
        masks = jax.tree.map(jnp.array, start)
        state = inner.init(apply_masks(net, masks, params))
        early = Early(jax.tree.map(jnp.array, params), state)
        return SparseState(jnp.zeros((), jnp.int32), masks, early, state)

    def back(state: SparseState, params: Any) -> tuple[Any, SparseState]:
        now = dataclasses.replace(net, params=get_params(net, params), masks=state.masks)
        masks = {
            **state.masks,
            **make_masks(
                now,
                magnitude().score(now, ()),
                target(state.step),
                pattern=unstructured(),
                distribution=shared,
                sites=sites,
            ),
        }
        to = state.memory.params if rewind == "weights" else params
        moved = jax.tree.map(jnp.subtract, apply_masks(net, masks, to), params)
        # exactly zero where masked, whatever the rounding of a difference
        exact = select_kept(masks, get_params(net, moved), negate(get_params(net, params)))
        return set_params(net, moved, exact), SparseState(
            state.step + 1, masks, state.memory, state.memory.inner
        )

    @own_promotion()
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, SparseState]:
        early = Early(params, state.inner)
        memory = lax.cond(state.step == at, lambda: early, lambda: state.memory)
        state = state._replace(memory=memory)
        return lax.cond(
            schedule.due(state.step),
            lambda: back(state, params),
            lambda: step_within(inner, net, state, state.masks, updates, params),
        )

    return optax.GradientTransformation(init, update)
