"""Queries and keys turned: by NumPy, through stacks, groups and caches, in parameters, refusals."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxsim as js
from jaxsim.network.calls import calls_within
from jaxsim.transforms import turned_scores
from jaxsim.transforms.turned_scores import TurnedCall, turn
from tests.oracles import turned_scores as oracle
from tests.support import llama_files
from tests.support.models import normal
from tests.support.residual import IDS as OTHER_IDS
from tests.support.residual import residual

KEY = jax.random.key(5)
IDS = np.random.default_rng(2).integers(0, 96, (2, 14))


@jax.jit
def call(net, *inputs):
    return net(*inputs)


def scores(net, *example, groups=(), **options):
    return js.rotate(example or IDS[:1], KEY, groups=groups, scores=True, **options)(net)


@functools.cache
def decoder(**settings):
    model = llama_files.tiny(**settings)
    return model, js.trace(model, {"params": llama_files.params(model)}, IDS)


def is_turned(net):
    return any(isinstance(one, TurnedCall) for one in calls_within(net.fn))


def close(a, b, most=1e-5):
    a, b = (np.asarray(x) for x in (a, b))
    assert np.abs(a - b).max() <= most * np.abs(b).max()


# widths of Sylvester, of Paley, and of neither
@pytest.mark.parametrize("settings", [{}, {"head_width": 12, "groups": 1}, {"head_width": 14}])
def test_a_stacked_decoder_computes_the_same(settings):
    net = decoder(**settings)[1]
    turned = scores(net)
    assert is_turned(turned)
    assert turned.sites == net.sites
    assert turned.unreached == net.unreached
    close(call(turned, IDS), call(net, IDS))


def test_a_decoder_s_cache_holds_turned_keys():
    (model, net), turned = decoder(), scores(decoder()[1])
    first, cache = call(turned, IDS[:, :13], model.cache(2, 16))
    second, cache = call(turned, IDS[:, 13:], cache)
    close(np.concatenate([first, second], 1), call(net, IDS))
    _, plain = call(net, IDS[:, :13], model.cache(2, 16))
    np.testing.assert_allclose(cache.keys[:, :, :13], turn(plain.keys, 4)[:, :, :13], atol=2e-5)
    np.testing.assert_allclose(cache.values[:, :, :13], plain.values[:, :, :13], atol=2e-5)
    assert np.abs(cache.keys - plain.keys).max() > 0.5


def rotary(x, places, base=100.0):
    d = x.shape[-1]
    angles = places[:, None] / base ** (np.arange(0, d, 2, dtype=np.float32) / d)
    cos, sin = (f(angles)[:, None] for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


HEADS, GROUPS, WIDTH, BASE = 4, 2, 8, 100.0


def attend(w, x, past=None, at=0):
    """Attention of unrolled layers: heads are repeated, and what is past is scattered into."""
    B, n, _ = x.shape
    q, k, v = ((x @ w[name]).reshape(B, n, -1, WIDTH) for name in ("query", "key", "value"))
    places = at + jnp.arange(n)
    q, k = rotary(q, places), rotary(k, places)
    allowed = places[:, None] >= jnp.arange(n)
    if past is not None:
        k, v = (old.at[:, places].set(new) for old, new in zip(past, (k, v), strict=True))
        allowed = places[:, None] >= jnp.arange(k.shape[1])
    many = [jnp.repeat(a, q.shape[2] // k.shape[2], 2) for a in (k, v)]
    s = jnp.einsum("bnhd,bshd->bhns", q, many[0]) * WIDTH**-0.5
    shares = jax.nn.softmax(jnp.where(allowed, s, -jnp.inf))
    return jnp.einsum("bhns,bshd->bnhd", shares, many[1]).reshape(B, n, -1) @ w["mix"], (k, v)


def layers(params, x, cache=None):
    kept = []
    for i, w in enumerate(params):
        past = None if cache is None else (cache["keys"][i], cache["values"][i])
        y, new = attend(w, x, past, 0 if cache is None else cache["length"])
        x = x + y
        kept.append(new)
    if cache is None:
        return x
    keys, values = (jnp.stack(each) for each in zip(*kept, strict=True))
    return x, {"keys": keys, "values": values, "length": cache["length"] + x.shape[1]}


X = normal(2, 9, 16, seed=4)


def weights(layers=2, loud=1.0):
    def one(i):
        w = {
            "query": normal(16, HEADS * WIDTH, seed=9 * i),
            "key": normal(16, GROUPS * WIDTH, seed=9 * i + 1),
            "value": normal(16, GROUPS * WIDTH, seed=9 * i + 2),
            "mix": normal(HEADS * WIDTH, 16, seed=9 * i + 3),
        }
        large = np.ones(WIDTH, np.float32)
        large[3] = loud
        w["key"] = w["key"] * np.tile(large, GROUPS)
        return {name: jnp.asarray(a) for name, a in w.items()}

    return [one(i) for i in range(layers)]


@functools.cache
def unrolled(layers_=2, loud=1.0):
    return js.trace(layers, weights(layers_, loud), X)


@functools.cache
def unrolled_turned(layers_=2, loud=1.0):
    return scores(unrolled(layers_, loud), X)


def empty():
    zeros = jnp.zeros((2, 2, 12, GROUPS, WIDTH))
    return {"keys": zeros, "values": zeros, "length": jnp.int32(0)}


def test_unrolled_layers_whose_cache_is_scattered_into_compute_the_same():
    net, turned = unrolled(), unrolled_turned()
    exact, cache = call(net, X), empty()
    close(call(turned, X), exact)
    read = []
    for part in (slice(0, 8), slice(8, 9)):
        y, cache = call(turned, X[:, part], cache)
        read.append(y)
    close(np.concatenate(read, 1), exact)
    _, plain = call(net, X, empty())
    np.testing.assert_allclose(cache["keys"], turn(plain["keys"], 4), atol=1e-5)


def carried(params, x, cache):
    """Layers of a scan that hands all layers' caches on, and memories that are no tokens."""

    def layer(carry, inputs):
        (x, keys), (w, i) = carry, inputs
        n = x.shape[1]
        new = jnp.tanh(x @ w["k"])
        keys = lax.dynamic_update_slice(keys, new[None], (i, 0, cache["length"], 0))
        held = lax.dynamic_index_in_dim(keys, i, 0, keepdims=False)
        held = jnp.concatenate([jnp.broadcast_to(w["memory"], (x.shape[0], 3, 4)), held], 1)
        places = jnp.concatenate([jnp.full(3, -1), jnp.arange(keys.shape[2])])
        s = jnp.tanh(x @ w["q"]) @ held.mT * 4
        s = jnp.where(cache["length"] + jnp.arange(n)[:, None] >= places, s, -jnp.inf)
        # what is mixed is of places alone, and an activation all the same
        values = jnp.sin(places[:, None] * w["v"] + 0 * cache["length"])
        return (x + jax.nn.softmax(s) @ values, keys), None

    (x, keys), _ = lax.scan(layer, (x, cache["keys"]), (params, jnp.arange(2)))
    return x, {"keys": keys, "length": cache["length"] + x.shape[1]}


