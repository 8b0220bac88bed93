"""Variables that a model's call changes in place, and new values for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims

from jaxsim.cores.partition import Partitioned
from jaxsim.internals import Atom, inner_jaxprs, scan, while_loop
from jaxsim.network.calls import NnxCall
from jaxsim.network.leaves import PyTree, is_array, path_name


class Changes(NamedTuple):
    """Variables that a call changes and that a network, a pure function, does not return.

    Attributes:
      variables: Names of the types of an NNX module's variables, sorted.
      arguments: Paths of arguments that hold modules and are changed in place, sorted.
    """

    variables: tuple[str, ...]
    arguments: tuple[str, ...]


def changes(
    call: Callable[..., Any], params: PyTree, buffers: PyTree, arguments: Partitioned
) -> Changes:
    """Finds what a call of a model changes: its own variables, and modules among its arguments.

    Args:
      call: Calling convention of the model, from `take_apart`.
      params: Parameters of the model; shapes are enough.
      buffers: Other variables that the model reads; shapes are enough.
      arguments: Arguments of the call.
    """
    from flax import nnx

    args, kwargs = arguments.combine()
    own = isinstance(call, NnxCall) and kwargs.get("mutable", False) is False
    if not own and not any(isinstance(n, nnx.Module) for n in _nodes((args, kwargs), nnx.Module)):
        return Changes((), ())
    kinds: dict[str, str] = {}

    def after(params: PyTree, buffers: PyTree, arguments: Partitioned) -> Any:
        args, kwargs = arguments.combine()
        held: dict[str, Any] = {}
        if isinstance(call, NnxCall) and own:
            model = call.module(params, buffers)
            kwargs.pop("mutable", None)
            model(*args, **kwargs)
            for path, variable in nnx.to_flat_state(nnx.state(model)):
                name = "/".join(map(str, path))
                held[name], kinds[name] = variable.get_value(), type(variable).__name__
        else:
            call(params, buffers, *args, **kwargs)
        return held, list(Partitioned.of((args, kwargs), is_array).arrays)

    closed, shapes = jax.make_jaxpr(after, return_shape=True)(params, buffers, arguments)
    same = iter(_find_forwarded(closed.jaxpr))
    ours = [p for t in (params, buffers) for p in jax.tree_util.tree_leaves_with_path(t)]
    before = {path_name(path): v for (path, _), v in zip(ours, closed.jaxpr.invars, strict=False)}
    held, _ = shapes
    variables = {kinds[name] for name in sorted(held) if before.get(name) is not next(same)}
    leaves = jax.tree_util.tree_leaves_with_path((args, kwargs))
    paths = [path for path, leaf in leaves if is_array(leaf)]
    inputs = closed.jaxpr.invars[len(ours) :]
    places = {_argument(p) for p, v in zip(paths, inputs, strict=True) if v is not next(same)}
    return Changes(tuple(sorted(variables)), tuple(sorted(places)))


def _nodes(tree: Any, kind: type) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind))


def _argument(path: Sequence[Any]) -> str:
    """Writes an argument's path, `args/0/…` or the keyword's name first."""
    side, *rest = path_name(path).split("/")
    return "/".join(["args", *rest] if side == "0" else rest)


def _find_forwarded(jaxpr: jex.Jaxpr) -> list[Any]:
    """Finds for each output the input or constant that it is unchanged, through calls and loops."""
    stands_for: dict[Atom, Atom] = {}

    def at(atom: Atom) -> Atom:
        return stands_for.get(atom, atom) if isinstance(atom, jex.Var) else atom

    for eqn in jaxpr.eqns:
        for out, source in zip(eqn.outvars, _forwarded_by(eqn), strict=False):
            if source is not None:
                stands_for[out] = at(source)
    return [at(v) for v in jaxpr.outvars]


def _forwarded_by(eqn: jex.JaxprEqn) -> list[Any]:
    """Finds for each output of an equation the operand that it is, or None."""
    inner = [body for body, _ in inner_jaxprs(eqn)]
    operands = list(eqn.invars)
    if eqn.primitive is prims.while_p:
        inner, operands = inner[1:], operands[while_loop(eqn).test_consts :]
    elif eqn.primitive is prims.cond_p:
        operands = operands[1:]
    found: list[list[Any]] = []
    for body in inner:
        ins = dict(zip(body.invars, operands, strict=True))
        found.append(
            [ins.get(v) if isinstance(v, jex.Var) else None for v in _find_forwarded(body)]
        )
    outs = [
        each[0] if all(e is each[0] for e in each) else None for each in zip(*found, strict=True)
    ]
    if eqn.primitive is prims.scan_p or eqn.primitive is prims.while_p:
        # What a loop carries is unchanged only where each step hands on its own operand.
        first = scan(eqn).consts if eqn.primitive is prims.scan_p else while_loop(eqn).body_consts
        count = scan(eqn).carry if eqn.primitive is prims.scan_p else len(outs)
        carried = operands[first : first + count]
        scanned = operands[first + count :]
        outs = [
            out if (out is carried[i] if i < count else any(out is x for x in scanned)) else None
            for i, out in enumerate(outs)
        ]
    return outs


def update_buffers(buffers: PyTree, updates: PyTree) -> PyTree:
    """Replaces some values of a tree of buffers.

    Args:
      buffers: Nested dicts of arrays.
      updates: A part of such a tree; collections that are not there yet are added.

    Raises:
      ValueError: A path that no buffer has, or an array of another shape or dtype.
    """
    if not isinstance(updates, Mapping) or not isinstance(buffers, Mapping):
        raise ValueError(
            f"updates={type(updates).__name__}: expected the dict that a call with mutable=… "
            "returned beside its outputs"
        )
    if "params" in updates and "params" not in buffers:
        raise ValueError("updates: params are no buffers; net.with_params(…) takes them")
    added = {name: tree for name, tree in updates.items() if name not in buffers}
    known = {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(buffers)}
    new = {
        path_name(p): leaf
        for p, leaf in jax.tree_util.tree_leaves_with_path(
            {name: tree for name, tree in updates.items() if name in buffers}
        )
    }
    for path, value in new.items():
        if path not in known:
            raise ValueError(f"updates: {path} is no buffer of the network")
        want, got = (f"{a.dtype}{list(a.shape)}" for a in (known[path], value))
        if want != got:
            raise ValueError(f"updates: {path} is {want} in the network, got {got}")
    changed = jax.tree_util.tree_map_with_path(
        lambda path, leaf: new.get(path_name(path), leaf), buffers
    )
    return {**changed, **added}
