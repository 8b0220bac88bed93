"""A calibrated network as integers alone, from its quantised inputs to its outputs.

Conversion walks the model's equations once with numbers known beforehand (`Affine`): what a
BatchNorm, a bias or a ReLU does to an accumulator is then a scale, a shift and a clip, which wait
until the next grid (a site's calibrated input, a residual sum, the output), and become one
`Rescale`. What is left of each equation is a `Step`. A call walks the equations again, for its own
batch, and does the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxsim.cores.core import State
from jaxsim.cores.partition import Parts
from jaxsim.cores.quantized import Quantized, stored
from jaxsim.cores.role import WEIGHT
from jaxsim.cores.wrapper import Wrapper
from jaxsim.formats.grid import Grid, scale_and_zero
from jaxsim.integer.affine import (
    Affine,
    affine,
    clipped,
    common_step,
    compact,
    joined,
    laid_out,
    moved,
)
from jaxsim.integer.network import (
    CALLS,
    FINE,
    Encode,
    IntegerNetwork,
    Step,
    Take,
    has_sites,
    inner_plan,
    line_of,
    summed_windows,
)
from jaxsim.integer.requantize import dyadic
from jaxsim.internals import bind, parameters
from jaxsim.network.leaves import is_array
from jaxsim.network.network import Network, check_sites, require_uncut
from jaxsim.network.plan import Contraction, Inner, Plan
from jaxsim.network.planner import trace_plan

_UNCHANGED = {
    "copy",
    "copy_p",
    "convert_element_type",
    "name",
    "sharding_constraint",
    "stop_gradient",
}


class _Raw(NamedTuple):
    """A value that no site has quantised: an argument, or computed from arguments in floats."""


def integer_only(chip: Network) -> IntegerNetwork:
    """A deployed and calibrated network as integers alone.

    Between the quantised inputs and the outputs there are int8 codes, int32 accumulators and
    multipliers b/2^c. BatchNorm, biases and whatever else is affine by channel go into these
    multipliers and what is added to them, ReLU and ReLU6 into the clip; residuals are added on a
    common grid of 24 bits; pooling takes the maximum or the sum of integers.

    Args:
      chip: every site quantised by `quantize`, `block` and `slice_bits` at most after it, with
        symmetric weights and stored input ranges.

    Returns:
      A function of the model's arguments whose outputs are floats again: integers times one scale.

    Raises:
      ValueError: not deployed and calibrated, a site that is not quantised so, or an equation that
        has no integer form here, by primitive and line.

    Source: Jacob et al. (2018), arXiv 1712.05877; Yao et al. (2021), arXiv 2011.10680.
    """
    if not isinstance(chip, Network):
        raise ValueError(f"chip: a {type(chip).__name__} is no Network")
    require_uncut(
        chip, "integer_only", allowed=("pipeline_shard",), reason="its classifiers are floats"
    )
    if not (chip.deployed and chip.calibrated):
        raise ValueError("chip: give what js.deploy(net, calibrate=inputs) returns")
    held = (chip.masked_params(), chip.buffers)
    shapes = jax.eval_shape(lambda: held)
    traced = trace_plan(chip.fn, shapes[0], shapes[1], chip.example, chip.example, chip.weights)
    check_sites(chip, traced.plan)
    known: list[Any] = [np.asarray(a) if _numeric(a) else a for a in jax.tree.leaves(held)]
    converter = _Converter(chip)
    values = converter.run(traced.plan, [*known, *[_Raw()] * len(chip.example.arrays)])
    outputs = tuple(map(converter.output, values))
    return IntegerNetwork(
        cores={name: _hardware(chip.cores[name]) for name in converter.states},
        states=converter.states,
        constants=tuple(converter.constants),
        fn=chip.fn,
        held=Parts.of(shapes, lambda leaf: False),
        defaults=chip.defaults,
        example=chip.example,
        weights=chip.weights,
        steps=tuple(converter.steps),
        outputs=outputs,
    )


class _Converter:
    """Walks equations with what is known, and leaves steps."""

    def __init__(self, chip: Network):
        self.chip = chip
        self.steps: list[Step] = []
        self.constants: list[Any] = []
        self.states: dict[str, State] = {}
        self.taken: dict[Any, tuple[Any, Take]] = {}

    def run(self, plan: Plan, values: Sequence[Any]) -> list[Any]:
        """What the outputs stand for."""
        env = dict(zip(plan.jaxpr.invars, values, strict=True))
        env.update(zip(plan.jaxpr.constvars, map(_array, plan.consts), strict=True))

        def read(atom: Any) -> Any:
            return np.asarray(atom.val) if isinstance(atom, jex.Literal) else env[atom]

        for eqn, entry in zip(plan.jaxpr.eqns, plan.entries, strict=True):
            outs = self.equation(eqn, entry, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in plan.jaxpr.outvars]

    def equation(self, eqn: Any, entry: Any, ins: list[Any]) -> Sequence[Any]:
        """What an equation's outputs stand for; its step is noted."""
        name, sites = (
            eqn.primitive.name,
            isinstance(entry, Contraction | Inner) and has_sites(entry),
        )
        if not any(isinstance(value, Affine | _Raw) for value in ins):
            self.steps.append(Step(name, "known"))
            return [_array(out) for out in bind(eqn, ins)]
        if not sites and not any(isinstance(value, Affine) for value in ins):
            takes = tuple(
                Take("asis") if isinstance(v, _Raw) else self.constant(jnp.asarray(v)) for v in ins
            )
            self.steps.append(Step(name, "float", takes))
            return [_Raw()] * len(eqn.outvars)
        if eqn.primitive in CALLS:
            self.steps.append(Step(name, "call"))
            return self.run(inner_plan(eqn, entry), ins)
        if isinstance(entry, Contraction):
            return [self.site(eqn, entry, ins)]
        if any(isinstance(value, _Raw) for value in ins):
            raise _refused(eqn, "joins a float input with integers: quantise it at a site first")
        shape = eqn.outvars[0].aval.shape
        rule = _RULES.get(name)
        if name in _UNCHANGED and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
            return [self.alias(eqn, ins, ins[0])]
        if rule is None:
            raise _refused(eqn, "has no integer form")
        return rule(self, eqn, ins, shape)

    def constant(self, value: Any) -> Take:
        """A constant to take as it is."""
        self.constants.append(value)
        return Take("constant", len(self.constants) - 1)

    def alias(self, eqn: Any, ins: Sequence[Any], out: Affine) -> Affine:
        """An equation that only changes what its integers stand for."""
        takes = tuple(Take("asis" if isinstance(v, Affine) else "none") for v in ins)
        self.steps.append(Step(eqn.primitive.name, "alias", takes))
        return out

    def bound(self, eqn: Any, takes: Sequence[Take], count: int = 0) -> None:
        """An equation that runs on integers."""
        self.steps.append(Step(eqn.primitive.name, "bind", tuple(takes), count))

    def site(self, eqn: Any, entry: Contraction, ins: list[Any]) -> Affine:
        """A contraction of codes, and what its accumulators stand for."""
        name, x = entry.site.name, ins[entry.x_at]
        weights, inputs = self.grids(eqn, entry)
        state: Quantized = self.chip.states[name]
        step, zero = map(np.asarray, scale_and_zero(inputs, state.inputs))  # pyright: ignore
        take = self.codes(eqn, x, inputs, step, zero)
        pad = () if inputs.symmetric else (self.constant(jnp.asarray(zero, jnp.int8)),)
        self.steps.append(Step(eqn.primitive.name, "site", (take, *pad)))
        self.states[name] = state.inner
        op, step = entry.op, np.float64(step)
        scale = step * np.asarray(op.to_output(state.scale), np.float64)
        most = max(map(abs, inputs.code_range))
        if isinstance(state.inner, jax.Array) and state.inner.ndim == len(op.geometry.w_shape):
            reach = most * np.asarray(op.column_sum(jnp.abs(state.inner)), np.float64)
        else:
            reach = np.float64(most * weights.code_range[1] * op.depth)
        if np.max(reach) >= 2**31:
            raise _refused(eqn, f"sums {op.depth} products, which may leave 32 bits")
        shift = -float(zero) * scale * np.asarray(state.total, np.float64)
        return affine(eqn.outvars[0].aval.shape, scale, shift, -reach, reach)

    def grids(self, eqn: Any, entry: Contraction) -> tuple[Grid, Grid]:
        """The grids of a site's weights and inputs."""
        name = entry.site.name
        chain = self.chip.cores.get(name, ())
        if entry.site.kind == "dynamic":
            raise _refused(eqn, f"({name}) contracts two activations")
        chain = _hardware(chain)
        if not chain or not isinstance(self.chip.states[name], Quantized):
            raise _refused(eqn, f"({name}) is not quantised")
        for wrapper in chain[1:]:
            if wrapper.role not in ("blocks", "slices"):
                raise _refused(eqn, f"({name}) reads {wrapper!r}, which computes with floats")
        weights, inputs = (chain[0].settings[k] for k in ("weights", "inputs"))
        for what, grid in (("weights", weights), ("inputs", inputs)):
            if grid is None:
                raise _refused(eqn, f"({name}) has float {what}")
        if not weights.symmetric:
            raise _refused(eqn, f"({name}) has weights with a zero point; make them symmetric")
        if not stored(inputs):
            raise _refused(eqn, f"({name}) takes its input range from each batch")
        if inputs.bits == 1 or inputs.spacing == "powers" or inputs.rounding == "stochastic":
            raise _refused(
                eqn, f"({name}) rounds inputs to {inputs}, not to the nearest of even codes"
            )
        return weights, inputs

    def codes(self, eqn: Any, x: Any, grid: Grid, step: Any, zero: Any) -> Take:
        """How a site takes its input as codes."""
        qmin, qmax = grid.code_range
        if isinstance(x, _Raw):
            ends = (jnp.float32(qmin), jnp.float32(qmax))
            at = self.constant(Encode(jnp.asarray(step), jnp.asarray(zero), *ends)).at
            return Take("encode", at)
        return self.rescaled(eqn, x, float(step), float(zero), qmin, qmax)

    def rescaled(
        self, eqn: Any, x: Affine, step: float, zero: float, qmin: float, qmax: float
    ) -> Take:
        """How integers are taken on the grid `(code - zero) step`."""
        key = (id(x), step, zero, qmin, qmax)
        if key in self.taken:
            return self.taken[key][1]
        lo, hi = (np.clip(np.round(end / step) + zero, qmin, qmax) for end in (x.lo, x.hi))
        numbers = (x.scale / step, x.shift / step + zero)
        try:
            r = dyadic(*numbers, lo=lo, hi=hi, least=x.least, most=x.most)
        except ValueError as error:
            raise _refused(eqn, f"takes numbers that its grid cannot hold: {error}") from error
        take = Take("rescale", self.constant(r).at)
        self.taken[key] = (x, take)
        return take

    def settled(self, eqn: Any, values: Sequence[Affine], largest: float) -> Any:
        """Takes of several values on one grid of a positive scale alone, and the values there."""
        steps = {float(v.scale.flat[0]) for v in values if v.bare}
        least = min(float(v.least.min()) for v in values)
        most = max(float(v.most.max()) for v in values)
        if all(v.bare for v in values) and len(steps) == 1 and max(-least, most) <= largest:
            return [Take("asis")] * len(values), list(values)
        step = common_step(values, largest)
        takes, there = list[Take](), list[Affine]()
        for value in values:
            ends = [np.round(end / step) for end in value.ends]
            lo, hi = float(ends[0].min()), float(ends[1].max())
            takes.append(self.rescaled(eqn, value, step, 0.0, lo, hi))
            there.append(affine(value.shape, step, 0.0, *ends))
        return takes, there

    def output(self, value: Any) -> tuple[Take, Take]:
        """How an output is taken, and its scale."""
        if isinstance(value, _Raw):
            return Take("asis"), Take("none")
        if not isinstance(value, Affine):
            return self.constant(jnp.asarray(value)), Take("none")
        (take,), (there,) = self.settled(None, [value], FINE)
        return take, self.constant(jnp.float32(there.scale.item()))


