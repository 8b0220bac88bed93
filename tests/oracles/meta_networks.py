"""Networks that mix a population, agent by agent in numpy and float64."""

import numpy as np


def softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dense(layer, x):
    y = x @ np.asarray(layer["kernel"], float)
    return y + np.asarray(layer["bias"], float) if "bias" in layer else y


def convolved(layers, x):
    """Kernels of five columns, a row at a time; leaky relu of slope 0.01 behind each."""
    for layer in layers:
        n = x.shape[1]
        wide = np.pad(x, ((0, 0), (2, 2), (0, 0)))
        y = np.stack(
            [
                np.stack([dense(layer, wide[i, j : j + 5].ravel()) for j in range(n)])
                for i in range(len(x))
            ]
        )
        x = np.where(y > 0, y, 0.01 * y)
    return x


def convolution_mixing(params, payoffs):
    """Stacks along rows, their mean over rows, both, and the mean of what is left of a row."""
    p, half = params["params"], len(params["params"]) // 2
    layers = [p[f"Dense_{i}"] for i in range(2 * half)]
    rows = convolved(layers[:half], payoffs[..., None])
    both = np.concatenate([rows, np.broadcast_to(rows.mean(0), rows.shape)], -1)
    return softmax(convolved(layers[half:], both)[..., 0].mean(1))


def recurrent_mixing(params, payoffs):
    """A unit along each row, another over the rows' last states, and a perceptron of both."""
    p = {k: v for k, v in params["params"].items() if "Dense" not in k}
    layers = [v for k, v in sorted(params["params"].items()) if "Dense" in k]
    p = {k: np.asarray(v, float) for k, v in p.items()}

    def unit(name, inputs):
        width = len(p[f"{name}_new"])
        h = np.zeros(width)
        for x in inputs:
            fed = x @ p[f"{name}_kernel"] + p[f"{name}_bias"]
            held = h @ p[f"{name}_state"]
            r, z = (sigmoid(fed[i : i + width] + held[i : i + width]) for i in (0, width))
            new = np.tanh(fed[2 * width :] + r * (held[2 * width :] + p[f"{name}_new"]))
            h = z * h + (1 - z) * new
        return h

    rows = [unit("rows", a[:, None] @ p["first_kernel"] + p["first_bias"]) for a in payoffs]
    whole = unit("whole", rows)
    first = next(a for a in layers if len(a["kernel"]) == 2 * len(whole))
    last = next(a for a in layers if a["kernel"].shape[1] == 1)
    middle = next(a for a in layers if a is not first and a is not last)
    logits = []
    for row in rows:
        hidden = np.maximum(dense(first, np.concatenate([row, whole])), 0)
        logits.append(dense(last, np.maximum(dense(middle, hidden), 0))[0])
    return softmax(np.array(logits))


def equivariant_mixing(params, payoffs, rounds):
    """What each agent is told, and rounds in which it hears of the others and moves its logit."""
    p = params["params"]
    a = payoffs / np.abs(payoffs).max()
    n = len(a)
    even, old = np.full(n, 1 / n), np.arange(n)[::-1].astype(float)
    base, logits = even, np.log(even)
    told = [
        a.mean(1),
        a.max(1),
        a.min(1),
        np.sqrt((a**2).mean(1) + 1e-6),
        a @ base,
        base * n / 4,
        old / n,
        np.exp(-old),
        np.exp(-old / 4),
        np.full(n, n / 20),
        np.full(n, 1 / n),
    ]
    h = np.tanh(dense(p["Dense_0"], np.stack(told, -1)))
    width = h.shape[1]
    for i in range(rounds):
        three = [p[f"Dense_{3 * i + j}"] for j in (1, 2, 3)]
        inner = next(a for a in three if len(a["kernel"]) == 3 * width + 2)
        move = next(a for a in three if a["kernel"].shape[1] == 1)
        outer = next(a for a in three if a is not inner and a is not move)
        x = softmax(logits)
        gain = a @ x
        heard = a @ (h * (x * n)[:, None]) / n
        mean = np.broadcast_to(h.mean(0), h.shape)
        seen = np.concatenate(
            [h, heard, mean, gain[:, None], (logits - logits.mean())[:, None] / 4], -1
        )
        h = h + np.tanh(dense(outer, np.maximum(dense(inner, seen), 0)))
        logits = logits + float(p["speed"][i]) * gain + dense(move, h)[:, 0]
    return softmax(logits)
