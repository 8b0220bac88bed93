"""Weights on a grid of blocks, as GGUF files have them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxsim.cores.core import Core
from jaxsim.cores.op import Op
from jaxsim.cores.product import multiplies, of_written, operands_of
from jaxsim.cores.role import role
from jaxsim.formats.block_grid import ROWS, BlockCodes, BlockGrid, decode_blocks, encode_blocks
from jaxsim.numerics.packed import Packed, unpacked


class BlockState(NamedTuple):
    """State of weights on a grid of blocks.

    Attributes:
      codes: Code of each weight; at deployment two in a byte, where they have four bits.
      scale: Step of each block, of the weight's rank, contracted axes of size 1.
      minimum: What a code of zero stands for, likewise; None for zero.
      passed: What lends the weight its derivative before deployment; None after it.
      kept: Which weights are not pruned; None where zero has a code, or all are kept.
    """

    codes: Int[Array, "..."] | Packed
    scale: Float[Array, "..."]
    minimum: Float[Array, "..."] | None
    passed: Array | None
    kept: Bool[Array, "..."] | None = None


@role("floats")
def block_grid(core: Core, *, weights: BlockGrid) -> Core:
    """Holds weights as codes of blocks of 32, and makes floats of them at each read.

    Args:
      core: contracts the floats.
      weights: the grid.
    """
    kind = jnp.uint8 if weights.shifted else jnp.int8

    def given(op: Op) -> tuple[Array, Array | None] | None:
        if weights.scale is None:
            return None
        outputs = op.channel_shape()
        found = [
            None if a is None else _placed(op.slice_for_layer(a), outputs, name)
            for name, a in (("scale", weights.scale), ("minimum", weights.minimum))
        ]
        assert found[0] is not None
        return found[0], found[1]

    def write(op: Op, w: Array, key: Any) -> BlockState:
        if op.depth != ROWS or op.filled:
            raise ValueError(
                f"weights={weights} of {list(w.shape)}: an output sums a number of products that "
                f"is no multiple of {ROWS}, the weights of a block; leave the site out by sites=…"
            )
        w = w.astype(jnp.float32)
        held = encode_blocks(weights, lax.stop_gradient(w), op.geometry.contracted, given(op))
        codes: Any = held.codes.astype(kind)
        kept = w != 0 if op.masked and weights.shifted else None
        op.count("weight_bits", (weights.bits + (kept is not None)) * w.size)
        op.count("cells", w.size)
        if op.layout != "plain" and weights.bits == 4:
            codes = Packed.of(codes, op.geometry.contracted[-1] - w.ndim, 4)
        return BlockState(codes, held.scale, held.minimum, None if op.integer else w, kept)

    def weight(op: Op, state: BlockState) -> Array:
        values = decode_blocks(BlockCodes(unpacked(state.codes), state.scale, state.minimum))
        if state.kept is not None:
            values = jnp.where(state.kept, values, 0)
        if state.passed is None:
            return values
        return state.passed + lax.stop_gradient(values - state.passed)

    def written(op: Op, state: BlockState) -> Any:
        return core.write(dataclasses.replace(op, meter=None), weight(op, state), None)

    @multiplies(of_written(operands_of(core), written))
    def read(op: Op, state: BlockState, x: Array, key: Any) -> Array:
        return core.read(op, written(op, state), x, key)

    return Core(write, lambda op, state, x: state, read)


def _placed(a: Array, shape: tuple[int, ...], name: str) -> Array:
    """Numbers of a file, one a block, in the order of the blocks of a weight."""
    if a.size != math.prod(shape):
        raise ValueError(
            f"weights: {name} {list(a.shape)} for a weight of {math.prod(shape)} blocks: expected "
            f"[K / {ROWS}, N], one for each block of the K products of each of N outputs"
        )
    return a.reshape(shape)