def _sum_of(self: _Converter, eqn: Any, ins: list[Any], shape: Any) -> list[Affine]:
    """Addition or subtraction."""
    sign = -1.0 if eqn.primitive.name == "sub" else 1.0
    a, b = ins
    if not isinstance(b, Affine):
        out = moved(a, np.ones((1,) * len(shape)), sign * compact(b, len(shape)), shape)
        return [self.alias(eqn, ins, out)]
    if not isinstance(a, Affine):
        out = moved(b, np.full((1,) * len(shape), sign), compact(a, len(shape)), shape)
        return [self.alias(eqn, ins, out)]
    takes, (a, b) = self.settled(eqn, ins, FINE)
    self.bound(eqn, takes)
    ends = (b.least, b.most) if sign > 0 else (-b.most, -b.least)
    return [affine(shape, a.scale, 0.0, a.least + ends[0], a.most + ends[1])]


def _scaled(self: _Converter, eqn: Any, ins: list[Any], shape: Any) -> list[Affine]:
    """Multiplication or division by what is known, and negation."""
    name = eqn.primitive.name
    if name == "neg":
        value, factor = ins[0], np.float64(-1)
    elif name == "div":
        value, factor = ins
        if isinstance(factor, Affine):
            raise _refused(eqn, "divides by an activation")
        factor = 1 / np.asarray(factor, np.float64)
    else:
        value, factor = ins if isinstance(ins[0], Affine) else ins[::-1]
        if isinstance(factor, Affine):
            raise _refused(eqn, "multiplies two activations")
    if not np.isfinite(factor).all():
        raise _refused(eqn, f"scales by {factor}")
    out = moved(value, compact(factor, len(shape)), np.zeros((1,) * len(shape)), shape)
    return [self.alias(eqn, ins, out)]


