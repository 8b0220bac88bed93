"""Keys and values of tokens that a decoder has read, as arrays that go through its call."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, of all layers; `Llama.cache` makes an empty one.

    Attributes:
      keys: Rotated keys, [L, B, S, G, d]; zero where there is no token yet.
      values: Values, [L, B, S, G, d].
      length: Number of tokens that are there, the same in each row.
    """

    keys: Float[Array, "L B S G d"]
    values: Float[Array, "L B S G d"]
    length: Int[Array, ""]
