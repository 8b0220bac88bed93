"""Sparsity by brute force and by the closed forms of the papers, in numpy and float64."""

import numpy as np


def lowest_go(scores, count):
    """Which of flat scores stay when so many of the lowest go, by a stable sort."""
    keep = np.ones(scores.size, bool)
    keep[np.argsort(scores.ravel(), kind="stable")[:count]] = False
    return keep.reshape(scores.shape)


def n_of_m(scores, n, m, axis):
    """Of each m neighbors along an axis the n highest stay, by looping over them."""
    moved = np.moveaxis(scores, axis, -1)
    keep = np.zeros(moved.shape, bool)
    for at in np.ndindex(moved.shape[:-1]):
        for start in range(0, moved.shape[-1], m):
            keep[at][start : start + m] = lowest_go(moved[at][start : start + m], m - n)
    return np.moveaxis(keep, -1, axis)


def blocks(scores, rows, columns, count):
    """The blocks of the last two axes that stay when so many of the lowest mean go."""
    lead = scores.shape[:-2]
    R, C = scores.shape[-2] // rows, scores.shape[-1] // columns
    means = np.zeros((*lead, R, C))
    for at in np.ndindex(*lead, R, C):
        *front, r, c = at
        piece = scores[(*front, slice(r * rows, (r + 1) * rows))][..., c * columns :]
        means[at] = piece[..., :columns].mean()
    kept = lowest_go(means, count)
    return np.repeat(np.repeat(kept, rows, -2), columns, -1)


def kernel_densities(shapes, density):
    """ERK by adding one dense layer after the other until no share exceeds one."""
    sizes = np.array([np.prod(s) for s in shapes], float)
    shares = np.array([sum(s) / np.prod(s) for s in shapes])
    dense = set()
    while True:
        free = [i for i in range(len(shapes)) if i not in dense]
        left = density * sizes.sum() - sum(sizes[i] for i in dense)
        epsilon = left / sum(shares[i] * sizes[i] for i in free)
        worst = max(free, key=lambda i: shares[i])
        if epsilon * shares[worst] <= 1:
            return np.array([1.0 if i in dense else epsilon * shares[i] for i in range(len(sizes))])
        dense.add(worst)


def lamp(scores):
    """LAMP of one layer's magnitudes, weight by weight."""
    flat = np.asarray(scores, np.float64).ravel() ** 2
    return np.array([s / flat[flat >= s].sum() for s in flat])


def constrained(w, gram, gone):
    """The weights nearest to w in the metric H that are zero at `gone`, by least squares."""
    root = np.linalg.cholesky(gram).T
    kept = [i for i in range(len(w)) if i not in gone]
    q = np.zeros(len(w))
    q[kept] = np.linalg.lstsq(root[:, kept], root @ w, rcond=None)[0]
    return q, float(np.sum((root @ (w - q)) ** 2))


def surgeon(w, gram, sparsity, block, keep=None):
    """SparseGPT by eliminating one row and column of the inverse Hessian after the other."""
    w = np.array(w, np.float64)
    K, N = w.shape
    inverses, inverse = [], np.linalg.inv(gram)
    for _ in range(K):
        inverses.append(inverse)
        inverse = (inverse - np.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]
    stays = np.ones((K, N), bool)
    for start in range(0, K, block):
        stop = min(start + block, K)
        scores = np.array([w[i] ** 2 / inverses[i][0, 0] for i in range(start, stop)])
        if keep is None:
            count = int(np.rint(sparsity * stop * N) - np.rint(sparsity * start * N))
            stays[start:stop] = lowest_go(scores, count)
        else:
            stays[start:stop] = n_of_m(scores, *keep, 0)
        for i in range(start, stop):
            error = np.where(stays[i], 0, w[i]) / inverses[i][0, 0]
            w[i:] -= np.outer(inverses[i][:, 0], error)
            w[i] = np.where(stays[i], w[i], 0)
    return w, stays