def _clip(self: _Converter, eqn: Any, ins: list[Any], shape: Any) -> list[Affine]:
    """Maximum, minimum and clamp."""
    if eqn.primitive.name == "clamp":
        lo, value, hi = ins
    elif all(isinstance(value, Affine) for value in ins):
        takes, (a, b) = self.settled(eqn, ins, FINE)
        self.bound(eqn, takes)
        end = np.maximum if eqn.primitive.name == "max" else np.minimum
        return [affine(shape, a.scale, 0.0, end(a.least, b.least), end(a.most, b.most))]
    else:
        value, end = ins if isinstance(ins[0], Affine) else ins[::-1]
        lo, hi = (end, np.inf) if eqn.primitive.name == "max" else (-np.inf, end)
    if isinstance(lo, Affine) or isinstance(hi, Affine) or not isinstance(value, Affine):
        raise _refused(eqn, "clips by an activation")
    lo, hi = compact(lo, len(shape)), compact(hi, len(shape))
    return [self.alias(eqn, ins, clipped(value, lo, hi, shape))]


def _layout(self: _Converter, eqn: Any, ins: list[Any], shape: Any) -> list[Affine]:
    """Numbers that move and do not change."""
    (value,), params = ins, parameters(eqn)
    takes = [Take("asis")]
    if value.shape[:1] != tuple(shape[:1]) and not value.constant_along(range(len(value.shape))):
        takes, (value,) = self.settled(eqn, ins, FINE)  # the batch may have moved among channels
    layout: Callable[[np.ndarray], np.ndarray]
    match eqn.primitive.name:
        case "transpose":
            layout = partial(np.transpose, axes=params["permutation"])
        case "rev":
            layout = partial(np.flip, axis=params["dimensions"])
        case "slice":
            cut = zip(
                params["start_indices"],
                params["limit_indices"],
                params["strides"] or (1,) * len(shape),
                strict=True,
            )
            at = tuple(slice(*ends) for ends in cut)
            layout = lambda a: a[at]  # noqa: E731
        case "broadcast_in_dim":
            axes = params["broadcast_dimensions"]
            unit = [value.shape[axes.index(i)] if i in axes else 1 for i in range(len(shape))]
            layout = lambda a: np.broadcast_to(a.reshape(unit), shape)  # noqa: E731
        case _:
            layout = lambda a: a.reshape(shape)  # noqa: E731
    self.bound(eqn, takes)
    return [laid_out(value, layout, shape)]


