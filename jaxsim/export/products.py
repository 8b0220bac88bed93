"""Contractions as ONNX's MatMul and Conv: how operands are laid out for them, and results back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxsim.export.graph import Graph, Tensor
from jaxsim.export.refusals import refusal
from jaxsim.internals import parameters, shape_of


class Arranged(NamedTuple):
    """An operand's axes in the order of an operator, and joined.

    Attributes:
      order: Axes of the operand, in the operator's order.
      groups: How many of them, one after the other, become one axis.
    """

    order: tuple[int, ...]
    groups: tuple[int, ...]

    def shape(self, shape: Sequence[Any]) -> list[Any]:
        """Sizes of the operand, arranged."""
        ordered, found = iter([shape[a] for a in self.order]), list[Any]()
        for count in self.groups:
            found.append(math.prod(next(ordered) for _ in range(count)))
        return found

    def of_array(self, array: np.ndarray) -> np.ndarray:
        """A known operand, arranged."""
        return np.transpose(array, self.order).reshape(self.shape(array.shape))

    def of_value(self, graph: Graph, value: Any, shape: Sequence[Any]) -> Tensor:
        """An operand of the graph, or a known one, arranged."""
        if not isinstance(value, Tensor):
            return graph.constant(self.of_array(np.asarray(value)))
        whole = graph.transpose(graph.full(value, shape), self.order)
        return graph.reshape(whole, self.shape(shape))


class Product(NamedTuple):
    """A contraction as one operator.

    Attributes:
      operator: "MatMul" or "Conv".
      operands: How both operands are arranged.
      channels: For each operand the axis of its arranged form that a number an output channel
        lies along.
      attributes: Attributes of the operator.
      made: Sizes of the operator's result.
      split: Sizes of its result with axes that were joined apart.
      order: Axes of that in the order of the contraction's result.
    """

    operator: str
    operands: tuple[Arranged, Arranged]
    channels: tuple[int, int]
    attributes: dict[str, Any]
    made: tuple[Any, ...]
    split: tuple[Any, ...]
    order: tuple[int, ...]

    def result(self, graph: Graph, operands: Sequence[Any]) -> Tensor:
        """The contraction's result of operands that are arranged."""
        y = graph.add(self.operator, operands, self.made, **self.attributes)
        return graph.transpose(graph.reshape(y, self.split), self.order)


def dot(eqn: jex.JaxprEqn) -> Product:
    """A `dot_general` as a product of matrices.

    Args:
      eqn: Its equation.
    """
    (contract, batch) = parameters(eqn)["dimension_numbers"]
    shapes = [shape_of(v).shape for v in eqn.invars]
    free = [
        tuple(a for a in range(len(shape)) if a not in (*summed, *stacked))
        for shape, summed, stacked in zip(shapes, contract, batch, strict=True)
    ]
    sizes = [[shape[a] for a in axes] for shape, axes in zip(shapes, free, strict=True)]
    stack = [shapes[0][a] for a in batch[0]]
    alone = (1,) * len(stack)
    # without a batch the left operand's axes need not be joined
    apart = not stack
    lead = (1,) * len(free[0]) if apart else (len(free[0]),)
    left = Arranged((*batch[0], *free[0], *contract[0]), (*alone, *lead, len(contract[0])))
    right = Arranged((*batch[1], *contract[1], *free[1]), (*alone, len(contract[1]), len(free[1])))
    columns = math.prod(sizes[1])
    rows = sizes[0] if apart else [math.prod(sizes[0])]
    split = (*stack, *sizes[0], *sizes[1])
    return Product(
        "MatMul",
        (left, right),
        (len(stack) + len(lead) - 1, len(stack) + 1),
        {},
        (*stack, *rows, columns),
        split,
        tuple(range(len(split))),
    )


def conv(eqn: jex.JaxprEqn) -> Product:
    """A convolution, its features behind the batch.

    Args:
      eqn: Its equation.

    Raises:
      ValueError: ONNX has none like it.
    """
    params = parameters(eqn)
    numbers = params["dimension_numbers"]
    padding, dilated = params["padding"], params["lhs_dilation"]
    if params["batch_group_count"] != 1:
        raise refusal(eqn, "groups its batch")
    if any(d != 1 for d in dilated):
        raise refusal(eqn, "puts zeros between its inputs (lhs_dilation)")
    if any(end < 0 for pair in padding for end in pair):
        raise refusal(eqn, f"takes inputs away by padding={tuple(padding)}")
    shapes = [shape_of(v).shape for v in eqn.invars]
    out = shape_of(eqn.outvars[0]).shape
    one = (1,) * len(out)
    attributes = {
        "kernel_shape": [shapes[1][a] for a in numbers.rhs_spec[2:]],
        "strides": list(params["window_strides"]),
        "pads": [lo for lo, _ in padding] + [hi for _, hi in padding],
        "dilations": list(params["rhs_dilation"]),
        "group": params["feature_group_count"],
    }
    made = tuple(out[a] for a in numbers.out_spec)
    operands = Arranged(tuple(numbers.lhs_spec), one), Arranged(tuple(numbers.rhs_spec), one)
    order = tuple(int(a) for a in np.argsort(numbers.out_spec))
    return Product("Conv", operands, (0, 0), attributes, made, made, order)


def product(eqn: jex.JaxprEqn) -> Product:
    """A contraction as one operator.

    Args:
      eqn: Equation of a `dot_general` or of a convolution.

    Raises:
      ValueError: ONNX has none like it.
    """
    return (dot if eqn.primitive.name == "dot_general" else conv)(eqn)


def contract(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    """A contraction of two values.

    Args:
      graph: Graph to add it to.
      eqn: Its equation.
      ins: Both values, known or not.
    """
    found, out = product(eqn), shape_of(eqn.outvars[0])
    operands = [
        arranged.of_value(graph, value, shape_of(v).shape)
        for arranged, value, v in zip(found.operands, ins, eqn.invars, strict=True)
    ]
    wide = jnp.dtype(out.dtype)
    operands = [
        a if shape_of(v).dtype == wide else graph.cast(a, wide)
        for a, v in zip(operands, eqn.invars, strict=True)
    ]
    return found.result(graph, operands)
