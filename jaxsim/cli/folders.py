"""Models of Hugging Face folders, as recipes name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

import jaxsim as js
from jaxsim.data.hugging_face import read_object
from jaxsim.files.text import read_text
from jaxsim.models import llama
from jaxsim.models.bert import Bert
from jaxsim.models.hugging_face import load_bert
from jaxsim.models.llama.tokenizer import from_json
from jaxsim.numerics.checks import checked_int

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CLASSES = 2


class Padded(nn.Module):
    """A BERT of ids alone: an id that stands for padding tells how long a row is.

    Attributes:
      bert: The classifier.
      padding: That id.
    """

    bert: Bert
    padding: int

    @nn.compact
    def __call__(self, ids: Int[Array, "B n"]) -> Float[Array, "B C"]:
        """The logits."""
        return self.bert(ids, jnp.sum(ids != self.padding, 1))


def folder_model(
    folder: Path, shape: Sequence[int], settings: Mapping[str, Any], seed: int
) -> js.Network:
    """Makes the network of a folder: a Llama's logits of the next tokens, or a BERT's of classes.

    Reading one runs no code but jaxsim's.

    Args:
      folder: Folder with `config.json` and arrays in `.safetensors` files; of a Llama its
        `tokenizer.json`, too.
      shape: Rows and tokens of an example.
      settings: Of a BERT `classes`, the number of classes of its new classifier.
      seed: Of that classifier's weights.

    Raises:
      FileNotFoundError: A file is missing.
      ValueError: A file is damaged, or of a model that is none of these.
    """
    if len(shape) != 2:
        raise ValueError(f"[model] input={list(shape)}: must be rows and tokens, of a folder")
    ids = jnp.zeros(tuple(shape), jnp.int32)
    try:
        config = read_object(folder / "config.json")
    except ValueError as error:
        raise ValueError(f"{str(folder / 'config.json')!r}: {error}") from None
    kind = config.get("model_type")
    if unknown := sorted(set(settings) - ({"classes"} if kind == "bert" else set())):
        raise ValueError(f"[model] settings: {unknown[0]!r} is none of a folder of type {kind!r}")
    if kind == "llama":
        model, params, _ = llama.from_hugging_face(folder)
        return js.trace(model, {"params": params}, ids)
    if kind == "bert":
        classes = checked_int("[model] settings: classes", settings.get("classes", _CLASSES), 2)
        model, params = load_bert(folder, classes=classes, key=jax.random.key(seed))
        padded = Padded(model, config.get("pad_token_id") or 0)
        return js.trace(padded, {"params": {"bert": params}}, ids)
    raise ValueError(
        f"[model] folder={str(folder)!r}: holds a model of type {kind!r}; must be 'llama' or 'bert'"
    )


def folder_tokenizer(folder: Path) -> Tokenizer | None:
    """Reads the tokenizer of a Llama's folder.

    Args:
      folder: Folder with `config.json` and `tokenizer.json`.

    Returns:
      The tokenizer; None of a folder of any other model.
    """
    config = read_object(folder / "config.json")
    if config.get("model_type") != "llama":
        return None
    return from_json(read_text(folder / "tokenizer.json"), int(config["vocab_size"]))
