"""Transformers row by row in NumPy, in float64, from which tokens are really taken away."""

from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from tests.support.transformers import HEAD, HEADS, LAYERS, TOKENS


class Row(NamedTuple):
    """What one row gives.

    Attributes:
      logits: [C].
      kept: Number of tokens left by each layer.
      margin: How near the nearest importance came to the level that decided.
      states: Tokens [k, d] behind each layer.
    """

    logits: np.ndarray
    kept: list[int]
    margin: float
    states: list[np.ndarray]


def row(kind, p, ids, level, *, keeps="above", protect=1, protect_last=0, length=None):
    """Runs one row: tokens that leave are not in the arrays any more."""
    p = {k: _float64(v) for k, v in p.items()}
    x, at = _embedded(kind, p, np.asarray(ids)[: length if length is not None else None])
    kept, margin, states = [], np.inf, []
    for i in range(LAYERS):
        own = {name: a[i] for name, a in p["layers"].items()}
        x, received = _attended(kind, p, own, x, at)
        if keeps == "above":
            stay = received >= level[i]
            free = (np.arange(len(at)) >= protect) & (np.arange(len(at)) < len(at) - protect_last)
            margin = min(margin, *np.abs(received - level[i])[free], np.inf)
        else:
            order = np.argsort(-received, kind="stable")
            stay = np.zeros(len(at), bool)
            stay[order[: int(np.ceil(np.float32(1 - np.float32(level[i])) * len(at)))]] = True
            ordered = np.sort(received)
            margin = min(margin, *np.diff(ordered), np.inf)
        stay[:protect] = True
        stay[len(at) - protect_last :] |= protect_last > 0
        at, x = at[stay], x[stay]
        kept.append(len(at))
        x = _fed(own, x)
        states.append(x)
    return Row(_pooled(kind, x) @ p["head"], kept, margin, states)


def merged_row(kind, p, ids, level, *, protect=1, length=None, blind=False):
    """Runs one row whose tokens are merged into those whose keys are most alike.

    In a scan that is behind the perceptron, where its slices end. `blind` gives a merged token the
    attention of one: wrong, as a control.
    """
    p = {k: _float64(v) for k, v in p.items()}
    x, at = _embedded(kind, p, np.asarray(ids)[: length if length is not None else None])
    size, kept, margin, states = np.ones(len(x)), [], np.inf, []
    for i in range(LAYERS):
        own = {name: a[i] for name, a in p["layers"].items()}
        keys = _mean_keys(kind, own, x, at)
        x, _ = _attended(kind, p, own, x, at, 0 if blind else np.log(size))
        free = [j for j in range(len(x)) if j >= protect]
        pairs = []
        for a in (j for j in free if j % 2 == 0):
            alike = {
                b: keys[a] @ keys[b] / np.linalg.norm(keys[a]) / np.linalg.norm(keys[b])
                for b in free
                if b % 2
            }
            if alike:
                best = max(alike, key=alike.get)
                ordered = sorted(alike.values())
                margin = min(margin, *np.diff(ordered[-2:]), np.inf)
                pairs.append((alike[best], a, best))
        pairs.sort(key=lambda pair: -pair[0])
        count = int(level[i])
        if 0 < count < len(pairs):
            margin = min(margin, pairs[count - 1][0] - pairs[count][0])
        groups = {j: [j] for j in range(len(x))}
        for _, a, b in pairs[:count]:
            groups[b] += groups.pop(a)
        x = _fed(own, x) if kind.scanned else x
        x = np.array([np.average(x[g], 0, size[g]) for g in groups.values()])
        size = np.array([size[g].sum() for g in groups.values()])
        at = at[list(groups)]
        kept.append(len(x))
        x = x if kind.scanned else _fed(own, x)
        states.append(x)
    pooled = np.average(x, 0, size) if kind.pool == "mean" else _pooled(kind, x)
    return Row(pooled @ p["head"], kept, margin, states)


def _mean_keys(kind, own, x, at):
    normed = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)
    keys = [normed @ own["k"][:, h * kind.groups // HEADS] for h in range(HEADS)]
    return np.mean([_turn(k, at) if kind.positions == "rotary" else k for k in keys], 0)


def soft_row(
    kind, p, ids, level, temperature, *, protect=1, protect_last=0, length=None, early=False
):
    """Runs one row whose tokens are scaled by σ((s - θ) / T) where a layer ends.

    Returns logits [C], how much each layer leaves of each token [L, n], and tokens behind each
    layer. `early` scales in front of the perceptron: wrong, as a control.
    """
    p = {k: _float64(v) for k, v in p.items()}
    x, at = _embedded(kind, p, np.asarray(ids)[: length if length is not None else None])
    masks, states = [], []
    for i in range(LAYERS):
        own = {name: a[i] for name, a in p["layers"].items()}
        x, received = _attended(kind, p, own, x, at)
        mask = 1 / (1 + np.exp(-(received - level[i]) / temperature))
        mask[:protect] = 1
        mask[len(at) - protect_last :] = 1 if protect_last else mask[len(at) :]
        masks.append(mask)
        x = _fed(own, x * mask[:, None]) if early else _fed(own, x) * mask[:, None]
        states.append(x)
    return _pooled(kind, x) @ p["head"], masks, states


def _embedded(kind, p, ids):
    """Tokens, and where they stand."""
    at = np.arange(len(ids))
    x = p["embed"][ids]
    return (x + p["places"][at] if kind.positions == "learned" else x), at


def _attended(kind, p, own, x, at, more=0):
    """Tokens behind the attention of a layer, and what each receives; scores grow by `more`."""
    normed = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)
    received, seen = np.zeros(len(at)), np.zeros_like(x)
    for h in range(HEADS):
        g = h * kind.groups // HEADS
        q, k, v = normed @ own["q"][:, h], normed @ own["k"][:, g], normed @ own["v"][:, g]
        if kind.positions == "rotary":
            q, k = _turn(q, at), _turn(k, at)
        scores = q @ k.T / np.sqrt(HEAD)
        if kind.positions == "bias":
            scores += p["bias"][at[:, None] - at + TOKENS - 1, h]
        if kind.causal:
            scores = np.where(at[:, None] >= at, scores, -np.inf)
        shares = softmax(scores + more, -1)
        received += shares.mean(0) / HEADS
        seen += shares @ v @ own["mix"][h]
    return x + seen, received


def _fed(own, x):
    """Tokens behind the perceptron of a layer."""
    return x + _gelu(x @ own["up"]) @ own["down"]


def _pooled(kind, x):
    return {"first": x[0], "last": x[-1], "mean": x.mean(0), "max": x.max(0)}[kind.pool]


def _float64(v):
    return (
        {k: np.asarray(a, float) for k, a in v.items()}
        if isinstance(v, dict)
        else np.asarray(v, float)
    )


def _turn(x, at):
    angles = at[:, None] / 10.0 ** np.arange(HEAD // 2)
    one, other = x[:, : HEAD // 2], x[:, HEAD // 2 :]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([one * cos - other * sin, one * sin + other * cos], -1)


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
