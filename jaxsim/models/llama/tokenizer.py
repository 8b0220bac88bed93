"""Tokenizers of Llama decoders: from Hugging Face's file, or rebuilt from GGUF's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = ("gpt-2", "smollm", "llama-bpe")
_NORMAL, _UNUSED = 1, 5  # types of tokens
_CONTROL, _USER_DEFINED = 3, 4  # of those that text is not cut into, but that cut text


def from_json(content: str, vocabulary: int) -> Tokenizer:
    """A tokenizer from the text of a `tokenizer.json`.

    Args:
      content: The text.
      vocabulary: Number of tokens that the decoder knows.

    Raises:
      ValueError: It is no tokenizer, or has tokens that the decoder does not know.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # what the package raises
        raise ValueError(f"is no tokenizer: {error}") from None
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= vocabulary:
        raise ValueError(
            f"the tokenizer does not fit: it has a token {highest}, the model {vocabulary} tokens"
        )
    return tokenizer


def from_fields(fields: Mapping[str, Any], vocabulary: int) -> Tokenizer:
    """A tokenizer of byte pairs from the metadata of a GGUF file.

    Args:
      fields: The metadata.
      vocabulary: Number of tokens that the decoder knows.

    Raises:
      ValueError: It is of another kind, or has another number of tokens than the decoder.

    Source: llama.cpp, `src/llama-vocab.cpp`, for the patterns that cut text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    kind, split = (fields.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind != "gpt2" or split not in _SPLITS:
        raise ValueError(
            f"the tokenizer is {kind!r} cut by {split!r}; must be 'gpt2' cut by one of {_SPLITS}"
        )
    tokens = _strings(fields, "tokens")
    if len(tokens) != vocabulary:
        raise ValueError(
            f"the tokenizer does not fit: it has {len(tokens)} tokens, the model {vocabulary}"
        )
    if len(set(tokens)) != len(tokens):
        raise ValueError("the tokenizer has a token twice")
    known = set(tokens)
    merges = [_merge(text, known) for text in _strings(fields, "merges")]
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=split == "llama-bpe"))
    tokenizer.pre_tokenizer = _pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields.get("tokenizer.ggml.token_type", [])
    if not isinstance(kinds, list) or len(kinds) not in (0, len(tokens)):
        raise ValueError("tokenizer.ggml.token_type must have an entry for each token")
    added = [
        AddedToken(token, special=of == _CONTROL, normalized=False)
        for token, of in zip(tokens, kinds, strict=False)
        if of in (_CONTROL, _USER_DEFINED) and token
    ]
    tokenizer.add_tokens(added)
    if fields.get("tokenizer.ggml.add_bos_token", split == "llama-bpe"):
        first = fields.get("tokenizer.ggml.bos_token_id")
        if type(first) is not int or not 0 <= first < vocabulary:
            raise ValueError(
                f"tokenizer.ggml.bos_token_id is {first!r}; must be from 0 to {vocabulary - 1}"
            )
        begin: Any = {"id": "begin", "ids": [first], "tokens": [tokens[first]]}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["begin", "$A"], special_tokens=[begin]
        )
    return tokenizer


def to_fields(tokenizer: Tokenizer, vocabulary: int) -> dict[str, Any]:
    """Metadata of a GGUF file that `from_fields` makes the same tokenizer of.

    Args:
      tokenizer: Tokenizer of byte pairs.
      vocabulary: Number of tokens that the decoder knows; those that the tokenizer has not are
        unused.

    Raises:
      ValueError: It is of another kind, or cuts text in a way that GGUF has no name for here.
    """
    content = json.loads(tokenizer.to_str())
    model, added = content["model"], content.get("added_tokens") or []
    if model.get("type") != "BPE" or content.get("normalizer") is not None:
        raise ValueError(
            f"tokenizer: is {model.get('type')} with normalizer {content.get('normalizer')}; must "
            "be BPE of bytes without one"
        )
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if max(ids.values(), default=-1) >= vocabulary:
        raise ValueError(f"tokenizer: has a token {max(ids.values())}, the model {vocabulary}")
    tokens, kinds = [f"[PAD{i}]" for i in range(vocabulary)], [_UNUSED] * vocabulary
    for token, i in ids.items():
        tokens[i], kinds[i] = token, _NORMAL
    for token in added:
        kinds[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
    cut = json.dumps(content.get("pre_tokenizer"), sort_keys=True)
    splits = [split for split in _SPLITS if _described(_pre_tokenizer(split)) == cut]
    if not splits:
        raise ValueError(f"tokenizer: cuts text by {cut}; must do as one of {_SPLITS}")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    begin = tokenizer.encode("").ids
    if len(begin) > 1:
        raise ValueError(f"tokenizer: puts tokens {begin} before a text; must be one at most")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": splits[0],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": bool(begin),
        **({"tokenizer.ggml.bos_token_id": begin[0]} if begin else {}),
    }


def _described(pre_tokenizer: Any) -> str:
    """What a tokenizer's file says of how it cuts text."""
    from tokenizers import Tokenizer, models

    other = Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizer
    return json.dumps(json.loads(other.to_str())["pre_tokenizer"], sort_keys=True)


def _merge(text: str, tokens: set[str]) -> tuple[str, str]:
    first, _, second = text.partition(" ")
    if not tokens.issuperset((first, second, first + second)):
        raise ValueError(f"the tokenizer merges {text!r}; must be two of its tokens")
    return first, second


def _strings(fields: Mapping[str, Any], name: str) -> list[str]:
    found = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(token, str) for token in found):
        raise ValueError(f"tokenizer.ggml.{name} must be a list of strings")
    return found


def _pre_tokenizer(split: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if split == "llama-bpe":
        cut = pre_tokenizers.Split(Regex(_LLAMA_3), "isolated")
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([cut, whole])
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split == "gpt-2":
        return words
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
