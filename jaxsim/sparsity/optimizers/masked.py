"""Sparse-training optimizers: optax transformations whose masks are in their state.

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
from jaxsim.sparsity.masks import (
    Masks,
    check_sparsity,
    make_masks,
    require_alone,
    select_kept,
    stacks,
)
from jaxsim.sparsity.pattern import Pattern, unstructured
from jaxsim.sparsity.schedule import Schedule

if TYPE_CHECKING:
    from optax import GradientTransformation


class SparseState(NamedTuple):
    """State of a sparse-training optimizer.

    Attributes:
      step: Number of steps taken.
      masks: Masks by path of the parameters, nonzero where a weight remains.
      memory: State of the criterion, or of the growth.
      inner: State of the wrapped optimizer.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[1.0, 2.0]])}, jnp.ones((1, 1)))
      >>> sparse = js.prune(0.5)(net)
      >>> state = js.sparsity.fixed(optax.sgd(0.1), sparse).init(sparse.params)
      >>> isinstance(state, js.sparsity.SparseState), int(state.step)
      (True, 0)
    """

    step: Int[Array, ""]
    masks: Masks
    memory: Any
    inner: Any


def masks_of(state: Any) -> Masks | None:
    """Finds the masks in an optimizer's state.

    Args:
      state: State of any optax transformation; each sparse optimizer in it has those of its
        parameters.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[1.0, 2.0]])}, jnp.ones((1, 1)))
      >>> sparse = js.prune(0.5)(net)
      >>> optimizer = js.sparsity.fixed(optax.sgd(0.1), sparse)
      >>> js.sparsity.masks_of(optimizer.init(sparse.params))["w"].tolist()
      [[False, True]]
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, SparseState))
    found = [node.masks for node in nodes if isinstance(node, SparseState)]
    return {n: m for masks in reversed(found) for n, m in masks.items()} if found else None


