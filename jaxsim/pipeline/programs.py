"""The compiled programs of one stage: its forward, and its backward from what the forward kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.cores.trained import trained_numbers, with_trained_numbers
from jaxsim.network.interpreter import Walk
from jaxsim.network.stages import Stage, StageParams, Stages, run_stage
from jaxsim.pipeline.devices import StageDevices
from jaxsim.pipeline.halves import Halves, halves

Remat = Literal["boundary", "none"] | Callable[..., Any]
"""What a stage keeps for its backward: its inputs, everything, or what a policy of JAX says."""

Ranges = Literal["batch", "stored", "missing"]
"""Where cores take ranges from, as `Network.ranges`."""


class TaskInputs(NamedTuple):
    """Inputs of one task of a stage besides its parameters; a pytree.

    Attributes:
      arguments: The network's arguments that the stage reads.
      live: Activations from earlier stages.
      key: Random key of the call, or None.
      part: Number of the micro-batch.
    """

    arguments: list[Any]
    live: list[Any]
    key: Any
    part: Any


class StageProgram(NamedTuple):
    """One stage, compiled.

    Attributes:
      stage: The stage.
      devices: Where it runs.
      differentiated: Positions of its outputs that get a cotangent.
      forward: `(tensors, inputs) -> outputs`.
      keep: `(tensors, inputs) -> (outputs, residuals)`.
      backward: `(tensors, inputs, residuals, cotangents, sums) -> (sums, cotangents of live)`,
        where sums are of gradients: `{"params": …}` and what trains of the cores, as
        `trained_numbers`; of a deployed network its adapters alone.
      inputs: `(tensors, inputs, residuals, cotangents) -> (cotangents of live, crossing)`, the half
        of the backward that the stage before waits for, and what the other half reads of it.
      weights: `(tensors, inputs, residuals, cotangents, crossing, sums) -> sums`, the other half.
      zeros: `(tensors) -> sums` to begin with.
      residual_shapes: `(tensors, inputs) -> shapes` of what its differentiation keeps beyond its
        inputs.
    """

    stage: Stage
    devices: StageDevices
    differentiated: tuple[int, ...]
    forward: Any
    keep: Any
    backward: Any
    inputs: Any
    weights: Any
    zeros: Any
    residual_shapes: Callable[..., Any]


def stage_programs(
    cut: Stages,
    devices: Sequence[StageDevices],
    *,
    remat: Remat,
    ranges: Ranges,
    microbatches: int,
    loss_outputs: Sequence[int],
    deployed: bool = False,
    walk: Callable[..., Walk] = Walk,
) -> tuple[StageProgram, ...]:
    """Makes the programs of all stages; none is compiled before it is called.

    Args:
      cut: The stages.
      devices: Devices of each stage.
      remat: What is kept for the backward.
      ranges: Where cores take ranges from, as `Network.ranges`.
      microbatches: Number of micro-batches; only whether there are several counts.
      loss_outputs: Which of the network's outputs the loss reads.
      deployed: True if weights are written, so that adapters are all that trains.
      walk: What evaluates equations, made from cores, ranges and key.
    """
    read = {source for stage in cut.stages for source in stage.sources}
    read |= {cut.outputs[i] for i in loss_outputs}
    made: list[StageProgram] = []
    for k, (stage, where) in enumerate(zip(cut.stages, devices, strict=True)):
        differentiated = tuple(
            i for i, y in enumerate(stage.outputs) if (k, i) in read and is_inexact(y)
        )
        functions = _StageFunctions(
            stage, differentiated, remat, ranges, microbatches > 1, deployed, walk
        )
        made.append(functions.compiled(where))
    return tuple(made)


def is_inexact(a: Any) -> bool:
    """Whether derivatives with respect to an array exist.

    Args:
      a: Array, or its shape and dtype.
    """
    return jnp.issubdtype(a.dtype, jnp.inexact)


@dataclasses.dataclass(frozen=True, eq=False)
class _StageFunctions:
    """What the programs of a stage compute.

    Attributes:
      stage: The stage.
      differentiated: Positions of its outputs that get a cotangent.
      remat: What is kept for the backward.
      ranges: Where cores take ranges from.
      several: Whether there are several micro-batches, so that each draws its own numbers.
      deployed: Whether weights are written, so that adapters are all that trains.
      walk: What evaluates the stage's equations, made from cores, ranges and key.
      structure: How residuals were taken apart when `keep_residuals` was traced.
    """

    stage: Stage
    differentiated: tuple[int, ...]
    remat: Remat
    ranges: Ranges
    several: bool
    deployed: bool = False
    walk: Callable[..., Walk] = Walk
    structure: dict[str, Any] = dataclasses.field(default_factory=dict)

    def compiled(self, devices: StageDevices) -> StageProgram:
        """The functions as programs for some devices."""
        keep = self.keep_inputs if self.remat == "boundary" else self.keep_residuals
        return StageProgram(
            stage=self.stage,
            devices=devices,
            differentiated=self.differentiated,
            forward=jax.jit(self.run),
            keep=jax.jit(keep),
            backward=jax.jit(
                self.backward, donate_argnums=4, out_shardings=(devices.replicated, None)
            ),
            inputs=jax.jit(self.backward_inputs),
            weights=jax.jit(
                self.backward_weights, donate_argnums=5, out_shardings=devices.replicated
            ),
            zeros=jax.jit(self.zeros, out_shardings=devices.replicated),
            residual_shapes=self.residual_shapes,
        )

    def run(self, tensors: StageParams, inputs: TaskInputs) -> list[Array]:
        """The outputs of the stage."""
        part = inputs.part if self.several else None
        arguments = [_key_of_part(a, part) for a in inputs.arguments]
        return run_stage(
            self.stage,
            tensors,
            arguments,
            inputs.live,
            ranges=self.ranges,
            key=inputs.key,
            part=part,
            walk=self.walk,
        )

    def trained(self, tensors: StageParams) -> dict[str, dict[str, Array]]:
        """What has gradients of what the stage reads."""
        numbers = trained_numbers(tensors.cores)
        if self.deployed:
            return {"adapters": numbers.get("adapters", {})}
        return {"params": tensors.params, **numbers}

    def zeros(self, tensors: StageParams) -> dict[str, dict[str, Array]]:
        """Sums of gradients to begin with."""
        return jax.tree.map(jnp.zeros_like, self.trained(tensors))

    def differentiable(
        self, tensors: StageParams, inputs: TaskInputs
    ) -> tuple[Callable[..., Any], list[Array]]:
        """A function `(trained, inexact live) -> (outputs, all)`, and the second argument."""
        moves = [is_inexact(a) for a in self.stage.live]

        def call(trained: Any, live: list[Array]) -> tuple[list[Array], list[Array]]:
            moved = iter(live)
            values = [next(moved) if m else a for a, m in zip(inputs.live, moves, strict=True)]
            changed = tensors._replace(
                params=trained.get("params", tensors.params),
                cores=with_trained_numbers(tensors.cores, trained),
            )
            outputs = self.run(changed, inputs._replace(live=values))
            return [outputs[i] for i in self.differentiated], outputs

        live = [a for a, m in zip(inputs.live, moves, strict=True) if m]
        if callable(self.remat):
            call = jax.checkpoint(call, policy=self.remat)
        return call, live

    def keep_inputs(
        self, tensors: StageParams, inputs: TaskInputs
    ) -> tuple[list[Array], list[Array]]:
        """The outputs of the stage; nothing is kept beside its inputs."""
        return self.run(tensors, inputs), []

    def keep_residuals(
        self, tensors: StageParams, inputs: TaskInputs
    ) -> tuple[list[Array], list[Array]]:
        """The outputs, and what the backward reads beyond the inputs."""
        call, live = self.differentiable(tensors, inputs)
        _, pull, outputs = jax.vjp(call, self.trained(tensors), live, has_aux=True)
        leaves, treedef = jax.tree.flatten(pull)
        known = {id(a): i for i, a in enumerate(jax.tree.leaves((tensors, inputs)))}
        self.structure.update({"treedef": treedef, "from": [known.get(id(a)) for a in leaves]})
        return outputs, [a for a in leaves if id(a) not in known]

    def pull_of(self, tensors: StageParams, inputs: TaskInputs, residuals: list[Array]) -> Any:
        """The function from cotangents of outputs to gradients."""
        if self.remat == "boundary":
            call, live = self.differentiable(tensors, inputs)
            _, pull, _ = jax.vjp(call, self.trained(tensors), live, has_aux=True)
            return pull
        known, rest = jax.tree.leaves((tensors, inputs)), iter(residuals)
        leaves = [next(rest) if i is None else known[i] for i in self.structure["from"]]
        return jax.tree.unflatten(self.structure["treedef"], leaves)

    def backward(
        self,
        tensors: StageParams,
        inputs: TaskInputs,
        residuals: list[Array],
        cotangents: list[Array],
        sums: Any,
    ) -> tuple[Any, list[Array]]:
        """The sums with this task's gradients added, and cotangents of its live values."""
        grads, back = self.pull_of(tensors, inputs, residuals)(cotangents)
        return jax.tree.map(jnp.add, sums, grads), back

    def halves(self, *given: Any) -> Halves:
        """The equations of the backward in two halves."""

        def whole(
            tensors: StageParams, inputs: TaskInputs, residuals: list[Array], cotangents: Any
        ) -> Any:
            return self.pull_of(tensors, inputs, residuals)(cotangents)

        return halves(whole, *given)

    def backward_inputs(self, *given: Any) -> tuple[list[Array], list[Array]]:
        """Cotangents of the live values, and what the gradients of parameters read of them."""
        return self.halves(*given).inputs(jax.tree.leaves(given))

    def backward_weights(
        self,
        tensors: StageParams,
        inputs: TaskInputs,
        residuals: list[Array],
        cotangents: list[Array],
        crossing: list[Array],
        sums: Any,
    ) -> Any:
        """The sums with this task's gradients added."""
        given = tensors, inputs, residuals, cotangents
        grads = self.halves(*given).gradients(jax.tree.leaves(given), crossing)
        leaves, treedef = jax.tree.flatten(sums)
        return jax.tree.unflatten(treedef, [a + g for a, g in zip(leaves, grads, strict=True)])

    def residual_shapes(
        self, tensors: StageParams, inputs: TaskInputs
    ) -> list[jax.ShapeDtypeStruct]:
        """Shapes of what `keep_residuals` keeps."""
        return jax.eval_shape(self.keep_residuals, tensors, inputs)[1]


def _key_of_part(a: Any, part: Any) -> Any:
    """An argument as its micro-batch sees it: random keys differ."""
    if part is not None and a.ndim == 0 and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jax.random.fold_in(a, part)
    return a
