"""Functions added to or removed from a trained Neural Interpreter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Key

from jaxsim.models.neural_interpreter import NeuralInterpreter
from jaxsim.models.vision import Vision
from jaxsim.numerics.checks import checked_int
from jaxsim.numerics.renamed import old_names

ROWS = ("signatures", "codes")  # parameters of a script with a row for each function
INITS = ("random", "mirror")


def add_functions(
    model: Any,
    params: Mapping[str, Any],
    count: int,
    key: Key[Array, ""],
    *,
    init: Literal["random", "mirror"] = "random",
) -> tuple[Any, dict[str, Any]]:
    """Adds functions to every script of a model, after those it has.

    Args:
      model: A `NeuralInterpreter`, or a module with one as its `body`.
      params: Parameters of the model.
      count: Number of functions to add, at least 1.
      key: Random key of new rows.
      init: "random" draws signatures and codes as at the beginning; "mirror" copies those of
        functions drawn at random, so that the new ones begin as the old.

    Returns:
      The larger model and its parameters.

    Raises:
      ValueError: An argument out of range, or a model without functions.
    """
    count = checked_int("count", count, 1)
    if init not in INITS:
        raise ValueError(f"init={init!r}: must be 'random' or 'mirror'")
    body = _interpreter(model)
    keys = iter(jax.random.split(key, 2 * body.scripts))

    def add_rows(rows: dict[str, Array]) -> dict[str, Array]:
        source = jax.random.randint(next(keys), (count,), 0, body.functions)
        draw = next(keys)
        added = {
            name: w[source]
            if init == "mirror"
            else jax.random.normal(jax.random.fold_in(draw, i), (count, w.shape[1]), w.dtype)
            for i, (name, w) in enumerate(rows.items())
        }
        return {name: jnp.concatenate([w, added[name]]) for name, w in rows.items()}

    return _with(model, body.functions + count), _map_scripts(params, add_rows, body)


def remove_functions(
    model: Any, params: Mapping[str, Any], functions: Sequence[int]
) -> tuple[Any, dict[str, Any]]:
    """Removes functions from every script of a model.

    Args:
      model: A `NeuralInterpreter`, or a module with one as its `body`.
      params: Parameters of the model.
      functions: Numbers of the functions to remove, from 0.

    Returns:
      The smaller model and its parameters.

    Raises:
      ValueError: A function that is not there, none that stays, or a model without functions.
    """
    body = _interpreter(model)
    gone = {checked_int("functions", u, 0, body.functions - 1) for u in functions}
    kept = jnp.asarray([u for u in range(body.functions) if u not in gone], int)
    if not len(kept):
        raise ValueError(f"functions={sorted(gone)}: at least one of {body.functions} must stay")
    smaller = _map_scripts(params, lambda rows: {name: w[kept] for name, w in rows.items()}, body)
    return _with(model, len(kept)), smaller


def add_task(
    model: Vision, params: Mapping[str, Any], classes: int, key: Key[Array, ""]
) -> tuple[Vision, dict[str, Any]]:
    """Adds a task to a model: a class token and a head.

    The token begins as the mean of those that have learned to gather from the patches: what gathers
    at random tells images apart far less. The head is drawn anew.

    Args:
      model: Model that classifies images.
      params: Parameters of the model.
      classes: Number of classes of the task, at least 1.
      key: Random key of the head.

    Raises:
      ValueError: No classes.
    """
    classes = checked_int("classes", classes, 1)
    tokens = params["class_tokens"]
    head = {
        "kernel": nn.initializers.lecun_normal()(key, (model.width, classes)),
        "bias": jnp.zeros(classes),
    }
    more = {
        **params,
        "class_tokens": jnp.concatenate([tokens, tokens.mean(0, keepdims=True)]),
        f"head_{len(model.tasks)}": head,
    }
    return model.clone(tasks=(*model.tasks, classes)), more


def new_parameter_mask(params: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Marks parameters that are new, so that training leaves alone what was learned before.

    New are parameters that were not there, and rows behind those that were.

    Args:
      params: Parameters after `add_functions` or `add_task`.
      before: Parameters of the model they were added to.

    Returns:
      A mask of the shape of each parameter, 1 where it is new and 0 elsewhere, for
      `jaxsim.train.only`.

    Raises:
      ValueError: A parameter that lost rows or changed in another axis.
    """

    def mask(path: str, new: Any, old: Any) -> Any:
        if isinstance(new, Mapping):
            known = old if isinstance(old, Mapping) else {}
            return {k: mask(f"{path}/{k}", v, known.get(k)) for k, v in new.items()}
        if old is None:
            return jnp.ones(jnp.shape(new))
        rows, shape = len(old) if jnp.ndim(old) else 0, jnp.shape(new)
        if shape == jnp.shape(old):
            return jnp.zeros(shape)
        if not shape or shape[1:] != jnp.shape(old)[1:] or shape[0] < rows:
            raise ValueError(
                f"params: {path[1:]} is {list(shape)} and was {list(jnp.shape(old))}; only rows "
                "may be added"
            )
        return jnp.ones(shape).at[:rows].set(0)

    return mask("", params, before)


def _interpreter(model: Any) -> NeuralInterpreter:
    body = getattr(model, "body", model)
    if not isinstance(body, NeuralInterpreter):
        raise ValueError(f"model={type(model).__name__}: has no functions to add or remove")
    return body


def _with(model: Any, functions: int) -> Any:
    if isinstance(model, NeuralInterpreter):
        return model.clone(functions=functions)
    return model.clone(body=model.body.clone(functions=functions))


def _map_scripts(
    params: Mapping[str, Any],
    change: Callable[[dict[str, Array]], dict[str, Array]],
    body: NeuralInterpreter,
) -> dict[str, Any]:
    """Parameters with the rows of every script changed."""
    found = 0

    def walk(tree: Any) -> Any:
        nonlocal found
        if not isinstance(tree, Mapping):
            return tree
        done = {k: walk(v) for k, v in tree.items()}
        for name in tree:
            if re.fullmatch(r"script_\d+", name):
                rows = {k: tree[name][k] for k in ROWS}
                if any(len(w) != body.functions for w in rows.values()):
                    raise ValueError(
                        f"params: {name} has {len(rows['codes'])} functions, the model "
                        f"{body.functions}"
                    )
                done[name] = {**done[name], **change(rows)}
                found += 1
        return done

    out = walk(params)
    if found != body.scripts:
        raise ValueError(f"params: {found} scripts, the model has {body.scripts}")
    return out


__getattr__ = old_names(__name__, {"added": new_parameter_mask})
