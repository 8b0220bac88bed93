"""Resizing: runs Flax modules with smaller variables than they were written for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxsim.network.calls import NnxCall
from jaxsim.values.value import Value

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Resized(Value):
    """Model as a function, whose Linen modules take the sizes of the variables at hand.

    Flax's Linen modules check the shapes of their variables against their own settings and use a
    few of these in what they compute. For the length of a call the check is off and the settings
    are those of the variables. Functions without Linen modules run as they are.

    Attributes:
      call: Model as a function, `(params, buffers, *args, **kwargs) -> outputs`.
    """

    call: Callable[..., Any]

    def __call__(self, params: PyTree, buffers: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Runs the model with the sizes of these variables."""
        from flax import linen

        with linen.intercept_methods(_resize):
            return self.call(params, buffers, *args, **kwargs)


def resize_model(
    fn: Callable[..., Any], params: PyTree, buffers: PyTree, groups: Mapping[str, int]
) -> Callable[..., Any]:
    """Makes a model a function of smaller variables.

    Args:
      fn: Model as a function, `(params, buffers, *args, **kwargs) -> outputs`.
      params: Smaller parameters; they may be shapes.
      buffers: Smaller buffers; they may be shapes.
      groups: Number of groups of grouped convolutions, by path of the kernel.
    """
    if isinstance(fn, NnxCall):
        return _nnx(fn, params, buffers, groups)
    if isinstance(fn, Resized):
        return fn
    inner = getattr(fn, "call", None)
    if inner is None:
        return Resized(fn)
    around: Any = fn
    return dataclasses.replace(around, call=resize_model(inner, params, buffers, groups))


def _resize(run: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """Lets a Linen module take the sizes of its variables, and calls its method."""
    module = context.module
    scope = module.scope
    if scope is not None:
        _skip_shape_checks(scope)
        held = scope.variables().get("params", {})
        for name, value in _settings(module, held, "features").items():
            object.__setattr__(module, name, value)
        kernel = held.get("kernel")
        if getattr(module, "feature_group_count", 1) > 1 and args and kernel is not None:
            count = args[0].shape[-1] // kernel.shape[-2]
            object.__setattr__(module, "feature_group_count", count)
    return run(*args, **kwargs)


def _skip_shape_checks(scope: Any) -> None:
    """Makes a scope hand out parameters of any shape."""
    from flax.core import meta

    made = type(scope).param

    def param(name: str, init: Any, *args: Any, unbox: bool = True, **kwargs: Any) -> Any:
        if not scope.has_variable("params", name):
            return made(scope, name, init, *args, unbox=unbox, **kwargs)
        scope.reserve(name, "params")
        value = scope.get_variable("params", name)
        return meta.unbox(value) if unbox else value

    scope.param = param


def _settings(module: Any, held: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Finds the setting of that name, the output features of a module's kernel or embedding."""
    weight = next((held[n] for n in ("kernel", "embedding") if hasattr(held.get(n), "shape")), None)
    now = getattr(module, name, None)
    if weight is None or now is None:
        return {}
    if isinstance(now, int):
        return {name: weight.shape[-1]}
    return {name: tuple(weight.shape[weight.ndim - len(now) :])}


def _nnx(call: NnxCall, params: PyTree, buffers: PyTree, groups: Mapping[str, int]) -> NnxCall:
    """Makes an NNX module whose settings are those of smaller variables."""
    from flax import nnx

    states = []
    for state, values in ((call.params, params), (call.rest, buffers)):
        fresh = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(fresh, jax.eval_shape(lambda values=values: values))
        states.append(fresh)
    model = nnx.merge(call.graph, *states)
    for path, module in nnx.iter_graph(model):
        if not isinstance(module, nnx.Module):
            continue
        held = {n: v for n, v in vars(module).items() if isinstance(v, nnx.Param)}
        for name, value in _settings(module, held, "out_features").items():
            vars(module)[name] = value
        count = groups.get("/".join([*map(str, path), "kernel"]))
        if count is not None:
            vars(module)["feature_group_count"] = count
            vars(module)["in_features"] = count * held["kernel"].shape[-2]
    return NnxCall(*nnx.split(model, nnx.Param, ...))
