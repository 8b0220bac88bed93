"""Models of every library as one kind of function: `fn(params, buffers, *args, **kwargs)`.

Each calling convention holds what is static only and is equal to those that hold the same, so that
a model traced again, and every copy of a network, share one compiled program.
"""

from __future__ import annotations

import dataclasses
import inspect
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxsim.core import Parts
from jaxsim.internals import inner_jaxprs, scan, while_loop
from jaxsim.values import Value

PyTree = Any


class Model(NamedTuple):
    """A model, taken apart.

    Attributes:
      call: `(params, buffers, *args, **kwargs) -> outputs`.
      params: What is trained, as the model holds it.
      buffers: Everything else the model reads.
      args: Positional arguments that are inputs.
      weights: Paths of the buffers that count as weights.
    """

    call: Callable[..., Any]
    params: PyTree
    buffers: PyTree
    args: tuple[Any, ...]
    weights: tuple[str, ...]


def is_array(leaf: Any) -> bool:
    """Whether a leaf of a call's arguments is traced; anything else is static."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def path_name(path: Sequence[Any]) -> str:
    """A parameter's path as `layer/kernel`."""
    keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    if len(keys) > 1 and keys[-1] == "value":  # the box of a partitioned Flax parameter
        keys = keys[:-1]
    return "/".join(keys) or "params"


def take_apart(model: Any, args: tuple[Any, ...], weights: Any) -> Model:
    """A model of any library that `js.trace` takes, with its variables.

    Args:
      model: Flax Linen or NNX module, Hugging Face Flax model, Haiku transformed, or function.
      args: Variables and inputs, as `js.trace` is given them.
      weights: Which buffers count as weights, as `js.trace` is given it.

    Raises:
      ValueError: The model is of no kind that is known, or the variables do not fit it.
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
    names = _named(weights)
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
    kinds = _named(weights)
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


def _named(weights: Any) -> tuple[Any, ...]:
    if isinstance(weights, str | type):
        return (weights,)
    if not isinstance(weights, Iterable):
        raise ValueError(f"weights={weights!r}: expected names of collections, or variable types")
    return tuple(weights)


def _is_kind(variable: type, kind: str | type) -> bool:
    return variable.__name__ == kind if isinstance(kind, str) else issubclass(variable, kind)


def _is_hugging_face(model: Any) -> bool:
    """Whether a model is a Linen module that knows its own call, as Hugging Face's Flax ones do."""
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
    parts = Parts.of(variables, is_array)
    if not parts.arrays:
        path, leaf = jax.tree_util.tree_leaves_with_path(variables)[0]
        raise ValueError(f"variables: {path_name(path)}={leaf!r} is not an array, nor is any other")
    params = jax.tree.map(lambda leaf: leaf if is_array(leaf) else None, variables)
    call = PartitionedCall(function, dataclasses.replace(parts, arrays=()))
    return Model(call, params, {}, args, ())


@dataclasses.dataclass(frozen=True, eq=False)
class LinenCall(Value):
    """A Linen module as `fn(params, buffers, *args, **kwargs)`.

    Attributes:
      model: The module.
    """

    model: Any

    def __call__(self, params: PyTree, buffers: PyTree, *args: Any, **kwargs: Any) -> Any:
        """What the module returns."""
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
        """The module that holds these numbers."""
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
        """What the module returns.

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
        """Gives every random stream a key of its own, made from the one for its name."""
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
        """A filter of NNX from names of variable types, as Linen names its collections."""
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
        """What the model returns."""
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
        """What `apply` returns."""
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
        """What the function returns."""
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
    rest: Parts

    def __call__(self, params: PyTree, buffers: PyTree, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        del buffers
        whole = dataclasses.replace(self.rest, arrays=tuple(jax.tree.leaves(params))).whole()
        return self.function(whole, *args, **kwargs)


class Changes(NamedTuple):
    """What a call changes and a network, being a pure function, does not hand on.

    Attributes:
      variables: Names of the types of an NNX module's variables, sorted.
      arguments: Paths of arguments that hold modules and are changed in place, sorted.
    """

    variables: tuple[str, ...]
    arguments: tuple[str, ...]


def changes(call: Callable[..., Any], params: PyTree, buffers: PyTree, arguments: Parts) -> Changes:
    """What a call of a model changes: its own variables, and modules among its arguments.

    Args:
      call: A model's calling convention.
      params: Its parameters; shapes are enough.
      buffers: What else it reads; shapes are enough.
      arguments: Those of the call.
    """
    from flax import nnx

    args, kwargs = arguments.whole()
    own = isinstance(call, NnxCall) and kwargs.get("mutable", False) is False
    if not own and not any(isinstance(n, nnx.Module) for n in _nodes((args, kwargs), nnx.Module)):
        return Changes((), ())
    kinds: dict[str, str] = {}

    def after(params: PyTree, buffers: PyTree, arguments: Parts) -> Any:
        args, kwargs = arguments.whole()
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
        return held, list(Parts.of((args, kwargs), is_array).arrays)

    closed, shapes = jax.make_jaxpr(after, return_shape=True)(params, buffers, arguments)
    same = iter(_forwarded(closed.jaxpr))
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
    """An argument's path, `args/0/…` or the keyword's name first."""
    side, *rest = path_name(path).split("/")
    return "/".join(["args", *rest] if side == "0" else rest)


def _forwarded(jaxpr: jex.Jaxpr) -> list[Any]:
    """For each output the variable that it is unchanged, through calls and loops."""
    stands_for: dict[Any, Any] = {}

    def at(atom: Any) -> Any:
        return stands_for.get(atom, atom) if isinstance(atom, jex.Var) else atom

    for eqn in jaxpr.eqns:
        for out, source in zip(eqn.outvars, _passed_on(eqn), strict=False):
            if source is not None:
                stands_for[out] = at(source)
    return [at(v) for v in jaxpr.outvars]


def _passed_on(eqn: jex.JaxprEqn) -> list[Any]:
    """For each output of an equation the operand that it is, or None."""
    inner = [body for body, _ in inner_jaxprs(eqn)]
    operands = list(eqn.invars)
    if eqn.primitive is prims.while_p:
        inner, operands = inner[1:], operands[while_loop(eqn).test_consts :]
    elif eqn.primitive is prims.cond_p:
        operands = operands[1:]
    found: list[list[Any]] = []
    for body in inner:
        ins = dict(zip(body.invars, operands, strict=True))
        found.append([ins.get(v) if isinstance(v, jex.Var) else None for v in _forwarded(body)])
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


def updated(buffers: PyTree, updates: PyTree) -> PyTree:
    """Buffers with some of their values replaced.

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
