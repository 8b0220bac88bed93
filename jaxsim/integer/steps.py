"""Steps of an integer network: one class per kind, each of which runs itself.

Operands and steps are dataclasses rather than tuples: they are static, and tuples of two kinds that
hold the same numbers would be equal, and share a compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxsim import internals
from jaxsim.cores.core import State
from jaxsim.cores.wrapper import build
from jaxsim.integer.equations import inner_plan, line_of, summed_windows
from jaxsim.integer.requantize import rescale
from jaxsim.internals import bind, shape_of
from jaxsim.network.interpreter import evaluate_plan
from jaxsim.network.plan import Contraction, Entry, Inner, Plan, contractions

if TYPE_CHECKING:
    from jaxsim.integer.network import IntegerNetwork


class Encode(NamedTuple):
    """Grid of a float: `clip(round(x / scale) + zero, lo, hi)`, the one place floats come in.

    Attributes:
      scale: Step of the grid.
      zero: Code of zero.
      lo, hi: Least and largest code.
    """

    scale: Float[Array, ""]
    zero: Float[Array, ""]
    lo: Float[Array, ""]
    hi: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class AsIs:
    """Operand that is read as it is."""

    def read(self, net: IntegerNetwork, value: Any) -> Any:
        """Returns the value.

        Args:
          net: Integer network; not used.
          value: Value of the operand.
        """
        del net
        return value


@dataclasses.dataclass(frozen=True)
class Absent:
    """Operand of which nothing is left after conversion."""

    def read(self, net: IntegerNetwork, value: Any) -> Any:
        """Returns None.

        Args:
          net: Integer network; not used.
          value: Value of the operand; not used.
        """
        del net, value


@dataclasses.dataclass(frozen=True)
class Constant:
    """Operand that conversion has computed.

    Attributes:
      at: Position among the network's constants.
    """

    at: int

    def read(self, net: IntegerNetwork, value: Any) -> Any:
        """Returns the constant.

        Args:
          net: Integer network.
          value: Value of the operand; not used.
        """
        del value
        return net.constants[self.at]


@dataclasses.dataclass(frozen=True)
class Rescaled:
    """Operand of integers that go to another grid.

    Attributes:
      at: Position of a `Rescale` among the network's constants.
    """

    at: int

    def read(self, net: IntegerNetwork, value: Any) -> Any:
        """Returns the integers on the other grid.

        Args:
          net: Integer network.
          value: Value of the operand.
        """
        return rescale(value, net.constants[self.at])


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Operand of floats that go to a grid.

    Attributes:
      at: Position of an `Encode` among the network's constants.
    """

    at: int

    def read(self, net: IntegerNetwork, value: Any) -> Any:
        """Returns the codes, int8.

        Args:
          net: Integer network.
          value: Value of the operand.
        """
        grid: Encode = net.constants[self.at]
        x = jnp.round(value.astype(jnp.float32) / grid.scale) + grid.zero
        return jnp.clip(x, grid.lo, grid.hi).astype(jnp.int8)


Operand = AsIs | Absent | Constant | Rescaled | Encoded
"""How a step reads an operand."""


class Running(NamedTuple):
    """Equation at hand in a call of an integer network.

    Attributes:
      net: Integer network.
      eqn: Equation of the model.
      entry: Meaning of the equation in its plan.
      ins: Values of its operands; None where they are known since conversion.
      steps: Steps that follow, which a call takes for the equations inside.
    """

    net: IntegerNetwork
    eqn: jex.JaxprEqn
    entry: Entry
    ins: Sequence[Any]
    steps: Iterator[Step]

    def read(self, operands: Sequence[Operand]) -> list[Any]:
        """Reads the operands of the equation.

        Args:
          operands: How each is read.
        """
        pairs = zip(self.ins, operands, strict=True)
        return [operand.read(self.net, value) for value, operand in pairs]


