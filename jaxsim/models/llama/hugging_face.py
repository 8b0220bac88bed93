"""Llama decoders from folders of Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxsim.data.hugging_face import read_arrays, read_object
from jaxsim.files.text import read_text
from jaxsim.models.llama.decoder import Llama, head_width
from jaxsim.models.llama.pretrained import Pretrained
from jaxsim.models.llama.tokenizer import from_json
from jaxsim.models.llama.weights import Weight, params_from, weights_of

_ONLY: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_scaling": (None,),
    "partial_rotary_factor": (1.0,),
}


def from_hugging_face(folder: str | os.PathLike[str]) -> Pretrained:
    """Loads a decoder from a folder: configuration, weights in float32, and tokenizer.

    Needs the package `tokenizers`, which `pip install "jaxsim[text]"` brings.

    Args:
      folder: Folder with `config.json`, `tokenizer.json`, and `model.safetensors` or the parts that
        `model.safetensors.index.json` names.

    Raises:
      FileNotFoundError: A file is missing.
      ValueError: A file is damaged, of a model that this one is not, or the tokenizer does not fit.
    """
    place = Path(folder)
    file = place / "config.json"
    try:
        model = _model_of(read_object(file))
    except ValueError as error:
        raise ValueError(f"{str(file)!r}: {error}") from None
    file = place / "tokenizer.json"
    try:
        tokenizer = from_json(read_text(file), model.vocabulary)
    except ValueError as error:
        raise ValueError(f"{str(file)!r}: {error}") from None
    arrays = read_arrays(place)
    try:
        _check_arrays(arrays, model)

        def read(weight: Weight, layer: str) -> np.ndarray:
            return np.asarray(arrays[weight.hugging_face.format(layer)], np.float32)

        return Pretrained(model, params_from(model, read), tokenizer)
    except ValueError as error:
        raise ValueError(f"{str(place)!r}: {error}") from None


def _model_of(config: Mapping[str, Any]) -> Llama:
    for name, values in _ONLY.items():
        if (found := config.get(name, values[0])) not in values:
            raise ValueError(f"{name} is {found!r}; must be {values[0]!r}")
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope_parameters is {rope!r}; must be of rope_type 'default'")
    try:
        heads = config["num_attention_heads"]
        model = Llama(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            groups=config.get("num_key_value_heads") or heads,
            head_width=config.get("head_dim"),
            hidden=config["intermediate_size"],
            context=config.get("max_position_embeddings", 2048),
            base=rope.get("rope_theta", config.get("rope_theta", 10000.0)),
            epsilon=config.get("rms_norm_eps", 1e-6),
            tied=config.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise ValueError(f"has no {error}") from None
    head_width(model)
    if not isinstance(model.tied, bool):
        raise ValueError(f"tie_word_embeddings is {model.tied!r}; must be true or false")
    return model


def _check_arrays(arrays: Mapping[str, np.ndarray], model: Llama) -> None:
    known = {"lm_head.weight"} if model.tied else set[str]()  # some files repeat the table
    for weight in weights_of(model):
        for i in range(model.layers if weight.stacked else 1):
            name = weight.hugging_face.format(i)
            if name not in arrays:
                raise ValueError(f"has no array {name}")
            if arrays[name].shape != weight.shape:
                raise ValueError(
                    f"array {name} is {list(arrays[name].shape)}; must be {list(weight.shape)}"
                )
            known.add(name)
    others = {n for n in arrays if not n.endswith("rotary_emb.inv_freq")} - known
    if others:
        raise ValueError(f"has an array {min(others)} that this decoder does not read")
