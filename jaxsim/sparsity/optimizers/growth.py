"""Dynamic sparse training: optimizers that drop weights and grow others, sparse throughout."""

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
from jaxsim.sparsity.masks import require_alone, select_kept, stacks
from jaxsim.sparsity.optimizers.masked import (
    SparseState,
    apply_masks,
    copy_masks,
    get_params,
    mask_moments,
    negate,
    set_params,
    step_within,
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
      inner: Optimizer of the weights that remain.
      net: Network, pruned as it is to begin: `js.prune(…, criterion=js.sparsity.random(key),
        distribution=js.sparsity.erk())`.
      every: Number of steps from one exchange to the next, at least 1.
      until: Step T at which exchanges end, at least 1.
      fraction: Initial fraction α of a layer's weights that is exchanged, in [0, 1].
      sites: Patterns of the sites whose weights are exchanged; the others keep their masks.

    Raises:
      ValueError: An argument out of range, or a site without a mask.

    Source: Evci et al. (2020), arXiv 1911.11134, algorithm 1.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxsim as js
      >>> w = jnp.arange(8.0).reshape(4, 2)
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": w}, jnp.ones((1, 4)))
      >>> sparse = js.prune(0.5)(net)
      >>> optimizer = js.sparsity.rigl(optax.sgd(0.1), sparse, every=10, until=100)
      >>> masks = js.sparsity.masks_of(optimizer.init(sparse.params))
      >>> int(masks["w"].sum())
      4
    """

    def grow(grads: dict[str, Array], memory: Any, step: Array) -> dict[str, Array]:
        return {name: jnp.abs(g) for name, g in grads.items()}

    share = _cosine(fraction, until)
    return _rewire(inner, net, grow, share, every=every, until=until, sites=sites)


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
    """Drops the smallest weights of each layer and grows random ones (SET).

    Args:
      inner: Optimizer of the weights that remain.
      net: Network, pruned as it is to begin.
      key: Random key for the weights that grow.
      every: Number of steps from one exchange to the next, at least 1.
      until: Step at which exchanges end, at least 1.
      fraction: Fraction ζ of a layer's weights that is exchanged each time, in [0, 1].
      sites: Patterns of the sites whose weights are exchanged; the others keep their masks.

    Raises:
      ValueError: An argument out of range, or a site without a mask.

    Source: Mocanu et al. (2018), arXiv 1707.04780, algorithm 1.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxsim as js
      >>> w = jnp.arange(8.0).reshape(4, 2)
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": w}, jnp.ones((1, 4)))
      >>> sparse, key = js.prune(0.5)(net), jax.random.key(0)
      >>> optimizer = js.sparsity.sparse_evolution(
      ...     optax.sgd(0.1), sparse, key=key, every=10, until=100
      ... )
      >>> int(js.sparsity.masks_of(optimizer.init(sparse.params))["w"].sum())
      4
    """

    def grow(grads: dict[str, Array], memory: Any, step: Array) -> dict[str, Array]:
        keys = jax.random.split(jax.random.fold_in(key, step), len(grads))
        return {
            n: jax.random.uniform(k, g.shape) for k, (n, g) in zip(keys, grads.items(), strict=True)
        }

    check_range("fraction", fraction, 0, 1)
    share = lambda step: jnp.float32(fraction)  # noqa: E731
    return _rewire(inner, net, grow, share, every=every, until=until, sites=sites)


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
      inner: Optimizer of the weights that remain.
      net: Network, pruned as it is to begin.
      every: Number of steps from one exchange to the next, at least 1.
      until: Step at which exchanges end, at least 1.
      fraction: Fraction of a layer's weights that is exchanged, in [0, 1].
      decay: Decay of the running mean of gradients, in [0, 1].
      sites: Patterns of the sites whose weights are exchanged; the others keep their masks.

    Raises:
      ValueError: An argument out of range, or a site without a mask.

    Source: Dettmers and Zettlemoyer (2019), arXiv 1907.04840.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxsim as js
      >>> w = jnp.arange(8.0).reshape(4, 2)
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": w}, jnp.ones((1, 4)))
      >>> sparse = js.prune(0.5)(net)
      >>> optimizer = js.sparsity.momentum_growth(optax.sgd(0.1), sparse, every=10, until=100)
      >>> int(js.sparsity.masks_of(optimizer.init(sparse.params))["w"].sum())
      4
    """
    check_range("decay", decay, 0, 1)

    def grow(grads: dict[str, Array], memory: Any, step: Array) -> dict[str, Array]:
        return {name: jnp.abs(memory[name]) for name in grads}

    @own_promotion()
    def update(memory: Any, grads: dict[str, Array]) -> Any:
        return {n: decay * m + (1 - decay) * grads[n] for n, m in memory.items()}

    share = _cosine(fraction, until)
    return _rewire(inner, net, grow, share, every=every, until=until, sites=sites, remember=update)


def _cosine(fraction: float | Array, until: int | Array) -> Callable[[Array], Array]:
    check_range("fraction", fraction, 0, 1)
    check_range("until", until, 1, whole=True)
    return lambda step: fraction / 2 * (1 + jnp.cos(math.pi * step / until))


def _rewire(
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
    """Makes an optimizer that exchanges weights of each layer."""
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
        flat = by_name(get_params(net, params))
        memory = {n: jnp.zeros_like(flat[n]) for n in stacked if n in flat} if remember else ()
        start = copy_masks(net, net.masks, params)
        return SparseState(
            jnp.zeros((), jnp.int32), start, memory, inner.init(apply_masks(net, start, params))
        )

    def exchange(state: SparseState, grads: Any, params: Any) -> tuple[Any, SparseState]:
        w, g = by_name(get_params(net, params)), by_name(get_params(net, grads))
        here = {n: stack for n, stack in stacked.items() if n in w}
        scores = grow({n: g[n] for n in here}, state.memory, state.step)
        exchanged = {
            name: _exchange(state.masks[name], w[name], scores[name], stack, share(state.step))
            for name, stack in here.items()
        }
        masks = {**state.masks, **exchanged}
        both = {name: masks[name] & state.masks[name] for name in masks}
        still = jax.tree.map(jnp.zeros_like, params)
        cleared = select_kept(both, get_params(net, still), negate(get_params(net, params)))
        after = mask_moments(inner, net, state.inner, both, params)
        return set_params(net, still, cleared), SparseState(
            state.step + 1, masks, state.memory, after
        )

    @own_promotion()
    def update(
        updates: Any, state: Any, params: Any = None, **more: Any
    ) -> tuple[Any, SparseState]:
        if remember is not None:
            state = state._replace(memory=remember(state.memory, by_name(get_params(net, updates))))
        due = (state.step > 0) & (state.step % every == 0) & (state.step < until)
        return lax.cond(
            due,
            lambda: exchange(state, updates, params),
            lambda: step_within(inner, net, state, state.masks, updates, params, **more),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _exchange(mask: Array, w: Array, growth: Array, stack: tuple[int, ...], share: Array) -> Array:
    """Exchanges a share of the weights of each layer of a stack, and returns the mask after it."""
    rows = (math.prod(stack), -1)
    before, size, worth = (a.reshape(rows) for a in (mask, jnp.abs(w), growth))
    inside = before.sum(1, keepdims=True)
    count = jnp.round(share * inside).astype(jnp.int32)
    count = jnp.minimum(count, before.shape[1] - inside)
    dropped = rank(jnp.where(before, size, jnp.inf)) < count
    grown = rank(jnp.where(before, jnp.inf, -worth)) < count
    return ((before & ~dropped) | grown).reshape(w.shape)
