"""Routes: slices of a stack of weights that integers choose, followed to where they are multiplied.

A router gives each token an integer, and `w[idx]` is the weight of its expert: no input reaches the
stack `w`, and inputs reach the choice alone. What moves or casts the slices moves the stack and the
integers, so both are known where a product reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxsim.internals import Atom, parameters, shape_of
from jaxsim.network.moves import UNCHANGED


class Route(NamedTuple):
    """Value that is made of slices of a stack, each chosen by an integer.

    Attributes:
      origin: Position of the equation that chooses, and which of its results this is made of.
      operands: What the stack and the integers are computed from.
      stack: Stack as a function of the operands, [G, *slice].
      chosen: Integers as a function of the operands, one a slice; one outside of [0, G) chooses a
        slice of `missing`.
      along: For each axis of the value, True if it runs over the integers, in their order, and
        False if it is one of the slice.
      missing: Entry of what is not there, 0 or NaN.
    """

    origin: tuple[int, int]
    operands: tuple[Atom, ...]
    stack: Callable[..., Array]
    chosen: Callable[..., Int[Array, "..."]]
    along: tuple[bool, ...]
    missing: float = 0.0

    def then(
        self,
        stack: Callable[[Array], Array],
        chosen: Callable[[Array], Array],
        along: Sequence[bool],
    ) -> Route:
        """Goes on with functions of the stack and of the integers."""
        before = self
        return self._replace(
            stack=lambda *operands: stack(before.stack(*operands)),
            chosen=lambda *operands: chosen(before.chosen(*operands)),
            along=tuple(along),
        )


class Routes:
    """Slices in one jaxpr, followed equation by equation.

    Attributes:
      otherwise: Origins of those that something reads that neither moves nor multiplies them.
    """

    def __init__(self):
        """Begins without slices."""
        self._of: dict[Atom, Route] = {}
        self.otherwise: set[tuple[int, int]] = set()

    def of(self, atoms: Sequence[Atom]) -> list[Route | None]:
        """Finds the routes of operands, None of those that are made of no slices."""
        return [None if isinstance(a, jex.Literal) else self._of.get(a) for a in atoms]

    def begin(self, variable: jex.Var, route: Route) -> None:
        """Adds a value that is made of slices."""
        self._of[variable] = route

    def move(self, eqn: jex.JaxprEqn) -> bool:
        """Follows slices through an equation; False if it is none that moves them."""
        held = self.of(eqn.invars)
        moved = follow(eqn, held[0]) if held and held[0] else None
        self._of.update(zip(eqn.outvars, moved or (), strict=False))
        return moved is not None

    def leave(self, atoms: Sequence[Atom], multiplied: Route | None = None) -> None:
        """Notes that slices are read, and not multiplied but for one of them."""
        self.otherwise |= {r.origin for r in self.of(atoms) if r and r is not multiplied}


def taken_slices(eqn: jex.JaxprEqn, origin: int) -> Route | None:
    """Finds the stack and the integers of an equation that takes whole slices of an array.

    Args:
      eqn: Equation whose first operand is a parameter.
      origin: Its position.

    Returns:
      The slices; None where the equation takes something else, or slices of one axis.
    """
    if eqn.primitive is prims.dynamic_slice_p:
        return _sliced(eqn, origin)
    return _gathered(eqn, origin) if eqn.primitive is prims.gather_p else None


def _sliced(eqn: jex.JaxprEqn, origin: int) -> Route | None:
    shape, sizes = shape_of(eqn.invars[0]).shape, parameters(eqn)["slice_sizes"]
    cut = [axis for axis, n in enumerate(shape) if sizes[axis] != n]
    if not cut or len(shape) - len(cut) < 2:
        return None

    def chosen(w: Array, *starts: Array) -> Array:
        flat = jnp.zeros((), jnp.int32)
        for axis in cut:
            first = jnp.clip(starts[axis], 0, shape[axis] - sizes[axis]).astype(jnp.int32)
            ids = first + jnp.arange(sizes[axis], dtype=jnp.int32)
            flat = flat[..., None] * shape[axis] + ids
        return flat

    return Route(
        (origin, 0),
        tuple(eqn.invars),
        lambda w, *starts: _leading(w, cut),
        chosen,
        tuple(axis in cut for axis in range(len(shape))),
    )


def _gathered(eqn: jex.JaxprEqn, origin: int) -> Route | None:
    params, shape = parameters(eqn), shape_of(eqn.invars[0]).shape
    sizes, numbers, mode = params["slice_sizes"], params["dimension_numbers"], params["mode"]
    fills, value = mode == lax.GatherScatterMode.FILL_OR_DROP, params["fill_value"]
    axes = numbers.start_index_map
    cut = [a for a, n in enumerate(shape) if a in numbers.collapsed_slice_dims or sizes[a] != n]
    whole = not fills or set(axes) == set(cut)
    missing = math.nan if fills and value is None else float(value or 0) if fills else 0.0
    if (
        numbers.operand_batching_dims
        or not cut
        or any(a not in axes or sizes[a] != 1 for a in cut)
        or len(shape) - len(cut) < 2
        or not whole
        or not (math.isnan(missing) or missing == 0)
    ):
        return None
    slice_shape = [n for a, n in enumerate(sizes) if a not in numbers.collapsed_slice_dims]

    def stack(w: Array, ids: Array) -> Array:
        w = _leading(w, cut)
        return w.reshape(w.shape[0], *slice_shape)

    def chosen(w: Array, ids: Array) -> Array:
        flat, inside = jnp.zeros((), jnp.int32), jnp.ones((), bool)
        for axis in cut:
            there = ids[..., axes.index(axis)]
            inside = inside & (there >= 0) & (there < shape[axis])
            flat = flat * shape[axis] + jnp.clip(there, 0, shape[axis] - 1).astype(jnp.int32)
        return jnp.where(inside, flat, -1) if fills else flat

    rank = len(shape_of(eqn.outvars[0]).shape)
    along = tuple(axis not in numbers.offset_dims for axis in range(rank))
    return Route((origin, 0), tuple(eqn.invars), stack, chosen, along, missing)


def _leading(w: Array, axes: Sequence[int]) -> Array:
    """Joins some axes of an array into its first."""
    if list(axes) != list(range(len(axes))):
        w = jnp.moveaxis(w, axes, range(len(axes)))
    return w if len(axes) == 1 else w.reshape(-1, *w.shape[len(axes) :])


def chosen_branch(
    eqn: jex.JaxprEqn, origin: tuple[int, int], branches: Callable[..., Sequence[Array]]
) -> Route:
    """Builds the route of a result of a `cond` whose branches all return a weight.

    Args:
      eqn: Equation of the branches.
      origin: Its position, and which of its results this is.
      branches: Computes that result in every branch, from the operands behind the index.
    """
    return Route(
        origin,
        tuple(eqn.invars),
        lambda index, *operands: jnp.stack(branches(*operands)),
        lambda index, *operands: jnp.asarray(index, jnp.int32),
        (False,) * len(shape_of(eqn.outvars[origin[1]]).shape),
    )


def follow(eqn: jex.JaxprEqn, route: Route) -> Sequence[Route] | None:
    """Follows slices through an equation that moves or casts them.

    Args:
      eqn: Equation whose first operand is made of slices.
      route: How they are chosen.

    Returns:
      A route for each result; None where the equation does something else.
    """
    step = _MOVES.get(eqn.primitive.name)
    return None if step is None or len(eqn.invars) != 1 else step(eqn, route)


def _cast(eqn: jex.JaxprEqn, route: Route) -> Sequence[Route] | None:
    dtype = shape_of(eqn.outvars[0]).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    return [route.then(lambda w: w.astype(dtype), lambda ids: ids, route.along)]


def _transpose(eqn: jex.JaxprEqn, route: Route) -> Sequence[Route]:
    order = parameters(eqn)["permutation"]
    along = [route.along[a] for a in order]
    rank: dict[bool, dict[int, int]] = {}
    for what in (True, False):
        axes = [a for a, chosen in enumerate(route.along) if chosen is what]
        rank[what] = {a: i for i, a in enumerate(axes)}
    ids_order = [rank[True][a] for a in order if route.along[a]]
    w_order = [0, *(1 + rank[False][a] for a in order if not route.along[a])]
    return [
        route.then(
            lambda w: jnp.transpose(w, w_order), lambda ids: jnp.transpose(ids, ids_order), along
        )
    ]


def _reshape(eqn: jex.JaxprEqn, route: Route) -> Sequence[Route] | None:
    before, after = shape_of(eqn.invars[0]).shape, shape_of(eqn.outvars[0]).shape
    along = regroup(before, route.along, after)
    if along is None:
        return None
    ids_shape = [n for n, chosen in zip(after, along, strict=True) if chosen]
    w_shape = [n for n, chosen in zip(after, along, strict=True) if not chosen]
    return [
        route.then(
            lambda w: w.reshape(w.shape[0], *w_shape), lambda ids: ids.reshape(ids_shape), along
        )
    ]


def regroup(
    before: Sequence[int], along: Sequence[bool], after: Sequence[int]
) -> list[bool] | None:
    """Finds which axes of a reshaped value run over integers.

    Args:
      before: Shape.
      along: For each of its axes, True if it runs over integers.
      after: New shape, of the same size.

    Returns:
      The same for each axis of the new shape; None where one joins axes of both kinds.
    """
    old = [(n, chosen) for n, chosen in zip(before, along, strict=True) if n != 1]
    kinds: list[bool] = []
    taken, reached, kind = 1, 1, False
    for n in after:
        if n == 1:
            kinds.append(False)
            continue
        if taken == reached:
            if not old:
                return None
            size, kind = old.pop(0)
            taken *= size
        reached *= n
        while taken < reached:
            if not old:
                return None
            size, other = old.pop(0)
            if other is not kind:
                return None
            taken *= size
        kinds.append(kind)
    return kinds if taken == reached and not old else None


def _broadcast(eqn: jex.JaxprEqn, route: Route) -> Sequence[Route]:
    shape, places = (parameters(eqn)[name] for name in ("shape", "broadcast_dimensions"))
    along = [n > 1 for n in shape]
    for axis, place in enumerate(places):
        along[place] = route.along[axis]

    def spread(a: Array, what: bool, first: Sequence[int]) -> Array:
        axes = [i for i, chosen in enumerate(along) if chosen is what]
        into = [axes.index(p) for i, p in enumerate(places) if route.along[i] is what]
        dims = [*range(len(first)), *(len(first) + i for i in into)]
        return lax.broadcast_in_dim(a, (*first, *(shape[i] for i in axes)), dims)

    return [
        route.then(
            lambda w: spread(w, False, w.shape[:1]), lambda ids: spread(ids, True, ()), along
        )
    ]


def _slice(eqn: jex.JaxprEqn, route: Route) -> Sequence[Route]:
    params = parameters(eqn)
    rank = len(route.along)
    steps = params["strides"] or (1,) * rank
    parts = [
        slice(lo, hi, step)
        for lo, hi, step in zip(
            params["start_indices"], params["limit_indices"], steps, strict=True
        )
    ]
    of_ids = tuple(p for p, chosen in zip(parts, route.along, strict=True) if chosen)
    of_w = tuple(p for p, chosen in zip(parts, route.along, strict=True) if not chosen)
    return [route.then(lambda w: w[(slice(None), *of_w)], lambda ids: ids[of_ids], route.along)]


def _split(eqn: jex.JaxprEqn, route: Route) -> Sequence[Route] | None:
    params = parameters(eqn)
    axis = params["axis"]
    if route.along[axis]:
        return None
    at = 1 + sum(not chosen for chosen in route.along[:axis])
    return [
        route.then(
            lambda w, i=i: lax.split(w, params["sizes"], at)[i], lambda ids: ids, route.along
        )
        for i in range(len(eqn.outvars))
    ]


def _unstack(eqn: jex.JaxprEqn, route: Route) -> Sequence[Route]:
    axis = parameters(eqn)["axis"]
    chosen = route.along[axis]
    at = sum(other is chosen for other in route.along[:axis]) + (not chosen)
    along = [*route.along[:axis], *route.along[axis + 1 :]]

    def take(a: Array, i: int, own: bool) -> Array:
        return lax.index_in_dim(a, i, at, keepdims=False) if own else a

    return [
        route.then(
            lambda w, i=i: take(w, i, not chosen), lambda ids, i=i: take(ids, i, chosen), along
        )
        for i in range(len(eqn.outvars))
    ]


_MOVES: dict[str, Callable[[jex.JaxprEqn, Route], Sequence[Route] | None]] = {
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _cast,
    **dict.fromkeys(UNCHANGED, lambda eqn, route: [route]),
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "squeeze": _reshape,
    "transpose": _transpose,
    "unstack": _unstack,
}
