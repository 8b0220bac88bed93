"""Small transformers of every kind, for a batch; `tests.oracles.tokens` runs them row by row."""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxsim as js

LAYERS, TOKENS, WIDTH, HEADS, CLASSES = 3, 9, 8, 2, 3
HEAD = WIDTH // HEADS


class Kind(NamedTuple):
    """What sets one transformer apart.

    Attributes:
      positions: "learned", "rotary", or "bias" by distance.
      causal: True if tokens attend to earlier ones alone.
      pool: "first", "last", "mean" or "max" token.
      scanned: True if a scan runs the layers.
      groups: Number of heads of keys and values.
      padded: True if rows have lengths.
    """

    positions: str = "learned"
    causal: bool = False
    pool: str = "first"
    scanned: bool = False
    groups: int = HEADS
    padded: bool = False


KINDS = {
    "vit": Kind(),
    "vit, mean": Kind(pool="mean"),
    "max": Kind(pool="max"),
    "bert": Kind(pool="mean", padded=True),
    "scanned bert": Kind(pool="mean", padded=True, scanned=True),
    "t5 encoder": Kind("bias", pool="mean"),
    "llama": Kind("rotary", causal=True, pool="last", groups=1),
    "scanned llama": Kind("rotary", causal=True, pool="last", groups=1, scanned=True),
}


@cache
def params(seed=0):
    """Numbers of every kind of transformer."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=0.5):
        return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)

    layers = {
        "q": normal(LAYERS, WIDTH, HEADS, HEAD, scale=1.0),
        "k": normal(LAYERS, WIDTH, HEADS, HEAD, scale=1.0),
        "v": normal(LAYERS, WIDTH, HEADS, HEAD),
        "mix": normal(LAYERS, HEADS, HEAD, WIDTH),
        "up": normal(LAYERS, WIDTH, 12),
        "down": normal(LAYERS, 12, WIDTH),
    }
    return {
        "embed": normal(5, WIDTH),
        "places": normal(TOKENS, WIDTH),
        "bias": normal(2 * TOKENS - 1, HEADS, scale=1.0),
        "layers": layers,
        "head": normal(WIDTH, CLASSES, scale=1.0),
    }


def rotated(x, positions):
    """Rotary positions [n] on the last axis of [..., n, heads, d]."""
    angles = positions[:, None] / 10.0 ** jnp.arange(HEAD // 2)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    one, other = x[..., : HEAD // 2], x[..., HEAD // 2 :]
    return jnp.concatenate([one * cos - other * sin, one * sin + other * cos], -1)


def _places(n):
    """Where tokens stand, and which of them each attends to in a decoder."""
    return jnp.arange(n), jnp.tril(jnp.ones((n, n), bool))


def _layer(kind, table, valid, places, x, p):
    n = x.shape[1]
    at, earlier = places or _places(n)
    normed = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
    q, k, v = (jnp.einsum("bnd,dhe->bnhe", normed, p[name]) for name in "qkv")
    if kind.positions == "rotary":
        q, k = (rotated(a, at) for a in (q, k))
    if kind.groups < HEADS:
        k, v = (jnp.repeat(a[:, :, : kind.groups], HEADS // kind.groups, 2) for a in (k, v))
    scores = jnp.einsum("bqhe,bkhe->bhqk", q, k) / jnp.sqrt(HEAD)
    if kind.positions == "bias":
        apart = at[:, None] - at + TOKENS - 1
        scores = scores + jnp.moveaxis(table[apart], -1, 0)
    if kind.causal:
        scores = jnp.where(earlier, scores, -jnp.inf)
    if valid is not None:
        scores = jnp.where(valid[:, None, None], scores, jnp.finfo(scores.dtype).min)
    x = x + jnp.einsum(
        "bhqk,bkhe,hed->bqd", jax.nn.softmax(scores), v, p["mix"], optimize=[(0, 1), (0, 1)]
    )
    return x + jax.nn.gelu(x @ p["up"]) @ p["down"]


def apply(kind, p, ids, lengths=None):
    """Logits [B, C] of ids [B, n]."""
    x = p["embed"][ids]
    n = ids.shape[1]
    valid = None if lengths is None else jnp.arange(n) < lengths[:, None]
    if kind.positions == "learned":
        x = x + p["places"][:n]
    # a loop would count its tokens anew, which run cannot make of those that are left
    layer = partial(_layer, kind, p["bias"], valid, _places(n) if kind.scanned else None)
    if kind.scanned:
        x, _ = lax.scan(lambda x, own: (layer(x, own), None), x, p["layers"])
    else:
        for own in p["layers"]:
            x = layer(x, own)
    return _pooled(kind, x, valid) @ p["head"]


def _pooled(kind, x, valid):
    match kind.pool:
        case "first":
            return x[:, 0]
        case "last":
            return x[:, -1]
        case "max":
            return x.max(1)
        case _ if valid is None:
            return x.mean(1)
        case _:
            return jnp.sum(x * valid[..., None], 1) / jnp.sum(valid, 1, keepdims=True)


def inputs(kind, rows=5, seed=3):
    """Ids, and lengths where there are any."""
    rng = np.random.default_rng(seed)
    ids = jnp.asarray(rng.integers(0, 5, (rows, TOKENS)), jnp.int32)
    lengths = jnp.asarray([TOKENS, 4, 6, 2, 7][:rows], jnp.int32)
    return (ids, lengths) if kind.padded else (ids,)


def present(ids, lengths):
    """Which tokens there are."""
    return jnp.arange(ids.shape[1]) < lengths[:, None]


@cache
def network(name):
    """One of the kinds, traced."""
    kind = KINDS[name]
    p = params()
    if not kind.scanned:
        layers = [jax.tree.map(lambda a, i=i: a[i], p["layers"]) for i in range(LAYERS)]
        p = {**p, "layers": layers}
    return js.trace(partial(apply, kind), p, *inputs(kind))
