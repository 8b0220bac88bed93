"""Small models of every kind that a Network must take as it is."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax


class Case(NamedTuple):
    """What `js.trace` takes, and the names of the sites it finds."""

    model: Any
    variables: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sites: list[str]

    @property
    def buffers(self):
        """What the model reads beside its parameters."""
        if isinstance(self.model, nn.Module):
            return {name: value for name, value in self.variables.items() if name != "params"}
        if isinstance(self.model, nnx.Module):
            return nnx.split(self.model, nnx.Param, ...)[2]
        return {}

    def run(self, params, buffers, *args, **kwargs):
        """The model itself, without jaxsim.

        Buffers are given as parameters are: XLA computes with a constant what it would leave to
        the machine, and 1 / sqrt differs in its last bit between the two.
        """
        kwargs = {**self.kwargs, **kwargs}
        if isinstance(self.model, nn.Module):
            return self.model.apply({**buffers, "params": params}, *args, **kwargs)
        if isinstance(self.model, nnx.Module):
            graph, old, _ = nnx.split(self.model, nnx.Param, ...)
            nnx.replace_by_pure_dict(old, params)
            mutable = kwargs.pop("mutable", None)
            model = nnx.merge(graph, old, jax.tree.map(lambda leaf: leaf, buffers))
            y = model(*args, **kwargs)
            return y if mutable is None else (y, nnx.to_pure_dict(nnx.state(model, mutable)))
        return self.model(params, *args, **kwargs)


def normal(*shape, seed=0, dtype=jnp.float32):
    """A normal array."""
    values = np.random.default_rng([seed, *shape]).normal(size=shape)
    return jnp.asarray(values / np.sqrt(shape[0] if shape else 1), dtype)


class ResNet(nn.Module):
    """A stem, a residual block with BatchNorm, a head."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        def norm(y):
            return nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(y)

        x = nn.relu(norm(nn.Conv(4, (3, 3), use_bias=False, dtype=self.dtype)(x)))
        y = nn.relu(norm(nn.Conv(8, (3, 3), (2, 2), dtype=self.dtype)(x)))
        y = nn.Conv(8, (3, 3), feature_group_count=8, dtype=self.dtype)(y)
        x = nn.relu(y + nn.Conv(8, (1, 1), (2, 2), dtype=self.dtype)(x))
        return nn.Dense(3, dtype=self.dtype)(x.mean((1, 2)))


class Block(nn.Module):
    """Attention and an MLP, as the body of a scan."""

    @nn.compact
    def __call__(self, x, mask):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x), mask=mask)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(x))), None


class Transformer(nn.Module):
    """A tied embedding around a stack of rematerialized, scanned blocks."""

    @nn.compact
    def __call__(self, tokens, mask):
        embed = nn.Embed(11, 8)
        stack = nn.scan(
            nn.remat(Block),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=3,
        )
        x, _ = stack(name="stack")(embed(tokens), mask)
        return embed.attend(x)


class Dropped(nn.Module):
    """Dense layers with dropout between them."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(16)(x))
        return nn.Dense(3)(x)


class Recurrent(nn.Module):
    """An LSTM over time."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.RNN(nn.LSTMCell(4))(x))


