"""Equations of a model as conversion and calls of an integer network both read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import numpy as np

from jaxsim.internals import inner_jaxprs, parameters
from jaxsim.network.plan import Contraction, Entry, Inner, Plan

CALLS = (
    prims.jit_p,
    prims.closed_call_p,
    prims.remat_p,
    prims.custom_jvp_call_p,
    prims.custom_vjp_call_p,
)
"""Primitives that run the equations inside them once."""


UNKNOWN = "an unknown line"
"""The line of an equation that JAX does not know it of."""


def summed_windows(eqn: jex.JaxprEqn, shape: Sequence[int]) -> tuple[list[int], int, bool]:
    """Reads what a reduction runs over.

    Args:
      eqn: Reduction along axes or over windows.
      shape: Shape of its operand.

    Returns:
      The axes, how many numbers go into one result, and whether zeros may be among them.
    """
    params = parameters(eqn)
    if "axes" in params:
        axes = list(params["axes"])
        return axes, int(np.prod([shape[a] for a in axes])), False
    sizes, strides = params["window_dimensions"], params["window_strides"]
    padding, dilation = params["padding"], params["base_dilation"]
    windows = zip(sizes, strides, padding, dilation, strict=True)
    axes = [i for i, (n, s, p, d) in enumerate(windows) if n > 1 or s > 1 or any(p) or d > 1]
    return axes, int(np.prod(sizes)), bool(np.any(padding)) or max(dilation) > 1


def inner_plan(eqn: jex.JaxprEqn, entry: Entry) -> Plan:
    """Builds the plan of what a call runs.

    Args:
      eqn: Equation of a primitive of `CALLS`.
      entry: Meaning of the equation in its plan.
    """
    if isinstance(entry, Inner):
        return entry.plans[0]
    ((jaxpr, consts),) = inner_jaxprs(eqn)
    return Plan(jaxpr, consts, (None,) * len(jaxpr.eqns), ())


def has_sites(entry: Entry) -> bool:
    """Tells if an equation is a site or holds one.

    Args:
      entry: Meaning of the equation in its plan.
    """
    return isinstance(entry, Contraction) or (isinstance(entry, Inner) and bool(entry.names))


def line_of(eqn: jex.JaxprEqn) -> str:
    """Finds where an equation comes from: the innermost line outside JAX.

    Args:
      eqn: Equation.
    """
    package = str(Path(jax.__file__).parent)
    traceback = eqn.source_info.traceback
    for frame in () if traceback is None else traceback.frames:
        if not frame.file_name.startswith((package, "<")):
            return f"{frame.file_name}:{frame.line_num}"
    return UNKNOWN


def refusal(eqn: jex.JaxprEqn | None, why: str) -> ValueError:
    """Makes the error that an equation has no integer form.

    Args:
      eqn: Equation; None for an output of the model.
      why: Reason, as the rest of a sentence that begins with the equation.
    """
    if eqn is None:
        return ValueError(f"integer_only: an output {why}")
    return ValueError(f"integer_only: {eqn.primitive.name} at {line_of(eqn)} {why}")
