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
    """Reads the tensors of a state dictionary that `torch.save` wrote, in the file's order.

    Args:
      path: File `.pth` or `.pt` in either of PyTorch's layouts.

    Returns:
      Arrays by name, in row-major order; other entries are left out.

    Raises:
      ValueError: The file is no such file, is damaged, or its pickle asks for more than tensors.
      OSError: It cannot be opened.

    Examples:
      >>> import pathlib, tempfile
      >>> from jaxsim.data import read_torch_weights
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "weights.pth")
      ...     _ = path.write_bytes(b"not a pickle")
      ...     try:
      ...         read_torch_weights(path)
      ...     except ValueError:
      ...         print("refused")
      refused
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

        return _arrays(_read_pickle(io.BytesIO(archive.read(records["data.pkl"]))), bytes_of)


def _read_older(file: IO[bytes]) -> dict[str, np.ndarray]:
    file.seek(0)
    if _read_pickle(file) != _MAGIC or _read_pickle(file) != _PROTOCOL:
        raise ValueError("neither a zip archive nor PyTorch's older layout")
    _read_pickle(file)  # sizes of C types where it was written
    tree, keys = _read_pickle(file), _read_pickle(file)
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
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINSTRING", "SHORT_BINUNICODE"),
}


class _Machine:
    """Stack and memo of a pickle that describes tensors; no function of it is ever called."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def push_value(self, code: str, value: Any) -> bool:
        """Follows an opcode that pushes a value or a name; False for any other."""
        if code in _CONSTANTS:
            self.stack.append(_CONSTANTS[code])
        elif code in _VALUES:
            self.stack.append(value)
        elif code == "GLOBAL":
            self.stack.append(_Global(value))
        else:
            return False
        return True

    def build_container(self, code: str) -> bool:
        """Follows an opcode that makes or fills a container; False for any other."""
        stack = self.stack
        match code:
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(code[-1])
                items = tuple(stack[-count:])
                del stack[-count:]
                stack.append(items)
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = self._since_mark()
                stack[-1].extend(items)
            case "SETITEM":
                items = [stack.pop(), stack.pop()]
                self._set_items(items[::-1])
            case "SETITEMS":
                self._set_items(self._since_mark())
            case _:
                return False
        return True

    def refer(self, code: str, value: Any) -> bool:
        """Follows an opcode of the memo, of storages or of known calls; False for any other."""
        stack = self.stack
        match code:
            case "BINPUT" | "LONG_BINPUT":
                self.memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[value])
            case "BINPERSID":
                stack.append(_storage(*stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_reduce(function, arguments))
            case "BUILD":  # attributes of a dictionary: versions of modules, not weights
                stack.pop()
            case _:
                return False
        return True

    def _since_mark(self) -> list[Any]:
        at = max(i for i, item in enumerate(self.stack) if item is _MARK)
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _set_items(self, items: list[Any]) -> None:
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _read_pickle(file: IO[bytes]) -> Any:
    """Dictionaries, tuples, numbers, text and tensors that the next pickle of a file describes."""
    machine = _Machine()
    value: Any
    for code, value, _ in pickletools.genops(file):
        name = code.name
        if name == "STOP":
            (result,) = machine.stack
            return result
        known = (
            name == "PROTO"
            or machine.push_value(name, value)
            or machine.build_container(name)
            or machine.refer(name, value)
        )
        if not known:
            raise ValueError(f"its pickle uses {name}, which no dictionary of tensors does")
    raise ValueError("its pickle has no end")


def _storage(kind: str, type_: _Global, key: str, _place: str, size: int, *_view: Any) -> _Storage:
    module, _, name = type_.name.partition(" ")
    if kind != "storage" or module != "torch" or not name.endswith("Storage"):
        raise ValueError(f"its pickle refers to a {kind} of {type_.name}")
    if not isinstance(key, str) or any(view is not None for view in _view):
        raise ValueError(f"storage {key!r} is a view of another")
    return _Storage(_TYPES[name.removesuffix("Storage")], key, size)


def _reduce(function: Any, arguments: tuple[Any, ...]) -> Any:
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
