"""Models that read a whole sequence, or two."""

import jax
import jax.numpy as jnp

from tests.support.architectures.parts import attend, attention, causal, encoder, heads, joined, mlp


def bert(k, tokens, kinds):
    """BERT (Devlin et al., 2018): norms last, kinds of tokens, pooled first token."""
    words, _ = k.embed(13, 8)
    places, _ = k.embed(16, 8)
    segments, _ = k.embed(2, 8)
    x = k.layer_norm(words(tokens) + places(jnp.arange(tokens.shape[-1])) + segments(kinds))
    x = k.layer_norm(x + attention(k, x))
    x = k.layer_norm(x + mlp(k, x))
    return k.dense(jnp.tanh(k.dense(x[:, 0], 8)), 3)


def _distances(k, queries, keys):
    """T5's bias by distance, a number a head."""
    table, _ = k.embed(2 * 16 - 1, 2)
    apart = jnp.arange(queries)[:, None] - jnp.arange(keys) + 15
    return jnp.moveaxis(table(apart), -1, 0)


def t5(k, tokens, targets):
    """T5 (Raffel et al., 2019): encoder and decoder, relative positions, gated layers."""
    embed, _ = k.embed(13, 8)
    x = embed(tokens)
    x = x + attention(k, k.rms_norm(x), bias=_distances(k, x.shape[1], x.shape[1]))
    source = k.rms_norm(x + mlp(k, k.rms_norm(x)))
    y = embed(targets)
    length = targets.shape[-1]
    bias = _distances(k, length, length)
    y = y + attention(k, k.rms_norm(y), mask=causal(length), bias=bias)
    y = y + attention(k, k.rms_norm(y), source)
    return k.dense(k.rms_norm(y + mlp(k, k.rms_norm(y))), 13, bias=False)


def whisper(k, sound, tokens):
    """Whisper (Radford et al., 2022): two convolutions over time before an encoder-decoder."""
    x = jax.nn.gelu(k.conv(sound, 8, (3,)))
    x = encoder(k, jax.nn.gelu(k.conv(x, 8, (3,), strides=2)))
    embed, tied = k.embed(13, 8)
    y = embed(tokens)
    y = y + attention(k, k.layer_norm(y), mask=causal(tokens.shape[-1]))
    y = y + attention(k, k.layer_norm(y), x)
    return tied(k.layer_norm(y))


def clip(k, image, tokens):
    """CLIP (Radford et al., 2021): two towers, the cosine of each pair."""
    x = k.conv(image, 8, (4, 4), strides=4).reshape(image.shape[0], -1, 8)
    x = k.dense(encoder(k, x).mean(1), 6, bias=False)
    embed, _ = k.embed(13, 8)
    y = encoder(k, embed(tokens), mask=causal(tokens.shape[-1]))
    y = k.dense(y[:, -1], 6, bias=False)
    x, y = (a / jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (x, y))
    return x @ y.T


def perceiver(k, x):
    """Perceiver (Jaegle et al., 2021): a few learned rows ask many inputs."""
    ask = jnp.broadcast_to(k.weight(3, 8), (x.shape[0], 3, 8))
    return k.dense(encoder(k, ask + attention(k, ask, k.dense(x, 8))).mean(1), 4)


def set_transformer(k, x):
    """Set transformer (Lee et al., 2019): induced attention, without positions."""
    x = k.dense(x, 8)
    few = attention(k, jnp.broadcast_to(k.weight(2, 8), (x.shape[0], 2, 8)), x)
    return k.dense((x + attention(k, x, few)).max(1), 2)


def graph_attention(k, nodes, edges):
    """GATv2 (Brody et al., 2021) by segment sums over edges, after a mean of neighbors."""
    source, target = edges
    count = nodes.shape[0]
    x = k.dense(nodes, 8, bias=False)
    degree = jax.ops.segment_sum(jnp.ones(len(target)), target, count)
    x = jax.nn.relu(jax.ops.segment_sum(x[source], target, count) / (1 + degree)[:, None] + x)
    left, right = k.dense(x, 8), k.dense(x, 8)
    score = jnp.exp(k.dense(jax.nn.leaky_relu(left[source] + right[target]), 1, bias=False))
    total = jax.ops.segment_sum(score, target, count)
    mixed = jax.ops.segment_sum(score * left[source], target, count) / (1e-6 + total)
    return k.dense(mixed, 3)


def dlrm(k, numbers, categories):
    """DLRM (Naumov et al., 2019): tables, a network for numbers, products of pairs."""
    tables = [k.embed(size, 6)[0] for size in (11, 17)]
    rows = [table(categories[:, i]) for i, table in enumerate(tables)]
    features = jnp.stack([jax.nn.relu(k.dense(numbers, 6)), *rows], 1)
    pairs = (features @ jnp.swapaxes(features, 1, 2)).reshape(len(numbers), -1)
    return k.dense(jax.nn.relu(k.dense(jnp.concatenate([features[:, 0], pairs], -1), 8)), 1)


def two_towers(k, user, item):
    """Two towers over bags of ids (Covington et al., 2016)."""
    x, y = (k.embed(size, 8)[0](ids).mean(1) for size, ids in ((11, user), (17, item)))
    return (k.dense(jax.nn.relu(k.dense(x, 8)), 6) * k.dense(jax.nn.relu(k.dense(y, 8)), 6)).sum(-1)


def conformer(k, x):
    """Conformer (Gulati et al., 2020): attention and a depthwise convolution over time."""
    x = k.dense(x, 8)
    x = x + 0.5 * mlp(k, k.layer_norm(x), activation=jax.nn.silu)
    q, key, v = (heads(k.dense(x, 8), 2) for _ in range(3))
    x = x + k.dense(joined(attend(q, key, v)), 8)
    gate = k.dense(k.layer_norm(x), 16)
    inner = k.conv(gate[..., :8] * jax.nn.sigmoid(gate[..., 8:]), 8, (3,), groups=8)
    return k.dense(x + k.dense(jax.nn.silu(k.batch_norm(inner)), 8), 5)