def test_a_cache_that_a_scan_carries_holds_turned_keys_beside_parameters():
    shapes = {"q": (4, 4), "k": (4, 4), "v": (4,), "memory": (3, 4)}
    params = {n: normal(2, *shape, seed=i) for i, (n, shape) in enumerate(shapes.items())}
    cache = {"keys": jnp.zeros((2, 2, 6, 4)), "length": jnp.int32(0)}
    x = X[:, :6, :4]
    net = js.trace(carried, params, x, cache)
    turned = scores(net, x, cache)
    exact, plain = call(net, x, cache)
    for part in (slice(0, 5), slice(5, 6)):
        y, cache = call(turned, x[:, part], cache)
        close(y, exact[:, part])
    np.testing.assert_allclose(cache["keys"], turn(plain["keys"], 3), atol=1e-5)


def test_keys_that_are_given_and_not_returned_are_turned_where_they_are_multiplied():
    def fn(p, x, keys):
        return jax.nn.softmax(jnp.tanh(x @ p) @ keys.mT * 4) @ jnp.sin(keys)

    x, keys = X[:, :3, :4], normal(2, 7, 4, seed=8)
    net = js.trace(fn, normal(4, 4, seed=7), x, keys)
    close(call(scores(net, x, keys), x, keys), call(net, x, keys))


