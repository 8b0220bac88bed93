"""One step of training: the gradient of a loss of a network, and an optimizer's update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxsim.checkpoint.log import program_digest
from jaxsim.cores.partition import Partitioned
from jaxsim.inputs.batches import Batch
from jaxsim.network.network import Net, Network
from jaxsim.sparsity.masks import select_kept
from jaxsim.sparsity.optimizers.masked import masks_of
from jaxsim.staged.gradient import pipeline_value_and_grad, soft_value_and_grad
from jaxsim.staged.network import Staged
from jaxsim.staged.trained import has_exits, is_pipeline, trained_values, with_values
from jaxsim.train.errors import scale_errors
from jaxsim.train.soft import Soft


@dataclasses.dataclass(frozen=True, eq=False)
class Descent:
    """Gradient steps on a loss of a network.

    Attributes:
      optimizer: An optax transformation of `trained_values`.
      loss: Mean over a batch of `(logits, labels)`.
      call: Keyword arguments of each call.
      rngs: Names of Linen's random streams.
      soft: Soft masks by which levels of tokens are learned too; None where they stay.
    """

    optimizer: optax.GradientTransformation
    loss: Callable[[Array, Array], Array]
    call: dict[str, Any]
    rngs: Sequence[str]
    soft: Soft | None = None

    def streams(self, key: Any) -> dict[str, Any]:
        """Makes a key for each random stream, as keyword arguments of a call.

        Args:
          key: Random key of the step.
        """
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(self.rngs)}
        return {"rngs": keys} if keys else {}

    def outputs(self, out: Any) -> tuple[Any, Any]:
        """Takes apart what a call returned: outputs, and updates of the buffers."""
        return out if "mutable" in self.call else (out, {})

    def values(self, net: Network) -> Any:
        """What the optimizer trains of a network, as `trained_values`."""
        return trained_values(net, levels=self.soft is not None)

    def with_values(self, net: Net, values: Any) -> Net:
        """The network with other such values."""
        return with_values(net, values, levels=self.soft is not None)

    def loss_of(
        self,
        values: Any,
        net: Network,
        x: Partitioned,
        y: Array,
        key: Any,
        temperature: Any = None,
        share: Any = None,
    ) -> Any:
        """The loss of a batch, and updates of the buffers; cells err by a share, None for all."""
        args, kwargs = x.combine()
        changed = self.with_values(net, values)
        if share is not None:
            changed = scale_errors(changed, share)
        options = {"key": key, **self.call, **kwargs, **self.streams(key)}
        if self.soft is not None and isinstance(changed, Staged):
            found = changed.soften(*args, temperature=temperature, **options)
            logits = found.logits if has_exits(changed) else found.logits[:, -1]
            return self.loss(logits, y) + self.soft.weight * jnp.mean(found.shares), {}
        run = changed.exit_logits if has_exits(changed) else changed
        logits, updates = self.outputs(run(*args, **options))
        return self.loss(logits, y), updates

    def update(self, net: Network, state: optax.OptState, grads: Any, updates: Any) -> Any:
        """The network and the optimizer's state after a step along gradients."""
        changes, state = self.optimizer.update(grads, state, self.values(net))
        values: Any = optax.apply_updates(self.values(net), changes)
        if self.soft is not None:
            values = {**values, "level": jnp.maximum(values["level"], 0)}
        net = self.with_values(net, values)
        return dataclasses.replace(net, buffers=_merge(net.buffers, updates)), state

    def step(
        self,
        net: Network,
        state: optax.OptState,
        x: Partitioned,
        y: Array,
        key: Any,
        temperature: Any = None,
        share: Any = None,
    ) -> Any:
        """The network, the optimizer's state and the loss after a step on a batch."""
        (value, updates), grads = jax.value_and_grad(self.loss_of, has_aux=True)(
            self.values(net), net, x, y, key, temperature, share
        )
        return *self.update(net, state, grads, updates), value


def compile_step(
    descent: Descent, net: Network
) -> tuple[Callable[..., Any], Callable[..., tuple[str, bool]]]:
    """Compiles a step, and a digest of its program.

    Args:
      descent: The step.
      net: Network that it trains.

    Returns:
      `(net, state, x, labels, key) -> (net, state, loss)`, with soft masks their temperature behind
      the key, and behind that a share of the cells' errors, and a function of the same arguments to
      the digest and whether it covers everything.
    """
    if not is_pipeline(net):
        # A step at a time from Python: XLA's CPU backend runs convolutions in a scan far slower.
        step = jax.jit(descent.step)
        return step, lambda *at: program_digest(step, *at)
    update = jax.jit(descent.update)

    def pipelined(
        net: Network,
        state: optax.OptState,
        x: Partitioned,
        y: Any,
        key: Any,
        temperature: Any = None,
        share: Any = None,
    ) -> Any:
        erring = net if share is None else scale_errors(net, share)
        batch, options = Batch(*x.combine()), {**descent.call, **descent.streams(key)}
        if descent.soft is not None and isinstance(erring, Staged):
            masked = soft_value_and_grad(erring, descent.loss, descent.soft.weight)
            value, grads = masked(descent.values(net), (batch, y), temperature, key=key, **options)
            return *update(net, state, grads, {}), value
        gradients = pipeline_value_and_grad(erring, descent.loss)
        out, grads = gradients(trained_values(net), (batch, y), key=key, **options)
        value, updates = descent.outputs(out)
        return *update(net, state, grads, updates), value

    # A step of a pipeline is many programs, of which this is the last.
    return pipelined, lambda net, state, *_: program_digest(
        update, net, state, descent.values(net), {}
    )


def under_masks_of(state: optax.OptState, net: Net) -> Net:
    """Takes the masks that an optimizer has from a network, its weights masked by them.

    Args:
      state: State of the optimizer, with masks or without.
      net: The network.
    """
    if (masks := masks_of(state)) is None:
        return net
    zero = jax.tree.map(np.zeros_like, net.params)
    net = dataclasses.replace(net, params=select_kept(masks, net.params, zero))
    return dataclasses.replace(net, masks={n: m for n, m in net.masks.items() if n not in masks})


def _merge(buffers: Any, updates: Any) -> Any:
    """Buffers with updates put in, at any depth."""
    if not isinstance(updates, Mapping):
        return updates
    return {**buffers, **{k: _merge(buffers.get(k, {}), v) for k, v in updates.items()}}