def fixed(inner: GradientTransformation, net: Network) -> GradientTransformation:
    """Trains the weights that a network's masks leave: random masks, SNIP, GraSP, SynFlow.

    Args:
      inner: Optimizer of the weights that remain.
      net: Network, pruned by `js.prune(…)`.

    Raises:
      ValueError: A network without masks.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[1.0, 2.0]])}, jnp.ones((1, 1)))
      >>> sparse = js.prune(0.5)(net)
      >>> optimizer, params = js.sparsity.fixed(optax.sgd(1.0), sparse), sparse.masked_params()
      >>> grads = {"w": jnp.ones((1, 2))}
      >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
      >>> updates["w"].tolist()
      [[-0.0, -1.0]]
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
    """Prunes by a schedule during training. Pruned weights stay so.

    Args:
      inner: Optimizer of the weights that remain.
      net: Network that is trained; its masks, if any, are where pruning begins.
      schedule: Schedule, such as `one_shot(…)`, `iterative(…)` or `cubic(…)`.
      criterion: Criterion, as in `js.prune`; `movement()` sums over the steps so far.
      pattern: Pattern, as in `js.prune`.
      distribution: Distribution over layers, as in `js.prune`.
      sites: Patterns of the sites to prune.

    Raises:
      ValueError: A schedule's sparsity beside a pattern that fixes it, or neither; sites or a
        pattern that do not fit the network.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[1.0, 2.0]])}, jnp.ones((1, 1)))
      >>> optimizer = js.sparsity.gradual(optax.sgd(0.1), net, js.sparsity.one_shot(0.5, at=0))
      >>> grads = {"w": jnp.zeros((1, 2))}
      >>> _, state = optimizer.update(grads, optimizer.init(net.params), net.params)
      >>> state.masks["w"].tolist()
      [[False, True]]
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
            net, params=fill_params(net, params), masks={**others, **state.masks}
        )
        share = None if schedule.sparsity is None else schedule.sparsity(state.step)
        masks = make_masks(
            now,
            criterion.score(now, fill_memory(net, state.memory)),
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
    """Completes a network's masks by ones that leave everything at chosen sites without one.

    Args:
      net: Network.
      sites: Patterns of sites.

    Raises:
      ValueError: Something else reads the parameters of the sites.
    """
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
    """Makes an optimizer that makes masks before the steps that are due, and keeps to them."""
    import optax

    @own_promotion()
    def first(params: Any) -> SparseState:
        masks = copy_masks(net, start, params)
        return SparseState(
            jnp.zeros((), jnp.int32),
            masks,
            init(get_params(net, params)),
            inner.init(apply_masks(net, masks, params)),
        )

    @own_promotion()
    def step(updates: Any, state: Any, params: Any = None, **more: Any) -> tuple[Any, SparseState]:
        w, g = get_params(net, params), get_params(net, updates)
        state = state._replace(memory=update(state.memory, w, g))
        masks = lax.cond(due(state.step), lambda: make(state, w, g), lambda: state.masks)
        return step_within(inner, net, state, masks, updates, params, **more)

    return optax.GradientTransformationExtraArgs(first, step)


def step_within(
    inner: GradientTransformation,
    net: Network,
    state: SparseState,
    masks: Masks,
    grads: Any,
    params: Any,
    **more: Any,
) -> tuple[Any, SparseState]:
    """Takes a step of the wrapped optimizer within masks.

    Args:
      inner: Wrapped optimizer.
      net: Network that is trained.
      state: State before the step.
      masks: Masks by path.
      grads: Gradients, a tree like `params`.
      params: Parameters before the step.
      **more: Further arguments of the wrapped optimizer.

    Returns:
      The updates, and the state after the step.
    """
    import optax

    before = mask_moments(inner, net, state.inner, masks, params)
    updates, after = optax.with_extra_args_support(inner).update(
        apply_masks(net, masks, grads), before, apply_masks(net, masks, params), **more
    )
    updates = set_params(
        net, updates, select_kept(masks, get_params(net, updates), negate(get_params(net, params)))
    )
    return updates, SparseState(state.step + 1, masks, state.memory, after)


def mask_moments(
    inner: GradientTransformation, net: Network, state: Any, masks: Masks, params: Any
) -> Any:
    """Sets what an optimizer's state holds of masked weights to zero.

    Args:
      inner: Optimizer.
      net: Network that is trained.
      state: State of the optimizer.
      masks: Masks by path.
      params: Parameters.
    """
    import optax

    remains = apply_masks(net, masks, jax.tree.map(lambda p: jnp.ones(jnp.shape(p), bool), params))

    def absent(node: Any) -> bool:  # a parameter that the wrapped optimizer does not train
        return isinstance(node, optax.MaskedNode)

    def kept(a: Any, m: Any) -> Any:
        return a if absent(a) or a.shape != m.shape else jnp.where(m, a, 0)

    return optax.tree_utils.tree_map_params(inner, kept, state, remains, is_leaf=absent)


def negate(tree: Any) -> Any:
    """Computes the updates that leave zero.

    Args:
      tree: Tree of parameters.
    """
    return jax.tree.map(jnp.negative, tree)


def get_params(net: Network, tree: Any) -> Any:
    """Finds the network's parameters in a tree that `fit` optimizes, ranges beside them or not.

    Optax's wrappers (`masked`, `multi_transform`) put a `MaskedNode` in the place of a parameter
    that is not for this optimizer.

    Args:
      net: Network that is trained.
      tree: Tree that is optimized.

    Raises:
      ValueError: It is not a tree of the network's parameters.
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


def set_params(net: Network, tree: Any, params: Any) -> Any:
    """Replaces the network's parameters in a tree that `fit` optimizes.

    Args:
      net: Network that is trained.
      tree: Tree that is optimized.
      params: New values.
    """
    return params if _fits(net, tree) else {**tree, "params": params}


def _fits(net: Network, tree: Any) -> bool:
    import optax

    structure = jax.tree.structure(tree, is_leaf=lambda n: isinstance(n, optax.MaskedNode))
    return structure == jax.tree.structure(net.params)


def copy_masks(net: Network, masks: Masks, params: Any) -> Masks:
    """Copies the masks of the parameters that an optimizer is given.

    They are copies: the network's own may be donated, or live elsewhere.

    Args:
      net: Network that is trained.
      masks: Masks by path.
      params: Tree that is optimized.

    Raises:
      ValueError: None of them is among the parameters.
    """
    here = by_name(get_params(net, params))
    if not (
        found := {n: placed_like(jnp.array(m), here[n]) for n, m in masks.items() if n in here}
    ):
        raise ValueError(
            f"params: none of the masked ones ({', '.join(masks)}) is among those that this sparse "
            f"optimizer is given ({', '.join(here)})"
        )
    return found


def fill_params(net: Network, params: Any) -> Any:
    """Puts the network's own parameters in the place of those that are not for an optimizer.

    Args:
      net: Network that is trained.
      params: Tree of parameters with `MaskedNode`s.
    """
    import optax

    return jax.tree.map(
        lambda mine, p: mine if isinstance(p, optax.MaskedNode) else p,
        net.params,
        params,
        is_leaf=lambda n: isinstance(n, optax.MaskedNode),
    )


def fill_memory(net: Network, memory: Any) -> Any:
    """Fills a criterion's memory with zeros for parameters that are not for an optimizer.

    Args:
      net: Network that is trained.
      memory: Memory of the criterion.
    """
    if not _fits(net, memory):
        return memory
    still = dataclasses.replace(net, params=jax.tree.map(jnp.zeros_like, net.params))
    return fill_params(still, memory)


@own_promotion()
def apply_masks(net: Network, masks: Masks, tree: Any) -> Any:
    """Sets a tree that `fit` optimizes, or one like it, to zero where the masks are.

    Args:
      net: Network that is trained.
      masks: Masks by path.
      tree: Tree of parameters, gradients or moments.
    """
    part = get_params(net, tree)
    return set_params(net, tree, select_kept(masks, part, jax.tree.map(jnp.zeros_like, part)))
