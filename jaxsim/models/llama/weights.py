"""Where the weights of a Llama lie, in its parameters and in the files that it comes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsim.models.llama.decoder import Llama, head_width


class Weight(NamedTuple):
    """One parameter, and the tensors that it is read from.

    Attributes:
      path: Path of the parameter; one of the layers' is a stack.
      gguf: Name in a GGUF file; `{}` stands for the layer.
      hugging_face: Name in a file of Hugging Face's.
      shape: Shape that the tensor must have: [outputs, inputs] of a matrix.
      heads: Number of heads whose rotary pairs are among its outputs; 0 for none.
    """

    path: str
    gguf: str
    hugging_face: str
    shape: tuple[int, ...]
    heads: int = 0

    @property
    def stacked(self) -> bool:
        """Whether each layer has one."""
        return self.path.startswith("layers/")

    @property
    def kernel(self) -> bool:
        """Whether the parameter is the tensor transposed: [inputs, outputs]."""
        return self.path.endswith("/kernel")


def weights_of(model: Llama) -> tuple[Weight, ...]:
    """All weights of a decoder.

    Args:
      model: The decoder.

    Raises:
      ValueError: A setting out of range.
    """
    d, width, hidden = head_width(model), model.width, model.hidden
    inner, outer = "blk.{}.", "model.layers.{}."
    queries, keys = model.heads * d, model.groups * d

    def matrix(path: str, gguf: str, other: str, shape: tuple[int, int], heads: int = 0) -> Weight:
        names = f"{inner}{gguf}.weight", f"{outer}{other}_proj.weight"
        return Weight(f"layers/{path}/kernel", *names, shape, heads)

    def norm(path: str, gguf: str, other: str) -> Weight:
        names = f"{inner}{gguf}.weight", f"{outer}{other}.weight"
        return Weight(f"layers/{path}/scale", *names, (width,))

    table = (model.vocabulary, width)
    return (
        Weight("embedding", "token_embd.weight", "model.embed_tokens.weight", table),
        norm("attention_norm", "attn_norm", "input_layernorm"),
        matrix("attention/query", "attn_q", "self_attn.q", (queries, width), model.heads),
        matrix("attention/key", "attn_k", "self_attn.k", (keys, width), model.groups),
        matrix("attention/value", "attn_v", "self_attn.v", (keys, width)),
        matrix("attention/mix", "attn_output", "self_attn.o", (width, queries)),
        norm("feed_forward_norm", "ffn_norm", "post_attention_layernorm"),
        matrix("feed_forward/gate", "ffn_gate", "mlp.gate", (hidden, width)),
        matrix("feed_forward/up", "ffn_up", "mlp.up", (hidden, width)),
        matrix("feed_forward/down", "ffn_down", "mlp.down", (width, hidden)),
        Weight("norm/scale", "output_norm.weight", "model.norm.weight", (width,)),
        *(() if model.tied else (Weight("head/kernel", "output.weight", "lm_head.weight", table),)),
    )


def params_from(model: Llama, read: Callable[[Weight, str], np.ndarray]) -> dict[str, Any]:
    """Parameters of a decoder from the tensors of a file.

    Args:
      model: The decoder.
      read: From a weight and the text that stands for its layer, the tensor in float32.

    Raises:
      ValueError: A weight is not finite.
    """
    params: dict[str, Any] = {}
    for weight in weights_of(model):
        layers = range(model.layers) if weight.stacked else (0,)
        found = [_finite(weight, i, read(weight, str(i))) for i in layers]
        arrays = [a.T for a in found] if weight.kernel else found
        *folders, name = weight.path.split("/")
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = jnp.asarray(np.stack(arrays) if weight.stacked else arrays[0], jnp.float32)
    return params


def _finite(weight: Weight, layer: int, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError(f"{weight.path} of layer {layer} holds numbers that are not finite")
    return values


def halves_together(rows: np.ndarray, heads: int) -> np.ndarray:
    """Puts rows of rotary pairs that lie beside one another into first halves and second halves.

    Args:
      rows: Rows of `heads` heads, [heads · d, ...].
      heads: Number of heads.
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def pairs_together(rows: np.ndarray, heads: int) -> np.ndarray:
    """Puts rows of rotary pairs in first and second halves beside one another, as GGUF has them.

    Args:
      rows: Rows of `heads` heads, [heads · d, ...].
      heads: Number of heads.
    """
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
