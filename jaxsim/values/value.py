"""Models and networks as values: equal where they hold the same, so that a copy is the original.

Two things that are equal share what was compiled for one of them.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class Value:
    """A frozen dataclass of what is static, equal to others that hold the same.

    Nothing in it changes, so a deep copy is the object itself. What its functions name (globals,
    closures) counts as it was when this was made: a name that a loop or a notebook binds anew makes
    another value of the same code.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            _remember(getattr(self, field.name), set())

    def __eq__(self, other: object) -> bool:
        return same(self, other)

    def __hash__(self) -> int:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        return hash((type(self).__qualname__, *(_kind(getattr(self, f.name)) for f in fields)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class PytreeValue:
    """A registered dataclass, equal to others of its structure whose arrays have the same bits."""

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and _same_tree(self, other, set()))

    def __hash__(self) -> int:
        return hash((type(self).__qualname__, jax.tree.structure(self).num_leaves))


def same(a: Any, b: Any) -> bool:
    """Whether two things compute the same by what they hold; never by running them.

    Functions are compared by their code, defaults, closures and the globals they name (as these
    were when a `Value` first held them), other objects by their parts or by their own `==`.
    """
    return _same(a, b, set())


def _same(a: Any, b: Any, seen: set[tuple[int, int]]) -> bool:
    if a is b or (id(a), id(b)) in seen:  # a pair met again, in a cycle, is judged by the rest
        return True
    if type(a) is not type(b):
        return False
    seen.add((id(a), id(b)))
    match a:
        case types.FunctionType():
            return _same_function(a, b, seen)
        case types.MethodType():
            return _same((a.__func__, a.__self__), (b.__func__, b.__self__), seen)
        case functools.partial():
            return _same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords), seen)
        case tuple() | list():
            return len(a) == len(b) and all(_same(x, y, seen) for x, y in zip(a, b, strict=True))
        case dict():
            return a.keys() == b.keys() and all(_same(a[k], b[k], seen) for k in a)
        case Tracer():
            return False
        case np.ndarray() | jax.Array():
            return _same_array(a, b)
        case _:
            pass
    if dataclasses.is_dataclass(a) and not isinstance(a, type):
        fields = [f.name for f in dataclasses.fields(a)]
        return all(_same(getattr(a, n, None), getattr(b, n, None), seen) for n in fields)
    if not jax.tree_util.all_leaves([a]):
        return _same_tree(a, b, seen)
    try:
        return bool(a == b)
    except Exception:
        return False


def _same_function(a: Any, b: Any, seen: set[tuple[int, int]]) -> bool:
    if a.__code__ != b.__code__ or len(a.__closure__ or ()) != len(b.__closure__ or ()):
        return False
    return _same(_parts(a), _parts(b), seen)


_MISSING = object()
_KEPT = "__jaxsim_parts__"
"""Attribute of a function that keeps its parts, beside the identity of the function they are of."""


def _parts(f: Any) -> tuple[Any, ...]:
    """Defaults, closure and named globals of a function, as they were kept or else as they are."""
    owner, parts = f.__dict__.get(_KEPT, (None, ()))
    if owner == id(f):  # what `functools.wraps` copied from another function is not its own
        return parts
    try:
        cells = [cell.cell_contents for cell in f.__closure__ or ()]
    except ValueError:  # an empty cell: its function is still being defined
        cells = [_MISSING]
    named = [f.__globals__.get(name, _MISSING) for name in sorted(_names(f.__code__))]
    return f.__defaults__, f.__kwdefaults__, cells, named


def _remember(value: Any, seen: set[int]) -> None:
    """Keeps the parts of the functions in a value, and of those of their module that they name."""
    if id(value) in seen:
        return
    seen.add(id(value))
    match value:
        case types.FunctionType():
            defaults, keywords, cells, named = parts = _parts(value)
            if all(cell is not _MISSING for cell in cells):
                value.__dict__[_KEPT] = (id(value), parts)
            own = (f for f in named if getattr(f, "__globals__", None) is value.__globals__)
            _remember((defaults, keywords, cells, tuple(own)), seen)
        case types.MethodType():
            _remember(value.__func__, seen)
        case functools.partial():
            _remember((value.func, value.args, value.keywords), seen)
        case tuple() | list():
            for part in value:
                _remember(part, seen)
        case dict():
            _remember(tuple(value.values()), seen)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                _remember(getattr(value, field.name, None), seen)
        case _:
            pass


@functools.cache
def _names(code: types.CodeType) -> frozenset[str]:
    """Global names that a function's code reads, those of functions inside included."""
    read = (i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL")
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(read).union(*map(_names, inner))


def _same_tree(a: Any, b: Any, seen: set[tuple[int, int]]) -> bool:
    (ours, structure), (theirs, other) = jax.tree.flatten(a), jax.tree.flatten(b)
    return structure == other and all(_same(x, y, seen) for x, y in zip(ours, theirs, strict=True))


def _same_array(a: Any, b: Any) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _kind(value: Any) -> str:
    return getattr(value, "__qualname__", type(value).__qualname__)
