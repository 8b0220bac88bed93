"""Caches in codes, of stacked layers: what calls read, that codes stay, memory, refusals."""

import functools
import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsim as js
from jaxsim.formats.vectors import vector_form
from jaxsim.transforms.code_cache import CodedLeaf
from tests.oracles import cache as oracle
from tests.support import llama_files

MODEL = llama_files.MODEL
IDS = np.random.default_rng(2).integers(0, 96, (2, 14))
FORM = js.Grid(3, per="token")


@functools.cache
def net():
    return js.trace(MODEL, {"params": llama_files.params()}, IDS)


@jax.jit
def call(net, *inputs):
    return net(*inputs)


class Seen(NamedTuple):
    """A cache that keeps vectors as they come in."""

    keys: jax.Array
    length: jax.Array


def listening():
    """A network that puts vectors into a cache and returns as logits what it read before."""

    def run(params, x, cache=None):
        x = x @ params["w"]
        if cache is None:
            return x
        at = (0, 0, cache.length, 0, 0)
        keys = jax.lax.dynamic_update_slice(cache.keys, x[None, :, :, None], at)
        return cache.keys, Seen(keys, cache.length + x.shape[1])

    return js.trace(run, {"w": jnp.eye(8)}, jnp.ones((2, 1, 8)))


@pytest.mark.parametrize(("first", "latest"), [(0, 0), (1, 0), (0, 3), (2, 4), (20, 1)])
def test_each_call_reads_codes_of_all_but_the_first_and_the_latest(first, latest):
    steps, size = (5, 1, 1, 2, 1), 10
    vectors = np.random.default_rng(0).normal(size=(2, size, 8)).astype(np.float32)
    form = vector_form(FORM, 8)

    def stored(x):
        return np.asarray(form.decode(form.encode(jnp.asarray(x)))) if x.size else x

    expected = oracle.seen(vectors.swapaxes(0, 1), steps, stored, first, latest)
    chip = js.code_cache(FORM, first=first, latest=latest)(listening())
    cache = Seen(jnp.zeros((1, 2, size, 1, 8)), jnp.int32(0))
    at, read = 0, []
    for step in steps:
        before, cache = call(chip, vectors[:, at : at + step], cache)
        read.append(np.asarray(before)[0, :, :at, 0].swapaxes(0, 1))
        at += step
    for found, of_call in zip(read[1:], expected, strict=True):
        np.testing.assert_allclose(found, of_call, rtol=1e-6)
    if first + latest < 6:
        assert np.abs(read[-1] - vectors[:, : read[-1].shape[0]].swapaxes(0, 1)).max() > 0.01


def test_codes_stay_bit_by_bit_once_they_are_written():
    chip = js.code_cache(FORM, first=0, latest=1)(net())
    _, cache = call(chip, IDS[:, :6], MODEL.cache(2, 14))
    _, later = call(chip, IDS[:, 6:7], cache)
    kept = int(cache.keys.coded)
    assert (kept, int(later.keys.coded)) == (5, 6)
    for old, new in zip(
        jax.tree.leaves((cache.keys.codes, cache.values.codes)),
        jax.tree.leaves((later.keys.codes, later.values.codes)),
        strict=True,
    ):
        np.testing.assert_array_equal(old[:, :, :kept], new[:, :, :kept])


def test_nothing_changes_where_all_tokens_stay_floats():
    chip = js.code_cache(2, first=0, latest=14)(net())
    cache = coded = MODEL.cache(2, 14)
    for part in (slice(0, 9), slice(9, 10), slice(10, 14)):
        logits, cache = call(net(), IDS[:, part], cache)
        same, coded = call(chip, IDS[:, part], coded)
        np.testing.assert_array_equal(logits, same)
    np.testing.assert_array_equal(call(chip, IDS), call(net(), IDS))


