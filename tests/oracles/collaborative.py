"""Ridge codes by stacked least squares, refits one by one, residuals by reconstruction."""

import numpy as np


def stacked(X, y, lam):
    """The codes of rows of y: least squares of [Xᵀ; √λ I] α = [y; 0]."""
    left = np.vstack([X.T, np.sqrt(lam) * np.eye(len(X))])
    right = np.vstack([y.T, np.zeros((len(X), len(y)))])
    return np.linalg.lstsq(left, right, rcond=None)[0].T


def refits(X, lam):
    """Each sample's code from the others, refitted without it."""
    N = len(X)
    out = np.zeros((N, N))
    for i in range(N):
        others = np.delete(np.arange(N), i)
        out[i, others] = stacked(X[others], X[i : i + 1], lam)[0]
    return out


def reconstruction(X, labels, y, alpha, num_classes):
    """‖y − α_c X_c‖² class by class."""
    out = np.empty((len(y), num_classes))
    for c in range(num_classes):
        own = labels == c
        out[:, c] = ((y - alpha[:, own] @ X[own]) ** 2).sum(1)
    return out
