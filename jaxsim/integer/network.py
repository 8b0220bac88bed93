"""A function of integers alone, with the steps that it walks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsim.cores.core import State
from jaxsim.cores.partition import Parts
from jaxsim.cores.wrapper import Wrapper, build
from jaxsim.integer.requantize import rescale
from jaxsim.internals import bind, inner_jaxprs, parameters
from jaxsim.network.arguments import call_arguments
from jaxsim.network.plan import Contraction, Inner, Plan
from jaxsim.network.planner import trace_plan
from jaxsim.values.value import PytreeValue

FINE = 2.0**23
"""Codes of the grids between sites, on which residuals are added and outputs returned."""


CALLS = (
    prims.jit_p,
    prims.closed_call_p,
    prims.remat_p,
    prims.custom_jvp_call_p,
    prims.custom_vjp_call_p,
)


class Encode(NamedTuple):
    """A float on a grid: `clip(round(x / scale) + zero, lo, hi)`, the one place floats come in."""

    scale: Float[Array, ""]
    zero: Float[Array, ""]
    lo: Float[Array, ""]
    hi: Float[Array, ""]


class Take(NamedTuple):
    """How a step takes an operand.

    Attributes:
      how: "asis"; "none", nothing is left of it; "constant"; "rescale" or "encode" to a grid.
      at: position among the constants.
    """

    how: Literal["asis", "none", "constant", "rescale", "encode"]
    at: int = -1


class Step(NamedTuple):
    """What is left of one equation.

    Attributes:
      primitive: its name.
      does: "known", nothing: the result was computed at conversion; "alias", hands its one integer
        operand on; "bind", runs the primitive on integers; "float", on floats that no site has
        quantised yet; "site", contracts codes; "call", runs the equations inside.
      takes: how, for each operand.
      summed: how many numbers a sum adds, 0 for no sum.
    """

    primitive: str
    does: Literal["known", "alias", "bind", "float", "site", "call"]
    takes: tuple[Take, ...] = ()
    summed: int = 0


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["cores", "states", "constants"],
    meta_fields=["fn", "held", "defaults", "example", "weights", "steps", "outputs"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class IntegerNetwork(PytreeValue):
    """A network in integers, made by `integer_only`. Calling it is a pure function.

    Attributes:
      cores: for each site, its chain of wrappers.
      states: for each site, what multiplies the codes: int8 weights.
      constants: what steps take: `Rescale`, `Encode` and arrays.
      fn: the model.
      held: shapes of its parameters and buffers; it holds none of them.
      defaults: keyword arguments fixed at `trace`.
      example: shapes of the arguments it was traced with.
      weights: paths of the buffers that count as weights.
      steps: in order of execution.
      outputs: how each output is taken, and the position of its scale among the constants.
    """

    cores: dict[str, tuple[Wrapper, ...]]
    states: dict[str, State]
    constants: tuple[Any, ...]
    fn: Callable[..., Any]
    held: Parts
    defaults: Parts
    example: Parts
    weights: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[tuple[Take, Take], ...]

    def __call__(self, *args: Any, key: Any = None, **kwargs: Any) -> Any:
        """The outputs of the model: the same integers on every machine, times a scale.

        Args:
          *args: the model's inputs; the batch may differ from the traced one.
          key: taken as a `Network`'s call does, and not used: nothing here is random.
          **kwargs: the model's keyword arguments.

        Raises:
          ValueError: the model rejects the arguments, or they lead to other equations or other
            sums than those that were converted.
        """
        return _run(self, call_arguments(args, {**self.defaults.whole(), **kwargs}))


def summed_windows(eqn: Any, shape: Sequence[int]) -> tuple[list[int], int, bool]:
    """The axes a reduction runs over, how many numbers go into one, whether zeros may be among."""
    params = parameters(eqn)
    if "axes" in params:
        axes = list(params["axes"])
        return axes, int(np.prod([shape[a] for a in axes])), False
    sizes, strides = params["window_dimensions"], params["window_strides"]
    padding, dilation = params["padding"], params["base_dilation"]
    changed = zip(sizes, strides, padding, dilation, strict=True)
    axes = [i for i, (n, s, p, d) in enumerate(changed) if n > 1 or s > 1 or any(p) or d > 1]
    return axes, int(np.prod(sizes)), bool(np.any(padding)) or max(dilation) > 1


@jax.jit
def _run(net: IntegerNetwork, arguments: Parts) -> Any:
    """A call, compiled as one even where the caller does not."""
    params, buffers = net.held.whole()
    traced = trace_plan(net.fn, params, buffers, arguments, net.example, net.weights)
    count = len(traced.values) - len(arguments.arrays)
    steps = iter(net.steps)
    values = _walk(net, traced.plan, [*[None] * count, *traced.values[count:]], steps)
    outs: list[Any] = []
    for value, (take, scale), v in zip(values, net.outputs, traced.plan.jaxpr.outvars, strict=True):
        y = _taken(net, value, take)
        if scale.how == "constant":
            y = (y.astype(jnp.float32) * net.constants[scale.at]).astype(v.aval.dtype)
        outs.append(y)
    return jax.tree.unflatten(traced.out_tree, outs)


def _walk(net: IntegerNetwork, plan: Plan, values: Sequence[Any], steps: Iterator[Step]) -> Any:
    """Outputs of the steps of a plan; what is known is None."""
    env = dict(zip(plan.jaxpr.invars, values, strict=True))
    for eqn, entry in zip(plan.jaxpr.eqns, plan.entries, strict=True):
        step = next(steps, None)
        if step is None or step.primitive != eqn.primitive.name:
            raise ValueError(
                f"args: {eqn.primitive.name} at {line_of(eqn)} runs for these arguments and did "
                "not when the network was converted"
            )
        ins = [None if isinstance(v, jex.Literal) else env.get(v) for v in eqn.invars]
        env.update(zip(eqn.outvars, _done(net, eqn, entry, step, ins, steps), strict=True))
    return [None if isinstance(v, jex.Literal) else env.get(v) for v in plan.jaxpr.outvars]


def _done(
    net: IntegerNetwork, eqn: Any, entry: Any, step: Step, ins: list[Any], steps: Iterator[Step]
) -> Sequence[Any]:
    """The outputs of one step."""
    shape = eqn.outvars[0].aval.shape if eqn.outvars else ()
    match step.does:
        case "known":
            return [None] * len(eqn.outvars)
        case "call":
            return _walk(net, inner_plan(eqn, entry), ins, steps)
        case "site":
            return [_contracted(net, entry, step, ins[entry.x_at])]
        case _:
            taken = [_taken(net, v, t) for v, t in zip(ins, step.takes, strict=True)]
    if step.does == "alias":
        (q,) = (v for v, t in zip(taken, step.takes, strict=True) if t.how != "none")
        return [jnp.broadcast_to(q, shape)]
    if step.summed and (found := summed_windows(eqn, ins[0].shape)[1]) != step.summed:
        raise ValueError(
            f"args: {step.primitive} at {line_of(eqn)} sums {found} numbers for these arguments "
            f"and {step.summed} when the network was converted"
        )
    return bind(eqn, taken)


def _taken(net: IntegerNetwork, value: Any, take: Take) -> Any:
    """An operand as a step takes it."""
    match take.how:
        case "none":
            return None
        case "asis":
            return value
        case "constant":
            return net.constants[take.at]
        case "rescale":
            return rescale(value, net.constants[take.at])
        case "encode":
            grid: Encode = net.constants[take.at]
            x = jnp.round(value.astype(jnp.float32) / grid.scale) + grid.zero
            return jnp.clip(x, grid.lo, grid.hi).astype(jnp.int8)


def _contracted(net: IntegerNetwork, entry: Contraction, step: Step, x: Any) -> Int[Array, "..."]:
    """The accumulators of a site."""
    take, *pad = step.takes
    wrapper, *inner = net.cores[entry.site.name]
    weights, inputs = (wrapper.settings[k] for k in ("weights", "inputs"))
    codes = _taken(net, x, take).astype(jnp.int8)
    op = dataclasses.replace(entry.op, integer=True, ranges="stored")
    op = op.codes(*map(np.asarray, weights.code_range)).inputs(*inputs.code_range)
    if pad:
        codes, op = op.pad(codes, net.constants[pad[0].at])
    return build(inner).read(op, net.states[entry.site.name], codes, None)


def inner_plan(eqn: Any, entry: Any) -> Plan:
    """The plan of what a call runs."""
    if isinstance(entry, Inner):
        return entry.plans[0]
    ((jaxpr, consts),) = inner_jaxprs(eqn)
    return Plan(jaxpr, consts, (None,) * len(jaxpr.eqns), ())


def has_sites(entry: Contraction | Inner) -> bool:
    """Whether there are sites in it."""
    return isinstance(entry, Contraction) or bool(entry.names)


def line_of(eqn: Any) -> str:
    """Where an equation comes from: the innermost line outside JAX."""
    package = str(Path(jax.__file__).parent)
    traceback = eqn.source_info.traceback
    for frame in () if traceback is None else traceback.frames:
        if not frame.file_name.startswith((package, "<")):
            return f"{frame.file_name}:{frame.line_num}"
    return "an unknown line"
