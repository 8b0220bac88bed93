"""Keys and values of a cache, stored as codes between calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxsim.formats.grid import Grid
from jaxsim.formats.vectors import VectorForm, vector_form
from jaxsim.network.calls import LinenCall, NnxCall, calls_within
from jaxsim.network.leaves import PyTree, is_whole_number, path_name
from jaxsim.network.network import Net, Network, require_uncut
from jaxsim.network.transform import Transform, require_network
from jaxsim.numerics.checks import check_called, checked_int
from jaxsim.values.calls import shown_as_called
from jaxsim.values.value import PytreeValue, Value


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "first", "latest", "coded"],
    meta_fields=["axis", "shape"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class CodedLeaf(PytreeValue):
    """Vectors of the tokens of a cache, most of them as codes.

    Attributes:
      codes: What the format stores of every token's vectors.
      first: Vectors of the first tokens, as they are.
      latest: Vectors of the latest tokens, as they are.
      coded: Number of tokens, from the first on, whose codes stay as they are.
      axis: Axis of the tokens.
      shape: Shape of the vectors, [..., S, ..., d].
    """

    codes: Any
    first: Float[Array, "..."]
    latest: Float[Array, "..."]
    coded: Int[Array, ""]
    axis: int
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class CodedCall(Value):
    """A call whose cache goes in and comes out as codes.

    Attributes:
      call: `(params, buffers, ids, cache) -> (logits, cache)`.
      form: Format of the vectors.
      first: Number of first tokens that stay as they are.
      latest: Number of latest ones.
      axis: Axis of the tokens in keys and values.
      place: Place of the cache among the positional arguments.
      name: Its name among the others.
    """

    call: Callable[..., Any]
    form: Any
    first: int
    latest: int
    axis: int
    place: int
    name: str

    def __call__(self, params: PyTree, buffers: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Calls the model with the vectors that the codes stand for; without a cache as it is."""
        if len(args) <= self.place and self.name not in kwargs:
            return self.call(params, buffers, *args, **kwargs)
        cache = kwargs[self.name] if self.name in kwargs else args[self.place]
        if cache is None:
            return self.call(params, buffers, *args, **kwargs)
        before = jax.tree.map(self._decoded, cache, is_leaf=_is_coded)
        if self.name in kwargs:
            kwargs = {**kwargs, self.name: before}
        else:
            args = (*args[: self.place], before, *args[self.place + 1 :])
        outputs = self.call(params, buffers, *args, **kwargs)
        if not isinstance(outputs, tuple) or len(outputs) != 2:
            raise ValueError(
                "code_cache: with a cache the network must return logits and the next cache, got "
                f"{type(outputs).__name__}"
            )
        logits, after = outputs
        if jax.tree.structure(after) != jax.tree.structure(before):
            raise ValueError(
                f"code_cache: the next cache is {jax.tree.structure(after)}; must be of the form "
                f"that went in, {jax.tree.structure(before)}"
            )
        length, paths = _length(after), _vectors(after, self.axis)

        def encoded(path: Any, now: Any, old: Any) -> Any:
            return self._encoded(now, old, length) if path_name(path) in paths else now

        olds = jax.tree.map(lambda _, old: old, before, cache)
        return logits, jax.tree_util.tree_map_with_path(encoded, after, olds)

    def _form(self, width: int) -> VectorForm:
        return vector_form(self.form, width)

    def _decoded(self, leaf: Any) -> Any:
        if not _is_coded(leaf):
            return leaf
        values = self._form(leaf.shape[-1]).decode(leaf.codes).astype(leaf.first.dtype)
        values = lax.dynamic_update_slice_in_dim(values, leaf.latest, leaf.coded, leaf.axis)
        return lax.dynamic_update_slice_in_dim(values, leaf.first, 0, leaf.axis)

    def _encoded(self, now: Array, old: Any, length: Array) -> CodedLeaf:
        axis, size = self.axis, now.shape[self.axis]
        first, latest = min(self.first, size), min(self.latest, size)
        codes, done = self._form(now.shape[-1]).encode(now.astype(jnp.float32)), 0
        if _is_coded(old):
            done = old.coded
            frozen = jnp.arange(size) < done
            codes = jax.tree.map(
                lambda new, kept: jnp.where(_along(frozen, axis, new.ndim), kept, new),
                codes,
                old.codes,
            )
        coded = jnp.maximum(jnp.minimum(length, size) - latest, done).astype(jnp.int32)
        return CodedLeaf(
            codes=codes,
            first=lax.slice_in_dim(now, 0, first, axis=axis),
            latest=lax.dynamic_slice_in_dim(now, coded, latest, axis),
            coded=coded,
            axis=axis,
            shape=now.shape,
        )


