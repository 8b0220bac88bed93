"""A Llama decoder in NumPy, in double precision, one head after the other.

Weights are matrices [outputs, inputs] by the names of a GGUF file, and rotary pairs lie beside one
another, as that file stores them.
"""

import numpy as np


def normalized(x, scale, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def turned(head, base):
    """Each pair (2i, 2i + 1) of the tokens [n, d] as a complex number, turned by its angle."""
    n, d = head.shape
    pairs = head[:, 0::2] + 1j * head[:, 1::2]
    angles = np.arange(n)[:, None] / base ** (np.arange(0, d, 2) / d)
    pairs = pairs * np.exp(1j * angles)
    return np.stack([pairs.real, pairs.imag], -1).reshape(n, d)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def logits(tensors, ids, *, layers, heads, groups, base, epsilon, last=False):
    """Logits [n, vocabulary] of the tokens after those of one sequence.

    Args:
      tensors: Function from a name to its matrix or vector.
      ids: Tokens [n].
      layers: Number of layers.
      heads: Number of heads.
      groups: Number of heads of keys and values.
      base: Of the rotary angles.
      epsilon: Of the normalizations.
      last: Whether only those of the last token are wanted.
    """
    table = np.asarray(tensors("token_embd.weight"), np.float64)
    x = table[ids]
    n = len(ids)
    before = np.tril(np.ones((n, n), bool))
    for i in range(layers):

        def w(name, i=i):
            return np.asarray(tensors(f"blk.{i}.{name}.weight"), np.float64)

        h = normalized(x, w("attn_norm"), epsilon)
        queries, keys, values = (
            np.split(h @ w(f"attn_{a}").T, count, -1)
            for a, count in (("q", heads), ("k", groups), ("v", groups))
        )
        mixed = []
        for head in range(heads):
            group = head * groups // heads
            q, k = turned(queries[head], base), turned(keys[group], base)
            scores = np.where(before, q @ k.T / np.sqrt(q.shape[-1]), -np.inf)
            mixed.append(softmax(scores) @ values[group])
        x = x + np.concatenate(mixed, -1) @ w("attn_output").T
        h = normalized(x, w("ffn_norm"), epsilon)
        gate = h @ w("ffn_gate").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w("ffn_up").T)) @ w("ffn_down").T
    x = normalized(
        x[-1:] if last else x, np.asarray(tensors("output_norm.weight"), np.float64), epsilon
    )
    head = tensors("output.weight")
    return x @ (table if head is None else np.asarray(head, np.float64)).T
