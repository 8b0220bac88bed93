"""Decoders to make recipes of, each with its texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.common.files import file
from jaxsim.models.llama import Llama, from_gguf, tiny


class Decoder(NamedTuple):
    """A decoder and the tokens it is scored on.

    Attributes:
      name: What it is.
      model: Its architecture.
      params: Its parameters.
      path: Its file, None where there is none.
      valid: Tokens to choose and calibrate on.
      test: Tokens to report on.
    """

    name: str
    model: Llama
    params: Any
    path: Path | None
    valid: np.ndarray
    test: np.ndarray


def smollm2() -> Decoder:
    """SmolLM2-135M from its file, with WikiText-2.

    Raises:
      MissingFileError: One of them is not there.
    """
    named = file("SmolLM2-135M-Instruct.Q4_1.gguf")
    texts = [file(f"language/wikitext2_{part}.txt") for part in ("valid", "test")]
    model, params, tokenizer = from_gguf(named)
    valid, test = (np.array(tokenizer.encode(_joined(text)).ids) for text in texts)
    return Decoder("SmolLM2-135M-Instruct", model, params, named, valid, test)


def random_decoder() -> Decoder:
    """A small decoder of random parameters and text."""
    model = tiny(width=64, hidden=64, heads=2, groups=1)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    valid, test = np.random.default_rng(0).integers(0, 96, (2, 2000))
    return Decoder("A random decoder of two layers", model, params, None, valid, test)


def _joined(path: Path) -> str:
    """A text whose joined marks are undone."""
    text = path.read_text(encoding="utf-8")
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    return text
