"""Contractions by their definition, in int64 or float64: explicit loops and einsum."""

import numpy as np


def dot(geometry, x, w):
    """What a `Dot` computes, by einsum over one letter an axis."""
    x, w = _wide(x), _wide(w)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    x_axes, w_axes = [""] * x.ndim, [""] * w.ndim
    pairs = [*zip(geometry.x_batch, geometry.w_batch, strict=True)]
    for i, j in [*pairs, *zip(geometry.x_contract, geometry.w_contract, strict=True)]:
        x_axes[i] = w_axes[j] = next(letters)
    batch = [x_axes[i] for i in geometry.x_batch]
    free = []
    for axes in (x_axes, w_axes):
        mine = [i for i, letter in enumerate(axes) if not letter]
        for i in mine:
            axes[i] = next(letters)
        free.append([axes[i] for i in mine])
    first, second = free[::-1] if geometry.weight_first else free
    out = "".join([*batch, *first, *second])
    return np.einsum(f"{''.join(x_axes)},{''.join(w_axes)}->{out}", x, w)


def conv(geometry, x, w):
    """What a `Conv` computes, by loops over every output position and kernel tap."""
    x = np.transpose(_wide(x), geometry.x_spec)  # batch, feature, *spatial
    w = np.transpose(_wide(w), geometry.w_spec)  # out, in, *spatial
    x = _dilated(x, geometry.lhs_dilation)
    w = _dilated(w, geometry.rhs_dilation)
    x = _padded(x, geometry.padding)
    out, per_group, *taps = w.shape
    size = [
        max((n - k) // s + 1, 0)
        for n, k, s in zip(x.shape[2:], taps, geometry.strides, strict=True)
    ]
    y = np.zeros((x.shape[0], out, *size), np.result_type(x, w))
    features = out // geometry.groups
    for position in np.ndindex(*size):
        start = [p * s for p, s in zip(position, geometry.strides, strict=True)]
        window = x[(..., *(slice(a, a + k) for a, k in zip(start, taps, strict=True)))]
        for o in range(out):
            group = o // features
            seen = window[:, group * per_group : (group + 1) * per_group]
            y[(slice(None), o, *position)] = (seen * w[o]).reshape(len(x), -1).sum(-1)
    return np.transpose(y, np.argsort(geometry.y_spec))


def contract(geometry, x, w):
    """Either of them."""
    return (conv if hasattr(geometry, "strides") else dot)(geometry, x, w)


def over_planes(geometry, x, w):
    """The contraction of every input plane with every weight plane: [*x planes, *w planes, *y]."""
    x_planes = x.shape[: x.ndim - geometry.x_ndim]
    w_planes = w.shape[: w.ndim - len(geometry.w_shape)]
    results = [
        contract(geometry, x[i], w[j]) for i in np.ndindex(*x_planes) for j in np.ndindex(*w_planes)
    ]
    return np.stack(results).reshape((*x_planes, *w_planes, *results[0].shape))


def _wide(a):
    a = np.asarray(a)
    return a.astype(np.int64 if a.dtype.kind in "iu" else np.float64)


def _dilated(a, by):
    spread = [(n - 1) * d + 1 for n, d in zip(a.shape[2:], by, strict=True)]
    out = np.zeros((*a.shape[:2], *spread), a.dtype)
    out[(..., *(slice(None, None, d) for d in by))] = a
    return out


def _padded(x, padding):
    for axis, (lo, hi) in enumerate(padding, 2):
        fill = [(0, 0)] * x.ndim
        fill[axis] = (max(lo, 0), max(hi, 0))
        x = np.pad(x, fill)
        cut = slice(max(-lo, 0), x.shape[axis] - max(-hi, 0))
        x = x[(slice(None),) * axis + (cut,)]
    return x
