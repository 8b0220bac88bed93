"""The equations of Neural Interpreters, a token and a function at a time, in numpy and float64."""

import math

import numpy as np
from scipy.special import erf


def _norm(x, scale=1.0, bias=0.0, eps=1e-6):
    return (x - x.mean()) / math.sqrt(x.var() + eps) * scale + bias


def _gelu(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def _mod_lin(p, x, code):
    """One token through one function."""
    y = (x * _norm(code @ p["code"], eps=1e-5)) @ p["kernel"]
    return y + p.get("bias", 0)


def affinities(signatures, types, bandwidth, tau, eps):
    """[U, N]."""
    C = np.zeros((len(signatures), len(types)))
    for u, s in enumerate(signatures):
        for n, t in enumerate(types):
            d = 1 - s @ t / (np.linalg.norm(s) * np.linalg.norm(t))
            C[u, n] = math.exp(-d / bandwidth) if d <= tau else 0.0
    return C / (eps + C.sum(0))


def _line(p, x, code, share, heads, eps, bias):
    N, width = x.shape
    n = p["norm_a"]
    h = np.stack([_norm(row, n["scale"], n["bias"]) for row in x])
    q, k, v = (
        np.stack([_mod_lin(p[w], row, code) for row in h]) for w in ("query", "key", "value")
    )
    size, out = q.shape[1] // heads, v.shape[1] // heads
    mixed = np.zeros((N, width))
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        scores = q[:, at] @ k[:, at].T / math.sqrt(size) + bias[head]
        for i in range(N):
            a = np.exp(scores[i] - scores[i].max())
            w = share[i] * share * a / a.sum()
            w = w / (eps + w.sum())
            mixed[i, head * out : (head + 1) * out] = w @ v[:, head * out : (head + 1) * out]
    x = x + share[:, None] * np.stack([_mod_lin(p["mix"], row, code) for row in mixed])
    n = p["norm_b"]
    h = [_gelu(_mod_lin(p["hidden"], _norm(row, n["scale"], n["bias"]), code)) for row in x]
    return x + share[:, None] * np.stack([_mod_lin(p["output"], row, code) for row in h])


def _bias(p, grid, N, code, heads):
    """[H, N, N] of one function."""
    out = np.zeros((heads, N, N))
    if p is None:
        return out
    before = N - grid[0] * grid[1]
    for i in range(grid[0] * grid[1]):
        for j in range(grid[0] * grid[1]):
            for name, size, a, b in (
                ("row", grid[0], i // grid[1], j // grid[1]),
                ("column", grid[1], i % grid[1], j % grid[1]),
            ):
                embedded = p[name][b - a + size - 1]
                if f"{name}_codes" in p:
                    embedded = embedded * (code @ p[f"{name}_codes"])
                out[:, before + i, before + j] += embedded @ p[f"{name}_heads"]
    return out


def script(p, x, *, iterations, locs, heads, depth, tau, eps, grid=None):
    """Tokens of one image after the iterations, and the affinities, [I, U, N]."""
    shares = []
    for _ in range(iterations):
        n = p["type_norm"]
        types = np.stack([_norm(row, n["scale"], n["bias"]) for row in x])
        for i in range(depth):
            types = types @ p[f"type_{i}"]["kernel"] + p[f"type_{i}"]["bias"]
            types = _gelu(types) if i < depth - 1 else types
        C = affinities(p["signatures"], types, math.exp(p["log_bandwidth"]), tau, eps)
        total = np.zeros_like(x)
        for u, code in enumerate(p["codes"]):
            z = x
            for i in range(locs):
                loc = p[f"loc_{i}"]
                bias = _bias(loc.get("position"), grid, len(x), code, heads)
                z = _line(loc, z, code, C[u], heads, eps, bias)
            total += C[u][:, None] * z
        x = total
        shares.append(C)
    return x, np.stack(shares)
