"""Which code each weight is rounded to, so that a layer's outputs change least.

A layer is a batch of matrix products x w. With H = E[xᵀx], rounding w to q costs each output
(w - q)ᵀ H (w - q): nothing else about the inputs matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range, checked_int

__all__ = [
    "Layer",
    "gptq",
    "adaround",
    "rounded",
    "nearest",
    "cost",
]

BLOCK = 128
"""Rows whose errors are fed back among them before a matrix product does it for all that follow."""

FEW = 16
"""Rows of a block whose errors are fed back one by one before a product does it for the others."""


class Layer(NamedTuple):
    """A layer's weights, the grid they are to lie on, and what flows in.

    Attributes:
      w: weights [B, K, N].
      gram: mean of the outer products of the inputs [B, K, K].
      scale: step of the grid, at each weight.
      zero: code of zero, at each weight.
      free: which weights are to be rounded; the others keep their value.
      lo, hi: smallest and largest code.
      levels: numbers that codes stand for, in steps, rising; None where they are evenly spaced.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> w = jax.random.normal(jax.random.key(0), (1, 4, 2))
      >>> x = jax.random.normal(jax.random.key(1), (16, 4))
      >>> scale, zero, free = jnp.full(w.shape, 0.5), jnp.zeros(w.shape), jnp.ones(w.shape, bool)
      >>> layer = js.rounding.Layer(w, (x.T @ x / 16)[None], scale, zero, free, -3.0, 3.0)
      >>> layer.w.shape, layer.gram.shape
      ((1, 4, 2), (1, 4, 4))
    """

    w: Float[Array, "B K N"]
    gram: Float[Array, "B K K"]
    scale: Float[Array, "B K N"]
    zero: Float[Array, "B K N"]
    free: Bool[Array, "B K N"]
    lo: float | Float[Array, ""]
    hi: float | Float[Array, ""]
    levels: Float[Array, " n"] | None = None


Rounding = Callable[[Layer], Float[Array, "B K N"]]
"""From a layer to its weights, rounded; a `Partial` whose numbers are traced."""


def gptq(damping: float | Array = 0.01, *, by_activation: bool = True) -> Rounding:
    """Rounds one input after the other; those that follow make up for the error.

    With H + λI = R Rᵀ, R upper triangular, the cost is the sum over i of
    (Σ_{j ≤ i} R_ji (w - q)_j)², and row i is rounded so that its own term is least. This is the
    optimal brain surgeon's update in another order of the sums, without an inverse.

    Args:
      damping: λ as a share of the mean of H's diagonal, above 0. Traced.
      by_activation: round the inputs of the largest second moment first, not in order. Traced.

    Raises:
      ValueError: damping is not above 0.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> w = jax.random.normal(jax.random.key(0), (1, 4, 2))
      >>> x = jax.random.normal(jax.random.key(1), (16, 4))
      >>> scale, zero, free = jnp.full(w.shape, 0.5), jnp.zeros(w.shape), jnp.ones(w.shape, bool)
      >>> layer = js.rounding.Layer(w, (x.T @ x / 16)[None], scale, zero, free, -3.0, 3.0)
      >>> better, plain = js.rounding.gptq()(layer), js.rounding.nearest(layer)
      >>> bool(js.rounding.cost(layer, better).sum() <= js.rounding.cost(layer, plain).sum())
      True

    Source: Frantar et al. (2023), arXiv 2210.17323, algorithm 1.
    """
    check_range("damping", damping, 0, above=True)
    return Partial(_gptq, damping=jnp.float32(damping), by_activation=jnp.bool_(by_activation))


def adaround(
    steps: int = 2000, *, rate: float | Array = 0.01, pull: float | Array = 3.0
) -> Rounding:
    """Learns for each weight whether it goes up or down, by gradient descent on the layer's cost.

    How far a weight goes up is a stretched sigmoid in [0, 1]; a term Σ 1 - |2h - 1|^β pulls it to
    the ends, β falling from 20 to 2 after a fifth of the steps in which it is absent.

    Args:
      steps: of Adam, at least 1. Traced.
      rate: of Adam, above 0. Traced.
      pull: weight of that term, where the cost of rounding to nearest is 1, above 0. Traced.

    Raises:
      ValueError: an argument out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> w = jax.random.normal(jax.random.key(0), (1, 4, 2))
      >>> x = jax.random.normal(jax.random.key(1), (16, 4))
      >>> scale, zero, free = jnp.full(w.shape, 0.5), jnp.zeros(w.shape), jnp.ones(w.shape, bool)
      >>> layer = js.rounding.Layer(w, (x.T @ x / 16)[None], scale, zero, free, -3.0, 3.0)
      >>> rounded = js.rounding.adaround(steps=10)(layer)
      >>> bool(jnp.all(rounded % 0.5 == 0))  # on the grid
      True

    Source: Nagel et al. (2020), arXiv 2004.10568, eq. 21–24, with the cost of eq. 13.
    """
    steps = checked_int("steps", steps, 1)
    check_range("rate", rate, 0, above=True)
    check_range("pull", pull, 0, above=True)
    numbers = {"rate": jnp.float32(rate), "pull": jnp.float32(pull)}
    return Partial(_adaround, steps=jnp.int32(steps), **numbers)


@jax.jit
@own_promotion()
def rounded(rounding: Rounding, layer: Layer) -> Float[Array, "B K N"]:
    """A layer's weights on their grid; an output that nearest rounding serves better has that.

    Args:
      rounding: `gptq(…)`, `adaround(…)`, or a function of your own.
      layer: what to round.
    """
    chosen, plain = rounding(layer), nearest(layer)
    better = cost(layer, chosen) < cost(layer, plain)
    return jnp.where(better[..., None, :], chosen, plain)


@own_promotion()
def nearest(layer: Layer) -> Float[Array, "B K N"]:
    """Each weight rounded to the nearest code.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> w = jax.random.normal(jax.random.key(0), (1, 4, 2))
      >>> x = jax.random.normal(jax.random.key(1), (16, 4))
      >>> scale, zero, free = jnp.full(w.shape, 0.5), jnp.zeros(w.shape), jnp.ones(w.shape, bool)
      >>> layer = js.rounding.Layer(w, (x.T @ x / 16)[None], scale, zero, free, -3.0, 3.0)
      >>> bool(jnp.all(js.rounding.nearest(layer) % 0.5 == 0))
      True
    """
    return _on_grid(layer, layer.w, layer.w, layer.scale, layer.zero, layer.free)


@own_promotion()
def cost(layer: Layer, q: Float[Array, "B K N"]) -> Float[Array, "B N"]:
    """Mean square error of each output.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> w = jax.random.normal(jax.random.key(0), (1, 4, 2))
      >>> x = jax.random.normal(jax.random.key(1), (16, 4))
      >>> scale, zero, free = jnp.full(w.shape, 0.5), jnp.zeros(w.shape), jnp.ones(w.shape, bool)
      >>> layer = js.rounding.Layer(w, (x.T @ x / 16)[None], scale, zero, free, -3.0, 3.0)
      >>> js.rounding.cost(layer, layer.w).tolist()
      [[0.0, 0.0]]
    """
    error = layer.w - q
    return jnp.sum(error * _matmul(layer.gram, error), -2)


def _on_grid(layer: Layer, at: Array, w: Array, scale: Array, zero: Array, free: Array) -> Array:
    """Where `at` is rounded to; where not free, `w`."""
    if layer.levels is None:
        code = jnp.clip(jnp.round(at / scale) + zero, layer.lo, layer.hi)
        return jnp.where(free, (code - zero) * scale, w)
    between = (layer.levels[1:] + layer.levels[:-1]) / 2
    steps = at / jnp.where(scale > 0, scale, 1)
    return jnp.where(free, layer.levels[jnp.searchsorted(between, steps)] * scale, w)


def _neighbors(layer: Layer) -> tuple[Array, Array]:
    """What each weight may be rounded down and up to, in steps."""
    if layer.levels is None:
        down = jnp.floor(layer.w / layer.scale)
        return down, down + 1
    steps = layer.w / jnp.where(layer.scale > 0, layer.scale, 1)
    at = jnp.searchsorted(layer.levels[1:-1], steps, side="right")
    return layer.levels[at], layer.levels[at + 1]


_matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


@own_promotion()
def _gptq(layer: Layer, *, damping: Array, by_activation: Array) -> Array:
    def one(gram: Array, *weights: Array) -> Array:
        K, N = weights[0].shape
        order = jnp.where(by_activation, jnp.argsort(-jnp.diag(gram)), jnp.arange(K))
        few = min(FEW, K)
        size = min(BLOCK, -(-K // few) * few)
        more = -K % size  # rows that hold nothing and that no other row knows of
        unit = jnp.mean(jnp.diag(gram))
        gram = gram[order][:, order] / jnp.where(unit > 0, unit, 1) + damping * jnp.eye(K)
        gram = jnp.pad(gram, (0, more)) + jnp.diag(jnp.arange(K + more) >= K)
        upper = jnp.linalg.cholesky(gram[::-1, ::-1])[::-1, ::-1]
        feed = jnp.triu(upper / jnp.diag(upper), 1)
        fill = ((0, more), (0, 0))
        rows = [jnp.pad(a[order], fill, mode="edge") for a in weights]

        def part(a: Array, start: Array, count: int, axis: int = 0) -> Array:
            return lax.dynamic_slice_in_dim(a, start, count, axis)

        def block(b: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            q, off = carry  # off is the error of the rows that are done
            at = b * size
            due, within = _matmul(part(feed, at, size, 1).T, off), part(feed, at, size, 1)
            within = part(within, at, size)

            def group(g: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
                q, missed = carry
                first = g * few
                own = [part(a, at + first, few) for a in rows]
                owed = part(due, first, few) + _matmul(part(within, first, few, 1).T, missed)
                among = part(part(within, first, few, 1), first, few)

                def row(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
                    done, error = carry
                    w, scale, zero, free = (a[i] for a in own)
                    near = w + owed[i] + _matmul(among[:, i], error)
                    code = _on_grid(layer, near, w, scale, zero, free)
                    return done.at[i].set(code), error.at[i].set(w - code)

                none = jnp.zeros((few, N), q.dtype)
                done, error = lax.fori_loop(0, few, row, (none, none))
                put = lax.dynamic_update_slice_in_dim
                return put(q, done, at + first, 0), put(missed, error, first, 0)

            q, missed = lax.fori_loop(0, size // few, group, (q, jnp.zeros((size, N), q.dtype)))
            return q, lax.dynamic_update_slice_in_dim(off, missed, at, 0)

        nothing = jnp.zeros_like(rows[0])
        q, _ = lax.fori_loop(0, (K + more) // size, block, (nothing, nothing))
        return jnp.zeros((K, N)).at[order].set(q[:K])

    return jax.vmap(one)(layer.gram, layer.w, layer.scale, layer.zero, layer.free)


_STRETCH = (-0.1, 1.1)
"""Ends of the stretched sigmoid."""


@own_promotion()
def _adaround(layer: Layer, *, steps: Array, rate: Array, pull: Array) -> Array:
    import optax

    lo, hi = _STRETCH
    down, up = _neighbors(layer)
    wide, steps_up = jnp.where(layer.scale > 0, layer.scale, 1), up - down
    start = (jnp.clip((layer.w / wide - down) / steps_up, 0, 1) - lo) / (hi - lo)  # in 1/12 … 11/12
    unit = cost(layer, nearest(layer))
    unit = jnp.where(unit > 0, unit, 1)
    adam = optax.adam(rate)

    def share(v: Array) -> Array:
        return jnp.clip(jax.nn.sigmoid(v) * (hi - lo) + lo, 0, 1)

    def values(h: Array) -> Array:
        if layer.levels is not None:
            held = jnp.where(h == 1, up, down + h * steps_up)
            return jnp.where(layer.free, held * layer.scale, layer.w)
        code = jnp.clip(down + h + layer.zero, layer.lo, layer.hi)
        return jnp.where(layer.free, (code - layer.zero) * layer.scale, layer.w)

    def loss(v: Array, beta: Array, on: Array) -> Array:
        h = share(v)
        ends = 1 - jnp.abs(2 * h - 1) ** beta
        return jnp.mean(cost(layer, values(h)) / unit) + on * pull * jnp.mean(ends)

    def step(i: Array, carry: Any) -> Any:
        v, state = carry
        done = i / steps
        after = jnp.maximum(done - 0.2, 0) / 0.8
        beta = 2 + 18 * (1 + jnp.cos(math.pi * after)) / 2
        slope = jax.grad(loss)(v, beta, jnp.where(done >= 0.2, 1.0, 0.0))
        change, state = adam.update(slope, state)
        return optax.apply_updates(v, change), state

    v = jax.scipy.special.logit(start)
    v, _ = lax.fori_loop(0, steps, step, (v, adam.init(v)))
    return values(jnp.round(share(v)))