class NnxCnn(nnx.Module):
    """Convolution, BatchNorm, Dropout, a dense layer."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(nnx.relu(self.norm(self.conv(x)))).mean((1, 2)))


class NnxStack(nnx.Module):
    """A stack of layers under nnx.scan."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def layers(rngs):
            return nnx.Linear(4, 4, rngs=rngs)

        self.layers = layers(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return nnx.tanh(layer(x))

        return forward(x, self.layers)


def _linen(model, *args, sites, **kwargs):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    given = {k: v for k, v in kwargs.items() if k not in ("rngs", "mutable")}
    return Case(model, model.init(keys, *args, **given), args, kwargs, sites)


def _images(dtype=jnp.float32):
    return normal(2, 8, 8, 3, dtype=dtype)


def resnet(dtype=jnp.float32, **kwargs):
    names = [*(f"Conv_{i}/kernel" for i in range(4)), "Dense_0/kernel"]
    case = _linen(ResNet(dtype), _images(), sites=names, **kwargs)
    if dtype == jnp.float32:
        return case
    low = jax.tree.map(lambda p: p.astype(dtype), case.variables["params"])
    return case._replace(
        variables={**case.variables, "params": low}, args=(_images(dtype),), kwargs={}
    )


def transformer():
    tokens = jnp.arange(12).reshape(2, 6) % 11
    mask = nn.make_causal_mask(tokens)
    attention = [f"stack/MultiHeadDotProductAttention_0/{n}/kernel" for n in ("query", "key")]
    attention += ["stack/MultiHeadDotProductAttention_0/value/kernel", "dynamic/0", "dynamic/1"]
    attention += ["stack/MultiHeadDotProductAttention_0/out/kernel"]
    mlp = ["stack/Dense_1/kernel", "stack/Dense_0/kernel", "Embed_0/embedding"]
    sites = ["Embed_0/embedding:lookup", *attention, *mlp]
    return _linen(Transformer(), tokens, mask, sites=sites)


def dropped():
    sites = ["Dense_0/kernel", "Dense_1/kernel"]
    rngs = {"dropout": jax.random.key(7)}
    return _linen(Dropped(), normal(4, 5), train=True, rngs=rngs, sites=sites)


def lstm():
    gates = [f"LSTMCell_0/{n}/kernel" for n in ("ii", "hi", "if", "hf", "ig", "hg", "io", "ho")]
    return _linen(Recurrent(), normal(2, 5, 3), sites=[*gates, "Dense_0/kernel"])


def nnx_cnn(**kwargs):
    model = NnxCnn(nnx.Rngs(0))
    if not kwargs:
        model.eval()
    return Case(model, None, (_images(),), kwargs, ["conv/kernel", "head/kernel"])


def nnx_stack():
    return Case(NnxStack(nnx.Rngs(0)), None, (normal(2, 4),), {}, ["layers/kernel"])


def _plain(fn, params, *args, sites, **kwargs):
    return Case(fn, params, args, kwargs, sites)


def pytrees():
    def fn(params, batch, *, shift):
        y = batch["a"] @ params["w"][0] + batch["b"]["c"] @ params["w"][1]
        return {"sum": y + shift, "parts": (y, batch["a"])}

    params = {"w": [normal(4, 3), normal(5, 3)]}
    batch = {"a": normal(2, 4), "b": {"c": normal(2, 5)}}
    return _plain(fn, params, batch, shift=normal(3), sites=["w/0", "w/1"])


def branches():
    def fn(params, x, flag):
        return lax.cond(flag, lambda x: x @ params["a"], lambda x: jnp.sin(x) @ params["b"], x)

    return _plain(fn, _square("ab"), normal(2, 4), jnp.array(True), sites=["b", "a"])


def while_loop():
    """A site in the test of the loop and one in its body."""

    def fn(params, x):
        def test(c):
            return (c[0] < 3) & (jnp.abs(c[1] @ params["t"]).sum() < 1e6)

        return lax.while_loop(test, lambda c: (c[0] + 1, jnp.tanh(c[1] @ params["w"])), (0, x))

    return _plain(fn, _square("tw"), normal(2, 4), sites=["t", "w"])


def fori():
    def fn(params, x):
        return lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ params["w"]) + i, x)

    return _plain(fn, _square("w"), normal(2, 4), sites=["w"])


def indexed():
    """Layers that a counter chooses, each of which writes and reads its place of a cache."""

    def fn(params, x, cache):
        def layer(i, carry):
            x, cache = carry
            cache = lax.dynamic_update_index_in_dim(cache, x @ params["k"][i], i, 0)
            kept = lax.dynamic_index_in_dim(cache, i, keepdims=False)
            return jnp.tanh(x @ jnp.take(params["w"], i, axis=0) + kept + params["b"][i]), cache

        return lax.fori_loop(0, 3, layer, (x, cache))

    params = {"k": normal(3, 4, 4, seed=1), "w": normal(3, 4, 4), "b": normal(3, 4)}
    return _plain(fn, params, normal(2, 4), normal(3, 2, 4), sites=["k", "w"])


def stack_in_while():
    """A scan over stacked weights, repeated by a while loop."""

    def fn(params, x):
        def sweep(x):
            return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])[0]

        return lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, sweep(c[1])), (0, x))[1]

    return _plain(fn, {"w": normal(3, 4, 4)}, normal(2, 4), sites=["w"])


def while_in_stack():
    """A while loop in the body of a scan over stacked weights."""

    def fn(params, x):
        def layer(x, w):
            step = (lambda c: c[0] < 2), (lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)))
            return lax.while_loop(*step, (0, x))[1], None

        return lax.scan(layer, x, params["w"])[0]

    return _plain(fn, {"w": normal(3, 4, 4)}, normal(2, 4), sites=["w"])


