"""Linear students by their definition, in float64 numpy: KL to a teacher, Adam, a cosine rate."""

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def fitted(x, teacher, steps, rate):
    """Kernel and bias after full batches, of features [n, d] and logits [n, C].

    Kingma and Ba (2015), arXiv 1412.6980, algorithm 1 with its defaults; the rate of step t of T
    is (1 + cos(pi t / T)) / 2 of the first.
    """
    x, target = np.asarray(x, np.float64), softmax(np.asarray(teacher, np.float64))
    mean, width = x.mean(0), np.sqrt(x.var(0) + 1e-6)
    z = np.concatenate([(x - mean) / width, np.ones((len(x), 1))], 1)  # the last for the bias
    w = np.zeros((z.shape[1], target.shape[1]))
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(steps):
        # d KL(p, q) / d logits is q - p
        gradient = z.T @ (softmax(z @ w) - target) / len(x)
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        step = (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        w = w - rate * (1 + np.cos(np.pi * t / steps)) / 2 * step
    kernel = w[:-1] / width[:, None]
    return kernel, w[-1] - mean @ kernel
