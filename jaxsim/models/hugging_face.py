"""Folders of Hugging Face: a model's weights with its configuration, and its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Key

from jaxsim.data.hugging_face import read_arrays, read_object
from jaxsim.files.text import read_text
from jaxsim.models.bert import Bert, Pool, from_hugging_face, mean_token
from jaxsim.numerics.checks import checked_int


class Sequences(NamedTuple):
    """Texts as word pieces.

    Attributes:
      ids: Word pieces, [N, n], padded behind with 0.
      lengths: Number of word pieces of each text, [N].
    """

    ids: Int32[np.ndarray, "N n"]
    lengths: Int32[np.ndarray, " N"]


def load_bert(
    path: str | os.PathLike[str],
    *,
    classes: int,
    key: Key[Any, ""],
    pool: Pool = mean_token,
) -> tuple[Bert, dict[str, Any]]:
    """Loads a pretrained BERT with a new classifier.

    Args:
      path: Folder with `config.json`, and `model.safetensors` or the parts that
        `model.safetensors.index.json` names.
      classes: Number of classes of the classifier, at least 2.
      key: Random key of the classifier's weights.
      pool: Pooling that the classifier reads.

    Returns:
      The model and its parameters.

    Raises:
      FileNotFoundError: A file is missing.
      ValueError: A file is damaged, or of another model.
    """
    file = Path(path) / "config.json"
    try:
        config = read_object(file)
    except ValueError as error:
        raise ValueError(f"{str(file)!r}: {error}") from None
    arrays = read_arrays(path)
    return from_hugging_face(arrays, config, classes=classes, key=key, pool=pool)


def word_pieces(
    path: str | os.PathLike[str], texts: Sequence[str], longest: int = 128
) -> Sequences:
    """Cuts texts into word pieces, with the marks that the tokenizer puts around them.

    Needs the `tokenizers` package, which `pip install "jaxsim[text]"` brings.

    Args:
      path: Folder with `tokenizer.json`.
      texts: Texts, at least one.
      longest: Largest number of word pieces of a text, at least 2; longer texts are cut.

    Raises:
      ValueError: No texts, `longest` below 2, or a file that is no tokenizer.
    """
    from tokenizers import Tokenizer

    checked_int("longest", longest, 2)
    if not texts:
        raise ValueError("texts=[]: give at least one")
    file = Path(path) / "tokenizer.json"
    content = read_text(file)
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # what the package raises
        raise ValueError(f"{str(file)!r}: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.zeros((len(rows), int(lengths.max())), np.int32)
    for row, found in zip(ids, rows, strict=True):
        row[: len(found)] = found
    return Sequences(ids, lengths)
