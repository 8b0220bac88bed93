"""Parameters that a deployed network need not hold: its calls read what was written of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxsim.network.leaves import PyTree, path_name
from jaxsim.network.plan import Contraction, Inner, Plan
from jaxsim.numerics.checks import is_traced


@dataclasses.dataclass(frozen=True, eq=False)
class Absent:
    """Parameters that a network does not hold: static, and equal to any other.

    So a network and what was loaded of it, or deployed without its floats, share their programs;
    a call is checked when it is traced.

    Attributes:
      names: Their paths.
    """

    names: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Absent)

    def __hash__(self) -> int:
        return hash(Absent)


def live_inputs(plan: Plan, written: Collection[str]) -> list[bool]:
    """Finds the inputs of a plan that its outputs depend on, where written sites read no weight.

    Args:
      plan: Plan of a call.
      written: Names of the sites whose weights are written.

    Returns:
      Whether each is read.
    """
    live, _ = _live(plan, written)
    return [v in live for v in plan.jaxpr.invars]


def live_equations(plan: Plan, written: Collection[str]) -> list[bool]:
    """Finds the equations of a plan that its outputs depend on, as `live_inputs` does its inputs.

    Args:
      plan: Plan of a call.
      written: Names of the sites whose weights are written.

    Returns:
      Whether each is run for something.
    """
    return _live(plan, written)[1]


def _live(plan: Plan, written: Collection[str]) -> tuple[set[jex.Var], list[bool]]:
    """Finds the variables and the equations that a plan's outputs depend on."""
    live = {v for v in plan.jaxpr.outvars if isinstance(v, jex.Var)}
    runs = [False] * len(plan.entries)
    for i in reversed(range(len(runs))):
        eqn, entry = plan.jaxpr.eqns[i], plan.entries[i]
        runs[i] = bool(eqn.effects) or any(v in live for v in eqn.outvars)
        if not runs[i]:
            continue
        needed = [True] * len(eqn.invars)
        dynamic = isinstance(entry, Contraction) and entry.site.kind == "dynamic"
        if isinstance(entry, Contraction) and entry.site.name in written and not dynamic:
            needed[entry.w_at] = False
            if entry.rows_at is not None:
                needed[entry.rows_at] = False  # of calibrations
        elif isinstance(entry, Inner) and len(entry.plans) == 1:
            needed = live_inputs(entry.plans[0], written)
        used = (v for v, need in zip(eqn.invars, needed, strict=True) if need)
        live.update(v for v in used if isinstance(v, jex.Var))
    return live, runs


def without_values(params: PyTree, names: Collection[str]) -> PyTree:
    """Replaces parameters by ones of their shape that take no memory: NaN, or zero of integers.

    A compiled call that does not read such a parameter is not given it. What does read one, such as
    `jnp.asarray`, makes an array of its size.

    Args:
      params: Tree of parameters, or of their shapes and dtypes.
      names: Paths of those to replace.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, p: without_value(p) if path_name(path) in names else p, params
    )


def as_constants(params: PyTree, unheld: Collection[str]) -> PyTree:
    """Parameters of a call that is being traced, those that are not held as constants of it.

    JAX gives a program all that a `while_loop` inside names, also what its body does not read.

    Args:
      params: Tree of parameters.
      unheld: Paths of those that are not held.
    """

    def one(path: Any, p: Any) -> Any:
        if not is_traced(p) or path_name(path) not in unheld:
            return p
        return jnp.broadcast_to(jnp.asarray(_fill(p.dtype), p.dtype), p.shape)

    return jax.tree_util.tree_map_with_path(one, params)


def memory_of(leaf: Any) -> int:
    """Bytes that an array takes: one entry's where one stands for all; none of what is no array.

    Args:
      leaf: Leaf of a network.
    """
    if isinstance(leaf, np.ndarray):
        return leaf.nbytes if any(leaf.strides) else leaf.itemsize * bool(leaf.size)
    return leaf.nbytes if isinstance(leaf, jax.Array) else 0


def require_held(unheld: Collection[str], names: Sequence[str], plan: Plan, written: Any) -> None:
    """Checks that a call reads no parameter that is not held.

    Args:
      unheld: Paths of those that are not.
      names: Paths of all parameters, which are the plan's first inputs.
      plan: Plan of the call.
      written: Names of the sites whose weights are written.

    Raises:
      ValueError: It reads one.
    """
    live = live_inputs(plan, written)
    if missing := [n for n, read in zip(names, live, strict=False) if read and n in unheld]:
        raise ValueError(
            f"keep_floats=False: this call reads {', '.join(missing)}, which the call that the "
            "network was traced with did not, and which is not held any more; deploy with "
            "keep_floats=True, or trace with these arguments"
        )


def without_value(p: Any) -> np.ndarray:
    """An array of another's shape that takes no memory: NaN, or zero of integers.

    Args:
      p: Array, or its shape and dtype.
    """
    dtype: Any = np.dtype(jnp.result_type(p))
    return np.broadcast_to(np.asarray(_fill(dtype), dtype), np.shape(p))


def _fill(dtype: Any) -> float:
    return np.nan if jnp.issubdtype(dtype, jnp.inexact) else 0
