"""A loss of a pipeline and its gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxsim.cores.partition import Partitioned
from jaxsim.cores.trained import adapters_of
from jaxsim.inputs.batches import batch_of
from jaxsim.network.leaves import check_like, is_array
from jaxsim.network.network import Network
from jaxsim.pipeline.microbatch import updates_buffers
from jaxsim.pipeline.programs import is_inexact
from jaxsim.staged import mpmd, spmd
from jaxsim.staged.exits import tokens_given
from jaxsim.staged.network import Staged
from jaxsim.staged.pipeline import check_spmd, run_everywhere
from jaxsim.staged.plan import (
    PipelinePlan,
    layout_of,
    pipeline_plan,
    require_layout,
    tap_params,
)
from jaxsim.staged.trained import trained_values, with_values


def pipeline_value_and_grad(
    net: Network,
    loss_fn: Callable[[Any, Any], Array],
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Callable[..., tuple[Any, Any]]:
    """Makes a step that computes a loss of a pipeline and its gradients, as `jax.value_and_grad`.

    Args:
      net: A pipeline, from `pipeline_shard`; deployed only with adapters (`js.lora`), which are
        then all that has gradients.
      loss_fn: `(outputs, targets) -> scalar`. It must be a mean (or sum) over the examples: it is
        called for each micro-batch, and nothing can tell whether it is. With exits, the outputs are
        the logits [B, L, C] of all of them, as of `Staged.exit_logits`.
      reduction: "mean" averages the losses of the micro-batches, "sum" adds them.

    Returns:
      `step(params, batch, *, key=None, **kwargs) -> (loss, grads)`. A batch is `(inputs, targets)`:
      inputs are an array, or a tuple of the network's arguments, targets any tree of arrays; those
      with the batch as their leading axis are divided. `params` and gradients are as `net.params`,
      or with exits, learned ranges or adapters
      `{"params": net.params, "heads": net.heads, "ranges": …, "adapters": js.adapters(net)}`, what
      there is of them (of a deployed network its adapters alone). With `mutable=…` among the
      keyword arguments or the network's defaults, `loss_fn` gets the first output only and the step
      returns `((loss, updates), grads)`: batch statistics are those of a micro-batch, their moving
      averages are updated once, by those of the mini-batch. Gradients are where the parameters are.
      The step waits for its results, so that what a device raises comes out of the step.

    Raises:
      ValueError: Any other network, or a deployed one without adapters; in a step, parameters of
        other shapes, a batch that is no pair or not divisible, or a loss that is no scalar.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p[0] @ p[1], [jnp.eye(4)] * 2, jnp.ones((8, 4)))
      >>> pipe = js.pipeline_shard(2, 4, devices=jax.devices()[:1] * 2)(net)
      >>> step = js.pipeline_value_and_grad(pipe, lambda y, target: jnp.mean((y - target) ** 2))
      >>> loss, grads = step(pipe.params, (jnp.ones((8, 4)), jnp.zeros((8, 4))))
      >>> float(loss), [g.shape for g in grads]
      (1.0, [(4, 4), (4, 4)])
    """
    pipe = require_layout(net)
    if net.deployed and not adapters_of(net.cores):
        raise ValueError(
            "net is deployed: its calls do not read the parameters any more; js.lora before deploy "
            "adds numbers that train"
        )
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r}: must be 'mean' or 'sum'")
    layout, held = layout_of(pipe), trained_values(pipe)
    scale = 1 / layout.microbatches if reduction == "mean" else 1.0

    def step(
        params: Any, batch: Any, *, key: Key[Array, ""] | None = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        check_like(held, params)
        if not isinstance(batch, tuple) or len(batch) != 2:
            raise ValueError("batch: must be a tuple of inputs and targets")
        inputs, targets = batch
        given = batch_of(inputs, "batch")
        current = with_values(pipe, params)
        arguments = pipe.arguments(given.args, {**kwargs, **given.kwargs}, key)
        plan = pipeline_plan(current, arguments)
        if layout.engine == "spmd":
            aims = Partitioned.of(targets, is_array)
            check_spmd(arguments, key)
            loss, grads = _spmd_step(current, plan, arguments, aims, loss_fn, reduction)
            return loss, jax.tree.map(_gradient, grads, params)
        own = _Loss(loss_fn, scale, bool(pipe.exits))
        loss, found, parts = _descend(current, plan, arguments, key, targets, own, params)
        if not updates_buffers(arguments):
            return jax.block_until_ready((loss, found))
        outputs = jax.tree.unflatten(plan.out_tree, plan.join.join(parts))
        return jax.block_until_ready(((loss, outputs[1]), found))

    return step


def soft_value_and_grad(
    net: Staged, loss_fn: Callable[[Any, Any], Array], weight: float
) -> Callable[..., tuple[Any, Any]]:
    """Makes a step of a pipeline whose tokens are scaled by soft masks, as `fit(soft=…)` trains.

    The loss is that of the logits, and a weight times the mean share that the masks leave of the
    tokens of the whole mini-batch.

    Args:
      net: A pipeline whose tokens leave at thresholds, by a rule that says which are there.
      loss_fn: `(outputs, targets) -> scalar`, a mean over the examples.
      weight: Weight of the share.

    Returns:
      `step(values, batch, temperature, *, key=None, **kwargs) -> (loss, grads)`, of values as
      `trained_values(net, levels=True)`.
    """
    scale = 1 / layout_of(net).microbatches

    def step(
        values: Any,
        batch: tuple[Any, Any],
        temperature: Any,
        *,
        key: Key[Array, ""] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        inputs, targets = batch
        given = batch_of(inputs, "batch")
        current = with_values(net, values, levels=True)
        arguments = net.arguments(given.args, {**kwargs, **given.kwargs}, key)
        plan = pipeline_plan(current, arguments, soft=True)
        tokens = tokens_given(current, arguments)
        assert tokens is not None, "check_soft asks for a rule that says it"
        aims = targets, jnp.sum(tokens.present)
        loss = _Loss(loss_fn, scale, bool(net.exits), weight)
        hot = jnp.float32(temperature)
        value, found, _ = _descend(current, plan, arguments, key, aims, loss, values, hot)
        return jax.block_until_ready((value, found))

    return step


class _Loss(NamedTuple):
    """A micro-batch's share of a loss.

    Attributes:
      loss_fn: `(outputs, targets) -> scalar`.
      scale: What it counts for.
      exits: True if outputs are the logits of several exits.
      weight: Weight of the tokens that soft masks leave, whose `Shares` are then the last outputs
        and their number in the mini-batch the last target; None where tokens leave.
    """

    loss_fn: Callable[[Any, Any], Array]
    scale: float
    exits: bool
    weight: float | None = None

    def of(self, outputs: list[Array], tree: Any, targets: Any) -> Array:
        """Computes it.

        Args:
          outputs: What the loss reads.
          tree: Its structure, of a network without exits.
          targets: What it is compared with.
        """
        if self.weight is None:
            read = jnp.stack(outputs, 1) if self.exits else jax.tree.unflatten(tree, outputs)
            return self.scale * _scalar(self.loss_fn(read, targets))
        *logits, sums, _ = outputs
        aims, there = targets
        read = jnp.stack(logits, 1) if self.exits else logits[0]
        left = jnp.mean(sums) / there
        return self.scale * _scalar(self.loss_fn(read, aims)) + self.weight * left


def _descend(
    net: Staged,
    plan: PipelinePlan,
    arguments: Partitioned,
    key: Any,
    targets: Any,
    loss: _Loss,
    values: Any,
    temperature: Any = None,
) -> tuple[Array, Any, list[list[Array]]]:
    """A loss of the stages, its gradients as values that train, and the outputs of each part."""
    aims = Partitioned.of(targets, is_array)

    def loss_of(outputs: list[Array], arrays: list[Any]) -> tuple[Array, list[Array]]:
        given = dataclasses.replace(aims, arrays=tuple(arrays))
        return _with_slopes(outputs, given, loss=loss, tree=plan.loss_tree)

    taps = tap_params(net, temperature)
    value, grads, parts = mpmd.value_and_grad(net, plan, arguments, key, aims.arrays, loss_of, taps)
    found = _as_values(net, grads, taps, levels=temperature is not None)
    return value, jax.tree.map(_gradient, found, values), parts


def _as_values(net: Staged, grads: mpmd.Gradients, taps: Any, *, levels: bool) -> Any:
    """Gradients as `trained_values` of a pipeline."""
    if net.deployed:
        return grads.numbers
    leaves, treedef = jax.tree.flatten((net.params, taps))
    pairs = zip(grads.leaves, leaves, strict=True)
    filled = [jnp.zeros_like(p) if g is None else g for g, p in pairs]
    params, (heads, level, _) = jax.tree.unflatten(treedef, filled)
    more = {"heads": heads, **grads.numbers} if net.exits else grads.numbers
    more = {"level": level, **more} if levels else more
    return {"params": params, **more} if more else params


@partial(jax.jit, static_argnames=("loss", "tree"))
def _with_slopes(
    outputs: list[Array], targets: Partitioned, *, loss: _Loss, tree: Any
) -> tuple[Array, list[Array]]:
    """A micro-batch's share of the loss, and its derivatives by the inexact outputs."""
    inexact = [is_inexact(y) for y in outputs]

    def share(moving: list[Array]) -> Array:
        rest = iter(moving)
        leaves = [next(rest) if moves else y for y, moves in zip(outputs, inexact, strict=True)]
        return loss.of(leaves, tree, targets.combine())

    return jax.value_and_grad(share)([y for y, m in zip(outputs, inexact, strict=True) if m])


