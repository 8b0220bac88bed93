"""A decoder that was trained by others, as a loader hands it over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from jaxsim.models.llama.decoder import Llama

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Pretrained(NamedTuple):
    """A decoder with its parameters and its tokenizer.

    Attributes:
      model: The decoder.
      params: Its parameters in float32.
      tokenizer: Its tokenizer, of the package `tokenizers`.
    """

    model: Llama
    params: dict[str, Any]
    tokenizer: Tokenizer
