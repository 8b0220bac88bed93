"""Weights from PyTorch's `.pth` files, without PyTorch and without running what a pickle asks for.

Such a file is a pickle that names tensors, and their bytes: in a zip archive, or behind the pickle
in the older layout. The few opcodes that describe tensors are interpreted here; any other is an
error, and no function is ever looked up or called.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the older layout
_PROTOCOL = 1001  # its second
_TYPES: dict[str, np.dtype[Any]] = {
    "Double": np.dtype("<f8"),
    "Float": np.dtype("<f4"),
    "Half": np.dtype("<f2"),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("<i1"),
    "Byte": np.dtype("<u1"),
    "Bool": np.dtype("?"),
}


class _Storage(NamedTuple):
    """A flat run of numbers, by the key under which the file holds its bytes."""

    dtype: np.dtype[Any]
    key: str
    size: int


class _Tensor(NamedTuple):
    """A strided view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Global(NamedTuple):
    """The name of a function or class that a pickle refers to."""

    name: str


def read_torch_weights(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a state dictionary that `torch.save` wrote, in the file's order.

    Args:
      path: a `.pth` or `.pt` file in either of PyTorch's layouts.

    Returns:
      Arrays by name, in row-major order; what is no tensor is left out.

    Raises:
      ValueError: the file is no such file, is damaged, or its pickle asks for more than tensors.
      OSError: it cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            return _read_zip(file) if zipfile.is_zipfile(file) else _read_older(file)
        except Exception as error:  # a place before the file's beginning is an OSError, too
            raise ValueError(
                f"path={str(path)!r}: not a file of PyTorch weights: {error}"
            ) from error


def _read_zip(file: IO[bytes]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in records:
            raise ValueError("the archive holds no data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
            raise ValueError("the archive is compressed")
        if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
            raise ValueError("numbers are not little-endian")

        def bytes_of(storage: _Storage) -> bytes:
            return archive.read(records[f"data/{storage.key}"])

        return _arrays(_described(io.BytesIO(archive.read(records["data.pkl"]))), bytes_of)


def _read_older(file: IO[bytes]) -> dict[str, np.ndarray]:
    file.seek(0)
    if _described(file) != _MAGIC or _described(file) != _PROTOCOL:
        raise ValueError("neither a zip archive nor PyTorch's older layout")
    _described(file)  # sizes of C types where it was written
    tree, keys = _described(file), _described(file)
    storages = {storage.key: storage for storage in _storages(tree)}
    data: dict[str, bytes] = {}
    for key in keys:
        storage, size = storages[key], int.from_bytes(file.read(8), "little")
        if size != storage.size:
            raise ValueError(f"storage {key} holds {size} numbers, not {storage.size}")
        data[key] = file.read(size * storage.dtype.itemsize)
    return _arrays(tree, lambda storage: data[storage.key])


def _tensors(tree: Any) -> dict[str, _Tensor]:
    if not isinstance(tree, dict):
        raise ValueError("it holds no dictionary of tensors")
    return {name: leaf for name, leaf in tree.items() if isinstance(leaf, _Tensor)}


def _storages(tree: Any) -> list[_Storage]:
    return [tensor.storage for tensor in _tensors(tree).values()]


def _arrays(tree: Any, bytes_of: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    flats: dict[_Storage, np.ndarray] = {}
    for name, (storage, offset, shape, strides) in _tensors(tree).items():
        if not isinstance(name, str):
            raise ValueError(f"a tensor is named {name!r}")
        if storage not in flats:
            data = bytes_of(storage)
            if len(data) != storage.size * storage.dtype.itemsize:
                raise ValueError(f"storage {storage.key} is cut short")
            flats[storage] = np.frombuffer(data, storage.dtype)
        flat = flats[storage]
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or math.prod(shape) > flat.size:
            raise ValueError(f"{name} has shape {shape}, strides {strides} and offset {offset}")
        if math.prod(shape) and last >= flat.size:
            raise ValueError(f"{name} reaches beyond its storage")
        steps = [s * storage.dtype.itemsize for s in strides]
        view = np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
        arrays[name] = np.array(view)
    return arrays


_MARK = object()


def _described(file: IO[bytes]) -> Any:
    """What the next pickle of a file describes: dictionaries, tuples, numbers, text and tensors."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = max(i for i, item in enumerate(stack) if item is _MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def pairs(items: list[Any]) -> None:
        stack[-1].update(zip(items[::2], items[1::2], strict=True))

    value: Any
    for code, value, _ in pickletools.genops(file):
        match code.name:
            case "PROTO":
                pass
            case "STOP":
                (result,) = stack
                return result
            case "MARK":
                stack.append(_MARK)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(value)
            case "BINUNICODE" | "SHORT_BINSTRING" | "SHORT_BINUNICODE":
                stack.append(value)
            case "GLOBAL":
                stack.append(_Global(value))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(code.name[-1])
                items = tuple(stack[-count:])
                del stack[-count:]
                stack.append(items)
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "SETITEM":
                items = [stack.pop(), stack.pop()]
                pairs(items[::-1])
            case "SETITEMS":
                pairs(since_mark())
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "BINPERSID":
                stack.append(_storage(*stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_made(function, arguments))
            case "BUILD":  # attributes of a dictionary: versions of modules, not weights
                stack.pop()
            case _:
                raise ValueError(
                    f"its pickle uses {code.name}, which no dictionary of tensors does"
                )
    raise ValueError("its pickle has no end")


def _storage(kind: str, type_: _Global, key: str, _place: str, size: int, *_view: Any) -> _Storage:
    module, _, name = type_.name.partition(" ")
    if kind != "storage" or module != "torch" or not name.endswith("Storage"):
        raise ValueError(f"its pickle refers to a {kind} of {type_.name}")
    if not isinstance(key, str) or any(view is not None for view in _view):
        raise ValueError(f"storage {key!r} is a view of another")
    return _Storage(_TYPES[name.removesuffix("Storage")], key, size)


def _made(function: Any, arguments: tuple[Any, ...]) -> Any:
    match function:
        case _Global("collections OrderedDict"):
            return dict(*arguments)
        case _Global("torch._utils _rebuild_tensor_v2"):
            storage, offset, shape, strides, *_ = arguments
            if not isinstance(storage, _Storage):
                raise ValueError("a tensor has no storage")
            return _Tensor(storage, offset, tuple(shape), tuple(strides))
        case _Global("torch._utils _rebuild_parameter"):
            return arguments[0]
        case _:
            raise ValueError(f"its pickle calls {getattr(function, 'name', function)!r}")
