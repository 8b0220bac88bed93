"""Llama decoders from GGUF files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsim.data.gguf import (
    Codes,
    Gguf,
    GgufTensor,
    codes_of,
    dequantize,
    read_gguf,
    shortened,
)
from jaxsim.formats.block_grid import BlockGrid
from jaxsim.models.llama.decoder import Llama, head_width
from jaxsim.models.llama.pretrained import Pretrained
from jaxsim.models.llama.tokenizer import from_fields
from jaxsim.models.llama.weights import Weight, halves_together, params_from, weights_of

_REQUIRED = {
    "layers": "block_count",
    "width": "embedding_length",
    "heads": "attention.head_count",
    "hidden": "feed_forward_length",
    "context": "context_length",
    "epsilon": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {
    "groups": "attention.head_count_kv",
    "head_width": "attention.key_length",
    "base": "rope.freq_base",
}
_BASE = 10000.0  # where a file does not say it
_TABLE = "token_embd.weight"


def from_gguf(path: str | os.PathLike[str]) -> Pretrained:
    """Loads a decoder from a `.gguf` file: its numbers as they are dequantized in float32.

    Parameters are bit by bit what the package `gguf` decodes, of any of its types; rows of queries
    and keys are put into the decoder's order. Needs the packages `gguf` and `tokenizers`, which
    `pip install "jaxsim[text]"` brings.

    Args:
      path: The file.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is cut short or damaged, of another architecture, of a type that is not known,
        or its tokenizer does not fit. The message names the file and what is wrong.
    """
    try:
        file = read_gguf(path)
        model = _model_of(file)
        tokenizer = from_fields(file.fields, model.vocabulary)
        tensors = _tensors_of(file, model)

        def read(weight: Weight, layer: str) -> np.ndarray:
            values = dequantize(tensors[weight.gguf.format(layer)])
            return halves_together(values, weight.heads) if weight.heads else values

        return Pretrained(model, params_from(model, read), tokenizer)
    except ValueError as error:
        raise _named(path, error) from None


def gguf_codes(path: str | os.PathLike[str]) -> dict[str, Codes]:
    """Reads the codes of a decoder's weights, as they are stored.

    Args:
      path: A `.gguf` file.

    Returns:
      The codes by the path of the parameter that `from_gguf` gives, those of layers stacked; the
      parameter is `scale * codes + minimum` bit by bit, transposed where it is a kernel. Parameters
      that are floats, that are of other types than Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, or whose layers
      are of several types, have none.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: See `from_gguf`.
    """
    try:
        file = read_gguf(path)
        model = _model_of(file)
        tensors = _tensors_of(file, model)
    except ValueError as error:
        raise _named(path, error) from None
    found: dict[str, Codes] = {}
    for weight in weights_of(model):
        layers = range(model.layers) if weight.stacked else (0,)
        parts = [codes_of(tensors[weight.gguf.format(i)]) for i in layers]
        codes = [part for part in parts if part is not None]
        if len(codes) < len(parts) or len({c.kind for c in codes}) > 1:
            continue
        minima = [c.minimum for c in codes if c.minimum is not None]
        found[weight.path] = Codes(
            _joined(weight, [c.codes for c in codes]),
            _joined(weight, [c.scale for c in codes]),
            _joined(weight, minima) if minima else None,
            codes[0].kind,
        )
    return found


def gguf_grids(path: str | os.PathLike[str]) -> dict[str, BlockGrid]:
    """Reads the grids that a decoder's kernels lie on: quantized by them, codes are the file's own.

    Args:
      path: A `.gguf` file.

    Returns:
      The grid of each kernel that `gguf_codes` has, by the path of the parameter: formats for
      `js.quantize`, one a pattern of `js.rules`.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: See `from_gguf`.

    Examples:
      >>> import jaxsim as js
      >>> from jaxsim.models.llama import gguf_grids
      >>> def as_in_file(path, net):
      ...     formats = {name: js.quantize(grid, None) for name, grid in gguf_grids(path).items()}
      ...     return js.deploy(js.rules(formats)(net), keep_floats=False)
    """
    return {
        name: BlockGrid(
            kind=codes.kind,
            scale=jnp.asarray(np.swapaxes(codes.scale, -1, -2)),
            minimum=None
            if codes.minimum is None
            else jnp.asarray(np.swapaxes(codes.minimum, -1, -2)),
        )
        for name, codes in gguf_codes(path).items()
        if name.endswith("kernel")
    }


def _joined(weight: Weight, arrays: list[np.ndarray]) -> np.ndarray:
    rows = [halves_together(a, weight.heads) for a in arrays] if weight.heads else arrays
    return np.stack(rows) if weight.stacked else rows[0]


def _named(path: str | os.PathLike[str], error: ValueError) -> ValueError:
    text = str(error)
    if text.startswith(repr(str(path))):
        return ValueError(text)
    return ValueError(f"{str(path)!r}: {shortened(text)}")


def _model_of(file: Gguf) -> Llama:
    """The decoder that the metadata describes."""
    fields = file.fields
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"is of architecture {architecture!r}; must be 'llama'")
    there = {name: key for name, key in _OPTIONAL.items() if f"llama.{key}" in fields}
    settings: dict[str, Any] = {
        name: _number(fields, key, name) for name, key in (_REQUIRED | there).items()
    }
    if _TABLE not in file.tensors:
        raise ValueError(f"has no tensor {_TABLE!r}")
    vocabulary = file.tensors[_TABLE].shape[0]
    tied = "output.weight" not in file.tensors
    settings = {"groups": settings["heads"], "base": _BASE, **settings}
    model = Llama(vocabulary=vocabulary, tied=tied, **settings)
    d = head_width(model)
    _check_kin(fields, d)
    return model


def _number(fields: Mapping[str, Any], key: str, name: str) -> Any:
    value = fields.get(f"llama.{key}")
    kind = float if name in ("epsilon", "base") else int
    if type(value) is not kind:
        raise ValueError(f"llama.{key} is {value!r}; must be of {kind.__name__}")
    return value


def _check_kin(fields: Mapping[str, Any], d: int) -> None:
    """Refuses what decoders of the same name have and this one has not."""
    allowed: dict[str, tuple[Any, ...]] = {
        "llama.rope.scaling.type": (None, "none"),
        "llama.rope.scale_linear": (None, 1.0),
        "llama.rope.dimension_count": (None, d),
        "llama.attention.value_length": (None, d),
        "llama.expert_count": (None, 0),
        "llama.attention.sliding_window": (None,),
        "llama.use_parallel_residual": (None, False),
    }
    for key, values in allowed.items():
        if (found := fields.get(key)) not in values:
            raise ValueError(f"{key} is {found!r}; must be {values[-1]!r}")


def _tensors_of(file: Gguf, model: Llama) -> dict[str, GgufTensor]:
    """The tensors of all weights, their shapes checked, and no other there."""
    found: dict[str, GgufTensor] = {}
    for weight in weights_of(model):
        for i in range(model.layers if weight.stacked else 1):
            name = weight.gguf.format(i)
            if name not in file.tensors:
                raise ValueError(f"has no tensor {name!r}")
            tensor = file.tensors[name]
            if tensor.shape != weight.shape:
                raise ValueError(
                    f"tensor {name!r} is {list(tensor.shape)}; must be {list(weight.shape)}"
                )
            found[name] = tensor
    if others := sorted(set(file.tensors) - set(found)):
        raise ValueError(f"has a tensor {others[0]!r} that this decoder does not read")
    return found
