"""Transforms of a recipe: each a name with arguments, which may name what jaxsim makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jaxsim as js
from jaxsim.cli.vocabulary import public

Inputs = Callable[[], Any]


def compose_steps(
    steps: Sequence[Mapping[str, Any]], inputs: Inputs = lambda: None
) -> Callable[[js.Network], js.Network]:
    """Composes the transforms of a recipe, one after the other.

    Args:
      steps: Tables `[[transform]]`, each with a name and arguments.
      inputs: Returns what a transform or a criterion is given that has to be told `inputs`, such as
        `smooth` or `round_weights`: those that set the ranges; None where there are none.

    Raises:
      ValueError: An unknown transform or argument, or one that takes inputs where there are none;
        when applied, what a transform raises.
    """
    transforms: list[tuple[str, Callable[[js.Network], js.Network]]] = []
    for i, step in enumerate(steps, 1):
        try:
            make = public(str(step["name"]))
        except ValueError as error:
            raise ValueError(f"transform {i}: name={error}") from None
        settings = {k: resolve(v, inputs) for k, v in step.items() if k != "name"}
        what = f"transform {i}, {step['name']}"
        built: Callable[[js.Network], js.Network] = construct(what, make, settings, inputs)
        if not callable(built):
            raise ValueError(f"{what}: makes a {type(built).__name__}, no transform")
        transforms.append((what, built))

    def apply(net: js.Network) -> js.Network:
        for what, step in transforms:
            try:
                net = step(net)
            # What a transform says of values that a file should not have given it.
            except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
                raise ValueError(f"{what}: {error}") from error
            if not isinstance(net, js.Network):
                raise ValueError(f"{what}: makes a {type(net).__name__} of a network, no network")
        return net

    return apply


def resolve(value: Any, inputs: Inputs) -> Any:
    """Reads a value of a recipe, with what its tables name in their places.

    Args:
      value: Value of TOML.
      inputs: As `compose_steps` takes them.

    Raises:
      ValueError: A table names what jaxsim cannot make of it.
    """
    if isinstance(value, list):
        return tuple(resolve(v, inputs) for v in value)
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((name, inner),) = value.items()
        # Other tables of one key are arguments, such as the patterns of `rules`.
        if name.split(".")[0] in js.__all__:
            make = public(name)
            return construct(name, make, arguments(make, inner, inputs), inputs)
    return {name: resolve(inner, inputs) for name, inner in value.items()}


def arguments(make: Callable[..., Any], given: Any, inputs: Inputs) -> Any:
    """Reads arguments of a function; a key that is one of its parameters does not name a value.

    Args:
      make: The function.
      given: Value of TOML.
      inputs: As `compose_steps` takes them.

    Raises:
      ValueError: As `resolve` raises.
    """
    if isinstance(given, dict) and given.keys() <= inspect.signature(make).parameters.keys():
        return {name: resolve(inner, inputs) for name, inner in given.items()}
    return resolve(given, inputs)


def construct(what: str, make: Any, given: Any, inputs: Inputs) -> Any:
    """Calls with a table by name, with a list by position, or with one value.

    Args:
      what: What is called, for the error.
      make: The function.
      given: Arguments, from `arguments`.
      inputs: As `compose_steps` takes them.

    Raises:
      ValueError: Whatever the function says, or inputs that are missing.
    """
    args = given if isinstance(given, tuple) else () if isinstance(given, dict) else (given,)
    named = dict(given) if isinstance(given, dict) else {}
    if "inputs" not in named and _asks_inputs(make, len(args)):
        named["inputs"] = inputs()
        if named["inputs"] is None:
            raise ValueError(f"{what}: takes inputs, and there is no data that they are of")
    try:
        return make(*args, **named)
    except Exception as error:  # whatever it says of values that it was not made for
        raise ValueError(f"{what}: {error}") from error


def _asks_inputs(make: Any, given: int) -> bool:
    """Whether a function has to be told `inputs`, and arguments by position do not."""
    parameters = inspect.signature(make).parameters
    asked = parameters.get("inputs")
    return (
        asked is not None
        and asked.default is asked.empty
        and [*parameters].index("inputs") >= given
    )