def custom_rules():
    @jax.custom_jvp
    def one(w, x):
        return x @ w

    @one.defjvp
    def _(primals, tangents):
        return jax.jvp(lambda w, x: x @ w, primals, tangents)

    @jax.custom_vjp
    def two(w, x):
        return x @ w

    two.defvjp(lambda w, x: (two(w, x), (w, x)), lambda r, g: (r[1].T @ g, g @ r[0].T))

    def fn(params, x):
        return two(params["b"], nn.relu(one(params["a"], x)))

    return _plain(fn, _square("ab"), normal(2, 4), sites=["a", "b"])


def shared_jit():
    """One jitted layer, called with two parameters and then with the first again."""
    layer = jax.jit(lambda w, x: jnp.tanh(x @ w))

    def fn(params, x):
        return layer(params["a"], layer(params["b"], layer(params["a"], x)))

    return _plain(fn, _square("ab"), normal(2, 4), sites=["a", "b", "a#2"])


def rnn_in_consts():
    def fn(params, xs):
        def step(h, x):
            h = jnp.tanh(x @ params["x"] + h @ params["h"])
            return h, h

        return lax.scan(step, jnp.zeros((2, 4)), xs)

    return _plain(fn, _square("xh"), normal(5, 2, 4), sites=["x", "h"])


def rnn_in_carry():
    def fn(params, xs):
        def step(carry, x):
            params, h = carry
            h = jnp.tanh(x @ params["x"] + h @ params["h"])
            return (params, h), h

        (_, h), ys = lax.scan(step, (params, jnp.zeros((2, 4))), xs)
        return h, ys

    return _plain(fn, _square("xh"), normal(5, 2, 4), sites=["x", "h"])


def nested_scans():
    """A stack of stacks, and a weight that only the outer scan hands out."""

    def fn(params, x):
        def outer(x, ws):
            stack, out = ws
            x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack, reverse=True)
            return x @ out, x

        return lax.scan(outer, x, (params["stack"], params["out"]))

    params = {"stack": normal(2, 3, 4, 4), "out": normal(2, 4, 4)}
    return _plain(fn, params, normal(2, 4), sites=["stack", "out"])


def weight_first():
    def fn(params, x):
        return params["w"].T @ x.T + params["w"].T @ jnp.cos(x).T

    return _plain(fn, {"w": normal(4, 3)}, normal(2, 4), sites=["w", "w#2"])


def experts():
    def fn(params, x):
        hidden = nn.relu(jnp.einsum("ebd,edf->ebf", x, params["up"]))
        return jnp.einsum("efd,ebf->bed", params["down"], hidden)

    params = {"up": normal(3, 4, 6), "down": normal(3, 6, 4)}
    return _plain(fn, params, normal(3, 2, 4), sites=["up", "down"])


def derived():
    """A weight computed from two parameters, cast, transposed and reshaped on its way."""

    def fn(params, x):
        w = (params["v"] * params["gain"]).reshape(4, 3).T
        return jnp.einsum("oi,bi->bo", w.astype(jnp.float32), x)

    return _plain(fn, {"v": normal(2, 2, 3), "gain": normal(3)}, normal(2, 4), sites=["v"])


def remat_grad():
    """A gradient inside the model: its backward contractions are sites too."""

    def fn(params, x):
        return jax.grad(lambda x: jax.checkpoint(lambda x: jnp.tanh(x @ params["w"]))(x).sum())(x)

    return _plain(fn, _square("w"), normal(2, 4), sites=["w", "w#2", "w#3"])


def _square(names):
    return {name: normal(4, 4, seed=i) for i, name in enumerate(names)}


CASES = {
    "resnet": resnet,
    "resnet in training": lambda: resnet(train=True, mutable=["batch_stats"]),
    "resnet in bfloat16": lambda: resnet(jnp.bfloat16),
    "transformer": transformer,
    "dropout": dropped,
    "lstm": lstm,
    "nnx cnn": nnx_cnn,
    "nnx cnn in training": lambda: nnx_cnn(mutable=nnx.BatchStat),
    "nnx stack": nnx_stack,
    "pytrees": pytrees,
    "cond": branches,
    "while": while_loop,
    "fori": fori,
    "layers by a counter": indexed,
    "stack in while": stack_in_while,
    "while in stack": while_in_stack,
    "custom rules": custom_rules,
    "shared jit": shared_jit,
    "rnn, params in consts": rnn_in_consts,
    "rnn, params carried": rnn_in_carry,
    "nested scans": nested_scans,
    "weight first": weight_first,
    "experts": experts,
    "derived weight": derived,
    "gradient inside": remat_grad,
}
