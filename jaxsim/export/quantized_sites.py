"""Quantized sites in ONNX: codes and scales around a product of floats."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxsim.cores.core import Core
from jaxsim.cores.grouped import grouped
from jaxsim.cores.op import Op
from jaxsim.cores.quantized import Quantized, quantized, stored
from jaxsim.cores.role import DIGITAL, WEIGHT
from jaxsim.cores.wrapper import Wrapper
from jaxsim.export.graph import Graph, Tensor
from jaxsim.export.products import Arranged, product
from jaxsim.export.refusals import site_refusal
from jaxsim.formats.grid import Grid, scale_and_zero
from jaxsim.internals import shape_of
from jaxsim.network.plan import Contraction, Plan, plain_plan
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.packed import unpacked

MARK = "jaxsim_quantized_site"
"""Name of the call that stands for the product of codes among what is computed around it."""


class Chain(NamedTuple):
    """What a site's wrappers are in ONNX.

    Attributes:
      around: Those outside the codes, which compute in floats.
      weights, inputs: Grids of the codes; None for floats.
      rows: Most products of a group that has scales of its own; None for one scale along the sum.
    """

    around: tuple[Wrapper, ...]
    weights: Grid | None
    inputs: Grid | None
    rows: int | None


_REASONS = {
    "groups": "has groups of what is no weight's codes",
    "floats": "holds numbers that are no whole codes",
    "sparse": "leaves zeros out",
    "blocks": "multiplies blocks of bits",
    "slices": "spreads its codes over cells",
    "inputs": "drives rows of an array",
    "serial": "applies its inputs in steps",
    "mapping": "represents signs by cells",
    "array": "is split over arrays",
    "adc": "is read by converters",
    "cells": "is held by cells",
    "observer": "measures",
}


def chain_of(name: str, wrappers: Sequence[Wrapper]) -> Chain:
    """Checks that a site is quantized as ONNX can say it.

    Args:
      name: Name of the site.
      wrappers: Its wrappers, outermost first.

    Raises:
      ValueError: It is not; the message names the site, the wrapper and the reason.
    """
    chain = [w for w in wrappers if w.role not in WEIGHT]
    codes = next((i for i, w in enumerate(chain) if w.factory is quantized), None)
    apart = codes is not None and codes > 0 and chain[codes - 1].factory is grouped
    outer = codes - apart if codes is not None else 0
    for i, wrapper in enumerate(chain):
        if not (i < outer and wrapper.role in DIGITAL) and not (
            codes is not None and outer <= i <= codes
        ):
            why = _REASONS.get(wrapper.role, "computes in a way that no operator has")
            raise site_refusal(name, f"reads {wrapper!r}, which {why}")
    if codes is None:
        raise site_refusal(name, "has no codes: quantize it, or leave it in floats by sites=…")
    weights, inputs = chain[codes].formats
    if inputs is not None and not stored(inputs):
        raise site_refusal(name, "takes the range of its inputs from each batch, not from a scale")
    if inputs is not None and (
        inputs.bits == 1 or inputs.spacing == "powers" or inputs.rounding == "stochastic"
    ):
        raise site_refusal(
            name, f"rounds inputs to {inputs}, and QuantizeLinear to the nearest of even codes"
        )
    rows = chain[outer].settings["rows"] if apart else None
    return Chain(tuple(chain[:outer]), weights, inputs, rows)


def around_site(chain: Chain, entry: Contraction, state: Quantized) -> Plan:
    """Equations of a site's read in which the product of codes is a call named `MARK`.

    Args:
      chain: Wrappers of the site.
      entry: Site.
      state: What is written of it.
    """
    op = dataclasses.replace(entry.op, integer=True, ranges="stored")
    out = jax.eval_shape(op.contract, entry.x, entry.w)

    def marked(x: Any) -> Any:  # only its shape counts
        return jnp.zeros(out.shape) + jnp.sum(x)

    marked.__name__ = MARK
    core = Core(lambda op, w, key: w, lambda op, state, x: state, lambda *a: jax.jit(marked)(a[2]))
    for wrapper in reversed(chain.around):
        core = wrapper(core)
    with own_promotion():
        return plain_plan(lambda x: core.read(op, state, x.astype(jnp.float32), None), entry.x)


def codes_of_inputs(graph: Graph, name: str, grid: Grid, state: Quantized, x: Tensor) -> Tensor:
    """Inputs on their grid, as floats again: QuantizeLinear and DequantizeLinear.

    Args:
      graph: Graph to add them to.
      name: Name of the site.
      grid: Grid of the inputs.
      state: What is written of the site.
      x: The inputs.
    """
    assert state.inputs is not None
    scale_zero = scale_and_zero(grid, jax.tree.map(jnp.asarray, state.inputs))
    scale, zero = (np.asarray(a, np.float32).reshape(()) for a in scale_zero)
    lo, hi = grid.code_range
    if (lo, hi) != (-128, 127):  # what lies outside of int8 the operator clips itself
        ends = [np.float32((end - zero) * scale) for end in (lo, hi)]
        x = graph.add("Clip", [x, *ends], x.shape)
    about = [graph.constant(scale, f"{name}:scale"), graph.constant(zero.astype(np.int8))]
    codes = graph.add("QuantizeLinear", [x, *about], x.shape, name=f"{name}:codes")
    return graph.add("DequantizeLinear", [codes, *about], x.shape)


def weight(
    graph: Graph, name: str, grid: Grid | None, state: Quantized, arranged: Arranged, channel: int
) -> Tensor:
    """A weight as its operator takes it: codes of int8 and DequantizeLinear, or floats.

    Args:
      graph: Graph to add it to.
      name: Name of the site.
      grid: Grid of the weight; None for floats.
      state: What is written of it.
      arranged: How the operator takes it.
      channel: Axis of that along which output channels lie.

    Raises:
      ValueError: Its scales lie along more axes.
    """
    codes = np.asarray(unpacked(state.inner))
    if grid is None:
        return graph.constant(arranged.of_array(codes * np.asarray(state.scale)), name)
    zero = jnp.zeros_like(state.scale) if state.zero is None else unpacked(state.zero)
    told = [
        arranged.of_array(np.broadcast_to(np.asarray(a), codes.shape)) for a in (state.scale, zero)
    ]
    one = grid.per == "tensor"
    numbers = [a.reshape(-1)[0] if one else _along(a, channel) for a in told]
    if not all(
        (a == _spread(n, a.ndim, channel)).all() for a, n in zip(told, numbers, strict=True)
    ):
        raise site_refusal(name, "has scales along two axes, and DequantizeLinear takes one")
    operands = [
        graph.constant(arranged.of_array(codes.astype(np.int8)), f"{name}:weight"),
        graph.constant(np.asarray(numbers[0], np.float32), f"{name}:weight_scale"),
        graph.constant(np.asarray(numbers[1], np.int8)),
    ]
    axis: dict[str, Any] = {} if one else {"axis": channel}
    return graph.add("DequantizeLinear", operands, operands[0].shape, **axis)


def weight_of_groups(
    graph: Graph, name: str, state: Quantized, arranged: Arranged, op: Op
) -> Tensor:
    """A weight whose groups of products have scales: DequantizeLinear by blocks along the sum.

    Args:
      graph: Graph to add it to.
      name: Name of the site.
      state: What is written of it: codes [1, groups, size, N].
      arranged: How the operator takes it.
      op: The site's.

    Raises:
      ValueError: The sum runs along several axes of what the operator takes, or products are of
        a batch of weights.
    """
    codes = np.asarray(unpacked(state.inner))
    scale = np.asarray(state.scale)
    zero = np.zeros_like(scale) if state.zero is None else np.asarray(unpacked(state.zero))
    batch, groups, size, _ = codes.shape
    shape = op.geometry.w_shape
    places = np.arange(math.prod(shape)).reshape(shape)
    summed, taken = (
        np.asarray(op.geometry.as_matmul().w(jnp.asarray(places))),
        arranged.of_array(places),
    )
    depth = summed.shape[-2]
    if batch == 1 and taken.shape == summed.shape[1:] and (taken == summed[0]).all():
        axis, laid = 0, (lambda a: a)
    elif (
        batch == 1 and taken.shape[-1] == depth and (taken.reshape(-1, depth) == summed[0].T).all()
    ):
        axis, laid = taken.ndim - 1, (lambda a: a.T.reshape(*taken.shape[:-1], len(a)))
    else:
        raise site_refusal(
            name, "has groups along several axes, and blocks of DequantizeLinear lie along one"
        )
    whole = codes.reshape(groups * size, -1)[:depth]
    operands = [
        graph.constant(laid(whole.astype(np.int8)), f"{name}:weight"),
        graph.constant(laid(scale[0, :, 0].astype(np.float32)), f"{name}:weight_scale"),
        graph.constant(laid(zero[0, :, 0].astype(np.int8))),
    ]
    return graph.add("DequantizeLinear", operands, operands[0].shape, axis=axis, block_size=size)


def _along(a: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis])[0]


def _spread(n: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    return n.reshape([-1 if i == axis else 1 for i in range(ndim)]) if n.ndim else n


def _in_groups(chain: Chain, op: Op) -> bool:
    return chain.rows is not None and op.depth > chain.rows


def multiply(
    graph: Graph, eqn: jex.JaxprEqn, entry: Contraction, chain: Chain, state: Quantized, x: Any
) -> Tensor:
    """The product of a site's codes, times their scales.

    Args:
      graph: Graph to add it to.
      eqn: Equation of the contraction.
      entry: Site.
      chain: Its wrappers.
      state: What is written of it.
      x: Its input, in float32.
    """
    found, name = product(eqn), entry.site.name
    x = found.operands[entry.x_at].of_value(graph, x, shape_of(eqn.invars[entry.x_at]).shape)
    if chain.inputs is not None:
        x = codes_of_inputs(graph, name, chain.inputs, state, x)
    at = entry.w_at
    if _in_groups(chain, entry.op):
        w = weight_of_groups(graph, name, state, found.operands[at], entry.op)
    else:
        w = weight(graph, name, chain.weights, state, found.operands[at], found.channels[at])
    return found.result(graph, (x, w) if at else (w, x))


def table(graph: Graph, name: str, chain: Chain, state: Quantized, entry: Contraction) -> Tensor:
    """A table that is looked up, as codes and DequantizeLinear.

    Args:
      graph: Graph to add it to.
      name: Name of the site.
      chain: Its wrappers.
      state: What is written of it.
      entry: Site.
    """
    shape = entry.w.shape
    (rows,) = entry.op.geometry.w_free  # pyright: ignore
    plain = Arranged(tuple(range(len(shape))), (1,) * len(shape))
    if _in_groups(chain, entry.op):
        return weight_of_groups(graph, name, state, plain, entry.op)
    return weight(graph, name, chain.weights, state, plain, rows)
