"""A BERT in float64, one sequence at a time: tokens deleted, and no layer after the exit."""

import numpy as np
from scipy.special import erf


def norm(x, p, epsilon=1e-12):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def embedded(params, ids):
    p = params["embedding"]
    rows = [p["word"][i] + p["position"][at] + p["type"][0] for at, i in enumerate(ids)]
    return norm(np.array(rows), p["norm"])


def attended(p, x, heads):
    """Tokens after the attention half, and what each receives."""
    size = x.shape[-1] // heads
    mixed, received = [], np.zeros(len(x))
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        q, k, v = (dense(x, p[name])[:, part] for name in ("query", "key", "value"))
        shares = softmax(q @ k.T / np.sqrt(size))
        mixed.append(shares @ v)
        received += shares.sum(0) / (heads * len(x))
    return norm(x + dense(np.concatenate(mixed, -1), p["mix"]), p["norm"]), received


def fed(p, x):
    h = dense(x, p["hidden"])
    return norm(x + dense(h * (1 + erf(h / np.sqrt(2))) / 2, p["output"]), p["norm"])


def climb(params, heads, ids, classifiers, levels, threshold, *, protect=1):
    """Logits, exit, tokens kept, uncertainties, least distance of a score to its level, and FLOPs.

    These are of products, a multiply-accumulate as 2: of the mean over tokens and the classifier
    behind each layer too, but for the mean that the last but no exit of the network's own reads.
    """
    params = _double(params)
    x, kept, doubts, margin, flops = embedded(params, ids), [], [], np.inf, 0.0
    d, hidden = x.shape[1], params["feed_forward_0"]["hidden"]["bias"].shape[0]
    for i, (level, classifier) in enumerate(zip(levels, classifiers, strict=True)):
        n = len(x)
        y, received = attended(params[f"attention_{i}"], x, heads)
        stay = [at for at in range(n) if at < protect or received[at] >= level]
        margin = min(margin, *np.abs(received - level)) if level else margin
        x = fed(params[f"feed_forward_{i}"], y[stay])
        kept.append(len(stay))
        flops += 2 * (4 * n * d * d + 2 * n * n * d + 2 * len(stay) * d * hidden)
        logits = dense(x.mean(0), _double(classifier))
        p = softmax(logits)
        doubts.append(-(p * np.log(p)).sum() / np.log(len(p)))
        if i + 1 == len(levels) or doubts[-1] < threshold:
            return logits, i + 1, kept, doubts, margin, flops
    raise AssertionError


def soften(params, heads, ids, levels, temperature, *, protect=1):
    """Logits of the mean over tokens, and masks [L, n]: outputs of layers are scaled by these."""
    params = _double(params)
    x, masks = embedded(params, ids), []
    for i, level in enumerate(levels):
        y, received = attended(params[f"attention_{i}"], x, heads)
        mask = 1 / (1 + np.exp(-(received - level) / temperature))
        mask[:protect] = 1
        x = fed(params[f"feed_forward_{i}"], y) * mask[:, None]
        masks.append(mask)
    return dense(x.mean(0), params["head"]), masks


def _double(tree):
    if isinstance(tree, dict):
        return {name: _double(leaf) for name, leaf in tree.items()}
    return np.asarray(tree, np.float64)
