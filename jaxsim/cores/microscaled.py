"""Weights and inputs in small blocks of short elements."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Num

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.product import Operands, multiplies, of_written, operands_of
from jaxsim.cores.role import role
from jaxsim.formats.microscaling import (
    MicroCodes,
    Microscaled,
    decode_micro,
    encode_micro,
    exponents,
    from_e4m3,
    powers,
    stored_elements,
    to_elements,
)
from jaxsim.numerics.packed import Packed, unpacked


class MicroState(NamedTuple):
    """State of weights in blocks of elements.

    Attributes:
      elements: Elements: in four bits as codes, at deployment two in a byte; in six and eight as
        floats of eight bits; integers as 64 times their number.
      scale: Scale of each block, of the weight's rank, contracted axes of size 1: the exponent of
        a power of two, or a float of eight bits.
      tensor: Scale of all, None where there is none.
      passed: What lends the weight its derivative before deployment; None after it.
    """

    elements: Num[Array, "..."] | Packed
    scale: Num[Array, "..."]
    tensor: Array | None
    passed: Array | None


@role("floats")
def microscaled(core: Core, *, weights: Microscaled | None, inputs: Microscaled | None) -> Core:
    """Rounds weights and inputs to blocks of short elements, and contracts what they stand for.

    Args:
      core: contracts the floats.
      weights: format of the weights; None leaves them.
      inputs: format of the inputs; None leaves them.
    """
    (rows,) = {form.rows for form in (weights, inputs) if form is not None}

    def write(op: Op, w: Array, key: Any) -> State:
        if op.depth != rows or op.filled:
            raise ValueError(
                f"weights={weights}, inputs={inputs} at a weight of {list(w.shape)}: an output "
                f"sums a number of products that is no multiple of {rows}, the elements of a "
                "block; leave the site out by sites=…"
            )
        if weights is None:
            return core.write(op, w, key)
        w = w.astype(jnp.float32)
        held = encode_micro(
            weights, lax.stop_gradient(w), op.geometry.contracted, _given(op, weights)
        )
        elements = stored_elements(weights, held.elements)
        if weights.kind.bits == 4 and op.layout != "plain":
            elements = Packed.of(elements, op.geometry.contracted[-1] - w.ndim, 4)
        powers_of_two = weights.scale == "e8m0"
        scale = exponents(held.scale) if powers_of_two else held.scale.astype(jnp.float8_e4m3fn)
        op.count("weight_bits", weights.kind.bits * w.size)
        op.count("cells", w.size)
        return MicroState(elements, scale, held.tensor, None if op.integer else w)

    def weight(state: MicroState) -> Array:
        assert weights is not None
        powers_of_two = weights.scale == "e8m0"
        scale = powers(state.scale) if powers_of_two else from_e4m3(state.scale)
        elements = to_elements(weights, unpacked(state.elements))
        values = decode_micro(MicroCodes(elements, scale, state.tensor))
        if state.passed is None:
            return values
        return state.passed + lax.stop_gradient(values - state.passed)

    def written(op: Op, state: Any) -> Any:
        if weights is None:
            return state
        return core.write(dataclasses.replace(op, meter=None), weight(state), None)

    def rounded(op: Op, x: Array) -> Array:
        """Inputs as elements stand for them, a block of each vector its own; with a derivative."""
        x = x.astype(jnp.float32)
        if inputs is None:
            return x
        held = encode_micro(inputs, lax.stop_gradient(x), op.geometry.x_summed)
        return x + lax.stop_gradient(decode_micro(held) - x)

    inner = of_written(operands_of(core), written)

    @multiplies(
        inner
        and Operands(
            inner.weight,
            lambda op, state, x, key: inner.inputs(op, state, rounded(op, x), key),
            inner.divides,
        )
    )
    def read(op: Op, state: Any, x: Array, key: Any) -> Array:
        return core.read(op, written(op, state), rounded(op, x), key)

    return Core(write, lambda op, state, x: state, read)


def _given(op: Op, weights: Microscaled) -> tuple[Array, Array | None] | None:
    """Scales that the blocks of this slice are given, of the weight's rank."""
    if weights.steps is None:
        return None
    steps, shape = op.slice_for_layer(weights.steps), op.channel_shape()
    if steps.size != math.prod(shape):
        raise ValueError(
            f"weights: scales {list(steps.shape)} for a weight of {math.prod(shape)} blocks"
        )
    tensor = None if weights.tensor is None else op.slice_for_layer(weights.tensor)
    return steps.reshape(shape), tensor
