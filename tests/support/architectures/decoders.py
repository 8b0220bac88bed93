"""Language models, one token after another."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.support.architectures.parts import (
    attend,
    attention,
    causal,
    encoder,
    heads,
    joined,
    mlp,
    rotary,
)


def _grouped_query(k, x, positions, mask, cache=None):
    """Attention of four query heads in two groups; a cache holds keys and values of before."""
    q = rotary(heads(k.dense(x, 8, bias=False), 4), positions)
    key = rotary(heads(k.dense(x, 4, bias=False), 2), positions)
    v = heads(k.dense(x, 4, bias=False), 2)
    if cache is not None:
        key, v = (
            lax.dynamic_update_slice_in_dim(old, new, positions[0], -2)
            for old, new in zip(cache, (key, v), strict=True)
        )
    spread = (jnp.repeat(a, 2, -3) for a in (key, v))
    return k.dense(joined(attend(q, *spread, mask)), 8, bias=False), (key, v)


def _swiglu(k, x):
    inner = jax.nn.silu(k.dense(x, 12, bias=False)) * k.dense(x, 12, bias=False)
    return k.dense(inner, 8, bias=False)


def llama(k, tokens):
    """Llama (Touvron et al., 2023) with Mistral's sliding window (Jiang et al., 2023)."""
    embed, _ = k.embed(13, 8)
    x = embed(tokens)
    length = tokens.shape[-1]
    mask = causal(length, window=3)
    x = x + _grouped_query(k, k.rms_norm(x), jnp.arange(length), mask)[0]
    x = x + _swiglu(k, k.rms_norm(x))
    return k.dense(k.rms_norm(x), 13, bias=False)


def llama_step(k, token, keys, values, position):
    """The same, a token at a time, with a cache that is given and comes back."""
    embed, tied = k.embed(13, 8)
    x = embed(token)
    mask = jnp.arange(keys.shape[-2]) <= position
    seen, cache = _grouped_query(k, k.rms_norm(x), position[None], mask, (keys, values))
    x = x + seen
    x = x + _swiglu(k, k.rms_norm(x))
    return tied(k.rms_norm(x)), cache


def gpt2(k, tokens):
    """GPT-2 (Radford et al., 2019): learned positions, the head is the embedding."""
    embed, tied = k.embed(13, 8)
    places, _ = k.embed(16, 8)
    x = embed(tokens) + places(jnp.arange(tokens.shape[-1]))
    return tied(k.layer_norm(encoder(k, x, mask=causal(tokens.shape[-1]))))


def _routed(x, scores):
    """The two experts of each token, and how much each counts."""
    chosen, experts = lax.top_k(scores, 2)
    return experts, jax.nn.softmax(chosen)


def mixtral(k, tokens):
    """Mixtral (Jiang et al., 2024): tokens sorted by expert, one ragged product a layer."""
    embed, _ = k.embed(13, 8)
    x = embed(tokens).reshape(-1, 8)
    experts, gates = _routed(x, k.dense(x, 4, bias=False))
    up, down = k.weight(4, 8, 12), k.weight(4, 12, 8)
    order = jnp.argsort(experts.reshape(-1))
    sizes = jnp.bincount(experts.reshape(-1), length=4)
    inner = lax.ragged_dot(x[order // 2], up, sizes)
    out = lax.ragged_dot(jax.nn.silu(inner), down, sizes)
    out = jnp.zeros_like(out).at[order].set(out).reshape(-1, 2, 8)
    x = x + (out * gates[..., None]).sum(1)
    return k.dense(k.rms_norm(x), 13, bias=False).reshape(*tokens.shape, 13)


def switch(k, tokens):
    """Switch transformer (Fedus et al., 2021): experts by one-hot dispatch."""
    embed, _ = k.embed(13, 8)
    x = embed(tokens)
    x = x + attention(k, k.layer_norm(x), mask=causal(tokens.shape[-1]))
    gates = jax.nn.softmax(k.dense(x, 4, bias=False))
    sent = jax.nn.one_hot(gates.argmax(-1), 4) * gates
    inner = jax.nn.relu(jnp.einsum("btd,edf->btef", x, k.weight(4, 8, 12)))
    x = x + jnp.einsum("btef,efd,bte->btd", inner, k.weight(4, 12, 8), sent)
    return k.dense(k.layer_norm(x), 13)


def gathered_experts(k, tokens):
    """Experts whose matrices are gathered, a token its own: as small batches are served."""
    embed, _ = k.embed(13, 8)
    x = embed(tokens).reshape(-1, 8)
    experts, gates = _routed(x, k.dense(x, 4, bias=False))
    up, down = k.weight(4, 8, 12), k.weight(4, 12, 8)
    inner = jax.nn.silu(jnp.einsum("td,tkdf->tkf", x, up[experts]))
    out = jnp.einsum("tkf,tkfd->tkd", inner, down[experts])
    x = x + (out * gates[..., None]).sum(1)
    return k.dense(k.rms_norm(x), 13, bias=False).reshape(*tokens.shape, 13)


def retention(k, tokens):
    """RetNet (Sun et al., 2023): linear attention with decay."""
    embed, _ = k.embed(13, 8)
    x = embed(tokens)
    normed = k.layer_norm(x)
    q, key, v = (heads(k.dense(normed, 8, bias=False), 2) for _ in range(3))
    back = jnp.arange(tokens.shape[-1])[:, None] - jnp.arange(tokens.shape[-1])
    decay = jnp.where(back >= 0, 0.9**back, 0)
    seen = joined((q @ jnp.swapaxes(key, -1, -2) * decay) @ v)
    x = x + k.dense(seen * jax.nn.silu(k.dense(normed, 8, bias=False)), 8, bias=False)
    return k.dense(k.layer_norm(x + mlp(k, k.layer_norm(x))), 13)


def lora(k, tokens):
    """Adapters of rank two added to the weights they adapt (Hu et al., 2021)."""
    embed, _ = k.embed(13, 8)
    x = embed(tokens)
    for _ in range(2):
        base, down, up = k.weight(8, 8), k.weight(8, 2), k.weight(2, 8)
        x = x + jnp.tanh(x @ (base + 0.5 * down @ up))
    return k.dense(x, 13)