def _concatenate(self: _Converter, eqn: Any, ins: list[Any], shape: Any) -> list[Affine]:
    """Integers beside one another, each with its own scale."""
    if not all(isinstance(value, Affine) for value in ins):
        raise _refused(eqn, "joins constants with activations")
    self.bound(eqn, [Take("asis")] * len(ins))
    return [joined(ins, parameters(eqn)["dimension"])]


def _pad(self: _Converter, eqn: Any, ins: list[Any], shape: Any) -> list[Affine]:
    """Zeros around integers that have one for zero."""
    value, fill = ins
    if isinstance(fill, Affine) or np.any(fill):
        raise _refused(eqn, f"pads with {fill}, not with zeros")
    (take,), (value,) = self.settled(eqn, [value], FINE)
    self.bound(eqn, [take, self.constant(jnp.int32(0))])
    return [affine(shape, value.scale, 0.0, min(value.least.min(), 0), max(value.most.max(), 0))]


def _total(self: _Converter, eqn: Any, ins: list[Any], shape: Any) -> list[Affine]:
    """A sum along axes, or over windows."""
    (value,), (along, count, padded) = ins, summed_windows(eqn, ins[0].shape)
    takes = [Take("asis")]
    room = (2.0**31 - 1) / count
    reach = max(float(np.abs(end).max()) for end in (value.least, value.most))
    free = not value.clipped and value.constant_along(along) and not (padded and value.shift.any())
    if not free or reach > room:
        takes, (value,) = self.settled(eqn, ins, min(FINE, np.floor(room / 2)))
    self.bound(eqn, takes, count)
    kept = _reduced(value, along, shape)
    # windows at a border may hold fewer numbers
    least, most = (count * end for end in (kept.least, kept.most))
    if padded:
        least, most = np.minimum(least, 0), np.maximum(most, 0)
    return [affine(shape, kept.scale, kept.shift * count, least, most)]