def vectors(bits, sites="dynamic/0"):
    """Queries and keys on levels of their own vectors."""
    return js.quantize(js.Grid(bits, per="channel"), js.Grid(bits, per="token"), sites=sites)


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("bits", [4, None])
def test_attention_is_that_of_numpy(bits, turned):
    net = unrolled_turned(1) if turned else unrolled(1)
    net = net if bits is None else vectors(bits)(net)
    w = {name: np.float64(a) for name, a in unrolled(1).params[0].items()}
    shape = {"heads": HEADS, "groups": GROUPS, "base": BASE}
    found = np.asarray(call(net, X))
    for x, y in zip(np.float64(X), found, strict=True):
        expected = x + oracle.attention(x, w, **shape, bits=bits, turned=turned)
        np.testing.assert_allclose(y, expected, atol=2e-5 if bits is None else 2e-4)
        if bits is not None:  # the known wrong way is seen
            wrong = x + oracle.attention(x, w, **shape, bits=bits, turned=not turned)
            assert np.abs(y - wrong).max() > 0.01


def test_keys_turned_alone_would_not_compute_the_same(monkeypatch):
    """The known wrong way, which the tolerance must see."""
    monkeypatch.setattr(turned_scores, "_both", lambda product: (product.keys,))
    y = jax.jit(lambda net, x: net(x))(scores(unrolled(), X), X)
    assert np.abs(y - call(unrolled(), X)).max() > 0.01


def test_operands_of_few_bits_lose_less_where_a_channel_of_keys_is_large():
    exact, errors = call(unrolled(1, 12.0), X), []
    for net in (unrolled(1, 12.0), unrolled_turned(1, 12.0)):
        errors.append([])
        for form in (vectors(4), js.quantize(js.Grid(4), 4, sites="dynamic/0")):
            chip = js.deploy(form(net), calibrate=X)
            errors[-1].append(np.square(call(chip, X) - exact).mean())
    assert np.all(np.array(errors[1]) < 0.6 * np.array(errors[0]))


def test_a_cache_in_codes_holds_codes_of_turned_keys_and_loses_less():
    """A large channel of each key is what one scale for a vector cannot hold."""
    form, errors = js.Grid(4, per="token"), []
    _, plain = call(unrolled(2, 12.0), X[:, :8], empty())
    plain = np.float64(plain["keys"][:, :, :8])
    for net, exact in (
        (unrolled(2, 12.0), plain),
        (unrolled_turned(2, 12.0), plain @ oracle.matrix(WIDTH)),
    ):
        chip = js.code_cache(form, first=0, latest=0)(net)
        _, cache = call(chip, X[:, :8], empty())
        held = chip.fn._decoded(cache["keys"])[:, :, :8]
        # a number between two levels may go over to the other
        assert np.mean(np.abs(held - oracle.rounded(exact, 4)) > 1e-3) < 0.01
        errors.append(np.square(held - exact).mean())
    assert errors[1] < 0.6 * errors[0]


def test_codes_of_any_format_follow():
    """Blocks of 32 along the heads, and a chip that is deployed and read again."""
    model, net = decoder(head_width=32, heads=2, groups=1)
    turned, exact = scores(net), call(net, IDS)
    chip = js.quantize(js.mx("int8"), js.mx("int8"), sites="dynamic/0")(turned)
    y = call(chip, IDS)
    off = np.sqrt(np.square(y - exact).mean() / np.square(exact).mean())
    assert 0 < off < 0.05
    chip = js.code_cache(js.nvfp4(), first=1, latest=2)(chip)
    assert js.language.generate(chip, IDS[:1, :6], model.cache(1, 12), count=3).shape == (1, 3)


def test_a_chip_with_turned_scores_is_loaded_again(tmp_path):
    net = js.quantize(8, 8, sites=["layers/*", "dynamic*"])(scores(decoder()[1]))
    chip = js.deploy(net, calibrate=IDS)
    js.save(tmp_path / "chip", chip)
    again = js.load(tmp_path / "chip", like=net)
    np.testing.assert_array_equal(call(again, IDS), call(chip, IDS))
    plain = js.quantize(8, 8, sites=["layers/*", "dynamic*"])(decoder()[1])
    with pytest.raises(ValueError, match="it has queries and keys turned at dynamic/0"):
        js.load(tmp_path / "chip", like=plain)


