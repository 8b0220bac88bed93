"""Calling conventions: a model of any library as a function of parameters, buffers and inputs."""

from __future__ import annotations

import dataclasses
import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxsim.cores.partition import Partitioned
from jaxsim.network.leaves import PyTree
from jaxsim.values.value import Value


@dataclasses.dataclass(frozen=True, eq=False)
class LinenCall(Value):
    """A Linen module as `fn(params, buffers, *args, **kwargs)`.

    Attributes:
      model: The module.
    """

    model: Any

    def __call__(self, params: PyTree, buffers: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Applies the module to its variables and the inputs."""
        return self.model.apply({"params": params, **buffers}, *args, **kwargs)


@dataclasses.dataclass(frozen=True, eq=False)
class NnxCall(Value):
    """An NNX module as `fn(params, buffers, *args, **kwargs)`.

    Attributes:
      graph: What is static of the module.
      params, rest: Its two states, as shapes.
    """

    graph: Any
    params: Any
    rest: Any

    def module(self, params: PyTree, buffers: PyTree) -> Any:
        """Builds the module that holds these numbers.

        Args:
          params: Values of its `nnx.Param`s, as nested dicts.
          buffers: Values of all its other variables, as nested dicts.
        """
        from flax import nnx

        states = []
        for state, values in ((self.params, params), (self.rest, buffers)):
            fresh = jax.tree.map(lambda leaf: leaf, state)
            nnx.replace_by_pure_dict(fresh, values)
            states.append(fresh)
        return nnx.merge(self.graph, *states)

    def __call__(
        self,
        params: PyTree,
        buffers: PyTree,
        *args: Any,
        mutable: Any = False,
        rngs: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Builds the module and calls it.

        Args:
          params: Values of its `nnx.Param`s.
          buffers: Values of all its other variables.
          *args: Its positional arguments.
          mutable: Filter of the variables whose new values to return beside the outputs, as in
            `nnx.state(model, mutable)`, or their names (`"Cache"`); True for all but parameters,
            False returns outputs alone.
          rngs: A key for all its random streams, or one for each name; None goes on from theirs.
          **kwargs: Its keyword arguments.
        """
        from flax import nnx

        model = self.module(params, buffers)
        if rngs is not None and "rngs" in inspect.signature(type(model).__call__).parameters:
            kwargs["rngs"] = rngs
        elif rngs is not None:
            self._reseed(model, rngs)
        outputs = model(*args, **kwargs)
        if mutable is False:
            return outputs
        changed = nnx.state(model, self._filter(mutable))
        return outputs, nnx.to_pure_dict(changed)

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the module's random streams."""
        from flax import nnx

        found = (v for _, v in nnx.to_flat_state(self.rest) if isinstance(v, nnx.RngKey))
        return tuple(dict.fromkeys(v.tag for v in found))

    def _reseed(self, model: Any, rngs: Any) -> None:
        """Gives every random stream a separate key, made from the one for its name."""
        from flax import nnx

        keys = rngs if isinstance(rngs, Mapping) else dict.fromkeys(self.streams, rngs)
        if unknown := sorted(set(keys) - set(self.streams)):
            raise ValueError(
                f"rngs={unknown[0]!r}: the module has no such stream; expected some of "
                f"{', '.join(self.streams) or 'none, for it draws nothing'}"
            )

        state = nnx.state(model, nnx.RngKey)
        for path, variable in nnx.to_flat_state(state):
            if variable.tag in keys:
                key = _fold(keys[variable.tag], "/".join(map(str, path)))
                shape = variable.shape
                variable.set_value(jax.random.split(key, shape) if shape else key)
        nnx.update(model, state)

    def _filter(self, mutable: Any) -> Any:
        """Makes a filter of NNX from names of variable types, as Linen names its collections."""
        from flax import nnx

        known = {type(v).__name__: type(v) for s in (self.params, self.rest) for v in _values(s)}
        known |= {"params": nnx.Param, "batch_stats": nnx.BatchStat, "cache": nnx.Cache}
        if isinstance(mutable, str):
            if mutable not in known:
                raise ValueError(
                    f"mutable={mutable!r}: the module has no such variables; expected some of "
                    f"{', '.join(sorted(known))}"
                )
            return known[mutable]
        if isinstance(mutable, list | tuple):
            return nnx.Any(*(self._filter(each) for each in mutable))
        return nnx.Not(nnx.Param) if mutable is True else mutable


def _values(state: Any) -> list[Any]:
    from flax import nnx

    return [variable for _, variable in nnx.to_flat_state(state)]


def _fold(key: Any, name: str) -> Key[Array, ""]:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFaceCall(Value):
    """A Hugging Face Flax model as `fn(params, buffers, *args, **kwargs)`.

    Attributes:
      model: The model; the parameters it holds are not read.
    """

    model: Any

    def __call__(self, params: PyTree, buffers: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Calls the model with these parameters."""
        del buffers
        return self.model(*args, params=params, **kwargs)


@dataclasses.dataclass(frozen=True, eq=False)
class HaikuCall(Value):
    """A Haiku transformed as `fn(params, buffers, *args, **kwargs)`.

    Attributes:
      apply: `(params, [state,] [rng,] *args)`.
      stateful: Whether it takes a state and returns the next one beside its outputs.
      keyless: Whether it takes a key that calls do not give.
    """

    apply: Callable[..., Any]
    stateful: bool
    keyless: bool

    def __call__(self, params: PyTree, buffers: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Applies the function to its parameters, its state and the inputs."""
        state = (buffers,) if self.stateful else ()
        key = (None,) if self.keyless else ()
        return self.apply(params, *state, *key, *args, **kwargs)


@dataclasses.dataclass(frozen=True, eq=False)
class PlainCall(Value):
    """A function of parameters as `fn(params, buffers, *args, **kwargs)`.

    Attributes:
      function: `(params, *args, **kwargs) -> outputs`.
    """

    function: Callable[..., Any]

    def __call__(self, params: PyTree, buffers: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Calls the function; it has no buffers."""
        del buffers
        return self.function(params, *args, **kwargs)


@dataclasses.dataclass(frozen=True, eq=False)
class PartitionedCall(Value):
    """A function of a pytree that is not all arrays, such as a module of Equinox.

    Attributes:
      function: `(variables, *args, **kwargs) -> outputs`.
      rest: The variables without their arrays.
    """

    function: Callable[..., Any]
    rest: Partitioned

    def __call__(self, params: PyTree, buffers: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Puts the arrays back into the pytree and calls the function with it."""
        del buffers
        whole = dataclasses.replace(self.rest, arrays=tuple(jax.tree.leaves(params))).combine()
        return self.function(whole, *args, **kwargs)


def calls_within(fn: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Lists a call and those that it makes, down to the model's own.

    Args:
      fn: Call of a network.
    """
    while True:
        yield fn
        inner = getattr(fn, "call", None)
        if inner is None:
            return
        fn = inner


@dataclasses.dataclass(frozen=True, eq=False)
class OutputCall(Value):
    """A part of what another call returns.

    Attributes:
      call: `(params, buffers, *args, **kwargs) -> outputs`.
      output: Function from the outputs to the part.
    """

    call: Callable[..., Any]
    output: Callable[[Any], Any]

    def __call__(self, params: PyTree, buffers: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Calls the model and takes the part."""
        return self.output(self.call(params, buffers, *args, **kwargs))
