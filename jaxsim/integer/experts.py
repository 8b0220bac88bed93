"""Experts in integers: accumulators of each on a grid that all share, so that rows can choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import jax
import jax.extend.core as jex
import numpy as np

from jaxsim import internals
from jaxsim.cores.quantized import Quantized
from jaxsim.cores.role import DIGITAL, WEIGHT
from jaxsim.formats.grid import scale_and_zero
from jaxsim.integer.affine import Affine, affine, compact
from jaxsim.integer.equations import refusal
from jaxsim.integer.rules import RESIDUAL_LEVELS
from jaxsim.integer.steps import Absent, ContractExperts
from jaxsim.internals import shape_of
from jaxsim.network.plan import Contraction, Entry, Inner

if TYPE_CHECKING:
    from jaxsim.integer.convert import Lowering


def is_scan_of_experts(entry: Entry) -> TypeGuard[Inner]:
    """Tells if an equation multiplies by one expert after the other.

    Args:
      entry: Its meaning in the plan.
    """
    if not isinstance(entry, Inner) or len(entry.plans) != 1 or entry.rewritten:
        return False
    sites = (e.site for e in entry.plans[0].entries if isinstance(e, Contraction))
    return any(site.chosen for site in sites)


def lower_experts(lowering: Lowering, eqn: jex.JaxprEqn, entry: Inner, ins: list[Any]) -> Affine:
    """Converts a scan over experts.

    Codes of the input are those of every expert; sums of each go to one grid of 24 bits, where the
    rows take those of the expert that they chose. Rows that chose none are zero.

    Args:
      lowering: Conversion at hand.
      eqn: Equation of the scan.
      entry: Plan of its body.
      ins: What its operands stand for.

    Returns:
      What its result stands for.

    Raises:
      ValueError: The site has no integer form.
    """
    (body,), loop = entry.plans, internals.scan(eqn)
    pairs = zip(body.jaxpr.eqns, body.entries, strict=True)
    ((product, site),) = ((e, c) for e, c in pairs if isinstance(c, Contraction))
    name, variables = site.site.name, list[Any](body.jaxpr.invars)
    x_at, w_at = (variables.index(product.invars[i]) for i in (site.x_at, site.w_at))
    _, inputs = lowering.grids(eqn, site)
    if beside := [w for w in lowering.chip.cores[name] if w.role in DIGITAL - WEIGHT]:
        raise refusal(eqn, f"({name}) has experts beside which {beside[0]!r} computes with floats")
    state: Quantized = lowering.chip.states[name]
    if any((end != end[0]).any() for end in jax.tree.leaves(state.inputs)):
        raise refusal(eqn, f"({name}) has experts that read a row on grids of their own")
    first: Any = jax.tree.map(lambda end: end[0], state.inputs)
    step, zero = map(np.asarray, scale_and_zero(inputs, first))
    codes = lowering.codes(eqn, ins[x_at], inputs, step, zero)
    lowering.states[name] = state.inner
    shape = shape_of(product.outvars[0]).shape
    each = [
        lowering.accumulators(
            eqn, site, jax.tree.map(lambda a, g=g: a[g], state), shape, step, zero
        )
        for g in range(loop.length)
    ]
    (grid,), (there,) = lowering.to_common_grid(eqn, [_stacked(each)], RESIDUAL_LEVELS)
    absent = {w_at, loop.consts, len(ins) - 1}
    operands = tuple(
        Absent() if i in absent else lowering.computed(value) if i != x_at else codes
        for i, value in enumerate(ins)
    )
    lowering.steps.append(ContractExperts(eqn.primitive.name, operands, grid))
    least, most = min(there.min_code.min(), 0), max(there.max_code.max(), 0)
    return affine(shape_of(eqn.outvars[0]).shape, there.scale.item(), 0.0, least, most)


def _stacked(each: Sequence[Affine]) -> Affine:
    """Several values of one shape, along a new first axis."""
    shape = (len(each), *each[0].shape)
    fields = zip(*(value.arrays for value in each), strict=True)
    arrays = (compact(np.stack(np.broadcast_arrays(*field)), len(shape)) for field in fields)
    return Affine(shape, *arrays)
