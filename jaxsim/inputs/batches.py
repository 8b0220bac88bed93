"""Data as every function takes it: one batch, or any iterable of batches.

A batch is an array (the model's only argument), a tuple (its positional arguments) or a dict (its
keyword arguments). Whatever else can be iterated over is several batches: a list, a generator, a
data loader. A generator is read once. Beside labels, data is a pair `(batch, labels)` or an
iterable of such pairs. Values in a batch that are no arrays (`None`, `True`) are static.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.numerics.arrays import native

_FORMS = "an array, a tuple of positional arguments or a dict of keyword arguments"


class Batch(NamedTuple):
    """Arguments of one call of a network.

    Attributes:
      args: positional arguments.
      kwargs: keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def one_batch(data: Any) -> bool:
    """Whether data is one batch: an array, a tuple or a dict."""
    return isinstance(data, tuple | Mapping) or _is_array(data)


def batches(data: Any, name: str = "inputs") -> Iterator[Batch]:
    """The batches of data, one at a time.

    Args:
      data: one batch or an iterable of batches.
      name: argument to name in errors.

    Raises:
      ValueError: data of another form at once; while reading, a batch of another form, or none.
    """
    source = _source(data, name)

    def read() -> Iterator[Batch]:
        count = 0
        for count, batch in enumerate(source, 1):
            where = name if one_batch(data) else f"{name}[{count - 1}]"
            yield batch_of(batch, where)
        if count == 0:
            raise ValueError(
                f"{name}: expected at least one batch, got none; is it a generator that was read?"
            )

    return read()


def batch_of(value: Any, name: str = "inputs") -> Batch:
    """One batch as arguments of a call, its arrays in this machine's byte order.

    Args:
      value: the batch.
      name: argument to name in errors.

    Raises:
      ValueError: it has another form, or holds no array, only empty arrays or no numbers.
    """
    if isinstance(value, Batch):
        args, kwargs = value
    elif isinstance(value, Mapping):
        args, kwargs = (), dict(value)
        if wrong := [k for k in kwargs if not isinstance(k, str)]:
            raise ValueError(f"{name}: expected names of keyword arguments, got {wrong[0]!r}")
    elif isinstance(value, tuple):
        args, kwargs = tuple(value), {}
    elif _is_array(value):
        args, kwargs = (value,), {}
    else:
        hint = "; np.asarray makes an array of numbers" if isinstance(value, list) else ""
        raise ValueError(f"{name}={_short(value)}: expected {_FORMS}{hint}")
    args, kwargs = jax.tree.map(lambda leaf: _checked(leaf, name), (args, kwargs))
    arrays = [leaf for leaf in jax.tree.leaves((args, kwargs)) if _is_array(leaf)]
    if not arrays:
        raise ValueError(f"{name}={_short(value)}: expected an array among the arguments, got none")
    if not any(np.size(a) for a in arrays):
        shapes = ", ".join(str(list(np.shape(a))) for a in arrays)
        raise ValueError(f"{name}: expected at least one row, got arrays of shape {shapes}")
    return Batch(args, kwargs)


def reusable_batches(data: Any, name: str = "inputs") -> Any:
    """Data that can be read again and again: what can be read only once is read now.

    Args:
      data: one batch or an iterable of batches.
      name: argument to name in errors.

    Raises:
      ValueError: data of another form, or a generator that gives no batch.
    """
    _source(data, name)
    if not isinstance(data, Iterator):
        return data
    found = list(data)
    for _ in batches(found, name):
        pass
    return found


def join_batches(data: Any, name: str = "inputs") -> Batch:
    """All batches as one, rows behind one another.

    The rows of a batch are the entries along the first axis of its first array, and of every other
    array whose first axis has that size; the rest has to be the same in all batches.

    Args:
      data: one batch or an iterable of batches.
      name: argument to name in errors.

    Raises:
      ValueError: what `batches` raises, or batches that differ in more than their number of rows.
    """
    parts = list(batches(data, name))
    if len(parts) == 1:
        return parts[0]
    leaves, structures = zip(*(jax.tree.flatten(part) for part in parts), strict=True)
    rows = [row_count(part, name) for part in parts]
    for i, (own, structure) in enumerate(zip(leaves, structures, strict=True)):
        if structure != structures[0] or not all(
            _joins(a, b, rows[0], rows[i]) for a, b in zip(leaves[0], own, strict=True)
        ):
            raise ValueError(
                f"{name}[{i}]: expected arguments like those of the first batch, "
                f"{_shapes(parts[0])} but for the number of rows, got {_shapes(parts[i])}"
            )
    columns = zip(*leaves, strict=True)
    whole = [
        np.concatenate([np.asarray(a) for a in column])
        if _has_rows(column[0], rows[0])
        else column[0]
        for column in columns
    ]
    return jax.tree.unflatten(structures[0], whole)