@dataclasses.dataclass(frozen=True)
class Known:
    """Step of an equation whose results were computed at conversion.

    Attributes:
      primitive: Name of the equation's primitive.
    """

    primitive: str

    def run(self, at: Running) -> Sequence[Any]:
        """Returns None for each result.

        Args:
          at: Equation at hand.
        """
        return [None] * len(at.eqn.outvars)


@dataclasses.dataclass(frozen=True)
class Alias:
    """Step of an equation that only changes what its integers stand for.

    Attributes:
      primitive: Name of the equation's primitive.
      operands: Absent but for one.
    """

    primitive: str
    operands: tuple[Operand, ...]

    def run(self, at: Running) -> Sequence[Any]:
        """Hands the one integer operand on.

        Args:
          at: Equation at hand.
        """
        pairs = zip(at.ins, self.operands, strict=True)
        (q,) = (value for value, operand in pairs if not isinstance(operand, Absent))
        return [jnp.broadcast_to(q, shape_of(at.eqn.outvars[0]).shape)]


@dataclasses.dataclass(frozen=True)
class Apply:
    """Step that runs the primitive, on integers or on floats that no site has quantized yet.

    Attributes:
      primitive: Name of the equation's primitive.
      operands: How each operand is read.
      summed: Number of terms of a sum, 0 for other primitives.
    """

    primitive: str
    operands: tuple[Operand, ...]
    summed: int = 0

    def run(self, at: Running) -> Sequence[Any]:
        """Runs the primitive.

        Args:
          at: Equation at hand.

        Raises:
          ValueError: It sums another number of terms than at conversion.
        """
        values = at.read(self.operands)
        if self.summed:
            _, found, _ = summed_windows(at.eqn, at.ins[0].shape)
            if found != self.summed:
                raise ValueError(
                    f"args: {self.primitive} at {line_of(at.eqn)} sums {found} numbers for these "
                    f"arguments and {self.summed} when the network was converted"
                )
        return bind(at.eqn, values)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Step that runs the primitive entry by entry, constants spread over the shape of the others.

    Attributes:
      primitive: Name of the equation's primitive.
      operands: How each operand is read.
    """

    primitive: str
    operands: tuple[Operand, ...]

    def run(self, at: Running) -> Sequence[Any]:
        """Runs the primitive.

        Args:
          at: Equation at hand.
        """
        return bind(at.eqn, jnp.broadcast_arrays(*at.read(self.operands)))


@dataclasses.dataclass(frozen=True)
class Contract:
    """Step of a site, which contracts codes.

    Attributes:
      primitive: Name of the equation's primitive.
      operand: How its input is read, as codes.
      pad: Code of zero, with which a convolution pads; None where it is 0.
    """

    primitive: str
    operand: Operand
    pad: Constant | None = None

    def run(self, at: Running) -> Sequence[Any]:
        """Computes the accumulators of the site.

        Args:
          at: Equation at hand.
        """
        net, entry = at.net, at.entry
        assert isinstance(entry, Contraction)
        codes = self.operand.read(net, at.ins[entry.x_at])
        pad = None if self.pad is None else self.pad.read(net, None)
        return [contract(net, entry, net.states[entry.site.name], codes, pad)]


def contract(
    net: IntegerNetwork, entry: Contraction, state: State, codes: Array, pad: Array | None = None
) -> Array:
    """Computes the accumulators of a site.

    Args:
      net: Integer network.
      entry: Site.
      state: What multiplies the codes, of one slice if it is stacked.
      codes: Codes of its input.
      pad: Code of zero, with which a convolution pads; None where it is 0.
    """
    wrapper, *inner = net.cores[entry.site.name]
    weights, inputs = wrapper.formats
    op = dataclasses.replace(entry.op, integer=True, ranges="stored")
    op = op.codes(*map(np.asarray, weights.code_range)).inputs(*inputs.code_range)
    codes = codes.astype(jnp.int8)
    if pad is not None:
        codes, op = op.pad(codes, pad)
    return build(inner).read(op, state, codes, None)


@dataclasses.dataclass(frozen=True)
class ContractExperts:
    """Step of a scan over experts, which contracts codes with one after the other.

    Attributes:
      primitive: Name of the equation's primitive.
      operands: How each operand of the scan is read, the input as codes; weights and what the
        result begins with are absent.
      grid: How accumulators are read, with an axis of experts in front, so that all experts' have
        one scale.
    """

    primitive: str
    operands: tuple[Operand, ...]
    grid: Operand

    def run(self, at: Running) -> Sequence[Any]:
        """Multiplies by one expert after the other and takes the rows that chose it.

        Args:
          at: Equation at hand.
        """
        net, entry, loop = at.net, at.entry, internals.scan(at.eqn)
        assert isinstance(entry, Inner)
        (body,) = entry.plans
        (site,) = contractions(body)
        values = at.read(self.operands)
        grids = None
        if isinstance(self.grid, Rescaled):
            grids = jax.tree.map(
                lambda a: jnp.broadcast_to(a, (loop.length, *a.shape[1:])),
                net.constants[self.grid.at],
            )

        def expert(y: Array, slices: Any) -> tuple[Array, None]:
            xs, state, grid = slices

            def step(eqn: jex.JaxprEqn, entry: Entry, ins: list[Any]) -> Sequence[Any]:
                if isinstance(entry, Contraction):
                    sums = contract(net, entry, state, ins[entry.x_at])
                    return [sums if grid is None else rescale(sums, grid)]
                return ins if eqn.primitive is prims.convert_element_type_p else bind(eqn, ins)

            (y,) = evaluate_plan(body, [*values[: loop.consts], y, *xs], step)
            return y, None

        none = jnp.zeros(shape_of(at.eqn.outvars[0]).shape, jnp.int32)
        state = net.states[site.site.name]
        return [lax.scan(expert, none, (values[loop.first_slice :], state, grids))[0]]


@dataclasses.dataclass(frozen=True)
class Take:
    """Step that takes slices of integers at integers; 0 where there are none.

    Attributes:
      primitive: Name of the equation's primitive.
      operands: How each operand is read.
    """

    primitive: str
    operands: tuple[Operand, ...]

    def run(self, at: Running) -> Sequence[Any]:
        """Takes the slices.

        Args:
          at: Equation at hand.
        """
        eqn = internals.with_parameters(at.eqn, fill_value=0)
        return bind(eqn, at.read(self.operands))


@dataclasses.dataclass(frozen=True)
class Enter:
    """Step of a call, which takes the steps of the equations inside.

    Attributes:
      primitive: Name of the equation's primitive.
    """

    primitive: str

    def run(self, at: Running) -> Sequence[Any]:
        """Runs the equations inside.

        Args:
          at: Equation at hand.
        """
        return run_steps(at.net, inner_plan(at.eqn, at.entry), at.ins, at.steps)


Step = Known | Alias | Apply | Spread | Contract | ContractExperts | Take | Enter
"""What is left of an equation after conversion."""


def run_steps(
    net: IntegerNetwork, plan: Plan, values: Sequence[Any], steps: Iterator[Step]
) -> list[Any]:
    """Runs the steps of a plan.

    Args:
      net: Integer network.
      plan: Equations, as traced for this call.
      values: Inputs of the plan; None where they are known since conversion.
      steps: Steps, of which those of this plan are taken.

    Returns:
      The outputs; None where they are known.

    Raises:
      ValueError: The equations are others than those that were converted.
    """
    env = dict(zip(plan.jaxpr.invars, values, strict=True))
    for eqn, entry in zip(plan.jaxpr.eqns, plan.entries, strict=True):
        step = next(steps, None)
        if step is None or step.primitive != eqn.primitive.name:
            raise ValueError(
                f"args: {eqn.primitive.name} at {line_of(eqn)} runs for these arguments and did "
                "not when the network was converted"
            )
        ins = [None if isinstance(v, jex.Literal) else env.get(v) for v in eqn.invars]
        outs = step.run(Running(net, eqn, entry, ins, steps))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [None if isinstance(v, jex.Literal) else env.get(v) for v in plan.jaxpr.outvars]
