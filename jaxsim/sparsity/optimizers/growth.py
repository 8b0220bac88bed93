"""Sparse from the first step to the last: optimisers that drop weights and grow others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Key

from jaxsim.network.network import Network
from jaxsim.network.params import by_name
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range
from jaxsim.sparsity.distribution import rank
from jaxsim.sparsity.masks import chosen, require_alone, stacks
from jaxsim.sparsity.optimizers.masked import (
    SparseState,
    masked,
    masked_moments,
    negative,
    own,
    present,
    stepped,
    with_own,
)

if TYPE_CHECKING:
    from optax import GradientTransformation

Growth = Callable[[dict[str, Array], Any, Array], dict[str, Array]]
"""`(gradients, memory, step) -> scores`; the highest of the weights that are out come in."""


def rigl(
    inner: GradientTransformation,
    net: Network,
    *,
    every: int | Array,
    until: int | Array,
    fraction: float | Array = 0.3,
    sites: str | Sequence[str] = "*",
) -> GradientTransformation:
    """Drops the smallest weights and grows those of the largest gradient, as many in each layer.

    Every so many steps a share f_t = α/2 (1 + cos(π t / T)) of a layer's weights is exchanged in
    place of a gradient step. What grows was out before, starts at zero, and is as many as drop.

    Args:
      inner: optimiser of the weights that are in.
      net: pruned, as it is to begin: `js.prune(…, criterion=js.sparsity.random(key),
        distribution=js.sparsity.erk())`.
      every: steps from an exchange to the next, at least 1.
      until: T, step at which they end, at least 1.
      fraction: α, in [0, 1].
      sites: patterns of the sites whose weights are exchanged; the others keep their masks.

    Raises:
      ValueError: an argument out of range, or a site without a mask.

    Source: Evci et al. (2020), arXiv 1911.11134, algorithm 1.
    """

    def grow(grads: dict[str, Array], memory: Any, step: Array) -> dict[str, Array]:
        return {name: jnp.abs(g) for name, g in grads.items()}

    share = _cosine(fraction, until)
    return _rewiring(inner, net, grow, share, every=every, until=until, sites=sites)


def sparse_evolution(
    inner: GradientTransformation,
    net: Network,
    *,
    key: Key[Array, ""],
    every: int | Array,
    until: int | Array,
    fraction: float | Array = 0.3,
    sites: str | Sequence[str] = "*",
) -> GradientTransformation:
    """SET: drops the smallest weights of each layer and grows random ones.

    Args:
      inner: as in `rigl`.
      net: as in `rigl`.
      key: for what grows.
      every: as in `rigl`.
      until: as in `rigl`.
      fraction: ζ, share of a layer's weights that is exchanged each time, in [0, 1].
      sites: as in `rigl`.

    Raises:
      ValueError: as for `rigl`.

    Source: Mocanu et al. (2018), arXiv 1707.04780, algorithm 1.
    """

    def grow(grads: dict[str, Array], memory: Any, step: Array) -> dict[str, Array]:
        keys = jax.random.split(jax.random.fold_in(key, step), len(grads))
        return {
            n: jax.random.uniform(k, g.shape) for k, (n, g) in zip(keys, grads.items(), strict=True)
        }

    check_range("fraction", fraction, 0, 1)
    share = lambda step: jnp.float32(fraction)  # noqa: E731
    return _rewiring(inner, net, grow, share, every=every, until=until, sites=sites)


def momentum_growth(
    inner: GradientTransformation,
    net: Network,
    *,
    every: int | Array,
    until: int | Array,
    fraction: float | Array = 0.3,
    decay: float | Array = 0.9,
    sites: str | Sequence[str] = "*",
) -> GradientTransformation:
    """SNFS within layers: `rigl` that grows by the running mean of the gradients.

    The paper also moves weights from layer to layer; here each layer keeps its number.

    Args:
      inner: as in `rigl`.
      net: as in `rigl`.
      every: as in `rigl`.
      until: as in `rigl`.
      fraction: as in `rigl`.
      decay: of the running mean, in [0, 1].
      sites: as in `rigl`.

    Raises:
      ValueError: as for `rigl`.

    Source: Dettmers and Zettlemoyer (2019), arXiv 1907.04840.
    """
    check_range("decay", decay, 0, 1)

    def grow(grads: dict[str, Array], memory: Any, step: Array) -> dict[str, Array]:
        return {name: jnp.abs(memory[name]) for name in grads}

    @own_promotion()
    def update(memory: Any, grads: dict[str, Array]) -> Any:
        return {n: decay * m + (1 - decay) * grads[n] for n, m in memory.items()}

    share = _cosine(fraction, until)
    return _rewiring(
        inner, net, grow, share, every=every, until=until, sites=sites, remember=update
    )


def _cosine(fraction: float | Array, until: int | Array) -> Callable[[Array], Array]:
    check_range("fraction", fraction, 0, 1)
    check_range("until", until, 1, whole=True)
    return lambda step: fraction / 2 * (1 + jnp.cos(math.pi * step / until))


def _rewiring(
    inner: GradientTransformation,
    net: Network,
    grow: Growth,
    share: Callable[[Array], Array],
    *,
    every: int | Array,
    until: int | Array,
    sites: str | Sequence[str],
    remember: Callable[[Any, dict[str, Array]], Any] | None = None,
) -> GradientTransformation:
    """An optimiser that exchanges weights of each layer."""
    import optax

    check_range("every", every, 1, whole=True)
    check_range("until", until, 1, whole=True)
    require_alone(net, sites, "a sparse optimizer")
    stacked = stacks(net, sites)
    if missing := sorted(set(stacked) - set(net.masks)):
        raise ValueError(
            f"net has no mask of {missing[0]}: put js.prune(…) before, or leave it out"
        )

    @own_promotion()
    def init(params: Any) -> SparseState:
        flat = by_name(own(net, params))
        memory = {n: jnp.zeros_like(flat[n]) for n in stacked if n in flat} if remember else ()
        start = present(net, net.masks, params)
        return SparseState(
            jnp.zeros((), jnp.int32), start, memory, inner.init(masked(net, start, params))
        )

    def exchange(state: SparseState, grads: Any, params: Any) -> tuple[Any, SparseState]:
        w, g = by_name(own(net, params)), by_name(own(net, grads))
        here = {n: stack for n, stack in stacked.items() if n in w}
        scores = grow({n: g[n] for n in here}, state.memory, state.step)
        masks = dict(state.masks)
        for name, stack in here.items():
            rows = (math.prod(stack), -1)
            masks[name] = _exchanged(
                state.masks[name].reshape(rows),
                jnp.abs(w[name]).reshape(rows),
                scores[name].reshape(rows),
                share(state.step),
            ).reshape(w[name].shape)
        both = {name: masks[name] & state.masks[name] for name in masks}
        still = jax.tree.map(jnp.zeros_like, params)
        cleared = chosen(both, own(net, still), negative(own(net, params)))
        after = masked_moments(inner, net, state.inner, both, params)
        return with_own(net, still, cleared), SparseState(
            state.step + 1, masks, state.memory, after
        )

    @own_promotion()
    def update(
        updates: Any, state: Any, params: Any = None, **more: Any
    ) -> tuple[Any, SparseState]:
        if remember is not None:
            state = state._replace(memory=remember(state.memory, by_name(own(net, updates))))
        due = (state.step > 0) & (state.step % every == 0) & (state.step < until)
        return lax.cond(
            due,
            lambda: exchange(state, updates, params),
            lambda: stepped(inner, net, state, state.masks, updates, params, **more),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _exchanged(mask: Array, size: Array, growth: Array, share: Array) -> Array:
    """The mask [B, n] of each layer after a share of it has been exchanged."""
    inside = mask.sum(1, keepdims=True)
    count = jnp.round(share * inside).astype(jnp.int32)
    count = jnp.minimum(count, mask.shape[1] - inside)
    dropped = rank(jnp.where(mask, size, jnp.inf)) < count
    grown = rank(jnp.where(mask, jnp.inf, -growth)) < count
    return (mask & ~dropped) | grown