@pytest.mark.parametrize("form", [js.mx("int8"), js.nvfp4(), js.BlockGrid("Q4_0"), 8])
def test_a_decoder_writes_with_codes_of_any_format(form):
    model = llama_files.tiny(head_width=32, heads=2, groups=1)
    ids = IDS[:1, :6]
    params = llama_files.params(model)
    plain = js.trace(model, {"params": params}, ids)
    chip = js.code_cache(form, first=1, latest=2)(plain)
    found = js.language.generate(chip, ids, model.cache(1, 16), count=8)
    whole, cache = np.concatenate([ids, found], 1), model.cache(1, 16)
    _, cache = call(chip, whole[:, :6], cache)
    for i in range(6, 13):
        logits, cache = call(chip, whole[:, i : i + 1], cache)
        assert int(jnp.argmax(logits[0, -1])) == whole[0, i + 1]
    exact, _ = call(plain, whole[:, :13], model.cache(1, 16))
    error = np.abs(exact[0, -1] - logits[0, -1]).max() / np.abs(exact[0, -1]).max()
    assert 0 < error < 0.3


def test_a_cache_takes_the_bits_of_its_format():
    model = MODEL.clone(context=256)
    chip = js.code_cache(js.Grid(4, per="token"), first=2, latest=6)(net())
    cache = model.cache(2, 200)
    after = jax.eval_shape(lambda: chip(IDS, cache))[1]
    vectors = 2 * 2 * 200 * 2  # layers, rows, tokens, groups; d = 8
    codes = vectors * (8 // 2 + 4)
    exact = 2 * 2 * 8 * 2 * 8 * 4
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(after.keys))
    assert size == codes + exact + 4
    assert isinstance(after.keys, CodedLeaf)
    assert after.keys.shape == cache.keys.shape


def test_a_cache_by_its_name_is_coded_too():
    chip = js.code_cache(4, latest=2)(net())
    place, name = call(chip, IDS, MODEL.cache(2, 14)), chip(IDS, cache=MODEL.cache(2, 14))
    assert isinstance(name[1].keys, CodedLeaf)
    np.testing.assert_allclose(name[0], place[0], rtol=1e-5, atol=1e-5)


class Attention(nn.Module):
    """Layers of Flax's own attention, whose cache is a collection."""

    decode: bool = True

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(20, 16)(ids)
        mask = None if self.decode else nn.make_causal_mask(ids)
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(2, decode=self.decode)(x, mask=mask)
        return nn.Dense(20)(x)


TOKENS = np.random.default_rng(1).integers(0, 20, (1, 9))


@functools.cache
def variables():
    return jax.jit(Attention().init)(jax.random.key(0), TOKENS)


def keeping():
    return js.trace(Attention(decode=False), variables(), TOKENS)


def keeping_nnx():
    class Counter(nnx.Module):
        def __init__(self):
            self.w, self.seen = nnx.Param(jnp.eye(4)), nnx.Cache(jnp.zeros(4))

        def __call__(self, x):
            return x @ self.w[...] + self.seen[...]

    return js.trace(Counter(), jnp.ones((2, 4)))


def test_the_collection_of_a_linen_module_is_coded_where_a_function_hands_it_on():
    """A length a layer, tokens along axis 1, and a name of one's own."""

    def call(params, ids, *, past=None):
        if past is None:
            return Attention(decode=False).apply({"params": params}, ids)
        state = {"params": params, "cache": past}
        logits, after = Attention().apply(state, ids, mutable=["cache"])
        return logits, after["cache"]

    net = js.trace(call, variables()["params"], TOKENS)
    chip = js.code_cache(8, first=1, latest=2, axis=1, name="past")(net)
    step = jax.jit(lambda net, ids, past: net(ids, past=past))
    exact = coded = variables()["cache"]
    for i in range(9):
        one, exact = step(net, TOKENS[:, i : i + 1], exact)
        other, coded = step(chip, TOKENS[:, i : i + 1], coded)
    layer = coded["MultiHeadDotProductAttention_1"]
    assert isinstance(layer["cached_key"], CodedLeaf)
    assert (int(layer["cache_index"]), int(layer["cached_key"].coded)) == (9, 7)
    np.testing.assert_allclose(one[:, 0], net(TOKENS)[:, -1], atol=1e-5)
    assert 0 < np.abs(one - other).max() < 0.02 * np.abs(one).max()


