"""Primitives that are no contractions: what they compute for each entry, or that they only move."""

from __future__ import annotations

import math

import jax.extend.core as jex

from jaxsim.internals import parameters, shape_of
from jaxsim.network.moves import UNCHANGED

FREE = UNCHANGED | {
    *("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "convert_element_type"),
    *("bitcast_convert_type", "reduce_precision"),
}
"""Primitives that name their operands anew: nothing is computed and nothing moves."""

MOVES = {
    *("transpose", "slice", "dynamic_slice", "gather", "concatenate", "pad", "rev", "split"),
    *("stack", "tile", "unstack", "all_gather", "all_gather_invariant", "ppermute", "all_to_all"),
}
"""Primitives that read as many entries as they write, and compute nothing."""

UPDATES = {"dynamic_update_slice": 1, "scatter": 2, "scatter-add": 2}
"""Primitives that write part of their first operand in place: position of what is written."""

KINDS = {
    "add": {
        *("add", "sub", "max", "min", "neg", "abs", "sign", "floor", "ceil", "round", "eq", "ne"),
        *("lt", "le", "gt", "ge", "eq_to", "le_to", "lt_to", "and", "or", "xor", "not", "clamp"),
        *("select_n", "shift_left", "shift_right_logical", "shift_right_arithmetic", "is_finite"),
        *("add_any", "population_count", "clz", "psum", "psum_invariant", "pmax", "pmin"),
    },
    "multiply": {"mul", "square"},
    "divide": {"div", "rem", "sqrt", "rsqrt", "cbrt"},
    "function": {
        *("exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "erfc", "erf_inv"),
        *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "pow", "lgamma"),
    },
}
"""Primitives that compute each entry of their result by one operation, by its kind."""

REDUCES = {
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_xor"),
    *("argmax", "argmin", "cumsum", "cummax", "cummin"),
}
"""Primitives that take one addition for each entry of their operand."""

WINDOWS = {"reduce_window_sum", "reduce_window_max", "reduce_window_min"}
"""Primitives that take one addition for each entry of each window."""


def operations_of(eqn: jex.JaxprEqn) -> tuple[tuple[str, float], ...] | None:
    """Counts the element operations of an equation by kind; None where its primitive is not known.

    Args:
      eqn: Equation without inner jaxprs.
    """
    name = eqn.primitive.name
    made = float(sum(math.prod(shape_of(v).shape) for v in eqn.outvars))
    given = math.prod(shape_of(eqn.invars[0]).shape) if eqn.invars else 0
    if name in MOVES:
        return ()
    kind = next((kind for kind, names in KINDS.items() if name in names), None)
    if kind is not None:
        return ((kind, made),)
    if name == "integer_pow":
        power = abs(parameters(eqn)["y"])
        steps = max(power.bit_length() + power.bit_count() - 2, 0)
        return (("multiply", steps * made),)
    if name in REDUCES:
        return (("add", float(given)),)
    if name == "reduce_prod":
        return (("multiply", float(given)),)
    if name in WINDOWS:
        return (("add", made * math.prod(parameters(eqn)["window_dimensions"])),)
    if name in ("sort", "top_k", "approx_top_k"):
        shape = shape_of(eqn.invars[0]).shape
        length = shape[parameters(eqn)["dimension"]] if name == "sort" else shape[-1]
        return (("add", given * max(1, math.ceil(math.log2(max(length, 2))))),)
    if name == "dot_general":
        contracted = parameters(eqn)["dimension_numbers"][0][0]
        shape = shape_of(eqn.invars[0]).shape
        products = made * math.prod(shape[a] for a in contracted)
        return (("multiply", products), ("add", products))
    return None
