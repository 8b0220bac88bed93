"""A transformer with relative places, head by head and token by token in numpy."""

import numpy as np
from scipy.special import erf


def dense(p, x):
    return x @ np.asarray(p["kernel"], float) + np.asarray(p["bias"], float)


def normalized(p, x):
    """To mean 0 and variance 1 with 10⁻⁶ below the root, scaled and moved."""
    centered = x - x.mean(-1, keepdims=True)
    unit = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
    return unit * np.asarray(p["scale"], float) + np.asarray(p["bias"], float)


def bias(p, grid, tokens):
    """Of each head [H, N, N]: a number by the rows between two patches, and one by the columns."""
    rows, columns = grid
    before = tokens - rows * columns
    tables = [
        np.asarray(p[n], float) @ np.asarray(p[f"{n}_heads"], float) for n in ("row", "column")
    ]
    out = np.zeros((tables[0].shape[1], tokens, tokens))
    for a in range(rows * columns):
        for b in range(rows * columns):
            down, right = b // columns - a // columns, b % columns - a % columns
            out[:, before + a, before + b] = (
                tables[0][rows - 1 + down] + tables[1][columns - 1 + right]
            )
    return out


def layer(p, x, heads, grid):
    """One example [N, d]."""
    N, width = x.shape
    size = width // heads
    h = normalized(p["norm_a"], x)
    q, k, v = (dense(p[n], h) for n in ("query", "key", "value"))
    places = bias(p["position"], grid, N) if "position" in p else np.zeros((heads, N, N))
    mixed = np.zeros((N, width))
    for i in range(heads):
        own = slice(i * size, (i + 1) * size)
        scores = q[:, own] @ k[:, own].T / np.sqrt(size) + places[i]
        e = np.exp(scores - scores.max(1, keepdims=True))
        mixed[:, own] = e / e.sum(1, keepdims=True) @ v[:, own]
    x = x + dense(p["mix"], mixed)
    h = dense(p["hidden"], normalized(p["norm_b"], x))
    return x + dense(p["output"], h * (1 + erf(h / np.sqrt(2))) / 2)


def transformer(params, x, heads, grid):
    p = params["params"]
    out = []
    for example in np.asarray(x, float):
        for i in range(sum(name.startswith("layer_") for name in p)):
            example = layer(p[f"layer_{i}"], example, heads, grid)
        out.append(normalized(p["norm"], example))
    return np.stack(out)
