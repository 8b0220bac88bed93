"""Front ends: takes models of each library apart into a function, parameters and buffers.

Each calling convention holds what is static only and is equal to those that hold the same, so that
a model traced again, and every copy of a network, share one compiled program.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsim.cores.partition import Partitioned
from jaxsim.network.calls import (
    HaikuCall,
    HuggingFaceCall,
    LinenCall,
    NnxCall,
    PartitionedCall,
    PlainCall,
)
from jaxsim.network.leaves import PyTree, is_array, path_name


class Model(NamedTuple):
    """Model taken apart into a pure function and its variables.

    Attributes:
      call: `(params, buffers, *args, **kwargs) -> outputs`.
      params: Trained variables, nested as the model holds them.
      buffers: All other variables that the model reads.
      args: Positional arguments that are inputs.
      weights: Paths of the buffers that count as weights.
    """

    call: Callable[..., Any]
    params: PyTree
    buffers: PyTree
    args: tuple[Any, ...]
    weights: tuple[str, ...]


def take_apart(model: Any, args: tuple[Any, ...], weights: Any) -> Model:
    """Takes a model of any library that `js.trace` accepts apart, with its variables.

    Args:
      model: Flax Linen or NNX module, Hugging Face Flax model, Haiku transformed, or function.
      args: Variables and inputs, as given to `js.trace`.
      weights: Which buffers count as weights, as given to `js.trace`.

    Raises:
      ValueError: The model is of an unknown kind, or the variables do not fit it.
    """
    from flax import linen, nnx

    if isinstance(model, nnx.Module):
        if len(args) > 1 and isinstance(args[0], Mapping) and "params" in args[0]:
            raise ValueError("variables: an NNX module holds its own; give its inputs alone")
        return _nnx(model, args[1:] if len(args) > 1 and args[0] is None else args, weights)
    if isinstance(model, type) or not (callable(model) or _is_haiku(model)):
        raise ValueError(
            f"model={model!r}: expected a Flax module, a Hugging Face Flax model, a Haiku "
            "transformed or a function fn(params, *args), got neither a Flax module nor a function"
        )
    if not args:
        raise ValueError("variables: missing; give what the model's init returned, then the inputs")
    variables, *inputs = args
    if isinstance(model, linen.Module):
        return _linen(model, variables, tuple(inputs), weights)
    if weights:
        raise ValueError(
            f"weights={weights!r}: names collections of Flax variables; all that a "
            f"{type(model).__name__} is given as variables are weights"
        )
    if _is_hugging_face(model):
        return Model(HuggingFaceCall(model), variables, {}, tuple(inputs), ())
    if _is_haiku(model):
        return _haiku(model, variables, tuple(inputs))
    return _plain(model, variables, tuple(inputs))


def _linen(model: Any, variables: Any, args: tuple[Any, ...], weights: Any) -> Model:
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            f"variables={type(variables).__name__}: a Linen model needs the dict that "
            "model.init returns, with a 'params' collection"
        )
    buffers = {k: v for k, v in variables.items() if k != "params"}
    names = _list_weights(weights)
    if unknown := [n for n in names if not isinstance(n, str) or n not in buffers]:
        raise ValueError(
            f"weights={weights!r}: {unknown[0]!r} is no collection of the variables; expected some "
            f"of {', '.join(buffers) or 'none, for there are only params'}"
        )
    leaves = jax.tree_util.tree_leaves_with_path({n: buffers[n] for n in names})
    paths = tuple(path_name(path) for path, _ in leaves)
    taken = {path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(variables["params"])}
    if both := taken.intersection(paths):
        raise ValueError(f"weights={weights!r}: {min(both)} is the path of a parameter too")
    return Model(LinenCall(model), variables["params"], buffers, args, paths)


def _nnx(model: Any, args: tuple[Any, ...], weights: Any) -> Model:
    from flax import nnx

    graph, params, rest = nnx.split(model, nnx.Param, ...)
    call = NnxCall(graph, *jax.eval_shape(lambda: (params, rest)))
    known = {type(v).__name__: type(v) for _, v in nnx.to_flat_state(rest)}
    kinds = _list_weights(weights)
    for kind in kinds:
        fits = kind in known if isinstance(kind, str) else isinstance(kind, type)
        if not fits or not any(_is_kind(v, kind) for v in known.values()):
            raise ValueError(
                f"weights={weights!r}: {kind!r} is no type of the module's variables; expected "
                f"some of {', '.join(known) or 'none, for there are only Params'}"
            )
    paths = tuple(
        "/".join(map(str, path))
        for path, variable in nnx.to_flat_state(rest)
        if any(_is_kind(type(variable), kind) for kind in kinds)
    )
    return Model(call, nnx.to_pure_dict(params), nnx.to_pure_dict(rest), args, paths)


def _list_weights(weights: Any) -> tuple[Any, ...]:
    if isinstance(weights, str | type):
        return (weights,)
    if not isinstance(weights, Iterable):
        raise ValueError(f"weights={weights!r}: expected names of collections, or variable types")
    return tuple(weights)


def _is_kind(variable: type, kind: str | type) -> bool:
    return variable.__name__ == kind if isinstance(kind, str) else issubclass(variable, kind)


def _is_hugging_face(model: Any) -> bool:
    """Tells if a model wraps a Linen module and calls it, as Hugging Face's Flax models do."""
    from flax import linen

    return isinstance(getattr(model, "module", None), linen.Module) and hasattr(model, "params")


def _is_haiku(model: Any) -> bool:
    return isinstance(model, tuple) and {"init", "apply"} <= set(getattr(model, "_fields", ()))


def _haiku(model: Any, variables: Any, args: tuple[Any, ...]) -> Model:
    signature = list(inspect.signature(model.apply).parameters)
    stateful, draws = "state" in signature, "rng" in signature
    if stateful and not (isinstance(variables, tuple) and len(variables) == 2):
        raise ValueError(
            f"variables={type(variables).__name__}: a Haiku model with state needs the pair "
            "(params, state) that init returns"
        )
    params, state = variables if stateful else (variables, {})
    given = bool(args) and (args[0] is None or _is_key(args[0]))
    return Model(HaikuCall(model.apply, stateful, draws and not given), params, state, args, ())


def _is_key(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return False
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return typed or (dtype == "uint32" and value.shape == (2,))


def _plain(function: Callable[..., Any], variables: Any, args: tuple[Any, ...]) -> Model:
    if all(map(is_array, jax.tree.leaves(variables))):
        return Model(PlainCall(function), variables, {}, args, ())
    parts = Partitioned.of(variables, is_array)
    if not parts.arrays:
        path, leaf = jax.tree_util.tree_leaves_with_path(variables)[0]
        raise ValueError(f"variables: {path_name(path)}={leaf!r} is not an array, nor is any other")
    params = jax.tree.map(lambda leaf: leaf if is_array(leaf) else None, variables)
    call = PartitionedCall(function, dataclasses.replace(parts, arrays=()))
    return Model(call, params, {}, args, ())
