"""Networks in integers by hand: numpy and Python's integers, one function a layer."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.oracles import contraction, quantiser

FINE = 2**23


class Value(NamedTuple):
    """Integers that stand for clip(q scale + shift, lo, hi), and the ends of q."""

    q: Any
    scale: Any
    shift: Any
    reach: Any
    lo: Any = -np.inf
    hi: Any = np.inf

    def ends(self):
        """The smallest and largest number there can be."""
        a, b = (np.asarray(self.scale) * s * self.reach + self.shift for s in (-1, 1))
        return [np.clip(f(a, b), self.lo, self.hi) for f in (np.minimum, np.maximum)]


class Layers:
    """The layers of one chip; `requantise` is one of `requantiser`'s."""

    def __init__(self, chip, geometries, requantise):
        self.chip, self.geometries, self.requantise = chip, geometries, requantise

    def rescaled(self, v, step, zero, qmin, qmax):
        """The codes of a value on a grid."""
        lo, hi = (np.clip(np.rint(e / step) + zero, qmin, qmax) for e in (v.lo, v.hi))
        return self.requantise(v.q, v.scale / step, v.shift / step + zero, lo, hi)

    def site(self, name, x):
        """Accumulators of a site; x is a float array or a value."""
        settings, state = self.chip.cores[name][0].settings, self.chip.states[name]
        grid, geometry = settings["inputs"], self.geometries[name]
        step, zero = quantiser.grid_of(grid, *map(np.asarray, state.inputs))
        if isinstance(x, Value):
            codes = self.rescaled(x, float(step), float(zero), *quantiser.code_range(grid))
        else:
            codes = quantiser.codes(grid, x, step, zero)
        w = np.asarray(state.inner, np.int64)
        y = contraction.contract(geometry, codes - int(zero), w)
        axis = y.ndim - 1
        total = w.sum(tuple(range(w.ndim - 1)))
        scale = np.float64(step) * np.asarray(state.scale, np.float64).reshape(-1)
        most = max(map(abs, quantiser.code_range(grid)))
        reach = most * np.abs(w).sum(tuple(range(w.ndim - 1)))
        assert y.shape[axis] == len(scale)
        # stored accumulators count the zero point's codes; they go with what is added
        return Value(y + int(zero) * total, scale, -float(zero) * scale * total, reach)

    def fine(self, values, largest=FINE):
        """Values on one grid, and its step."""
        amplitude = max(np.abs(e).max() for v in values for e in v.ends())
        scale = max(np.abs(v.scale).max() for v in values)
        shift = max(np.abs(v.shift).max() for v in values)
        step = max(amplitude / largest, scale / 2**14, shift / 2**26)
        out = []
        for v in values:
            lo, hi = (np.rint(e / step) for e in v.ends())
            out.append((self.rescaled(v, step, 0, lo.min(), hi.max()), lo, hi))
        return out, step

    def add(self, a, b):
        """The sum of two values."""
        ((p, *p_ends), (q, *q_ends)), step = self.fine([a, b])
        lo, hi = (x + y for x, y in zip(p_ends, q_ends, strict=True))
        return Value(p + q, step, np.float64(0), np.maximum(-lo, hi))

    def mean(self, v):
        """The mean over an image; v is clipped and so goes to a grid first."""
        count = v.q.shape[1] * v.q.shape[2]
        ((q, lo, hi),), step = self.fine([v], min(FINE, (2**31 - 1) / count // 2))
        return Value(q.sum((1, 2)), step * (1 / count), np.float64(0), count * np.maximum(-lo, hi))

    def output(self, v):
        """Integers on the output's grid, and its step."""
        ((q, _, _),), step = self.fine([v])
        return q, step


def norm(v, params, stats, epsilon=1e-5):
    """A BatchNorm; its factor is the model's own, in float32."""
    factor = lax.rsqrt(stats["var"] + jnp.float32(epsilon)) * params["scale"]
    factor, mean, bias = (
        np.asarray(a, np.float64) for a in (factor, stats["mean"], params["bias"])
    )
    shift = (v.shift - mean) * factor + bias
    return v._replace(scale=v.scale * factor, shift=shift)


def relu(v, most=np.inf):
    """A ReLU, clipped above for ReLU6."""
    return v._replace(lo=0.0, hi=most)


def mlp(layers, params, x):
    """Dense layers with biases and ReLUs."""
    count = len(params)
    for i in range(count):
        x = layers.site(f"Dense_{i}/kernel", x)
        x = x._replace(shift=x.shift + np.asarray(params[f"Dense_{i}"]["bias"], np.float64))
        x = relu(x) if i < count - 1 else x
    return layers.output(x)


def resnet(layers, variables, x, stages):
    """jaxsim.models.resnet."""
    params, stats = variables["params"], variables["batch_stats"]

    def block(name, x, project):
        def conv(i, x):
            return layers.site(f"{name}/Conv_{i}/kernel", x)

        def bn(i, v):
            return norm(v, params[name][f"BatchNorm_{i}"], stats[name][f"BatchNorm_{i}"])

        y = bn(1, conv(1, relu(bn(0, conv(0, x)))))
        return relu(layers.add(bn(2, conv(2, x)) if project else x, y))

    x = layers.site("Conv_0/kernel", x)
    x = relu(norm(x, params["BatchNorm_0"], stats["BatchNorm_0"]))
    for i in range(stages):
        x = block(f"Block_{i}", x, i > 0)
    x = layers.site("Dense_0/kernel", layers.mean(x))
    x = x._replace(shift=x.shift + np.asarray(params["Dense_0"]["bias"], np.float64))
    return layers.output(x)
