"""Rewrites: equations that are no sites as they stand, and the functions that say them by sites.

Experts and tables of more axes than two are found here by what is known of an equation's operands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.internals import bind, shape_of
from jaxsim.network.experts import ragged_product, routed_product
from jaxsim.network.folded_tables import fold_table
from jaxsim.network.interpreter import evaluate_plan
from jaxsim.network.lookups import looked_up_axis
from jaxsim.network.plan import Plan, Provenance
from jaxsim.network.routes import Route, Routes
from jaxsim.network.site import Kind


def is_taken(eqn: jex.JaxprEqn, ins: Sequence[Provenance | None]) -> bool:
    """Tells if an equation takes parts of a weight at integers that inputs reach.

    Args:
      eqn: Equation.
      ins: What is known of its operands, None of those that inputs reach.
    """
    taking = eqn.primitive in (prims.gather_p, prims.dynamic_slice_p)
    if not taking or ins[0] is None or not ins[0].param:
        return False
    return jnp.issubdtype(shape_of(eqn.invars[0]).dtype, jnp.floating)


def is_gathered(eqn: jex.JaxprEqn, ins: Sequence[Provenance | None]) -> bool:
    """Tells if an equation gathers rows of a table, where none of its operands need be unknown.

    Args:
      eqn: Equation.
      ins: What is known of its operands, None of those that inputs reach.
    """
    gathers = eqn.primitive is prims.gather_p and is_taken(eqn, ins)
    return gathers and (looked_up_axis(eqn, ins) is not None or fold_table(eqn) is not None)


def multiplied_slices(
    eqn: jex.JaxprEqn, ins: Sequence[Provenance | None], routes: Routes
) -> tuple[Route, Callable[..., Array]] | None:
    """Finds the slices that inputs are multiplied by, and the function that does so.

    Args:
      eqn: Equation.
      ins: What is known of its operands, None of those that inputs reach.
      routes: Slices of stacks so far.

    Returns:
      How the slices are chosen and the function, of the equation's operands and then the route's;
      None where no slices are multiplied.
    """
    if eqn.primitive is not prims.dot_general_p or any(t is not None for t in ins):
        return None
    held = routes.of(eqn.invars)
    for w_at in (1, 0):
        route = held[w_at]
        run = None if route is None else routed_product(eqn, w_at, route)
        if route is not None and run is not None:
            return route, run
    return None


def is_choice(variable: jex.Var, tags: Sequence[Provenance | None]) -> bool:
    """Tells if a result of a `cond` is a matrix that parameters alone determine in every branch.

    Args:
      variable: Result.
      tags: What is known of it in each branch.
    """
    shape = shape_of(variable)
    floats = jnp.issubdtype(shape.dtype, jnp.floating)
    return floats and len(shape.shape) > 1 and all(t is not None and t.param for t in tags)


def branch_results(plans: Sequence[Plan], j: int) -> Callable[..., list[Array]]:
    """Builds the function that computes one result of each branch.

    Args:
      plans: Branches.
      j: Position among the results.
    """
    return lambda *operands: [
        evaluate_plan(plan, operands, lambda eqn, _, ins: bind(eqn, ins))[j] for plan in plans
    ]


def in_other_words(
    eqn: jex.JaxprEqn, ins: Sequence[Provenance | None]
) -> tuple[Kind, Callable[..., Array]] | None:
    """Finds a function that says an equation by equations that can be sites, and of which kind.

    Args:
      eqn: Equation.
      ins: What is known of its operands, None of those that inputs reach.

    Returns:
      The kind and the function of the equation's operands; None where there is none.
    """
    kind, run = None, None
    if is_taken(eqn, ins):
        kind, run = "lookup", fold_table(eqn)
    elif eqn.primitive.name == "ragged_dot_general" and ins[0] is None:
        w = shape_of(eqn.invars[1])
        if ins[1] is not None and ins[1].param and jnp.issubdtype(w.dtype, jnp.floating):
            kind, run = "ragged", ragged_product(eqn)
    return None if run is None or kind is None else (kind, run)
