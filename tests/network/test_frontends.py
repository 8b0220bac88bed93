"""Models of every library, and the state that their calls change."""

import dataclasses
import warnings

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsim as js
from jaxsim.network import frontends
from tests.support.models import normal

X = normal(4, 8)
IDS = jnp.ones((2, 1), jnp.int32)


def key(i):
    return jax.random.key(i)


class Decoder(nnx.Module):
    """A layer of a language model with a cache and dropout."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(16, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(8, 16, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids)
        return self.out(self.dropout(x + self.attention(x)))


def decoder():
    model = Decoder(nnx.Rngs(0))
    model.attention.init_cache((2, 8, 8))
    return model


class Normed(nnx.Module):
    """A dense layer and a norm of the batch."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(8, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dense(x))


def test_an_nnx_module_needs_no_variables():
    model = Normed(nnx.Rngs(0))
    model.eval()
    y = nnx.jit(lambda model, x: model(x))(model, X)
    for net in (js.trace(model, X), js.trace(model, None, X), js.trace(model, x=X)):
        out = jax.jit(lambda net: net(x=X))(net) if not net.example.combine()[0] else None
        np.testing.assert_array_equal(jax.jit(lambda net: net(X))(net) if out is None else out, y)


def test_what_a_call_changes_is_named():
    with pytest.warns(UserWarning, match=r"changes its Cache, RngCount, .*mutable="):
        js.trace(decoder(), IDS)
    with pytest.warns(UserWarning, match="changes its BatchStat,"):
        js.trace(Normed(nnx.Rngs(0)), X)


class Remat(nnx.Module):
    def __init__(self, rngs):
        self.inner = Normed(rngs)

    def __call__(self, x):
        return nnx.remat(lambda inner, x: inner(x))(self.inner, x)


