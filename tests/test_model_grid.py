"""A generated grid of models: each traces bit for bit, or is refused by name."""

import itertools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxsim as js
from jaxsim.cores.core import Core
from tests.support.models import normal

DTYPES = ("float32", "bfloat16", "float16")
LAYERS = ("dense", "conv", "depthwise", "tied", "recurrent")
STATES = ("none", "stateful")
CONTAINERS = ("linen", "nnx", "dict", "nested")
INIT = nn.initializers.lecun_normal()  # an orthogonal one has no short floats
GRID = list(itertools.product(DTYPES, LAYERS, STATES, CONTAINERS))


def example(layer):
    if layer == "tied":
        return jnp.arange(12).reshape(2, 6) % 8
    shape = {"dense": (3, 8), "recurrent": (3, 4, 8)}.get(layer, (2, 6, 6, 4))
    return normal(*shape)


def filled(tree):
    """Values for the shapes of variables; a program draws none, as each shape would be one."""

    def value(a):
        if jnp.issubdtype(a.dtype, jnp.floating):
            return jnp.asarray(
                np.abs(normal(*a.shape)) + 0.1 if a.ndim < 2 else normal(*a.shape), a.dtype
            )
        return (
            jax.random.key(0)
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
            else jnp.zeros(a.shape, a.dtype)
        )

    return jax.tree.map(value, tree)


class Linen(nn.Module):
    """One layer and a head, with running means where it has a state."""

    layer: str
    dtype: str
    stateful: bool

    @nn.compact
    def __call__(self, x):
        of = {"dtype": self.dtype, "param_dtype": self.dtype}
        if self.layer == "tied":
            table = nn.Embed(8, 4, **of)
            x = table.attend(jnp.tanh(table(x)))
        elif self.layer == "recurrent":
            x = nn.RNN(nn.GRUCell(4, recurrent_kernel_init=INIT, **of))(x.astype(self.dtype))[:, -1]
        elif self.layer == "dense":
            x = nn.tanh(nn.Dense(4, **of)(x))
        else:
            groups = 4 if self.layer == "depthwise" else 1
            x = nn.tanh(nn.Conv(4, (3, 3), feature_group_count=groups, **of)(x)).mean((1, 2))
        if self.stateful:
            x = nn.BatchNorm(use_running_average=False, **of)(x)
        return nn.Dense(3, **of)(x)


class Nnx(nnx.Module):
    """The same as an NNX module."""

    def __init__(self, layer, dtype, stateful, rngs):
        of = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(dtype), "rngs": rngs}
        self.layer, self.kind = layer, jnp.dtype(dtype)
        width = 4
        if layer == "tied":
            self.table, width = nnx.Embed(8, 4, **of), 8
        elif layer == "recurrent":
            self.cell = nnx.RNN(nnx.GRUCell(8, 4, recurrent_kernel_init=INIT, **of), rngs=rngs)
        elif layer == "dense":
            self.first = nnx.Linear(8, 4, **of)
        else:
            groups = 4 if layer == "depthwise" else 1
            self.first = nnx.Conv(4, 4, (3, 3), feature_group_count=groups, **of)
        self.norm = nnx.BatchNorm(width, **of) if stateful else None
        self.head = nnx.Linear(width, 3, **of)

    def __call__(self, x):
        if self.layer == "tied":
            x = self.table.attend(jnp.tanh(self.table(x)))
        elif self.layer == "recurrent":
            x = self.cell(x.astype(self.kind))[:, -1]
        elif self.layer == "dense":
            x = jnp.tanh(self.first(x))
        else:
            x = jnp.tanh(self.first(x)).mean((1, 2))
        return self.head(x if self.norm is None else self.norm(x))


