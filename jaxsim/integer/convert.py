"""Conversion of a calibrated network to integers, from its quantized inputs to its outputs.

It walks the model's equations once with numbers known beforehand (`Affine`): what a BatchNorm, a
bias or a ReLU does to an accumulator is then a scale, a shift and a clip, which wait until the next
grid (a site's calibrated input, a residual sum, the output), and become one `Rescale`. What is left
of each equation is a `Step`. A call walks the equations again, for its own batch, and runs the
steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxsim.cores.core import State
from jaxsim.cores.partition import Partitioned
from jaxsim.cores.quantized import Quantized, quantized, stored
from jaxsim.cores.role import DIGITAL, WEIGHT
from jaxsim.cores.scale_shift import bias_correction, smooth_scaling
from jaxsim.cores.wrapper import Wrapper
from jaxsim.formats.grid import Grid, scale_and_zero
from jaxsim.integer.affine import (
    Affine,
    Counted,
    Floats,
    affine,
    common_step,
    compact,
    scale_and_shift,
)
from jaxsim.integer.equations import CALLS, UNKNOWN, has_sites, inner_plan, line_of, refusal
from jaxsim.integer.experts import is_scan_of_experts, lower_experts
from jaxsim.integer.network import IntegerNetwork
from jaxsim.integer.requantize import dyadic
from jaxsim.integer.rules import RESIDUAL_LEVELS, RULES
from jaxsim.integer.steps import (
    Absent,
    Alias,
    Apply,
    AsIs,
    Constant,
    Contract,
    Encode,
    Encoded,
    Enter,
    Known,
    Operand,
    Rescaled,
    Step,
)
from jaxsim.internals import Atom, bind, shape_of
from jaxsim.network.leaves import is_array
from jaxsim.network.lookups import read_table
from jaxsim.network.moves import UNCHANGED
from jaxsim.network.network import Network, check_sites, require_uncut
from jaxsim.network.plan import Contraction, Entry, Inner, Plan, contractions
from jaxsim.network.planner import trace_plan
from jaxsim.network.unheld import live_equations

_UNCHANGED = UNCHANGED | {"convert_element_type"}


def integer_only(chip: Network) -> IntegerNetwork:
    """Converts a deployed and calibrated network to integers alone.

    Between the quantized inputs and the outputs there are int8 codes, int32 accumulators and
    multipliers b/2^c. BatchNorm, biases and whatever else is affine by channel go into these
    multipliers and what is added to them, ReLU and ReLU6 into the clip; residuals are added on a
    common grid of 24 bits; pooling takes the maximum or the sum of integers. Sums of experts go to
    one grid of 24 bits, where rows take those of the expert that they chose; of none, zeros.

    Args:
      chip: Network with every site quantized by `quantize`, with `smooth`, `correct_bias`, `block`
        and `slice_bits` at most after it, symmetric weights and stored input ranges.

    Returns:
      A function of the model's arguments whose outputs are floats again: integers times one scale.

    Raises:
      ValueError: Not deployed and calibrated, a site that is not quantized so, or an equation that
        has no integer form here, by primitive and line.

    Source: Jacob et al. (2018), arXiv 1712.05877; Yao et al. (2021), arXiv 2011.10680.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.array([[-1.0, 0.5], [0.25, 1.0]])
      >>> net = js.trace(lambda p, x: jnp.maximum(x @ p["w"], 0), {"w": jnp.eye(2)}, x)
      >>> chip = js.deploy(js.quantize(8, 8)(net), calibrate=x)
      >>> bool(jnp.allclose(js.integer_only(chip)(x), chip(x), atol=1e-3))
      True
    """
    if not isinstance(chip, Network):
        raise ValueError(f"chip: a {type(chip).__name__} is no Network")
    require_uncut(
        chip,
        "integer_only",
        allowed=("pipeline_shard",),
        reason="its classifiers are floats",
        prune_tokens="the attention that its tokens receive is in floats",
    )
    if not (chip.deployed and chip.calibrated):
        raise ValueError("chip: give what js.deploy(net, calibrate=inputs) returns")
    held = (chip.masked_params(), chip.buffers)
    shapes = jax.eval_shape(lambda: held)
    traced = trace_plan(chip.fn, shapes[0], shapes[1], chip.example, chip.example, chip.weights)
    check_sites(chip, traced.plan)
    known: list[Any] = [np.asarray(a) if _numeric(a) else a for a in jax.tree.leaves(held)]
    lowering = Lowering(chip)
    values = lowering.run(traced.plan, [*known, *[Floats()] * len(chip.example.arrays)])
    outputs = tuple(map(lowering.output, values))
    return IntegerNetwork(
        cores={name: _hardware(chip.cores[name]) for name in lowering.states},
        states=lowering.states,
        constants=tuple(lowering.constants),
        fn=chip.fn,
        held=Partitioned.of(shapes, lambda leaf: False),
        defaults=chip.defaults,
        example=chip.example,
        weights=chip.weights,
        steps=tuple(lowering.steps),
        outputs=outputs,
    )


class Lowering:
    """Walks equations with what is known beforehand, and collects steps.

    Attributes:
      steps: Steps so far.
      constants: Values that steps read, so far.
      states: States of the sites met so far.
    """

    def __init__(self, chip: Network):
        """Begins without steps.

        Args:
          chip: Deployed and calibrated network.
        """
        self.chip = chip
        self.steps: list[Step] = []
        self.constants: list[Any] = []
        self.states: dict[str, State] = {}
        self.rescaled: dict[Any, tuple[Affine, Rescaled]] = {}

    def run(
        self, plan: Plan, values: Sequence[Any], around: jex.JaxprEqn | None = None
    ) -> list[Any]:
        """Converts the equations of a plan.

        Args:
          plan: Equations.
          values: What its inputs stand for: known arrays, `Affine` or `Floats`.
          around: The call that they are inside of, whose line those have that JAX kept none of.

        Returns:
          What its outputs stand for.
        """
        env = dict(zip(plan.jaxpr.invars, values, strict=True))
        env.update(zip(plan.jaxpr.constvars, map(_array, plan.consts), strict=True))

        def read(atom: Atom) -> Any:
            return np.asarray(atom.val) if isinstance(atom, jex.Literal) else env[atom]

        runs = live_equations(plan, self.chip.states)
        for eqn, entry, run in zip(plan.jaxpr.eqns, plan.entries, runs, strict=True):
            if not run:  # as the slices that experts were taken by
                self.steps.append(Known(eqn.primitive.name))
                env.update(zip(eqn.outvars, [None] * len(eqn.outvars), strict=True))
                continue
            named = eqn
            if around is not None and line_of(eqn) == UNKNOWN:
                named = eqn.replace(source_info=around.source_info)
            outs = self.equation(named, entry, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in plan.jaxpr.outvars]

    def equation(self, eqn: jex.JaxprEqn, entry: Entry, ins: list[Any]) -> Sequence[Any]:
        """Converts an equation and notes its step.

        Args:
          eqn: Equation.
          entry: Its meaning in the plan.
          ins: What its operands stand for.

        Returns:
          What its results stand for.
        """
        name = eqn.primitive.name
        joined = any(isinstance(value, Affine) for value in ins)
        if not joined and not any(isinstance(value, Floats) for value in ins):
            outs = [_array(out) for out in bind(eqn, list(map(_numbers, ins)))]
            pairs = zip(eqn.invars, ins, strict=True)
            counts = all(isinstance(a, jex.Literal) or isinstance(v, Counted) for a, v in pairs)
            if counts and not any(jnp.issubdtype(out.dtype, jnp.floating) for out in outs):
                self.steps.append(Apply(name, tuple(map(self.computed, ins))))
                return list(map(Counted, outs))
            self.steps.append(Known(name))
            return outs
        if not has_sites(entry) and not joined:
            self.steps.append(Apply(name, tuple(map(self.computed, ins))))
            return [Floats()] * len(eqn.outvars)
        if isinstance(entry, Inner) and entry.rewritten:
            (inside,) = (c.site for c in contractions(entry.plans[0]))
            if inside.chosen:
                self.steps.append(Enter(name))
                return self.run(entry.plans[0], ins, eqn)
        if is_scan_of_experts(entry):
            return [lower_experts(self, eqn, entry, ins)]
        if eqn.primitive in CALLS:
            self.steps.append(Enter(name))
            return self.run(inner_plan(eqn, entry), ins, eqn)
        ins = list(map(_numbers, ins)) if name != "gather" else ins
        if isinstance(entry, Contraction) and entry.site.kind == "lookup":
            return [self.lookup(eqn, entry, ins)]
        if isinstance(entry, Contraction):
            return [self.site(eqn, entry, ins)]
        if isinstance(entry, Inner) and entry.names:
            names = ", ".join(sorted(entry.names))
            raise refusal(eqn, f"runs {names} in a loop or branch, which has no integer form")
        given = ins[1:] if name == "select_n" else ins  # truths choose, whatever found them
        if name != "gather" and any(isinstance(value, Floats) for value in given):
            raise refusal(eqn, "joins a float input with integers: quantize it at a site first")
        out, rule = shape_of(eqn.outvars[0]), RULES.get(name)
        if name in _UNCHANGED and jnp.issubdtype(out.dtype, jnp.floating):
            if len(ins) == 1:
                return [self.alias(eqn, ins, ins[0])]
            self.apply(eqn, [AsIs() if isinstance(a, Affine) else self.computed(a) for a in ins])
            return ins
        if rule is None:
            raise refusal(eqn, "has no integer form")
        made = rule(self, eqn, ins, out.shape)
        return made if isinstance(made, list) else [made]

    def computed(self, value: Any) -> Operand:
        """Reads what a call computes as it does, and anything else as a constant.

        Args:
          value: `Floats`, `Counted` or a known array.
        """
        return AsIs() if isinstance(value, Floats | Counted) else self.constant(jnp.asarray(value))

    def constant(self, value: Any) -> Constant:
        """Adds a constant.

        Args:
          value: Array, `Rescale` or `Encode`.

        Returns:
          The operand that reads it.
        """
        self.constants.append(value)
        return Constant(len(self.constants) - 1)

    def alias(self, eqn: jex.JaxprEqn, ins: Sequence[Any], out: Affine) -> Affine:
        """Notes an equation that only changes what its integers stand for.

        Args:
          eqn: Equation.
          ins: What its operands stand for, one of them integers.
          out: What its result stands for.

        Returns:
          `out`.
        """
        operands = tuple(AsIs() if isinstance(v, Affine) else Absent() for v in ins)
        self.steps.append(Alias(eqn.primitive.name, operands))
        return out

    def apply(self, eqn: jex.JaxprEqn, operands: Sequence[Operand], summed: int = 0) -> None:
        """Notes an equation that runs on integers.

        Args:
          eqn: Equation.
          operands: How each operand is read.
          summed: Number of terms of a sum, 0 for other primitives.
        """
        self.steps.append(Apply(eqn.primitive.name, tuple(operands), summed))

    def site(self, eqn: jex.JaxprEqn, entry: Contraction, ins: list[Any]) -> Affine:
        """Converts a site.

        Args:
          eqn: Equation of the contraction.
          entry: Site.
          ins: What its operands stand for.

        Returns:
          What its accumulators stand for.
        """
        name, x = entry.site.name, ins[entry.x_at]
        _, inputs = self.grids(eqn, entry)
        state: Quantized = self.chip.states[name]
        step, zero = map(np.asarray, scale_and_zero(inputs, state.inputs))  # pyright: ignore
        x, spread = self.smoothed(entry, x)
        operand = self.codes(eqn, x, inputs, step * spread, zero)
        pad = None if inputs.symmetric else self.constant(jnp.asarray(zero, jnp.int8))
        self.steps.append(Contract(eqn.primitive.name, operand, pad))
        self.states[name] = state.inner
        shape = shape_of(eqn.outvars[0]).shape
        out = self.accumulators(eqn, entry, state, shape, step, zero)
        return self.corrected(entry, out)

    def smoothed(self, entry: Contraction, x: Any) -> tuple[Any, Any]:
        """Divides the input of a site by what smoothing divides its channels by.

        Args:
          entry: Site.
          x: What the input stands for.

        Returns:
          What it stands for then, and what else steps of its grid are multiplied by: floats stay
          as they are, on a grid for each channel.
        """
        spread: Any = 1.0
        for wrapper in _of(self.chip.cores[entry.site.name], smooth_scaling):
            channels = entry.op.geometry.to_x(wrapper.settings["channels"])
            if isinstance(x, Affine):
                factor = compact(1 / np.asarray(channels, np.float64), len(x.shape))
                x = scale_and_shift(x, factor, np.zeros((1,) * len(x.shape)), x.shape)
            else:
                spread = spread * np.asarray(channels)
        return x, spread

    def corrected(self, entry: Contraction, out: Affine) -> Affine:
        """Adds to the accumulators of a site what corrects its outputs.

        Args:
          entry: Site.
          out: What they stand for.
        """
        for wrapper in _of(self.chip.cores[entry.site.name], bias_correction):
            bias = np.asarray(entry.op.to_output(wrapper.settings["bias"]), np.float64)
            rank = len(out.shape)
            out = scale_and_shift(out, np.ones((1,) * rank), compact(bias, rank), out.shape)
        return out

    def accumulators(
        self,
        eqn: jex.JaxprEqn,
        entry: Contraction,
        state: Quantized,
        shape: Sequence[int],
        step: Any,
        zero: Any,
    ) -> Affine:
        """Says what the accumulators of a site stand for.

        Args:
          eqn: Equation of the contraction.
          entry: Site.
          state: What is written of it, of one slice if it is stacked.
          shape: Shape of the accumulators.
          step: Step of the inputs' grid.
          zero: Code of zero there.
        """
        weights, inputs = self.grids(eqn, entry)
        op, step = entry.op, np.float64(step)
        scale = step * np.asarray(op.to_output(state.scale), np.float64)
        largest = max(map(abs, inputs.code_range))
        if isinstance(state.inner, jax.Array) and state.inner.ndim == len(op.geometry.w_shape):
            reach = largest * np.asarray(op.column_sum(jnp.abs(state.inner)), np.float64)
        else:
            reach = np.float64(largest * weights.code_range[1] * op.depth)
        if np.max(reach) >= 2**31:
            raise refusal(eqn, f"sums {op.depth} products, which may leave 32 bits")
        total = 0.0 if state.total is None else np.asarray(state.total, np.float64)
        shift = -float(zero) * scale * total
        return affine(shape, scale, shift, -reach, reach)

    def lookup(self, eqn: jex.JaxprEqn, entry: Contraction, ins: list[Any]) -> Floats:
        """Converts a lookup: its rows are the floats that the codes stand for.

        The next site makes integers of them. A table that holds codes is decoded here, once.

        Args:
          eqn: Equation of the lookup.
          entry: Site.
          ins: What its operands stand for.

        Returns:
          What its rows stand for.
        """
        if any(isinstance(value, Affine) for value in ins):
            raise refusal(eqn, f"({entry.site.name}) is looked up at integers that were computed")
        name, ins = entry.site.name, list(ins)
        if name in self.chip.states:
            ins[entry.w_at] = read_table(self.chip.cores[name], entry, self.chip.states[name])
        self.steps.append(Apply(eqn.primitive.name, tuple(map(self.computed, ins))))
        return Floats()

    def grids(self, eqn: jex.JaxprEqn, entry: Contraction) -> tuple[Grid, Grid]:
        """Checks the wrappers of a site.

        Args:
          eqn: Equation of the contraction.
          entry: Site.

        Returns:
          The grids of its weights and of its inputs.

        Raises:
          ValueError: The site has no integer form.
        """
        name = entry.site.name
        chain = self.chip.cores.get(name, ())
        if entry.site.kind == "dynamic":
            raise refusal(eqn, f"({name}) contracts two activations")
        for wrapper in chain:
            if wrapper.role in DIGITAL - WEIGHT and wrapper.factory not in _FOLDED:
                raise refusal(eqn, f"({name}) reads {wrapper!r}, which computes with floats")
        chain = _hardware(chain)
        # The arithmetic of this very function is translated; another of its role may differ.
        if not chain or chain[0].factory is not quantized:
            raise refusal(eqn, f"({name}) is not quantized")
        for wrapper in chain[1:]:
            if wrapper.role not in ("blocks", "slices"):
                raise refusal(eqn, f"({name}) reads {wrapper!r}, which computes with floats")
        weights, inputs = chain[0].formats
        for what, grid in (("weights", weights), ("inputs", inputs)):
            if grid is None:
                raise refusal(eqn, f"({name}) has float {what}")
        if not weights.symmetric:
            raise refusal(eqn, f"({name}) has weights with a zero point; make them symmetric")
        if not stored(inputs):
            raise refusal(eqn, f"({name}) takes its input range from each batch")
        if inputs.bits == 1 or inputs.spacing == "powers" or inputs.rounding == "stochastic":
            raise refusal(
                eqn, f"({name}) rounds inputs to {inputs}, not to the nearest of even codes"
            )
        return weights, inputs

    def codes(self, eqn: jex.JaxprEqn, x: Any, grid: Grid, step: Any, zero: Any) -> Operand:
        """Puts a site's input on its grid.

        Args:
          eqn: Equation of the contraction.
          x: What the input stands for.
          grid: Grid of the input.
          step: Step of the grid.
          zero: Code of zero.

        Returns:
          How the site reads it, as codes.
        """
        qmin, qmax = grid.code_range
        if isinstance(x, Floats):
            bounds = (jnp.float32(qmin), jnp.float32(qmax))
            encode = Encode(jnp.asarray(step), jnp.asarray(zero), *bounds)
            return Encoded(self.constant(encode).at)
        return self.rescale_to(eqn, x, float(step), float(zero), qmin, qmax)

    def rescale_to(
        self,
        eqn: jex.JaxprEqn | None,
        x: Affine,
        step: float,
        zero: float,
        qmin: float,
        qmax: float,
    ) -> Rescaled:
        """Puts integers on the grid `(code - zero) step`.

        Args:
          eqn: Equation that reads them; None for an output.
          x: What the integers stand for.
          step: Step of the grid.
          zero: Code of zero.
          qmin: Least code.
          qmax: Largest code.

        Returns:
          How the equation reads them.
        """
        key = (id(x), step, zero, qmin, qmax)
        if key in self.rescaled:
            return self.rescaled[key][1]
        lo, hi = (np.clip(np.round(end / step) + zero, qmin, qmax) for end in (x.lo, x.hi))
        numbers = (x.scale / step, x.shift / step + zero)
        try:
            r = dyadic(*numbers, lo=lo, hi=hi, min_code=x.min_code, max_code=x.max_code)
        except ValueError as error:
            raise refusal(eqn, f"takes numbers that its grid cannot hold: {error}") from error
        operand = Rescaled(self.constant(r).at)
        self.rescaled[key] = (x, operand)
        return operand

    def to_common_grid(
        self, eqn: jex.JaxprEqn | None, values: Sequence[Affine], largest: float
    ) -> tuple[list[Operand], list[Affine]]:
        """Puts several values on one grid of a positive scale alone.

        Args:
          eqn: Equation that reads them; None for an output.
          values: What they stand for.
          largest: Largest magnitude of a code.

        Returns:
          How the equation reads each, and what each stands for then.
        """
        steps = {float(v.scale.flat[0]) for v in values if v.is_pure_scale}
        least = min(float(v.min_code.min()) for v in values)
        most = max(float(v.max_code.max()) for v in values)
        pure = all(v.is_pure_scale for v in values)
        if pure and len(steps) == 1 and max(-least, most) <= largest:
            return [AsIs()] * len(values), list(values)
        step = common_step(values, largest)
        operands, there = list[Operand](), list[Affine]()
        for value in values:
            bounds = [np.round(end / step) for end in value.bounds]
            lo, hi = float(bounds[0].min()), float(bounds[1].max())
            operands.append(self.rescale_to(eqn, value, step, 0.0, lo, hi))
            there.append(affine(value.shape, step, 0.0, *bounds))
        return operands, there

    def output(self, value: Any) -> tuple[Operand, Constant | None]:
        """Puts an output on a fine grid.

        Args:
          value: What the output stands for.

        Returns:
          How it is read, and its scale, None for floats.
        """
        if isinstance(value, Floats | Counted):
            return AsIs(), None
        if not isinstance(value, Affine):
            return self.constant(jnp.asarray(value)), None
        (operand,), (there,) = self.to_common_grid(None, [value], RESIDUAL_LEVELS)
        return operand, self.constant(jnp.float32(there.scale.item()))


def _hardware(chain: tuple[Wrapper, ...]) -> tuple[Wrapper, ...]:
    """Selects the wrappers that read a written weight.

    Those that changed it before are left out, and those that multipliers and what is added to them
    stand for.
    """
    return tuple(w for w in chain if w.role not in WEIGHT and w.factory not in _FOLDED)


def _of(chain: Sequence[Wrapper], factory: Any) -> list[Wrapper]:
    return [wrapper for wrapper in chain if wrapper.factory is factory]


_FOLDED = (smooth_scaling, bias_correction)
"""What stands beside a site and becomes part of its multipliers."""


def _numbers(value: Any) -> Any:
    """Takes what is counted at conversion for a constant."""
    return value.value if isinstance(value, Counted) else value


def _numeric(a: Any) -> bool:
    return not jnp.issubdtype(jnp.result_type(a), jax.dtypes.extended)


def _array(a: Any) -> Any:
    """Converts a known value to numpy where it can hold it."""
    return np.asarray(a) if is_array(a) and _numeric(a) else a