def test_a_cache_has_the_place_that_it_is_said_to_have():
    def call(params, cache, x):
        at = (0, 0, cache.length, 0, 0)
        keys = jax.lax.dynamic_update_slice(cache.keys, x[None, :, :, None], at)
        return cache.keys @ params["w"], Seen(keys, cache.length + x.shape[1])

    empty = Seen(jnp.zeros((1, 2, 3, 1, 8)), jnp.int32(0))
    net = js.trace(call, {"w": jnp.eye(8)}, empty, jnp.ones((2, 1, 8)))
    _, cache = js.code_cache(4, first=0, latest=0, place=0)(net)(empty, jnp.ones((2, 1, 8)))
    assert isinstance(cache.keys, CodedLeaf)


def test_it_composes_and_compiles_once():
    chip = js.deploy(js.compose(js.quantize(8, None), js.code_cache(4, latest=2))(net()))
    other = js.deploy(js.compose(js.code_cache(4, latest=2), js.quantize(8, None))(net()))
    step = jax.jit(lambda net, ids, cache: net(ids, cache))
    _, cache = step(chip, IDS[:, :5], MODEL.cache(2, 14))
    for i in range(5, 9):
        logits, cache = step(chip, IDS[:, i : i + 1], cache)
    assert step._cache_size() == 2
    _, cache = step(other, IDS[:, :5], MODEL.cache(2, 14))
    for i in range(5, 9):
        same, cache = step(other, IDS[:, i : i + 1], cache)
    np.testing.assert_array_equal(logits, same)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: js.code_cache(0), "form=0"),
        (lambda: js.code_cache("int8"), "form='int8': must be a Grid"),
        (lambda: js.code_cache(js.Grid(4)), "a vector has its own range"),
        (lambda: js.code_cache(4, first=-1), "first=-1"),
        (lambda: js.code_cache(4, latest=1.5), "latest=1.5"),
        (lambda: js.code_cache(4, axis=-1), "axis=-1"),
        (lambda: js.code_cache(4, place=-1), "place=-1"),
        (lambda: js.code_cache(4, name=3), "name=3: must be the name of an argument"),
        (lambda: js.code_cache(4)(keeping()), 'state of the module (the collection "cache")'),
        (lambda: js.code_cache(4)(keeping_nnx()), "state of the module (nnx.Cache at "),
        (lambda: js.code_cache(4)(js.code_cache(3)(net())), "stored already, as int3 symmetric"),
        (
            lambda: js.code_cache(4)(js.exit_early(2, output=lambda y: y[:, -1])(net())),
            "code_cache",
        ),
        (lambda: js.code_cache(4)(3), "code_cache takes"),
        (
            lambda: js.code_cache(js.mx())(net())(IDS, MODEL.cache(2)),
            "blocks of 32 do not divide vectors of 8 entries",
        ),
        (
            lambda: js.code_cache(4, axis=4)(net())(IDS, MODEL.cache(2)),
            "no floats [..., d] with tokens along axis=4",
        ),
        (lambda: refused(lambda w, x, cache: x @ w), "must return logits and the next cache"),
        (lambda: refused(lambda w, x, cache: (x @ w, x)), "must be of the form that went in"),
        (
            lambda: refused(lambda w, x, cache: (x @ w, cache), Seen(KEYS, jnp.zeros((3,), int))),
            "the cache has no whole number; must have one that is its length",
        ),
    ],
)
def test_what_cannot_be_coded_is_refused(make, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        make()


KEYS = jnp.zeros((1, 2, 3, 1, 8))


def refused(run, cache=Seen(KEYS, jnp.int32(0))):
    """Calls a model of one's own with a cache in codes."""
    x = jnp.ones((2, 1, 8))
    net = js.trace(lambda p, *inputs: run(p["w"], *inputs), {"w": jnp.eye(8)}, x, cache)
    js.code_cache(4)(net)(x, cache)