def plain(layer, stateful, names):
    """A function of parameters that `names` finds in their container, and of a running mean."""

    def fn(params, x, mean):
        w, head = names(params)
        x = x if layer == "tied" else x.astype(w.dtype)
        if layer == "tied":
            x = jnp.tanh(w[x]) @ w.T
        elif layer == "recurrent":
            start = jnp.zeros((len(x), 4), w.dtype)
            x, _ = lax.scan(
                lambda h, t: (jnp.tanh(t @ w[:8] + h @ w[8:]), None), start, x.swapaxes(0, 1)
            )
        elif layer == "dense":
            x = jnp.tanh(x @ w)
        else:
            groups = 4 if layer == "depthwise" else 1
            x = lax.conv_general_dilated(
                *(x, w, (1, 1), "SAME"),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )
            x = jnp.tanh(x).mean((1, 2))
        if not stateful:
            return x @ head
        mean = 0.9 * mean + 0.1 * x.mean(tuple(range(x.ndim - 1)))
        return (x - mean) @ head, mean

    return fn


SHAPES = {
    "dense": (8, 4),
    "conv": (3, 3, 4, 4),
    "depthwise": (3, 3, 1, 4),
    "tied": (8, 4),
    "recurrent": (12, 4),
}


def model_of(dtype, layer, state, container):
    """The arguments of `js.trace` and the model's own call, both of the variables as arguments."""
    x, stateful = example(layer), state == "stateful"
    if container == "linen":
        model, mutable = Linen(layer, dtype, stateful), ["batch_stats"] if stateful else False
        variables = filled(jax.eval_shape(model.init, jax.random.key(1), x))
        return (model, variables, x), {"mutable": mutable}, (model.apply, variables, (x,))
    if container == "nnx":
        graph, held = nnx.split(nnx.eval_shape(lambda: Nnx(layer, dtype, stateful, nnx.Rngs(0))))
        held = filled(held)
        model = nnx.merge(graph, held)

        def run(held, x, mutable):
            model = nnx.merge(graph, held)
            y = model(x)
            return (y, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))) if mutable else y

        mutable = ["BatchStat"] if stateful else False
        return (model, x), {"mutable": mutable}, (run, held, (x,))
    shapes = SHAPES[layer], (8 if layer == "tied" else 4, 3)
    w, head = (normal(*s, seed=i, dtype=dtype) for i, s in enumerate(shapes))
    if container == "dict":
        params, names = {"w": w, "head": head}, lambda p: (p["w"], p["head"])
    else:
        params = {"layers": [(w, "a name"), [head, 0.5]]}

        def names(p):
            return p["layers"][0][0], p["layers"][1][0] * p["layers"][1][1]

    fn = plain(layer, stateful, names)
    mean = jnp.zeros(head.shape[0], dtype)
    return (fn, params, x, mean), {}, (fn, params, (x, mean))


def unchanged(core):
    """A core around another that does what it does: the network walks its equations for it."""
    return Core(core.write, core.calibrate, core.read)


def test_there_are_as_many_as_promised():
    assert len(GRID) == 120


@pytest.mark.parametrize(("dtype", "layer", "state", "container"), GRID)
def test_a_model_of_the_grid_traces_bit_for_bit(dtype, layer, state, container):
    given, settings, (apply, variables, inputs) = model_of(dtype, layer, state, container)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if (layer, container) == ("recurrent", "nnx"):  # counts a draw for its first carry
            warnings.filterwarnings("ignore", message=".* changes its RngCount,")
        net = js.trace(*given, **settings)
    assert sum(site.kind != "dynamic" for site in net.sites) >= 2
    assert not net.unreached

    if container == "nested":  # what is static there cannot be an argument of jit

        def model(held, *inputs):
            arrays = jax.tree.leaves(held)
            static = net.fn.rest
            whole = type(static)(static.treedef, static.static, tuple(arrays)).combine()
            return apply(whole, *inputs)

        variables = net.params
    else:

        def model(held, *inputs):
            return apply(held, *inputs, **settings)

    @jax.jit
    def answers(held, nets, *inputs):
        """In one program: XLA compiles once what the three have in common."""
        return model(held, *inputs), *(net(*inputs) for net in nets)

    want, *answered = answers(variables, (net, js.wrap(unchanged)(net)), *inputs)
    for got in answered:
        assert jax.tree.structure(got) == jax.tree.structure(want)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
