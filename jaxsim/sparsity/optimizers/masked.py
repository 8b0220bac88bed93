"""Optimisers that prune what they train: optax transformations whose masks are in their state.

They wrap another one. A masked weight is exactly zero after every step, whatever momentum and
weight decay do, and so are its moments. Gradients are to be those of all weights, masked or not:
`jaxsim.train.fit` sees to it, and its network ends with the masks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxsim.network.network import Network
from jaxsim.network.params import by_name
from jaxsim.numerics.arrays import own_promotion, placed_like
from jaxsim.numerics.checks import check_called
from jaxsim.sparsity.criterion import Criterion, magnitude
from jaxsim.sparsity.distribution import Distribution, global_
from jaxsim.sparsity.masks import Masks, check_sparsity, chosen, make_masks, require_alone, stacks
from jaxsim.sparsity.pattern import Pattern, unstructured
from jaxsim.sparsity.schedule import Schedule

if TYPE_CHECKING:
    from optax import GradientTransformation


class SparseState(NamedTuple):
    """State of an optimiser that prunes.

    Attributes:
      step: how many steps it has taken.
      masks: which weights remain, by the parameter's path.
      memory: what the criterion, or the growth, remembers.
      inner: state of the optimiser it wraps.
    """

    step: Int[Array, ""]
    masks: Masks
    memory: Any
    inner: Any


def masks_of(state: Any) -> Masks | None:
    """The masks in an optimiser's state, or None.

    Args:
      state: of any optax transformation; each sparse optimiser in it has those of its parameters.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, SparseState))
    found = [node.masks for node in nodes if isinstance(node, SparseState)]
    return {n: m for masks in reversed(found) for n, m in masks.items()} if found else None


def fixed(inner: GradientTransformation, net: Network) -> GradientTransformation:
    """Trains what a network's masks leave: a random mask, SNIP, GraSP, SynFlow, or one shot.

    Args:
      inner: optimiser of the weights that remain.
      net: pruned, by `js.prune(…)`.

    Raises:
      ValueError: a network without masks.
    """
    if not net.masks:
        raise ValueError("net has no masks: put js.prune(…) before, or take another schedule")

    def make(state: SparseState, params: Any, grads: Any) -> Masks:
        return state.masks

    return _pruning(inner, net, net.masks, lambda step: jnp.zeros((), bool), make)


def gradual(
    inner: GradientTransformation,
    net: Network,
    schedule: Schedule,
    *,
    criterion: Criterion | None = None,
    pattern: Pattern | None = None,
    distribution: Distribution | None = None,
    sites: str | Sequence[str] = "*",
) -> GradientTransformation:
    """Prunes by a schedule while it trains. What is pruned stays so.

    Args:
      inner: optimiser of the weights that remain.
      net: what is trained; masks that it has are where pruning begins.
      schedule: `one_shot(…)`, `iterative(…)`, `cubic(…)`, or one of your own.
      criterion: as in `js.prune`; `movement()` sums over the steps so far.
      pattern: as in `js.prune`.
      distribution: as in `js.prune`.
      sites: patterns of the sites to prune.

    Raises:
      ValueError: a schedule's sparsity beside a pattern that fixes it, or neither; sites or a
        pattern that do not fit the network.
    """
    check_called("schedule", schedule)
    check_called("criterion", criterion)
    check_called("distribution", distribution)
    criterion = magnitude() if criterion is None else criterion
    pattern = unstructured() if pattern is None else pattern
    distribution = global_() if distribution is None else distribution
    known = None if schedule.sparsity is None else schedule.sparsity(jnp.int32(0))
    check_sparsity(known, pattern)
    start = all_masks(net, sites)

    def make(state: SparseState, params: Any, grads: Any) -> Masks:
        here = by_name(params)
        names = [s.name for s in net.select(sites) if here.keys() >= set(s.parts)]
        others = {n: m for n, m in net.masks.items() if n not in state.masks}
        now = dataclasses.replace(
            net, params=completed(net, params), masks={**others, **state.masks}
        )
        share = None if schedule.sparsity is None else schedule.sparsity(state.step)
        masks = make_masks(
            now,
            criterion.score(now, completed_memory(net, state.memory)),
            share,
            pattern=pattern,
            distribution=distribution,
            sites=names,
        )
        return {**state.masks, **masks}

    return _pruning(
        inner, net, start, schedule.due, make, init=criterion.init, update=criterion.update
    )


def all_masks(net: Network, sites: str | Sequence[str]) -> Masks:
    """A network's masks, and those that leave everything at chosen sites without one."""
    flat = by_name(net.params)
    require_alone(net, sites, "a sparse optimizer")
    return {**{n: jnp.ones_like(flat[n], bool) for n in stacks(net, sites)}, **net.masks}


