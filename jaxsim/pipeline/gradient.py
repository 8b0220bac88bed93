"""A loss of a pipeline and its gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxsim.cores.partition import Parts
from jaxsim.inputs.batches import batch_of
from jaxsim.network.leaves import check_like, is_array
from jaxsim.network.network import Network
from jaxsim.pipeline import mpmd, spmd
from jaxsim.pipeline.microbatch import updates_buffers
from jaxsim.pipeline.mpmd import is_inexact
from jaxsim.pipeline.pipeline import (
    Pipeline,
    Prepared,
    check_spmd,
    layout_of,
    prepared,
    run_everywhere,
    spmd_options,
)


def pipeline_value_and_grad(
    net: Network,
    loss_fn: Callable[[Any, Any], Array],
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Callable[..., tuple[Any, Any]]:
    """A loss of a pipeline and its gradients, like `jax.value_and_grad` of the network.

    Args:
      net: from `pipeline_shard`, not deployed.
      loss_fn: `(outputs, targets) -> scalar`. It must be a mean (or sum) over the examples: it is
        called for each micro-batch, and nothing can tell whether it is.
      reduction: "mean" averages the losses of the micro-batches, "sum" adds them.

    Returns:
      `step(params, batch, *, key=None, **kwargs) -> (loss, grads)`. A batch is `(inputs, targets)`:
      inputs are an array, or a tuple of the network's arguments, targets any tree of arrays; those
      with the batch as their leading axis are divided. With `mutable=…` among the keyword arguments
      or the network's defaults, `loss_fn` gets the first output only and the step returns
      `((loss, updates), grads)`: batch statistics are those of a micro-batch, their moving averages
      are updated once, by those of the mini-batch. Gradients are where the parameters are. The step
      waits for its results, so that what a device raises comes out of the step.

    Raises:
      ValueError: no pipeline, or a deployed one; in a step, parameters of other shapes, a batch
        that is no pair or not divisible, or a loss that is no scalar.
    """
    if not isinstance(net, Pipeline):
        raise ValueError("net: is no pipeline; js.pipeline_shard(…)(net) makes one")
    if net.deployed:
        raise ValueError("net is deployed: its calls do not read the parameters any more")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r}: must be 'mean' or 'sum'")
    layout = layout_of(net)
    scale = 1 / layout.microbatches if reduction == "mean" else 1.0

    def step(
        params: Any, batch: Any, *, key: Key[Array, ""] | None = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        check_like(net.params, params)
        if not isinstance(batch, tuple) or len(batch) != 2:
            raise ValueError("batch: must be a tuple of inputs and targets")
        inputs, targets = batch
        given = batch_of(inputs, "batch")
        current = dataclasses.replace(net, params=params)
        arguments = net.arguments(given.args, {**kwargs, **given.kwargs}, key)
        plan = prepared(current, arguments)
        aims = Parts.of(targets, is_array)
        if layout.engine == "spmd":
            check_spmd(arguments, key)
            loss, grads = _spmd_step(current, plan, arguments, aims, loss_fn, reduction)
            return loss, jax.tree.map(_gradient, grads, params)
        tree, losses = plan.losses

        def loss_of(outputs: list[Array], arrays: list[Any]) -> tuple[Array, list[Array]]:
            given = dataclasses.replace(aims, arrays=tuple(arrays))
            return _loss(outputs, given, loss_fn=loss_fn, scale=scale, tree=tree)

        loss, grads, parts = mpmd.value_and_grad(
            current,
            plan.cut,
            plan.batch,
            arguments,
            aims.arrays,
            key,
            plan.programmes,
            layout.schedule,
            losses,
            loss_of,
        )
        leaves, treedef = jax.tree.flatten(params)
        found = jax.tree.unflatten(
            treedef, [_gradient(g, p) for g, p in zip(grads, leaves, strict=True)]
        )
        if not updates_buffers(arguments):
            return jax.block_until_ready((loss, found))
        outputs = jax.tree.unflatten(plan.cut.equations.out_tree, plan.joint.join(parts))
        return jax.block_until_ready(((loss, outputs[1]), found))

    return step


@partial(jax.jit, static_argnames=("loss_fn", "scale", "tree"))
def _loss(
    outputs: list[Array], targets: Parts, *, loss_fn: Any, scale: float, tree: Any
) -> tuple[Array, list[Array]]:
    """A micro-batch's share of the loss, and its derivatives by the inexact outputs."""
    inexact = [is_inexact(y) for y in outputs]

    def share(moving: list[Array]) -> Array:
        rest = iter(moving)
        leaves = [next(rest) if moves else y for y, moves in zip(outputs, inexact, strict=True)]
        return scale * _scalar(loss_fn(jax.tree.unflatten(tree, leaves), targets.whole()))

    return jax.value_and_grad(share)([y for y, m in zip(outputs, inexact, strict=True) if m])


def _scalar(loss: Any) -> Array:
    if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise ValueError(
            f"loss_fn: returned {jnp.result_type(loss)}{list(jnp.shape(loss))}; a loss is one float"
        )
    return loss


def _spmd_step(
    net: Pipeline,
    plan: Prepared,
    arguments: Parts,
    targets: Parts,
    loss_fn: Any,
    reduction: Literal["mean", "sum"],
) -> tuple[Array, Any]:
    tree, losses = plan.losses
    divided = [plan.batch.divides(a) for a in arguments.arrays]
    options = spmd_options(net, plan)

    def loss(outputs: list[Array], arrays: list[Array]) -> Array:
        whole = dataclasses.replace(targets, arrays=tuple(arrays)).whole()
        return _scalar(loss_fn(jax.tree.unflatten(tree, [outputs[i] for i in losses]), whole))

    def run(net: Pipeline, arrays: Any, aims: Any) -> tuple[Array, Any]:
        def total(params: Any) -> Array:
            return spmd.loss_of(
                dataclasses.replace(net, params=params),
                arguments=arrays,
                targets=aims,
                loss=loss,
                divided=divided,
                divided_targets=[plan.batch.divides(a) for a in aims],
                mean=reduction == "mean",
                **options,
            )

        return jax.value_and_grad(total)(net.params)

    label = ("step", loss_fn, reduction, targets.treedef, targets.static)
    given = (net, list(arguments.arrays), list(targets.arrays))
    return jax.block_until_ready(run_everywhere(net, plan, label, run, given))


def _gradient(g: Array | None, p: Any) -> Array:
    """A gradient where its parameter is."""
    if g is None:
        return jnp.zeros_like(p)
    placed = getattr(p, "sharding", None)
    if not g.is_fully_addressable and (placed is None or placed.is_fully_addressable):
        g = g.addressable_data(0)  # every process has a copy
    return g if placed is None else jax.device_put(g, placed)
