"""Metadata and tensors of `.gguf` files, as llama.cpp and its kin publish models."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_NAME = 65535  # bytes of a key; the standard's own limit
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS: dict[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    _BOOL: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


class GgufTensor(NamedTuple):
    """One tensor of a file, as it is stored.

    Attributes:
      kind: Name of its type, such as "F32" or "Q4_1".
      shape: Its shape, the axis that lies together last: a matrix is [outputs, inputs].
      data: Its bytes.
    """

    kind: str
    shape: tuple[int, ...]
    data: np.ndarray


class Gguf(NamedTuple):
    """What a file holds.

    Attributes:
      fields: Metadata by key: numbers, strings, and lists of them.
      tensors: Tensors by name.
    """

    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]


CodeKind = Literal["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
"""Names of the types whose codes are read."""


class Codes(NamedTuple):
    """A matrix as its file has it: `scale * codes + minimum`, exact in float32 up to the sum.

    Attributes:
      codes: Whole numbers, [..., outputs, inputs].
      scale: Step of each group of 32 inputs of an output, [..., outputs, inputs / 32].
      minimum: What code 0 stands for, of the same shape; None where that is zero.
      kind: Name of its type, one of "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0".
    """

    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None
    kind: CodeKind


def read_gguf(path: str | os.PathLike[str]) -> Gguf:
    """Reads a `.gguf` file: its metadata, and where its tensors lie.

    The header is checked as a whole; the tensors' bytes stay on disk until they are read. Needs the
    package `gguf`, which `pip install "jaxsim[text]"` brings, for the sizes of its types.

    Args:
      path: The file.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is not a whole file of this format, or holds a type that is not known. The
        message names the file and what is wrong.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    if Path(path).stat().st_size == 0:
        raise ValueError(f"{str(path)!r}: is empty")
    try:
        return _parse(np.memmap(path, np.uint8, "r"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {shortened(str(error))}") from None


def shortened(text: str) -> str:
    """The beginning and the end of a long message: names in a damaged file may be whole pages.

    Args:
      text: The message.
    """
    return text if len(text) <= 300 else f"{text[:150]} … {text[-120:]}"


def dequantize(tensor: GgufTensor) -> np.ndarray:
    """The numbers of a tensor in float32, as the package `gguf` computes them.

    Args:
      tensor: A tensor of `read_gguf`.

    Raises:
      ValueError: Its type is one that the package cannot decode.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as decode

    kind = GGMLQuantizationType[tensor.kind]
    rows = np.asarray(tensor.data).reshape(*tensor.shape[:-1], -1)
    try:
        # Not finite where a scale is: told by whoever asks for numbers that are.
        with np.errstate(all="ignore"):
            values = decode(rows, kind)
    except NotImplementedError:
        raise ValueError(f"type {tensor.kind}: the package gguf cannot decode it") from None
    return np.asarray(values, np.float32).reshape(tensor.shape)


def codes_of(tensor: GgufTensor) -> Codes | None:
    """The codes of a tensor with their steps; None where its type is not one of five.

    These are Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, of groups of 32 along the inputs.

    Args:
      tensor: A tensor of `read_gguf`.

    Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, `block_q4_0` and on.
    """
    kind = next((kind for kind in get_args(CodeKind) if kind == tensor.kind), None)
    if kind is None:
        return None
    bits = int(kind[1])
    lead, inputs = tensor.shape[:-1], tensor.shape[-1]
    blocks = np.asarray(tensor.data).reshape(math.prod(lead), inputs // 32, -1)

    def half(at: int) -> np.ndarray:
        found = np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")[..., 0]
        return found.astype(np.float32).reshape(*lead, -1)

    scale = half(0)
    minimum = half(2) if tensor.kind.endswith("_1") else None
    if bits == 8:
        codes = blocks[..., 2:].view(np.int8)
    else:
        low = blocks[..., -16:]
        codes = np.concatenate([low & 15, low >> 4], -1)
        if bits == 5:
            high = np.unpackbits(blocks[..., -20:-16], axis=-1, bitorder="little")
            codes = codes | (high << 4)
        if minimum is None:
            codes = codes.astype(np.int8) - np.int8(2 ** (bits - 1))
    return Codes(codes.reshape(tensor.shape), scale, minimum, kind)


def bytes_of(held: Codes) -> np.ndarray:
    """Bytes of a tensor of these codes: what `codes_of` reads.

    Args:
      held: Codes in the range of their kind, with steps and minima that float16 holds.

    Returns:
      Bytes of each row of inputs, [..., outputs, bytes].

    Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, `block_q4_0` and on.
    """
    bits, lead = int(held.kind[1]), held.codes.shape[:-1]
    codes = np.asarray(held.codes).reshape(*lead, -1, 32)
    halves = [held.scale] if held.minimum is None else [held.scale, held.minimum]
    parts: list[np.ndarray] = [np.asarray(a, "<f2")[..., None].view(np.uint8) for a in halves]
    if bits == 8:
        parts.append(codes.astype(np.int8).view(np.uint8))
    else:
        whole = codes.astype(np.int64) + (0 if held.minimum is not None else 2 ** (bits - 1))
        whole = whole.astype(np.uint8)
        if bits == 5:
            parts.append(np.packbits(whole >> 4, axis=-1, bitorder="little"))
        low = whole & 15
        parts.append(low[..., :16] | (low[..., 16:] << 4))
    return np.concatenate(parts, -1).reshape(*lead, -1)


class _Bytes:
    """A place in a file, from which each read goes on."""

    def __init__(self, content: np.ndarray):
        self.content, self.at = content.data, 0

    @property
    def left(self) -> int:
        return len(self.content) - self.at

    def take(self, size: int, name: str) -> memoryview:
        if size > self.left:
            raise ValueError(
                f"is cut short: {name} takes {size} bytes at byte {self.at} of {len(self.content)}"
            )
        self.at += size
        return self.content[self.at - size : self.at]

    def whole(self, form: str, name: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form), name))[0]

    def text(self, name: str, longest: int | None = None) -> str:
        size = self.whole("<Q", f"the length of {name}")
        if longest is not None and size > longest:
            raise ValueError(f"{name} is {size} bytes long; must be at most {longest}")
        try:
            return str(self.take(size, name), "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{name} is not UTF-8") from None

    def value(self, kind: int, name: str) -> Any:
        if kind == _STRING:
            return self.text(name)
        if kind == _ARRAY:
            inner = self.whole("<I", f"the type of {name}")
            return self._array(inner, self.whole("<Q", f"the length of {name}"), name)
        return self._numbers(kind, 1, name)[0]

    def _array(self, kind: int, count: int, name: str) -> list[Any]:
        if kind == _ARRAY:
            raise ValueError(f"{name} is an array of arrays; none of these is read")
        if kind != _STRING:
            return self._numbers(kind, count, name)
        if count * 8 > self.left:  # a length each
            raise ValueError(f"is cut short: {name} has {count} strings at byte {self.at}")
        return [self.text(f"string {i} of {name}") for i in range(count)]

    def _numbers(self, kind: int, count: int, name: str) -> list[Any]:
        if kind not in _NUMBERS:
            raise ValueError(f"{name} is of type {kind}; must be from 0 to 12")
        dtype = np.dtype(_NUMBERS[kind])
        found = np.frombuffer(self.take(count * dtype.itemsize, name), dtype)
        return (found.astype(bool) if kind == _BOOL else found).tolist()


def _parse(content: np.ndarray) -> Gguf:
    source = _Bytes(content)
    if bytes(source.take(4, "the mark")) != _MAGIC:
        raise ValueError("is not a GGUF file: it does not begin with 'GGUF'")
    version = source.whole("<I", "the version")
    if version not in _VERSIONS:
        raise ValueError(f"is GGUF of version {version}; must be one of {_VERSIONS}, little-endian")
    tensors, keys = source.whole("<Q", "the counts"), source.whole("<Q", "the counts")
    fields: dict[str, Any] = {}
    for i in range(keys):
        key = source.text(f"key {i}", _MAX_NAME)
        if key in fields:
            raise ValueError(f"says {key!r} twice")
        fields[key] = source.value(source.whole("<I", f"the type of {key!r}"), repr(key))
    described = [_described(source, i) for i in range(tensors)]
    align = fields.get("general.alignment", 32)
    if type(align) is not int or not 8 <= align <= 2**20 or align & (align - 1):
        raise ValueError(f"general.alignment is {align!r}; must be a power of two from 8 to 2^20")
    start = -(-source.at // align) * align
    found: dict[str, GgufTensor] = {}
    for name, kind, shape, offset, size in described:
        if name in found:
            raise ValueError(f"has two tensors {name!r}")
        if offset % align:
            raise ValueError(
                f"tensor {name!r} begins at byte {offset}; must be a multiple of {align}"
            )
        end = start + offset + size
        if end > len(content):
            raise ValueError(f"is cut short: tensor {name!r} ends at byte {end} of {len(content)}")
        found[name] = GgufTensor(kind, shape, content[start + offset : end])
    return Gguf(fields, found)


def _described(source: _Bytes, place: int) -> tuple[str, str, tuple[int, ...], int, int]:
    """Name, type, shape, place and bytes of one tensor."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    name = source.text(f"the name of tensor {place}", _MAX_NAME)
    axes = source.whole("<I", f"the axes of {name!r}")
    if not 1 <= axes <= _MAX_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has {axes} axes; must be from 1 to {_MAX_DIMENSIONS}")
    shape = tuple(source.whole("<Q", f"the shape of {name!r}") for _ in range(axes))[::-1]
    number = source.whole("<I", f"the type of {name!r}")
    offset = source.whole("<Q", f"the place of {name!r}")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise ValueError(f"tensor {name!r} is of quantization type {number}, not known") from None
    block, size = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block:
        raise ValueError(
            f"tensor {name!r} of type {kind.name} has shape {list(shape)}; must be of at least 1, "
            f"the last a multiple of {block}"
        )
    return name, kind.name, shape, offset, math.prod(shape) // block * size