def _pruning(
    inner: GradientTransformation,
    net: Network,
    start: Masks,
    due: Callable[[Array], Array],
    make: Callable[[SparseState, Any, Any], Masks],
    *,
    init: Callable[[Any], Any] = lambda params: (),
    update: Callable[[Any, Any, Any], Any] = lambda memory, params, grads: memory,
) -> GradientTransformation:
    """An optimiser that makes masks before the steps that are due, and keeps to them."""
    import optax

    @own_promotion()
    def first(params: Any) -> SparseState:
        masks = present(net, start, params)
        return SparseState(
            jnp.zeros((), jnp.int32),
            masks,
            init(own(net, params)),
            inner.init(masked(net, masks, params)),
        )

    @own_promotion()
    def step(updates: Any, state: Any, params: Any = None, **more: Any) -> tuple[Any, SparseState]:
        w, g = own(net, params), own(net, updates)
        state = state._replace(memory=update(state.memory, w, g))
        masks = lax.cond(due(state.step), lambda: make(state, w, g), lambda: state.masks)
        return stepped(inner, net, state, masks, updates, params, **more)

    return optax.GradientTransformationExtraArgs(first, step)


def stepped(
    inner: GradientTransformation,
    net: Network,
    state: SparseState,
    masks: Masks,
    grads: Any,
    params: Any,
    **more: Any,
) -> tuple[Any, SparseState]:
    """A step of the wrapped optimiser within masks: updates, and the state after it."""
    import optax

    before = masked_moments(inner, net, state.inner, masks, params)
    updates, after = optax.with_extra_args_support(inner).update(
        masked(net, masks, grads), before, masked(net, masks, params), **more
    )
    updates = with_own(net, updates, chosen(masks, own(net, updates), negative(own(net, params))))
    return updates, SparseState(state.step + 1, masks, state.memory, after)


def masked_moments(
    inner: GradientTransformation, net: Network, state: Any, masks: Masks, params: Any
) -> Any:
    """An optimiser's state, what it holds of masked weights zero."""
    import optax

    remains = masked(net, masks, jax.tree.map(lambda p: jnp.ones(jnp.shape(p), bool), params))

    def absent(node: Any) -> bool:  # a parameter that the wrapped optimizer does not train
        return isinstance(node, optax.MaskedNode)

    def kept(a: Any, m: Any) -> Any:
        return a if absent(a) or a.shape != m.shape else jnp.where(m, a, 0)

    return optax.tree_utils.tree_map_params(inner, kept, state, remains, is_leaf=absent)


def negative(tree: Any) -> Any:
    """The updates that leave zero."""
    return jax.tree.map(jnp.negative, tree)


def own(net: Network, tree: Any) -> Any:
    """The network's parameters in what `fit` optimises, which may hold ranges beside them.

    Optax's wrappers (`masked`, `multi_transform`) put a `MaskedNode` in the place of a parameter
    that is not for this optimiser.

    Raises:
      ValueError: no tree of the network's parameters.
    """
    if _fits(net, tree):
        return tree
    if isinstance(tree, Mapping) and "params" in tree and _fits(net, tree["params"]):
        return tree["params"]
    what = "none" if tree is None else str(jax.tree.structure(tree))
    raise ValueError(
        "params: a sparse optimizer takes the network's own parameters (and optax's MaskedNode "
        f"where one is not for it), in update(grads, state, params) too; got {what}"
    )


def with_own(net: Network, tree: Any, params: Any) -> Any:
    """What `fit` optimises with other parameters of the network."""
    return params if _fits(net, tree) else {**tree, "params": params}


def _fits(net: Network, tree: Any) -> bool:
    import optax

    structure = jax.tree.structure(tree, is_leaf=lambda n: isinstance(n, optax.MaskedNode))
    return structure == jax.tree.structure(net.params)


def present(net: Network, masks: Masks, params: Any) -> Masks:
    """Masks of the parameters that an optimiser is given.

    They are copies: the network's own may be donated, or live elsewhere.

    Raises:
      ValueError: none of them is among the parameters.
    """
    here = by_name(own(net, params))
    if not (
        found := {n: placed_like(jnp.array(m), here[n]) for n, m in masks.items() if n in here}
    ):
        raise ValueError(
            f"params: none of the masked ones ({', '.join(masks)}) is among those that this sparse "
            f"optimizer is given ({', '.join(here)})"
        )
    return found


def completed(net: Network, params: Any) -> Any:
    """Parameters with the network's own in the place of those that are not for an optimiser."""
    import optax

    return jax.tree.map(
        lambda own, p: own if isinstance(p, optax.MaskedNode) else p,
        net.params,
        params,
        is_leaf=lambda n: isinstance(n, optax.MaskedNode),
    )


def completed_memory(net: Network, memory: Any) -> Any:
    """What a criterion remembers of each parameter, zero of those that are not for an optimiser."""
    if not _fits(net, memory):
        return memory
    still = dataclasses.replace(net, params=jax.tree.map(jnp.zeros_like, net.params))
    return completed(still, memory)


@own_promotion()
def masked(net: Network, masks: Masks, tree: Any) -> Any:
    """What `fit` optimises, or a tree like it, zero where the masks are."""
    part = own(net, tree)
    return with_own(net, tree, chosen(masks, part, jax.tree.map(jnp.zeros_like, part)))
