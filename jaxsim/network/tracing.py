"""A network made of a model, whatever library wrote it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax

from jaxsim.cores.partition import Partitioned
from jaxsim.network.arguments import abstract_arguments, call_arguments
from jaxsim.network.changes import Changes, changes
from jaxsim.network.frontends import take_apart
from jaxsim.network.leaves import check_params, is_array
from jaxsim.network.network import Net, Network
from jaxsim.network.planner import trace_plan
from jaxsim.numerics.arrays import native


def trace(model: Any, *args: Any, weights: Any = (), **kwargs: Any) -> Network:
    """Makes a network of a model, without changing the model.

    Args:
      model: A Flax NNX module; a Flax Linen module; a Hugging Face Flax model; a Haiku transformed;
        or any function `fn(variables, *args, **kwargs)`.
      *args: Variables of the model, then example inputs. An NNX module holds its variables: inputs
        come first, or after None. Linen takes what `init` returned (`{"params": …, …}`), Hugging
        Face its `params`, Haiku `params` or `(params, state)`, a function whatever it takes: arrays
        in it are parameters, all other leaves static. Inputs may change shape in later calls where
        the model allows it; values other than arrays (`None`, `True`) are static.
      weights: Variables beside the parameters whose contractions are sites too, though they are
        not trained: names of Linen collections (`["frozen"]`), types of NNX variables or their
        names.
      **kwargs: Example keyword arguments. Those that hold no arrays (`train=False`,
        `mutable=["batch_stats"]`) become defaults of every later call.

    Returns:
      A network that computes exactly what the model does.

    Raises:
      ValueError: The model has no sites, a weight is NaN, infinite or not a float, the variables
        do not fit the model, no input is an array, or a keyword argument is called `key`.

    Warns:
      UserWarning: The module changes variables of its own, or modules among its arguments, which a
        pure function does not: see `mutable=` in docs/state.md.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda params, x: x @ params["w"], {"w": jnp.eye(3)}, jnp.ones((2, 3)))
      >>> [site.name for site in net.sites]
      ['w']
    """
    if "key" in kwargs:
        raise ValueError("key: a network's call keeps this name for its cores; give it by position")
    if "variables" in kwargs:
        args = (kwargs.pop("variables"), *args)
    fn, params, buffers, args, weights = take_apart(model, args, weights)
    params, buffers = jax.tree.map(native, (params, buffers))
    check_params(params)
    check_params({"buffers": buffers}, {f"buffers/{name}" for name in weights})
    arrays = {k: v for k, v in kwargs.items() if any(map(is_array, jax.tree.leaves(v)))}
    defaults = Partitioned.of({k: v for k, v in kwargs.items() if k not in arrays}, is_array)
    arguments = call_arguments(args, kwargs)
    example = abstract_arguments(arguments)
    if not example.arrays:
        raise ValueError("args: no array among them; lists and Python numbers are static")
    traced = trace_plan(fn, params, buffers, arguments, example, weights)
    sites = traced.sites
    if not any(s.kind != "dynamic" for s in sites):
        others = "; ".join(traced.unreached)
        raise ValueError(
            f"model={model!r} has no sites: no dot_general or convolution of an input with a "
            "parameter was found in it" + (f", but {others}" if others else "")
        )
    _warn(changes(fn, params, buffers, arguments))
    if traced.miscomputed and jax.default_backend() == "cpu" and jax.__version_info__ < (0, 12):
        warnings.warn(
            f"jax=={jax.__version__} computes wrong numbers on the CPU for a convolution of floats "
            "whose padding takes some away and adds some: "
            f"{', '.join(traced.miscomputed)}; pad with jnp.pad and slices, or install jax 0.12",
            UserWarning,
            stacklevel=2,
        )
    return Network(
        params=params,
        buffers=buffers,
        masks={},
        cores={},
        states={},
        fn=fn,
        sites=sites,
        defaults=defaults,
        example=example,
        weights=weights,
        unreached=traced.unreached,
    )


def _warn(changed: Changes) -> None:
    """Warns of what a call of a model changes and a network drops."""
    if changed.variables:
        names = ", ".join(changed.variables)
        warnings.warn(
            f"each call of the model changes its {names}, which the network drops: give "
            f"mutable={list(changed.variables)} to have the new values beside the outputs, or put "
            "the model in evaluation mode (model.eval()); see docs/state.md",
            UserWarning,
            stacklevel=3,
        )
    if changed.arguments:
        warnings.warn(
            f"each call of the model changes {', '.join(changed.arguments)} in place, which the "
            "network drops: trace a function that takes this state and returns the next one; see "
            "docs/state.md",
            UserWarning,
            stacklevel=3,
        )


def retrace(net: Net, fn: Callable[..., Any]) -> Net:
    """Traces another function of the same arguments and finds its sites anew.

    Args:
      net: Network whose parameters, buffers and example arguments `fn` takes.
      fn: Function `(params, buffers, *args, **kwargs) -> outputs`.
    """
    traced = trace_plan(fn, net.params, net.buffers, net.example, net.example, net.weights)
    return dataclasses.replace(net, fn=fn, sites=traced.sites, unreached=traced.unreached)
