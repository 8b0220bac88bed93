"""An operand that is computed in the call and written into an array there, as keys and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from jaxsim.cores.core import Core, State
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.role import role
from jaxsim.cores.wrapper import Wrapper
from jaxsim.formats.grid import Grid, Range, no_range, observe_range, update_range


class OperandRanges(NamedTuple):
    """What a chip keeps of an operand that each call writes anew.

    Attributes:
      inner: State of the inner core, nothing but ranges in it.
      values: Range of the operand.
      seed: Seed that calibrations write by, from the key of deployment; None where there was none.
    """

    inner: State
    values: Range
    seed: UInt32[Array, ""] | None


class WrittenOperand(NamedTuple):
    """An operand of one call.

    Attributes:
      values: Its numbers.
      key: Random key of its cells; None where the caller gave none.
      held: What the chip keeps; None before deployment, when ranges are those of the call.
    """

    values: Float[Array, "..."]
    key: Any
    held: OperandRanges | None


@role("operand")
def written_operand(
    core: Core, *, form: Grid, swapped: bool, rows: int, seed: UInt32[Array, ""] | None = None
) -> Core:
    """Writes one operand of a product of two activations in each call, and reads it by the other.

    The product becomes one of matrices [B, M, K] @ [B, K, N], each of whose B entries (heads and
    rows of the batch) is an array of its own. Written values are on one grid over a range that
    calibration sets, so that what is written for a token does not depend on tokens that follow.

    Args:
      core: Writes and reads a weight.
      form: Grid on which the inner core stores it.
      swapped: Whether the operand that the site has for its input is the one that is written.
      rows: Rows of one array; those of the last one that hold nothing are not counted as written.
      seed: Seed of the key that writes draw from; None for the key of the call. Traced.
    """
    del seed  # the interpreter's, which knows the name of the site: `write_key`

    def turned(op: Op, values: Array, x: Array) -> tuple[Op, Array, Array]:
        """The op with what is written as its weight, that weight, and what reads it."""
        if not swapped:
            return op, values, x
        g = op.geometry
        assert isinstance(g, Dot)
        geometry = dataclasses.replace(
            g,
            x_contract=g.w_contract,
            x_batch=g.w_batch,
            w_contract=g.x_contract,
            w_batch=g.x_batch,
            x_ndim=len(g.w_shape),
            w_shape=x.shape,
            weight_first=not g.weight_first,
        )
        return dataclasses.replace(op, geometry=geometry), x, values

    def inner_state(op: Op, w: Array, state: WrittenOperand, key: Any) -> State:
        if state.held is None:
            return core.write(op, w, key)
        r = op.range("quantize(weights=…) of what a call writes", state.held.values, no_range)
        fresh = core.write(dataclasses.replace(op, w_range=r), w, key)
        return jax.tree.map(
            lambda node, kept: kept if _is_range(node) else node,
            *(fresh, state.held.inner),
            is_leaf=_is_range,
        )

    def write(op: Op, w: Array | None, key: Any) -> WrittenOperand | OperandRanges:
        """What reads take; of no weight, at deployment, what the chip keeps."""
        if w is not None:
            return WrittenOperand(w, key, None)
        unit = Dot((2,), (0,), (1,), (0,), 3, (1, 1, 1))  # no range has the sizes of an operand
        op = dataclasses.replace(op, geometry=unit, layout="plain")
        state = jax.eval_shape(lambda key: core.write(op, jnp.zeros((1, 1, 1)), key), key)
        inner = jax.tree.map(
            lambda node: no_range(node.lo.shape) if _is_range(node) else None,
            state,
            is_leaf=_is_range,
        )
        seed = None if key is None else jax.random.bits(key)
        return OperandRanges(inner, no_range(), seed)

    def calibrate(op: Op, state: WrittenOperand, x: Array) -> WrittenOperand:
        held = state.held
        assert held is not None
        op, values, x = turned(op, state.values, x)
        matmul = op.geometry.as_matmul()
        op, w = dataclasses.replace(op, geometry=matmul.geometry), matmul.w(values)
        seen = observe_range(
            w.astype(jnp.float32),
            axes=None,
            clip=form.clip,
            bits=form.bits,
            symmetric=form.symmetric,
        )
        held = held._replace(values=update_range(held.values, seen, form.average))
        state = state._replace(held=held)
        inner = core.calibrate(op, inner_state(op, w, state, _key(state)), matmul.x(x))
        kept = jax.tree.map(
            lambda node: node if _is_range(node) else None, inner, is_leaf=_is_range
        )
        return state._replace(held=held._replace(inner=kept))

    def read(op: Op, state: WrittenOperand, x: Array, key: Any) -> Array:
        op, values, x = turned(op, state.values, x)
        matmul = op.geometry.as_matmul()
        op, w = dataclasses.replace(op, geometry=matmul.geometry), matmul.w(values)
        before = 0.0 if op.meter is None else op.meter.get("cells", 0.0)
        inner = inner_state(op, w, state, _key(state) if op.deterministic else state.key)
        if op.meter is not None:
            there = op.depth if op.depth <= rows else -(-op.depth // rows) * rows
            cells = op.meter.get("cells", 0.0) - before
            op.count("cell_writes", cells * op.depth / there)
        return matmul.y(core.read(op, inner, matmul.x(x), key), x.shape)

    return Core(write, calibrate, read)  # pyright: ignore[reportArgumentType]


def writes_in_calls(wrappers: Sequence[Wrapper]) -> bool:
    """Tells if a site's core writes an operand in each call.

    Args:
      wrappers: Its wrappers, outermost first.
    """
    return bool(wrappers) and wrappers[0].role == "operand"


def write_key(wrappers: Sequence[Wrapper], key: Any, of_part: Any) -> Any:
    """The key that a site which writes in each call draws from, before its name is folded in.

    Args:
      wrappers: Wrappers of its core, outermost first.
      key: Key of the call, or None.
      of_part: The same of a part of the call, such as a microbatch, whose rows are others.

    Raises:
      ValueError: Something stands around what writes.
    """
    if around := [w for w in wrappers[1:] if w.role == "operand"]:
        raise ValueError(f"{wrappers[0].name} cannot stand around {around[0].name}")
    if not writes_in_calls(wrappers):
        return key
    seed = wrappers[0].settings.get("seed")
    return of_part if seed is None else jax.random.key(seed)


def _key(state: WrittenOperand) -> Any:
    """Key of a calibration: that of the call, or of deployment."""
    if state.key is not None or state.held is None or state.held.seed is None:
        return state.key
    return jax.random.key(state.held.seed)


def _is_range(node: Any) -> bool:
    return isinstance(node, Range)