def split_labels(data: Any, labels: Any = None, name: str = "data") -> tuple[Batch, Any]:
    """All inputs as one batch, and the label of each row.

    Args:
      data: inputs, one batch or an iterable of batches; without `labels` a pair `(batch, labels)`
        or an iterable of pairs.
      labels: an array with an entry a row; an iterable of such arrays, one a batch, where `data`
        is one.
      name: argument to name in errors.

    Raises:
      ValueError: what `joined` raises, or what is no pair.
    """
    if labels is None:
        pairs = [data] if isinstance(data, tuple) else list(_source(data, name))
        if not pairs:
            raise ValueError(f"{name}: expected at least one pair (batch, labels), got none")
        for i, pair in enumerate(pairs):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                where = name if isinstance(data, tuple) else f"{name}[{i}]"
                raise ValueError(
                    f"{where}={_short(pair)}: must be a tuple of inputs and labels, "
                    "or data an iterable of such pairs"
                )
        if isinstance(data, tuple):
            return split_labels(*data, name=name)
        inputs, labels = zip(*pairs, strict=True)
        return split_labels(list(inputs), list(labels), name)
    if one_batch(data) or _is_array(labels):
        return join_batches(data, name), _label_array(labels)
    data, labels = list(_source(data, name)), [_label_array(part) for part in labels]
    if len(data) != len(labels):
        raise ValueError(f"labels: expected those of {len(data)} batches, got {len(labels)}")
    found = join_batches(data, name)
    try:
        return found, np.concatenate(labels)
    except ValueError as error:
        raise ValueError(f"labels: expected an entry for each row: {error}") from None


def row_count(batch: Batch, name: str = "inputs") -> int:
    """Number of rows of a batch: the first axis of its first array that has one.

    Raises:
      ValueError: no array has an axis.
    """
    for leaf in jax.tree.leaves(batch):
        if _is_array(leaf) and np.ndim(leaf):
            return np.shape(leaf)[0]
    raise ValueError(f"{name}: expected an array with an axis of rows, got numbers only")


def take_rows(batch: Batch, rows: Any) -> Batch:
    """Some rows of a batch.

    Args:
      batch: the batch.
      rows: their places, an array of ints or a slice.
    """
    count = row_count(batch)
    return jax.tree.map(lambda a: a[rows] if _has_rows(a, count) else a, batch)


def _source(data: Any, name: str) -> Iterable[Any]:
    """Batches not looked at yet."""
    if one_batch(data):
        return [data]
    if isinstance(data, Sized) and not len(data):
        raise ValueError(f"{name}={data!r}: expected at least one batch, got none")
    if not isinstance(data, str | bytes):
        try:
            return iter(data)  # pyright: ignore
        except TypeError:
            pass
    raise ValueError(
        f"{name}={_short(data)}: expected one batch ({_FORMS}) or an iterable of batches"
    )


def _is_array(value: Any) -> bool:
    """Whether a value is an array, of jax, numpy or another library."""
    return hasattr(value, "__array__") or isinstance(value, jax.Array)


def _checked(leaf: Any, name: str) -> Any:
    """A leaf of a batch, in native byte order where it is an array."""
    if not _is_array(leaf) or isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise ValueError(f"{name}: expected numbers, got an array of dtype {array.dtype}")
    return native(array)


def _label_array(labels: Any) -> Any:
    try:
        return _checked(labels if _is_array(labels) else np.asarray(labels), "labels")
    except ValueError as error:
        raise ValueError(f"labels: expected an array with an entry a row: {error}") from None


def _has_rows(leaf: Any, rows: int) -> bool:
    return _is_array(leaf) and np.shape(leaf)[:1] == (rows,)


def _joins(first: Any, leaf: Any, rows: int, own: int) -> bool:
    """Whether a leaf can follow that of the first batch."""
    if _has_rows(first, rows):
        same = np.shape(first)[1:] == np.shape(leaf)[1:] and first.dtype == leaf.dtype
        return _has_rows(leaf, own) and same
    if _is_array(first) != _is_array(leaf):
        return False
    return np.array_equal(first, leaf) if _is_array(first) else first == leaf


def _shapes(batch: Batch) -> str:
    leaves = jax.tree.leaves(batch)
    shown = (f"{a.dtype}{list(np.shape(a))}" if _is_array(a) else repr(a) for a in leaves)
    return f"({', '.join(shown)})"


def _short(value: Any) -> str:
    """A value for an error, in few letters."""
    kind = type(value).__name__
    if _is_array(value):
        return f"an array {list(np.shape(value))}"
    if isinstance(value, tuple | list | Mapping):
        return f"a {kind} of {len(value)}"
    shown = repr(value)
    return shown if len(shown) <= 40 else f"a {kind}"