def test_two_networks_share_a_program():
    first, other = scores(decoder()[1]), scores(decoder()[1])
    before = call(first, IDS)
    count = call._cache_size()
    np.testing.assert_array_equal(call(other, IDS), before)
    assert call._cache_size() == count


class Vit(nn.Module):
    """Attention of Flax, unrolled, its queries and keys normalized or not."""

    normalized: bool = False
    decode: bool = False

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            y = nn.MultiHeadDotProductAttention(
                3, qkv_features=24, normalize_qk=self.normalized, decode=self.decode
            )
            x = x + y(nn.LayerNorm()(x))
        return x


def vit(**settings):
    model, x = Vit(**settings), normal(2, 5, 12)
    return js.trace(model, jax.jit(model.init)(jax.random.key(0), x), x), x


def test_parameters_are_turned_where_nothing_stands_between():
    net, x = vit()
    turned = scores(net, x)
    assert not is_turned(turned)
    close(call(turned, x), call(net, x))
    for i in range(2):
        new, old = (n.params[f"MultiHeadDotProductAttention_{i}"] for n in (turned, net))
        for name in ("query", "key"):
            whole, was = (np.float64(p[name]["kernel"]) for p in (new, old))
            q = np.linalg.lstsq(was.reshape(-1, 8), whole.reshape(-1, 8), rcond=None)[0]
            np.testing.assert_allclose(np.abs(q), 8**-0.5, rtol=1e-4)  # Hadamard's, of all heads
            np.testing.assert_allclose(was @ q, whole, atol=1e-5)
        np.testing.assert_array_equal(new["value"]["kernel"], old["value"]["kernel"])


def test_a_norm_between_is_left_where_it_is():
    net, x = vit(normalized=True)
    turned = scores(net, x)
    assert is_turned(turned)
    jax.tree.map(np.testing.assert_array_equal, turned.params, net.params)
    close(call(turned, x), call(net, x))


def test_a_cache_that_the_module_keeps_holds_turned_keys():
    model, tokens = Vit(normalized=True, decode=True), normal(2, 6, 12)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    one = tokens[:, :1]
    net = js.trace(model, variables, one, mutable=["cache"])
    turned, read = scores(net, one), []
    for each in (net, turned):
        read.append([])
        for i in range(6):
            y, changed = call(each, tokens[:, i : i + 1])
            each = each.with_state(changed)
            read[-1].append(y)
        read[-1] = np.concatenate(read[-1], 1)
        kept = each.buffers["cache"]["MultiHeadDotProductAttention_0"]["cached_key"]
    close(read[1], read[0])
    with pytest.raises(ValueError, match="holds keys that are not turned; begin with an empty"):
        scores(net.with_state(changed), one)
    assert np.abs(kept).max() > 0


def test_all_rotations_at_once():
    net = decoder()[1]
    found = js.rotate(IDS[:1], KEY, online="*down*", scores=True)(net)
    close(call(found, IDS), call(net, IDS))
    value, was = (n.params["layers"]["attention"]["value"]["kernel"] for n in (found, net))
    assert np.abs(value - was).max() > 0.01
    assert is_turned(found)
    form = js.quantize(js.Grid(4, per="channel"), js.Grid(4, per="token"), sites="layers/*")
    learned = js.rotate([IDS], KEY, scores=True, learn_for=form, steps=1)(net)
    close(call(learned, IDS), call(net, IDS))


EXITS = js.exit_early(2, output=lambda logits: logits[:, -1])


def test_stages_and_pipelines_follow():
    for cut in (js.pipeline_shard(2, 2, devices=[jax.devices()[0]] * 2), EXITS):
        found = [jax.tree.leaves(cut(net)(IDS)) for net in (scores(decoder()[1]), decoder()[1])]
        for y, exact in zip(*found, strict=True):
            close(y, exact)


def test_a_shrunk_decoder_keeps_its_scores():
    net = decoder()[1]
    turned = scores(net)
    small, less = (js.shrink(0.5)(n) for n in (turned, net))
    assert [s.w_shape for s in small.sites] == [s.w_shape for s in less.sites]
    close(call(small, IDS), call(less, IDS))


def test_an_accelerator_counts_the_turns():
    chip, plain = js.accelerators.systolic_45nm(), decoder()[1]
    counts = []
    for net in (plain, scores(plain)):
        found = js.estimate(net, chip, IDS)
        counts.append({name: spent.energy for name, spent in found.rest.items()})
    more = {name for name in counts[1] if counts[1][name] != counts[0].get(name)}
    assert "dot_general" in more
    assert counts[1]["dot_general"] > counts[0].get("dot_general", 0)