@shown_as_called
def code_cache(
    form: Any,
    *,
    first: int = 4,
    latest: int = 32,
    axis: int = 2,
    place: int = 1,
    name: str = "cache",
) -> Transform:
    """Stores keys and values of a cache in few bits between the calls of a decoder.

    The network takes a cache as it did, behind the tokens or as `cache=`, and returns one whose
    keys and values are codes, which it takes too. A token's vector becomes codes once, when it is
    no longer among the latest, and keeps them. Calls without a cache are what they were.

    A cache is any tree of arrays that a call takes and returns behind its logits, with whole
    numbers that are its length, one in all or one a layer. State that a module keeps itself (a
    Linen collection "cache", `nnx.Cache`) becomes that where the module is called in a function.

    Args:
      form: Format in which each vector has its own scale: an int for `Grid(bits, per="token")`, a
        `Grid` of steps per "token" or "group", `js.mx(…)`, `js.nvfp4()`, a `BlockGrid` or a
        `Floating`.
      first: Number of first tokens that stay floats, at least 0: what most attention falls on.
      latest: Number of latest tokens that stay floats, at least 0.
      axis: Axis of the tokens in keys and values; vectors are along the last one.
      place: Place of the cache among the call's positional arguments, from 0.
      name: Name of the argument where it is given by name.

    Raises:
      ValueError: A format that vectors on their own cannot have, or a number out of range; when
        applied, a network with a cache of its own; when called, a cache without a whole number that
        is its length, without arrays of such an axis, or with vectors that the format's blocks do
        not divide.

    Examples:
      >>> import jax
      >>> import jaxsim as js
      >>> from jaxsim.models.llama import tiny
      >>> model, ids = tiny(), jax.numpy.array([[1, 5, 9]])
      >>> net = js.trace(model, model.init(jax.random.key(0), ids), ids)
      >>> chip = js.code_cache(4, latest=8)(net)
      >>> logits, cache = chip(ids, model.cache(1, 16))
      >>> cache.keys.codes[0].packs.dtype.name, js.language.generate(
      ...     chip, ids, model.cache(1, 16), count=4
      ... ).shape
      ('uint8', (1, 4))

    Source: Xiao et al. (2023), attention sinks, arXiv 2309.17453; Liu et al. (2024), KIVI,
    arXiv 2402.02750, for the latest tokens.
    """
    check_called("form", form)
    form = Grid(checked_int("form", form, 1, 8), per="token") if isinstance(form, int) else form
    vector_form(form, getattr(form, "rows", None) or 32)
    checked_int("first", first, 0)
    checked_int("latest", latest, 0)
    checked_int("axis", axis, 0)
    checked_int("place", place, 0)
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name={name!r}: must be the name of an argument")

    def apply(net: Net) -> Net:
        require_network(net, "code_cache")
        require_uncut(
            net, "code_cache", reason="stages pass on what is live at a cut, and no cache"
        )
        for call in calls_within(net.fn):
            if isinstance(call, CodedCall):
                raise ValueError(f"code_cache: its cache is stored already, as {call.form}")
        if kept := _kept(net):
            raise ValueError(
                f"code_cache: the cache is state of the module ({kept}), which no call returns; "
                "trace a function of (params, ids, cache) that calls it and returns logits and the "
                "next cache"
            )
        call = CodedCall(net.fn, form, first, latest, axis, place, name)
        return dataclasses.replace(net, fn=call)

    return apply


def _is_coded(leaf: Any) -> bool:
    return isinstance(leaf, CodedLeaf)


def _kept(net: Network) -> str:
    """What a module keeps its cache in, "" where it keeps none."""
    *_, model = calls_within(net.fn)
    if isinstance(model, LinenCall) and "cache" in net.buffers:
        return 'the collection "cache"'
    if isinstance(model, NnxCall):
        from flax import nnx

        for path, variable in nnx.to_flat_state(model.rest):
            if issubclass(type(variable), nnx.Cache):
                return "nnx.Cache at " + "/".join(map(str, path))
    return ""


def _length(cache: Any) -> Array:
    """Number of tokens of a cache: the whole number in it, or that of each layer."""
    found = list(filter(is_whole_number, jax.tree.leaves(cache)))
    if not found:
        raise ValueError(
            "code_cache: the cache has no whole number; must have one that is its length, or one a "
            "layer"
        )
    return jnp.max(jnp.stack([jnp.asarray(n) for n in found]))


def _vectors(cache: Any, axis: int) -> set[str]:
    """Paths of the arrays whose last axis is a vector of a token."""
    found = {
        path_name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(cache)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and jnp.ndim(leaf) > axis + 1
    }
    if not found:
        raise ValueError(
            f"code_cache: the cache has no floats [..., d] with tokens along axis={axis}"
        )
    return found


def _along(marks: Array, axis: int, rank: int) -> Array:
    shape = [1] * rank
    shape[axis] = marks.size
    return marks.reshape(shape)