def _scalar(loss: Any) -> Array:
    if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise ValueError(
            f"loss_fn: returned {jnp.result_type(loss)}{list(jnp.shape(loss))}; a loss is one float"
        )
    return loss


def _spmd_step(
    net: Staged,
    plan: PipelinePlan,
    arguments: Partitioned,
    targets: Partitioned,
    loss_fn: Any,
    reduction: Literal["mean", "sum"],
) -> tuple[Array, Any]:
    def loss(outputs: list[Array], arrays: list[Array]) -> Array:
        whole = dataclasses.replace(targets, arrays=tuple(arrays)).combine()
        read = jax.tree.unflatten(plan.loss_tree, [outputs[i] for i in plan.loss_outputs])
        return _scalar(loss_fn(read, whole))

    def run(net: Staged, arrays: Any, aims: Any) -> tuple[Array, Any]:
        def total(values: Any) -> Array:
            current = with_values(net, values)
            return spmd.loss_of(current, plan, arrays, aims, loss, mean=reduction == "mean")

        return jax.value_and_grad(total)(trained_values(net))

    label = ("step", loss_fn, reduction, targets.treedef, targets.static)
    given = (net, list(arguments.arrays), list(targets.arrays))
    return jax.block_until_ready(run_everywhere(net, plan, label, run, given))


def _gradient(g: Array, p: Any) -> Array:
    """A gradient where its parameter is."""
    placed = getattr(p, "sharding", None)
    if not g.is_fully_addressable and (placed is None or placed.is_fully_addressable):
        g = g.addressable_data(0)  # every process has a copy
    return g if placed is None else jax.device_put(g, placed)
