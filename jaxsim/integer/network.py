"""Integer network: a function of integers alone, run step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxsim.cores.core import State
from jaxsim.cores.partition import Partitioned
from jaxsim.cores.wrapper import Wrapper
from jaxsim.integer.steps import Constant, Operand, Step, run_steps
from jaxsim.internals import shape_of
from jaxsim.network.arguments import call_arguments
from jaxsim.network.planner import trace_plan
from jaxsim.values.value import PytreeValue


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["cores", "states", "constants"],
    meta_fields=["fn", "held", "defaults", "example", "weights", "steps", "outputs"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class IntegerNetwork(PytreeValue):
    """Network in integers, made by `integer_only`. Calling it is a pure function.

    Attributes:
      cores: Wrappers by site, outermost first.
      states: What multiplies the codes, by site: int8 weights.
      constants: Values that steps read: `Rescale`, `Encode` and arrays.
      fn: Model as a function, `(params, buffers, *args, **kwargs) -> outputs`.
      held: Shapes of the model's parameters and buffers; the values are not kept.
      defaults: Keyword arguments fixed at `trace`.
      example: Shapes of the arguments it was traced with.
      weights: Paths of the buffers that count as weights.
      steps: Steps in order of execution.
      outputs: For each output how it is read, and its scale; no scale for an output of floats.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.array([[-1.0, 0.5], [0.25, 1.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, x)
      >>> found = js.integer_only(js.deploy(js.quantize(8, 8)(net), calibrate=x))
      >>> isinstance(found, js.IntegerNetwork), found.states["w"].dtype.name
      (True, 'int8')
      >>> bool(jnp.allclose(found(x), x, atol=0.01))
      True
    """

    cores: dict[str, tuple[Wrapper, ...]]
    states: dict[str, State]
    constants: tuple[Any, ...]
    fn: Callable[..., Any]
    held: Partitioned
    defaults: Partitioned
    example: Partitioned
    weights: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[tuple[Operand, Constant | None], ...]

    def __call__(self, *args: Any, key: Any = None, **kwargs: Any) -> Any:
        """Runs the model in integers: the same on every machine, times a scale.

        Args:
          *args: Inputs of the model; the batch may differ from the traced one.
          key: Accepted as a `Network`'s call does, and not used: nothing here is random.
          **kwargs: Keyword arguments of the model.

        Raises:
          ValueError: The model rejects the arguments, or they lead to other equations or other
            sums than those that were converted.
        """
        return _run(self, call_arguments(args, {**self.defaults.combine(), **kwargs}))


@jax.jit
def _run(net: IntegerNetwork, arguments: Partitioned) -> Any:
    """Runs a call as one program even where the caller does not compile."""
    params, buffers = net.held.combine()
    traced = trace_plan(net.fn, params, buffers, arguments, net.example, net.weights)
    count = len(traced.values) - len(arguments.arrays)
    steps = iter(net.steps)
    values = run_steps(net, traced.plan, [*[None] * count, *traced.values[count:]], steps)
    outs: list[Any] = []
    for value, (operand, scale), v in zip(
        values, net.outputs, traced.plan.jaxpr.outvars, strict=True
    ):
        y = operand.read(net, value)
        if scale is not None:
            y = (y.astype(jnp.float32) * scale.read(net, None)).astype(shape_of(v).dtype)
        outs.append(y)
    return jax.tree.unflatten(traced.out_tree, outs)