def test_an_nnx_module_is_turned():
    class Mix(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(normal(4, 24, seed=3))

        def __call__(self, x):
            q, k, v = jnp.split(x @ self.w[...], 3, -1)
            q, k = jnp.tanh(q), jnp.tanh(k)
            return jax.nn.softmax(q @ k.mT) @ v

    x = normal(2, 5, 4)
    net = js.trace(Mix(nnx.Rngs(0)), x)
    turned = scores(net, x)
    assert is_turned(turned)
    close(call(turned, x), call(net, x))


def cached(keep, params, x, cache):
    """A cache of keys, and something else that is computed of them."""
    keys = lax.dynamic_update_slice_in_dim(cache["keys"], jnp.tanh(x @ params["k"]), 0, 1)
    y = jax.nn.softmax(jnp.tanh(x @ params["q"]) @ keys.mT) @ (
        jnp.sin(x).sum(1, keepdims=True) + 0 * cache["more"]
    )
    return y, {"keys": keys, "more": keep(keys, x)}


def with_more(keep):
    params = {name: normal(4, 4, seed=i) for i, name in enumerate("qk")}
    cache = {"keys": jnp.zeros((2, 8, 4)), "more": jnp.zeros((2, 8, 4))}
    return js.trace(functools.partial(cached, keep), params, X[:, :3, :4], cache)


def steps_over_tokens(params, x, keys):
    """A scan over tokens, each of which attends to those before and is put behind them then."""

    def token(keys, inputs):
        x, i = inputs
        s = jnp.tanh(x @ params["q"])[:, None] @ keys.mT * 4
        s = jnp.where(jnp.arange(keys.shape[1]) <= i, s, -jnp.inf)
        y = jax.nn.softmax(s) @ (jnp.sin(jnp.arange(keys.shape[1])[:, None]) + 0 * x[:, :1, None])
        new = jnp.tanh(x @ params["k"])[:, None]
        return lax.dynamic_update_slice_in_dim(keys, new, i + 1, 1), y

    keys, y = lax.scan(token, keys, (x.swapaxes(0, 1), jnp.arange(x.shape[1])))
    return y, keys


def test_keys_that_are_cached_behind_their_product_are_turned_too():
    params = {name: normal(4, 4, seed=i) for i, name in enumerate("qk")}
    x, keys = X[:, :6, :4], jnp.zeros((2, 8, 4))
    net = js.trace(steps_over_tokens, params, x, keys)
    (y, kept), (exact, plain) = (call(n, x, keys) for n in (scores(net, x, keys), net))
    close(y, exact)
    np.testing.assert_allclose(kept, turn(plain, 2), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: js.rotate(IDS, KEY, scores="all"), "scores='all': must be True or False"),
        (lambda: js.rotate(OTHER_IDS, KEY, scores=True)(residual()), "no attention"),
        (lambda: scores(js.code_cache(4)(decoder()[1])), "put it before code_cache"),
        (lambda: scores(scores(decoder()[1])), "turned already"),
        (
            lambda: scores(EXITS(decoder()[1])),
            "rotate cannot follow exit_early",
        ),
        (
            lambda: scores(with_more(lambda keys, x: jnp.square(keys)), X[:, :3, :4]),
            "before they are cached: square .* reads them too",
        ),
        (
            lambda: scores(with_more(lambda keys, x: keys[:, :3] + jnp.sin(x)), X[:, :3, :4]),
            "before they are cached: add .* reads them too, or puts others beside them",
        ),
        (lambda: js.rotate(IDS, KEY, groups=())(decoder()[1]), "no site reads channels"),
        (lambda: js.code_cache(4)(js.code_cache(4)(decoder()[1])), "stored already"),
    ],
)
def test_what_cannot_be_turned_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_call_without_the_product_is_refused():
    turned = scores(unrolled(1), X)
    names = tuple((name.replace("0", "7"), at) for name, at in turned.fn.keys)
    fn = TurnedCall(turned.fn.call, names, turned.example, turned.weights)
    with pytest.raises(ValueError, match="this call has no product dynamic/7"):
        fn(turned.params, turned.buffers, X)