class Scanned(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return nnx.Linear(8, 8, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return jnp.tanh(layer(x))

        return forward(x, self.layers)


class Looped(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return nnx.fori_loop(0, 3, lambda i, c: (c[0], jnp.tanh(c[0](c[1]))), (self.layer, x))[1]


class Branched(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return nnx.cond(x[0, 0] > 0, lambda m, x: m(x), lambda m, x: m(-x), self.layer, x)


@pytest.mark.parametrize("model", [Scanned, Looped, Branched, Remat])
@pytest.mark.filterwarnings("error")
def test_a_module_that_changes_nothing_is_not_accused(model):
    made = model(nnx.Rngs(0))
    made.eval()
    js.trace(made, X)


def test_a_decode_loop_goes_on_from_the_state_it_is_given():
    model, net = decoder(), js.trace(decoder(), IDS, mutable=["Cache", "RngCount"])
    for step in range(3):
        y, updates = net(IDS + step)
        net = net.with_state(updates)
        np.testing.assert_array_equal(y, model(IDS + step))
    assert int(net.buffers["attention"]["cache_index"]) == 3


def test_without_the_state_a_second_step_differs():
    """The control: what the loop above would compute if it dropped the state."""
    model, net = decoder(), js.trace(decoder(), IDS, mutable=["Cache", "RngCount"])
    model(IDS)
    assert float(jnp.abs(model(IDS + 1) - net(IDS + 1)[0]).max()) > 1e-3


@pytest.mark.parametrize("deployed", [False, True])
def test_quantized_decoding_keeps_its_cache(deployed):
    net = js.quantize(8, 8)(js.trace(decoder(), IDS, mutable=["Cache"]))
    if deployed:
        net = js.deploy(net, calibrate=IDS)
    step = jax.jit(lambda net, ids: net(ids))
    for index in range(1, 4):
        _, updates = step(net, IDS)
        net = net.with_state(updates)
        assert int(net.buffers["attention"]["cache_index"]) == index
    assert js.internals.compile_count(step) == 1


MUTABLE = [["batch_stats"], "batch_stats", "BatchStat", ["BatchStat"], nnx.BatchStat, True]


@pytest.mark.parametrize("mutable", MUTABLE, ids=str)
def test_running_means_of_nnx_and_linen_move_alike(mutable):
    model = Normed(nnx.Rngs(0))
    net = js.trace(model, X, mutable=mutable)
    y, updates = net(X)
    np.testing.assert_array_equal(y, model(X))
    np.testing.assert_array_equal(updates["norm"]["mean"], model.norm.mean.get_value())
    moved = net.with_state(updates)
    np.testing.assert_array_equal(moved.buffers["norm"]["var"], model.norm.var.get_value())


def test_running_means_of_linen_move():
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=False)])
    variables = model.init(key(0), X)
    net = js.trace(model, variables, X, mutable=["batch_stats"])
    y, updates = net(X)
    want, expected = model.apply(variables, X, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, want)
    moved = net.with_state(updates)
    jax.tree.map(np.testing.assert_array_equal, moved.buffers, dict(expected))
    with pytest.raises(ValueError, match=r"updates: batch_stats/nowhere is no buffer"):
        net.with_state({"batch_stats": {"nowhere": X}})
    with pytest.raises(ValueError, match=r"layers_1/mean is float32\[4\] in the network, got"):
        net.with_state({"batch_stats": {"layers_1": {"mean": X}}})
    with pytest.raises(ValueError, match="params are no buffers"):
        net.with_state(net(X, mutable=True)[1])
    with pytest.raises(ValueError, match="updates=Array"):
        net.with_state(jnp.ones(3))


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(8, 64, rngs=rngs)
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.dense(x)
        return self.first(jnp.ones_like(x)), self.second(jnp.ones_like(x)), x


@pytest.mark.parametrize("transform", [lambda net: net, js.quantize(8, 8)], ids=["float", "int8"])
def test_dropout_of_nnx_draws_anew_for_each_key(transform):
    with pytest.warns(UserWarning, match="RngCount"):
        net = transform(js.trace(Dropped(nnx.Rngs(0)), X))
    run = jax.jit(lambda net, key: net(X, key=key))
    one, other, again = (run(net, key(i)) for i in (1, 2, 1))
    masks = [np.asarray(y[0] > 0).ravel() for y in (one, other)]
    assert 0.4 < masks[0].mean() < 0.6
    assert abs(np.corrcoef(*masks)[0, 1]) < 0.2
    np.testing.assert_array_equal(one[0], again[0])
    layers = [np.asarray(y > 0).ravel() for y in one[:2]]
    assert abs(np.corrcoef(*layers)[0, 1]) < 0.2  # two layers of one shape draw apart
    without = net(X), net(X)
    np.testing.assert_array_equal(without[0][0], without[1][0])


class DroppedOut(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.second(self.dropout(nnx.relu(self.first(x))))


def test_dropout_of_a_pipeline_draws_anew_for_each_key():
    """A call in stages and its gradients, as a call alone."""
    with pytest.warns(UserWarning, match="RngCount"):
        net = js.trace(DroppedOut(nnx.Rngs(0)), X)
    pipe = js.pipeline_shard(2, microbatches=2, devices=jax.devices()[:1] * 2)(net)
    step = js.pipeline_value_and_grad(pipe, lambda y, target: ((y - target) ** 2).mean())
    calls = [pipe(X, key=key(i)) for i in (1, 2, 1)]
    losses = [float(step(pipe.params, (X, X[:, :4]), key=key(i))[0]) for i in (1, 2, 1)]
    assert (calls[0] == calls[2]).all()
    assert (calls[0] != calls[1]).any()
    assert losses[0] == losses[2] != losses[1]


def test_a_stream_can_be_named():
    model = Dropped(nnx.Rngs(params=0, dropout=1))
    with pytest.warns(UserWarning, match="RngCount"):
        net = js.trace(model, X)
    named, alone = (net(X, rngs=rngs)[0] for rngs in ({"dropout": key(3)}, key(3)))
    np.testing.assert_array_equal(named, alone)
    with pytest.raises(ValueError, match=r"'noise'.*no such stream; expected some of .*dropout"):
        net(X, rngs={"noise": key(0)})


class Cache(nnx.Module):
    def __init__(self):
        self.index = nnx.Variable(jnp.zeros((), jnp.int32))


class Counting(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x, cache):
        cache.index[...] = cache.index[...] + len(x)
        return self.dense(x)


def test_a_module_among_the_arguments_that_is_changed_in_place_is_named():
    with pytest.warns(UserWarning, match=r"changes cache/index.* in place"):
        js.trace(Counting(nnx.Rngs(0)), X, cache=Cache())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        js.trace(lambda p, x, cache: x @ p + cache.index[...], jnp.ones((8, 4)), X, Cache())


class Frozen(nn.Module):
    """A dense layer behind weights that are not trained."""

    @nn.compact
    def __call__(self, x):
        w = self.variable("frozen", "w", lambda: jax.random.normal(key(1), (8, 8))).value
        return nn.Dense(4)(x @ w)


class Base(nnx.Variable):
    """A weight that is not trained."""


class FrozenNnx(nnx.Module):
    def __init__(self, rngs):
        self.base = Base(jax.random.normal(key(1), (8, 8)))
        self.out = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.out(x @ self.base[...])


def frozen(kind, **weights):
    if kind == "linen":
        model = Frozen()
        return js.trace(model, model.init(key(0), X), X, **weights)
    return js.trace(FrozenNnx(nnx.Rngs(0)), X, **weights)


NAMES = {"linen": (["frozen"], "frozen/w"), "nnx": (Base, "base")}


def test_weights_of_nnx_are_named_by_their_type_or_its_name():
    typed, named = (frozen("nnx", weights=weights) for weights in (Base, ["Base"]))
    assert str(typed) == str(named)
    assert typed.sites == named.sites != frozen("nnx").sites


class Scale(nnx.Variable):
    """Another kind of variable."""


class Scaled(FrozenNnx):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.scale = Scale(jnp.full(8, 2.0))

    def __call__(self, x):
        return super().__call__(x * self.scale[...])


def test_one_of_several_types_of_variables_is_named():
    for weights, paths in ((Base, ("base",)), ((Scale, "Base"), ("base", "scale"))):
        net = js.trace(Scaled(nnx.Rngs(0)), X, weights=weights)
        assert [s.name for s in net.sites] == ["base", "out/kernel"]
        assert net.weights == paths
    with pytest.raises(ValueError, match=r"'Nowhere' is no type .* some of Base, Scale"):
        js.trace(Scaled(nnx.Rngs(0)), X, weights=["Base", "Nowhere"])


@pytest.mark.parametrize("kind", NAMES)
def test_weights_beside_the_parameters_are_sites_where_asked(kind):
    weights, name = NAMES[kind]
    silent = frozen(kind)
    assert name not in [s.name for s in silent.sites]
    text = " ".join(str(silent).split())
    assert f"not sites: {name} is a buffer (dot_general)" in text
    net = frozen(kind, weights=weights)
    assert net.sites[0].name == name
    low = js.quantize(2, None)(net)
    assert float(jnp.abs(low(X) - js.quantize(2, None)(silent)(X)).max()) > 0.1
    assert net.cost().sites[0].params == 64
    chip = js.deploy(js.round_weights(js.rounding.gptq(), X)(js.quantize(3, 8)(net)), calibrate=X)
    assert jnp.isfinite(chip(X)).all()
    np.testing.assert_array_equal(net(X), silent(X))
    assert js.prune(0.5, sites=name)(net).density(net.sites[0]) == 0.5


@pytest.mark.parametrize(
    ("kind", "weights", "message"),
    [
        ("linen", ["nowhere"], r"'nowhere' is no collection .* frozen"),
        ("nnx", ["Nowhere"], r"'Nowhere' is no type of .* Base"),
        ("linen", 3, "expected names"),
    ],
)
def test_weights_that_are_not_there_are_refused(kind, weights, message):
    with pytest.raises(ValueError, match=message):
        frozen(kind, weights=weights)


def test_complex_and_integer_weights_are_left_and_listed():
    p = {"w": jnp.ones((8, 4)), "c": jnp.ones((8, 8), jnp.complex64), "i": jnp.ones((8, 8), int)}

    def fn(p, x):
        x = (x.astype(jnp.complex64) @ p["c"]).real
        return (jnp.round(x).astype(int) @ p["i"]).astype(jnp.float32) @ p["w"]

    net = js.trace(fn, p, X)
    assert [s.name for s in net.sites] == ["w"]
    assert [line.split()[0] for line in net.unreached] == ["c", "i"]
    np.testing.assert_array_equal(net(X), fn(p, X))
    with pytest.raises(
        ValueError, match=r"has no sites.*but c has dtype complex64; a weight must be a float"
    ):
        js.trace(lambda p, x: x.astype(jnp.complex64) @ p["c"], {"c": p["c"]}, X)


def test_leaves_that_are_no_arrays_are_static():
    mlp = eqx.nn.MLP(8, 4, 16, 2, key=key(0))

    def fn(mlp, x):
        return jax.vmap(mlp)(x)

    net = js.trace(fn, mlp, X)
    assert [s.name for s in net.sites] == [f"layers/{i}/weight" for i in range(3)]
    np.testing.assert_array_equal(jax.jit(lambda n: n(X))(net), eqx.filter_jit(fn)(mlp, X))
    grads = jax.grad(lambda p: (dataclasses.replace(net, params=p)(X) ** 2).sum())(net.params)
    want = eqx.filter_grad(lambda m: (fn(m, X) ** 2).sum())(mlp)
    pairs = zip(
        jax.tree.leaves(grads), jax.tree.leaves(eqx.filter(want, eqx.is_array)), strict=True
    )
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    scaled = js.trace(
        lambda p, x: p["f"](x @ p["w"]) * p["by"],
        {
            "w": jnp.ones((8, 4)),
            "f": jnp.tanh,
            "by": 2.0,
        },
        X,
    )
    np.testing.assert_allclose(scaled(X), 2 * jnp.tanh(X @ jnp.ones((8, 4))), rtol=1e-6)


HAIKU = hk.transform(lambda x: hk.nets.MLP([16, 4])(x))


@pytest.mark.parametrize("args", [(X,), (None, X), (key(0), X)], ids=["", "None", "key"])
def test_haiku_with_and_without_a_key(args):
    params = HAIKU.init(key(0), X)
    net = js.trace(HAIKU, params, *args)
    assert [s.name for s in net.sites] == ["mlp/~/linear_0/w", "mlp/~/linear_1/w"]
    np.testing.assert_array_equal(
        jax.jit(lambda n: n(*args))(net), jax.jit(HAIKU.apply)(params, None, X)
    )


def test_haiku_that_draws_nothing_and_haiku_with_state():
    plain = hk.without_apply_rng(HAIKU)
    params = plain.init(key(0), X)
    np.testing.assert_array_equal(js.trace(plain, params, X)(X), plain.apply(params, X))
    normed = hk.transform_with_state(
        lambda x: hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training=True)
    )
    variables = normed.init(key(0), X)
    net = js.trace(normed, variables, X)
    for _ in range(2):
        y, state = net(X)
        want, variables = normed.apply(*variables, None, X), (variables[0], state)
        np.testing.assert_allclose(y, want[0], rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, want[1])
        net = net.with_state(state)
    with pytest.raises(ValueError, match=r"needs the pair \(params, state\)"):
        js.trace(normed, params, X)


class HuggingFaceLike:
    """What transformers' Flax models are to a caller: a module, its parameters, and a call."""

    def __init__(self, module):
        self.module = module
        self.params = module.init(key(0), X)["params"]

    def __call__(self, x, params=None, train=False):
        del train
        return self.module.apply({"params": self.params if params is None else params}, x)


def test_a_hugging_face_model_takes_its_parameters_as_they_are():
    model = HuggingFaceLike(nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(4)]))
    net = js.trace(model, model.params, X)
    assert [s.name for s in net.sites] == ["layers_0/kernel", "layers_2/kernel"]
    np.testing.assert_array_equal(net(X), model(X))
    assert float(jnp.abs(js.quantize(2, None)(net)(X) - model(X)).max()) > 0


@pytest.mark.parametrize("model", [None, 3, nn.Dense])
def test_other_things_are_no_models(model):
    with pytest.raises(ValueError, match="expected a Flax module"):
        js.trace(model, {}, X)


def test_a_function_without_variables_is_refused():
    with pytest.raises(ValueError, match="variables: missing"):
        js.trace(lambda p: p)


def test_names_of_parameters_are_paths():
    tree = {"a": [jnp.ones(1), {"b": jnp.ones(1)}]}
    paths = [frontends.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert paths == ["a/0", "a/1/b"]