def _extreme(self: _Converter, eqn: Any, ins: list[Any], shape: Any) -> list[Affine]:
    """A maximum or minimum along axes, or over windows."""
    (value,), (along, _, _) = ins, summed_windows(eqn, ins[0].shape)
    takes = [Take("asis")]
    if not (value.rising and value.constant_along(along)):
        takes, (value,) = self.settled(eqn, ins, FINE)
    self.bound(eqn, takes)
    return [_reduced(value, along, shape)]


def _reduced(value: Affine, axes: Sequence[int], shape: Sequence[int]) -> Affine:
    """One number for several of one scale, axes dropped where the shape has none."""
    keep = len(shape) == len(value.shape)
    ends = {
        "least": value.least.min(tuple(axes), keepdims=True),
        "most": value.most.max(tuple(axes), keepdims=True),
    }
    value = value._replace(shape=tuple(shape), **ends)
    if keep:
        return value
    return Affine(value.shape, *(np.squeeze(a, tuple(axes)) for a in value.arrays))


_RULES: Mapping[str, Callable[..., list[Affine]]] = {
    **dict.fromkeys(("add", "sub", "add_any"), _sum_of),
    **dict.fromkeys(("mul", "div", "neg"), _scaled),
    **dict.fromkeys(("max", "min", "clamp"), _clip),
    **dict.fromkeys(
        ("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "slice", "rev"),
        _layout,
    ),
    "concatenate": _concatenate,
    "pad": _pad,
    **dict.fromkeys(("reduce_sum", "reduce_window_sum"), _total),
    **dict.fromkeys(
        ("reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min"), _extreme
    ),
}


def _hardware(chain: tuple[Wrapper, ...]) -> tuple[Wrapper, ...]:
    """What reads a weight that is written, without what changed it before."""
    return tuple(wrapper for wrapper in chain if wrapper.role not in WEIGHT)


def _numeric(a: Any) -> bool:
    return not jnp.issubdtype(jnp.result_type(a), jax.dtypes.extended)


def _array(a: Any) -> Any:
    """A known value, by numpy where it can hold it."""
    return np.asarray(a) if is_array(a) and _numeric(a) else a


def _refused(eqn: Any, why: str) -> ValueError:
    """The error that an equation has no integer form."""
    if eqn is None:
        return ValueError(f"integer_only: an output {why}")
    return ValueError(f"integer_only: {eqn.primitive.name} at {line_of(eqn)} {why}")
