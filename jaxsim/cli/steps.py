"""Transforms of a recipe: each a name with arguments, which may name what jaxsim makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array, Key

import jaxsim as js
from jaxsim.cli.keys import meant
from jaxsim.cli.vocabulary import public
from jaxsim.network.network import Net
from jaxsim.network.transform import Transform

_EMPTY = inspect.Parameter.empty


class Given:
    """What a recipe does not say and a transform or criterion asks for by name.

    Attributes:
      inputs: Returns those that set the ranges; None where there are none.
      key: Random key that keys are made of, another each time; None where nothing may draw.
    """

    def __init__(self, inputs: Callable[[], Any] = lambda: None, key: Key[Array, ""] | None = None):
        """Begins to give.

        Args:
          inputs: Called when first asked for.
          key: Random key.
        """
        self._inputs, self._key, self._keys = inputs, key, 0

    def inputs(self) -> Any:
        """Those that set the ranges."""
        found = self._inputs()
        if found is None:
            raise ValueError("takes inputs, and there is no data that they are of")
        return found

    def key(self) -> Key[Array, ""]:
        """A key that was not given before."""
        if self._key is None:
            raise ValueError("takes a random key, and nothing draws here")
        self._keys += 1
        return jax.random.fold_in(self._key, self._keys)


def compose_steps(steps: Sequence[Mapping[str, Any]], given: Given | None = None) -> Transform:
    """Composes the transforms of a recipe, one after the other.

    Args:
      steps: Tables `[[transform]]`, each with a name and arguments.
      given: What those have that must be told `inputs` or a `key`, such as `smooth` and
        `sparsity.random`; None for neither.

    Raises:
      ValueError: An unknown transform or argument, or one that asks for what is not given; when
        applied, what a transform raises.
    """
    given = Given() if given is None else given
    transforms: list[tuple[str, Transform]] = []
    for i, step in enumerate(steps, 1):
        try:
            make = public(str(step["name"]))
        except ValueError as error:
            raise ValueError(f"transform {i}: name={error}") from None
        what = f"transform {i}, {step['name']}"
        said = {name: value for name, value in step.items() if name != "name"}
        settings = {k: _resolved(f"{what}: {k}", v, given) for k, v in said.items()}
        built: Transform = construct(what, make, settings, given)
        if not callable(built):
            raise ValueError(f"{what}: makes a {type(built).__name__}, no transform")
        transforms.append((what, built))

    def apply(net: Net) -> Net:
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


def resolve(value: Any, given: Given) -> Any:
    """Reads a value of a recipe, with what its tables name in their places.

    Args:
      value: Value of TOML.
      given: As `compose_steps` takes it.

    Raises:
      ValueError: A table names what jaxsim cannot make of it.
    """
    if isinstance(value, list):
        return tuple(resolve(v, given) for v in value)
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((name, inner),) = value.items()
        # Other tables of one key are arguments, such as the patterns of `rules`.
        if name.split(".")[0] in js.__all__:
            make = public(name)
            return construct(name, make, arguments(make, inner, given), given)
    return {name: resolve(inner, given) for name, inner in value.items()}


def _resolved(where: str, value: Any, given: Given) -> Any:
    """As `resolve`, and an error says where in the recipe the value stands."""
    try:
        return resolve(value, given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def arguments(make: Callable[..., Any], told: Any, given: Given) -> Any:
    """Reads arguments of a function; a key that is one of its parameters does not name a value.

    Args:
      make: The function.
      told: Value of TOML.
      given: As `compose_steps` takes it.

    Raises:
      ValueError: As `resolve` raises.
    """
    if isinstance(told, dict) and told.keys() <= inspect.signature(make).parameters.keys():
        return {name: resolve(inner, given) for name, inner in told.items()}
    return resolve(told, given)


def construct(what: str, make: Any, told: Any, given: Given) -> Any:
    """Calls with a table by name, with a list by position, or with one value.

    Args:
      what: What is called, for the error.
      make: The function.
      told: Arguments, from `arguments`.
      given: As `compose_steps` takes it.

    Raises:
      ValueError: Whatever the function says, or what it asks for and is not given.
    """
    args = told if isinstance(told, tuple) else () if isinstance(told, dict) else (told,)
    named = dict(told) if isinstance(told, dict) else {}
    try:
        for name, parameter in [*inspect.signature(make).parameters.items()][len(args) :]:
            if name in ("inputs", "key") and name not in named and parameter.default is _EMPTY:
                named[name] = getattr(given, name)()
        _check_call(make, args, named)
        return make(*args, **{name: _left_out(make, name, v) for name, v in named.items()})
    except Exception as error:  # whatever it says of values that it was not made for
        raise ValueError(f"{what}: {error}") from error


def _left_out(make: Any, name: str, value: Any) -> Any:
    """None for `false` where an argument may be None and is no boolean: TOML has no None."""
    parameter = inspect.signature(make).parameters.get(name)
    said = "" if parameter is None else str(parameter.annotation)
    return None if value is False and "None" in said and "bool" not in said else value


def _check_call(make: Any, args: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Checks that a function takes some arguments, in words of a recipe.

    Raises:
      ValueError: A key that is no argument, one that is missing, or too many values in a list.
    """
    kind, parameters = inspect.Parameter, inspect.signature(make).parameters
    kinds = {p.kind for p in parameters.values()}
    open_ended = (kind.VAR_POSITIONAL, kind.VAR_KEYWORD)
    plain = {n: p for n, p in parameters.items() if p.kind not in open_ended}
    if kind.VAR_KEYWORD not in kinds:
        for name in named:
            if name not in plain:
                listed = ", ".join(plain)
                raise ValueError(f"{name!r} is unknown{meant(name, plain)}; it may have {listed}")
    places = [n for n, p in plain.items() if p.kind is not kind.KEYWORD_ONLY]
    if len(args) > len(places) and kind.VAR_POSITIONAL not in kinds:
        raise ValueError(f"{len(args)} values; at most {len(places)} by position: {places}")
    for name, parameter in plain.items():
        if parameter.default is _EMPTY and name not in (*places[: len(args)], *named):
            raise ValueError(f"{name} is missing")
