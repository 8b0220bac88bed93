"""Neural Interpreters: tokens routed through functions that share their weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxsim.models.relative_position import RelativePosition
from jaxsim.numerics.checks import check_range, checked_int

POSITIONS = (None, "shared", "per_function")
# torch's default for a linear map, which the published model begins from.
_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Routing(NamedTuple):
    """Shares of functions in tokens.

    Attributes:
      affinity: Share of each function in each token, [scripts, iterations, U, B, N]; shares of a
        token sum to almost one, or are all zero.
      dead: Share of tokens that every function refused, [scripts, iterations]. Such a token
        becomes zero.
    """

    affinity: Float[Array, "S I U B N"]
    dead: Float[Array, "S I"]


def affinity(
    signatures: Float[Array, "U t"],
    types: Float[Array, "*batch t"],
    *,
    bandwidth: float | Float[Array, ""] = 1.0,
    tau: float | Float[Array, ""] = 1.42026,
    eps: float = 1e-6,
) -> Float[Array, " U *batch"]:
    """Computes the share of each function in each token, by the angle of signature and type.

    exp(−d / bandwidth) with d = 1 − cos, zero where d > tau, over its sum. The gradient passes the
    truncation as if it were not there.

    Args:
      signatures: Signatures of the functions, [U, t].
      types: Types of the tokens, [..., t].
      bandwidth: Bandwidth of the kernel, above 0.
      tau: Furthest distance that a function accepts, in [0, 2].
      eps: Number added to the sum.
    """
    cosine = jnp.einsum("ut,...t->u...", _unit(signatures), _unit(types))
    soft = jnp.exp((cosine - 1) / bandwidth)
    kept = 1 - cosine <= tau
    share = soft + jax.lax.stop_gradient(jnp.where(kept, soft, 0) - soft)
    return share / (eps + share.sum(0))


def modulation(codes: Float[Array, "U c"], kernel: Float[Array, "c i"]) -> Float[Array, "U i"]:
    """Maps codes to factors of the inputs of a layer, normalized.

    Args:
      codes: Codes of the functions, [U, c].
      kernel: Weights of the map, [c, i].
    """
    # A product and a sum, so that the bits of a function do not depend on how many there are.
    scale = jnp.sum(codes[:, :, None] * kernel, 1)
    centered = scale - scale.mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt(jnp.mean(centered**2, -1, keepdims=True) + 1e-5)


class ModLin(nn.Module):
    """A linear map whose inputs are modulated by the code of a function.

    W (x ⊙ LN(W_c c)) + b.

    Attributes:
      features: Width of the output.
      use_bias: Whether to add b.
      fold: Multiply the weights rather than the inputs: the same function, faster where the weights
        do not change, and U kernels on hardware that holds them.
    """

    features: int
    use_bias: bool = True
    fold: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "U *batch i"], codes: Float[Array, "U c"]
    ) -> Float[Array, "U *batch o"]:
        """The map of each function."""
        width = x.shape[-1]
        mix = self.param("code", _uniform, (codes.shape[-1], width))
        kernel = self.param("kernel", _uniform, (width, self.features))
        scale = modulation(codes, mix)
        if self.fold:
            flat = x.reshape(x.shape[0], -1, width)
            y = jnp.einsum("uni,uio->uno", flat, scale[:, :, None] * kernel)
            y = y.reshape(*x.shape[:-1], self.features)
        else:
            y = (x * scale.reshape(x.shape[0], *(1,) * (x.ndim - 2), width)) @ kernel
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))
        return y


class LineOfCode(nn.Module):
    """Modulated attention and a modulated perceptron, both gated by the affinities.

    Attributes:
      heads: Number of heads of the attention.
      qk_width: Width of the queries and keys of a head.
      eps: Number added to the divisor of attention weights.
      positions: The bias of the attention by place: None, "shared" by the functions, or
        "per_function".
      fold: As in `ModLin`.
    """

    heads: int
    qk_width: int
    eps: float
    positions: Literal["shared", "per_function"] | None
    fold: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "U B N d"],
        codes: Float[Array, "U c"],
        share: Float[Array, "U B N"],
        grid: tuple[int, int] | None,
    ) -> Float[Array, "U B N d"]:
        """Tokens of each function."""
        width = x.shape[-1]
        x = x + share[..., None] * self._attention(
            nn.LayerNorm(name="norm_a")(x), codes, share, grid
        )
        h = ModLin(width, fold=self.fold, name="hidden")(nn.LayerNorm(name="norm_b")(x), codes)
        h = ModLin(width, fold=self.fold, name="output")(nn.gelu(h, approximate=False), codes)
        return x + share[..., None] * h

    def _attention(
        self,
        x: Float[Array, "U B N d"],
        codes: Float[Array, "U c"],
        share: Float[Array, "U B N"],
        grid: tuple[int, int] | None,
    ) -> Float[Array, "U B N d"]:
        U, B, N, width = x.shape
        H = self.heads

        def split(name: str, size: int, *, use_bias: bool) -> Float[Array, "U B H N k"]:
            # Heads first: XLA's CPU backend copies this far faster than the order that an einsum
            # over tokens first would have it make, and multiplies both products as they lie.
            layer = ModLin(H * size, use_bias, self.fold, name=name)
            return jnp.swapaxes(layer(x, codes).reshape(U, B, N, H, size), 2, 3)

        q = split("query", self.qk_width, use_bias=False) * self.qk_width**-0.5
        k = split("key", self.qk_width, use_bias=False)
        v = split("value", width // H, use_bias=True)
        scores = jnp.einsum("ubhnk,ubhmk->ubhnm", q, k)
        if self.positions is not None and grid is not None:
            per = codes if self.positions == "per_function" else None
            bias = RelativePosition(H, name="position")(grid, N, per)
            scores = scores + bias.reshape(-1, 1, H, N, N)
        # C_i C_j softmax(s)_ij over its sum: all sums come from one product with e^s, so that the
        # weights themselves are never normalized.
        e = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        gate = share[:, :, None, :, None]
        one = jnp.ones_like(v[..., :1])
        sums = jnp.einsum("ubhnm,ubhmk->ubhnk", e, jnp.concatenate([gate * v, gate * one, one], -1))
        y = gate * sums[..., :-2] / (self.eps * sums[..., -1:] + gate * sums[..., -2:-1])
        out = ModLin(width, fold=self.fold, name="mix")
        return out(jnp.swapaxes(y, 2, 3).reshape(U, B, N, width), codes)


class Script(nn.Module):
    """Iterations of one set of functions.

    Attributes: those of `NeuralInterpreter`.
    """

    functions: int
    locs: int
    heads: int
    qk_width: int
    code_width: int
    type_width: int
    type_depth: int
    vocabulary: int | None
    tau: float
    eps: float
    learn_signatures: bool
    positions: Literal["shared", "per_function"] | None
    fold: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N d"],
        iterations: int,
        grid: tuple[int, int] | None,
        functions: tuple[int, ...] | None,
    ) -> tuple[Float[Array, "B N d"], Float[Array, "I U B N"]]:
        """Tokens after the iterations, and the affinities of each."""
        width = x.shape[-1]
        normal = nn.initializers.normal(1.0)
        signatures = self.param("signatures", normal, (self.functions, self.type_width))
        codes = self.param("codes", normal, (self.functions, self.code_width))
        bandwidth = jnp.exp(self.param("log_bandwidth", nn.initializers.zeros, ()))
        if functions is not None:
            signatures, codes = (w[jnp.asarray(functions)] for w in (signatures, codes))
        if not self.learn_signatures:
            signatures = jax.lax.stop_gradient(signatures)
        norm = nn.LayerNorm(name="type_norm")
        layers = [nn.Dense(width, name=f"type_{i}") for i in range(self.type_depth - 1)]
        last = nn.Dense(self.type_width, name=f"type_{self.type_depth - 1}")
        locs = [
            LineOfCode(
                self.heads, self.qk_width, self.eps, self.positions, self.fold, name=f"loc_{i}"
            )
            for i in range(self.locs)
        ]
        words = None
        if self.vocabulary is not None:
            words = self.param("words", normal, (self.vocabulary, self.type_width))
        shares: list[Array] = []
        for _ in range(iterations):
            types = norm(x)
            for layer in layers:
                types = nn.gelu(layer(types), approximate=False)
            types = last(types)
            if words is not None:
                types, commitment = nearest_word(types, words)
                self.sow("losses", "commitment", commitment)
            share = affinity(
                signatures,
                types,
                bandwidth=bandwidth,
                tau=self.tau,
                eps=self.eps,
            )
            z = jnp.broadcast_to(x, (len(codes), *x.shape))
            for loc in locs:
                z = loc(z, codes, share, grid)
            # Added one by one: XLA's CPU backend takes longer to reduce the leading axis than for
            # the products of the perceptron.
            x = functools.reduce(jnp.add, share[..., None] * z)
            shares.append(share)
        return x, jnp.stack(shares)


class NeuralInterpreter(nn.Module):
    """Scripts of function iterations over a set of tokens.

    The functions of a script share all weights and differ by a signature, which says what tokens
    they take, and a code, which says what they do. How often a script iterates is chosen at the
    call, and `add_functions` and `remove_functions` change how many there are.

    Attributes:
      functions: Number of functions of each script, U.
      scripts: Number of scripts, one after another, each with its own weights.
      iterations: Number of iterations of each script, unless the call says otherwise.
      locs: Lines of code of a function.
      heads: Number of heads of the attention; divides the width of the tokens.
      qk_width: Width of a head's queries and keys.
      code_width: Width of codes.
      type_width: Width of signatures and types.
      type_depth: Layers between a token and its type.
      vocabulary: Types a token may have; None leaves them continuous. A commitment loss is then
        sown as "losses".
      tau: Furthest a token's type may be from the signature, as 1 − cos, in (0, 2].
      eps: Number added to divisors.
      learn_signatures: Whether signatures are trained; they stay random otherwise.
      positions: Attention bias by relative place in a grid of patches: None, "shared" by all
        functions, or "per_function" by their codes.
      fold: As in `ModLin`: for inference.

    Source: Rahaman et al. (2021), arXiv 2110.06399, and the authors' public code.
    """

    functions: int = 5
    scripts: int = 1
    iterations: int = 8
    locs: int = 1
    heads: int = 4
    qk_width: int = 32
    code_width: int = 192
    type_width: int = 24
    type_depth: int = 2
    vocabulary: int | None = None
    tau: float = 1.42026
    eps: float = 1e-6
    learn_signatures: bool = False
    positions: Literal["shared", "per_function"] | None = "per_function"
    fold: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N d"],
        *,
        grid: tuple[int, int] | None = None,
        iterations: int | None = None,
        functions: Sequence[int] | None = None,
    ) -> tuple[Float[Array, "B N d"], Routing]:
        """The tokens, and how they were routed.

        Args:
          x: Tokens. Where there is a grid, the last H · W of them are its patches in row order.
          grid: Rows and columns of patches; None for a set, whose places do not matter.
          iterations: Number of iterations of each script; None for `iterations` of the model.
          functions: Numbers of the functions of every script that take part, from 0; None for all.
            The others cost nothing.

        Raises:
          ValueError: A setting out of range, or functions that are not there, twice or none.
        """
        self._check(x)
        part = None if functions is None else self._part(functions)
        count = self.iterations if iterations is None else checked_int("iterations", iterations, 1)
        shares: list[Array] = []
        for i in range(self.scripts):
            script = Script(
                self.functions,
                self.locs,
                self.heads,
                self.qk_width,
                self.code_width,
                self.type_width,
                self.type_depth,
                self.vocabulary,
                self.tau,
                self.eps,
                self.learn_signatures,
                self.positions,
                self.fold,
                name=f"script_{i}",
            )
            x, share = script(x, count, grid, part)
            shares.append(share)
        found = jnp.stack(shares)
        return x, Routing(found, jnp.mean(found.sum(2) == 0, (-2, -1)))

    def _check(self, x: Array) -> None:
        counts = ("functions", "scripts", "iterations", "locs", "heads", "qk_width")
        for name in (*counts, "code_width", "type_width", "type_depth"):
            checked_int(name, getattr(self, name), 1)
        if self.vocabulary is not None:
            checked_int("vocabulary", self.vocabulary, 1)
        check_range("tau", self.tau, 0, 2, above=True)
        check_range("eps", self.eps, 0, above=True)
        if self.positions not in POSITIONS:
            raise ValueError(f"positions={self.positions!r}: must be one of {POSITIONS}")
        if x.ndim != 3 or x.shape[-1] % self.heads:
            raise ValueError(f"x{list(x.shape)}: must be [B, N, d], d a multiple of {self.heads}")

    def _part(self, functions: Sequence[int]) -> tuple[int, ...]:
        part = tuple(checked_int("functions", u, 0, self.functions - 1) for u in functions)
        if not part or len(set(part)) < len(part):
            raise ValueError(f"functions={part}: must name at least one, and none twice")
        return part


def nearest_word(
    types: Float[Array, "*batch t"], words: Float[Array, "V t"]
) -> tuple[Float[Array, "*batch t"], Float[Array, ""]]:
    """Replaces each type by the word of smallest angle, and averages 1 − cos between them.

    Gradients of the types pass as if nothing were replaced. The loss draws types to words and words
    to types.

    Args:
      types: Types of tokens, [..., t].
      words: Words of the vocabulary, [V, t].
    """
    unit, known = _unit(types), _unit(words)
    best: Int[Array, "*batch"] = jnp.argmax(jnp.einsum("...t,vt->...v", unit, known), -1)
    word = known[best]
    loss = jnp.mean(1 - jnp.sum(word * unit, -1))
    return unit + jax.lax.stop_gradient(word - unit), loss


def _unit(x: Float[Array, "*batch t"]) -> Float[Array, "*batch t"]:
    """Length one; a zero stays zero, as does its gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-16))
