"""Tokens are scaled where layers end, in transformers of every kind, as row by row in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.staged import soften as softening
from jaxsim.staged.soften import Scaled, soft_stages
from tests.oracles import pyramid as bert_oracle
from tests.oracles import tokens as oracle
from tests.support import encoders
from tests.support.architectures import kit
from tests.support.architectures.catalog import ARCHITECTURES
from tests.support.models import normal
from tests.support.transformers import KINDS, inputs, network, params, present

LEVEL = np.array([0.08, 0.1, 0.13])
soften = jax.jit(lambda net, *args, t: net.soften(*args, temperature=t))


def with_level(net, level):
    return dataclasses.replace(net, tokens=dataclasses.replace(net.tokens, level=level))


def options(name):
    return {"protect_last": 1} if KINDS[name].pool == "last" else {}


def rows(name, temperature=0.03, **more):
    """Logits [B, C], shares [A] and tokens behind the layers of each row, from the oracle."""
    ids, *lengths = inputs(KINDS[name])
    each = np.asarray(lengths[0]) if lengths else [None] * len(ids)
    found = [
        oracle.soft_row(KINDS[name], params(), i, LEVEL, temperature, length=n, **more)
        for i, n in zip(ids, each, strict=True)
    ]
    masks = [np.concatenate([masks[i] for _, masks, _ in found]) for i in range(3)]
    return np.stack([y for y, *_ in found]), [m.mean() for m in masks], [s for *_, s in found]


@pytest.mark.parametrize("name", KINDS)
def test_layers_end_with_tokens_scaled_by_how_far_they_lie_above_the_level(name):
    net = js.prune_tokens(LEVEL, **options(name))(network(name))
    found = soften(net, *inputs(KINDS[name]), t=0.03)
    logits, shares, _ = rows(name, **options(name))
    most = np.abs(logits).max()
    np.testing.assert_allclose(found.logits[:, 0], logits, rtol=0, atol=2e-5 * most)
    np.testing.assert_allclose(found.shares, shares, rtol=1e-5)
    # scaled in front of the perceptron instead, where tokens leave, it would be another network
    wrong, *_ = rows(name, early=True, **options(name))
    if KINDS[name].pool in ("first", "last"):  # what the last layer scales is read by nothing
        assert np.abs(wrong - logits).max() > 1e-3 * most
    else:
        assert np.abs(wrong - logits).max() > 1e-2 * most


def test_a_bert_whose_rows_say_what_they_hold_is_the_float64_one():
    """Norms behind the sums; two tokens are protected, and padding may hold anything."""
    ids, lengths = encoders.sequences(6)
    levels = np.float32([0.03, 0.05, 0.06])
    whole = js.trace(encoders.MODEL, {"params": encoders.params()}, ids, lengths)
    net = js.prune_tokens(levels, protect=2, present=present)(whole)
    found = soften(net, ids, lengths, t=0.02)
    expected = [
        bert_oracle.soften(encoders.params(), 2, row[:n], levels, 0.02, protect=2)
        for row, n in zip(ids, lengths, strict=True)
    ]
    logits = np.stack([y for y, _ in expected])
    np.testing.assert_allclose(found.logits[:, 0], logits, atol=2e-4)
    shares = [np.concatenate([masks[i] for _, masks in expected]).mean() for i in range(3)]
    np.testing.assert_allclose(found.shares, shares, rtol=1e-5)


def test_exits_read_the_tokens_that_are_scaled():
    """With a classifier between attention and perceptron too, in front of what scales."""
    ids, lengths = inputs(KINDS["bert"])
    heads = tuple({"kernel": normal(8, 3, seed=i), "bias": jnp.zeros(3)} for i in range(3))
    net = js.exit_early(["layers/0/up", "layers/1/q", "layers/2/q"])(network("bert"))
    net = dataclasses.replace(net, heads=heads)
    net = js.prune_tokens(LEVEL, present=present)(net)
    found = soften(net, ids, lengths, t=0.03)
    logits, _, states = rows("bert")
    assert found.logits.shape == (5, 4, 3)
    np.testing.assert_allclose(found.logits[:, -1], logits, atol=2e-5 * np.abs(logits).max())
    for i in (0, 1):
        read = np.stack([s[i].mean(0) for s in states]) @ np.asarray(heads[i + 1]["kernel"], float)
        np.testing.assert_allclose(found.logits[:, i + 1], read, atol=2e-5 * np.abs(read).max())
    first = jax.jit(lambda net: net.exit_logits(ids, lengths)[:, 0])
    whole = with_level(net, jnp.zeros(3))
    np.testing.assert_allclose(found.logits[:, 0], first(whole), atol=1e-5)


@pytest.mark.parametrize("name", ["vit, mean", "scanned bert"])
def test_the_gradient_of_levels_is_that_of_differences_in_float64(name):
    with jax.enable_x64(True):
        kind = KINDS[name]
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), network(name))
        args = inputs(kind)
        net = with_level(js.prune_tokens(0.1)(wide), jnp.asarray(LEVEL))

        @jax.jit
        def loss(level):
            found = with_level(net, level).soften(*args, temperature=0.03)
            return jnp.sum(found.logits**2) + jnp.sum(found.shares)

        slope = jax.grad(loss)(net.tokens.level)
        assert slope.dtype == jnp.float64
        for i, step in enumerate(1e-6 * np.eye(3)):
            difference = (loss(LEVEL + step) - loss(LEVEL - step)) / 2e-6
            np.testing.assert_allclose(slope[i], difference, rtol=1e-6)
            assert abs(slope[i]) > 1e-2


def test_tokens_that_leave_give_levels_no_gradient():
    net, args = js.prune_tokens(LEVEL)(network("vit")), inputs(KINDS["vit"])
    assert not np.any(jax.grad(lambda level: jnp.sum(with_level(net, level)(*args)))(LEVEL))


def test_levels_and_temperatures_compile_once():
    net, args = js.prune_tokens(LEVEL, protect=3)(network("vit")), inputs(KINDS["vit"])
    before = softening._soften._cache_size()
    for level, temperature in (
        (LEVEL, 0.1),
        (2 * LEVEL, np.float32(0.01)),
        (LEVEL, jnp.array(0.3)),
    ):
        with_level(net, jnp.float32(level)).soften(*args, temperature=temperature)
    assert softening._soften._cache_size() == before + 1


@pytest.mark.parametrize(
    ("library", "name", "output"),
    [
        ("linen", "switch", lambda y: y[:, -1]),
        ("linen", "perceiver", None),
        ("nnx_model", "whisper", lambda y: y[:, -1]),
    ],
)
def test_masks_far_above_their_level_are_the_model(library, name, output):
    """Experts, latents beside tokens, and an encoder that a decoder reads."""
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    args = architecture.inputs
    made = getattr(kit, library)(architecture.build, args)
    net = js.trace(*(made if isinstance(made, tuple) else (made,)), *args)
    exact = np.asarray((output or (lambda y: y))(net(*args)))
    net = js.prune_tokens(1e-9, protect_last=1, output=output)(net)
    found = soften(net, *args, t=1e-6)
    np.testing.assert_allclose(found.logits[:, 0], exact, atol=1e-5 * np.abs(exact).max())
    np.testing.assert_allclose(found.shares, 1, rtol=1e-6)


def test_a_decoder_reads_tokens_that_the_encoder_scaled():
    """The layer of the encoder ends where the decoder reads it, not with the decoder."""

    def model(p, x, y):
        scores = jnp.einsum("bqd,bkd->bqk", x @ p["q"], x)
        x = x + jax.nn.softmax(scores) @ (x @ p["v"])
        for _ in range(2):
            seen = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", y @ p["c"], x))
            y = y + seen @ (x @ p["o"])
        return jnp.sum(y, 1)

    x, y = normal(2, 5, 8, seed=6), normal(2, 3, 8, seed=7)
    p = {name: normal(8, 8, seed=i) for i, name in enumerate("qvco")}
    found = soften(js.prune_tokens(0.2)(js.trace(model, p, x, y)), x, y, t=0.1)
    scores = jnp.einsum("bqd,bkd->bqk", x @ p["q"], x)
    share = jax.nn.softmax(scores)
    mask = jax.nn.sigmoid((share.mean(1) - 0.2) / 0.1).at[:, 0].set(1)
    x = (x + share @ (x @ p["v"])) * mask[..., None]
    for _ in range(2):
        seen = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", y @ p["c"], x))
        y = y + seen @ (x @ p["o"])
    np.testing.assert_allclose(found.logits[:, 0], jnp.sum(y, 1), rtol=1e-4)


def test_two_values_that_leave_a_layer_are_both_scaled_and_integers_are_not():
    def model(p, x):
        scores = jnp.einsum("bqd,bkd->bqk", x @ p["q"], x)
        x = x + jax.nn.softmax(scores) @ (x @ p["v"])
        which = jnp.argmax(x, -1)
        x, z = x @ p["a"], x @ p["b"]
        return jnp.sum(x * z * which[..., None], 1) @ p["o"]

    x = normal(2, 5, 8, seed=6)
    p = {name: normal(8, 8, seed=i) for i, name in enumerate("qvabo")}
    net = js.prune_tokens(0.2)(js.trace(model, p, x))
    marks = soft_stages(net, net.arguments((x,), {}, None)).walk.keywords["marks"].of.values()
    (scaled,) = (mark for mark in marks if isinstance(mark, Scaled))
    assert scaled == ((0,), 0, 1)  # the one product of all, in front of the sum
    found = soften(net, x, t=0.1)
    share = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", x @ p["q"], x))
    mask = jax.nn.sigmoid((share.mean(1) - 0.2) / 0.1).at[:, 0].set(1)
    y = x + share @ (x @ p["v"])
    product = (y @ p["a"]) * (y @ p["b"]) * jnp.argmax(y, -1)[..., None]
    expected = jnp.sum(mask[..., None] * product, 1) @ p["o"]
    np.testing.assert_allclose(found.logits[:, 0], expected, rtol=1e-4)


def test_a_classifier_reads_what_crosses_its_cut_in_the_order_of_the_network():
    """Scaled tokens are made anew behind a gate that was made after them."""

    def model(p, x):
        gate = jnp.tanh(x[:, 0] @ p["g"])
        scores = jnp.einsum("bqd,bkd->bqk", x @ p["q"], x)
        x = x + jax.nn.softmax(scores) @ (x @ p["v"])
        gate = jnp.tanh(gate @ p["h"])
        wide = jnp.sum(x @ p["a"], 1)  # more bytes than cross before it: the layer ends there
        return (wide[:, :8] * wide[:, 8:] * gate) @ p["o"]

    x = normal(2, 5, 8, seed=6)
    p = {name: normal(8, 16 if name == "a" else 8, seed=i) for i, name in enumerate("gqvhao")}

    def feature(live, *_):
        return jnp.concatenate([live[0].mean(1), live[1]], 1)

    net = js.exit_early(["a"], feature=feature)(js.prune_tokens(0.2)(js.trace(model, p, x)))
    kernel = normal(16, 8, seed=9)
    net = dataclasses.replace(net, heads=({"kernel": kernel, "bias": jnp.zeros(8)},))
    share = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", x @ p["q"], x))
    mask = jax.nn.sigmoid((share.mean(1) - 0.2) / 0.1).at[:, 0].set(1)
    scaled = mask[..., None] * (x + share @ (x @ p["v"]))
    gate = jnp.tanh(jnp.tanh(x[:, 0] @ p["g"]) @ p["h"])
    expected = jnp.concatenate([scaled.mean(1), gate], 1) @ kernel
    found = soften(net, x, t=0.1)
    np.testing.assert_allclose(found.logits[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_a_quantized_network_is_softened_as_it_is():
    args = inputs(KINDS["bert"])
    chip = js.deploy(js.quantize(8, 8)(network("bert")), calibrate=args)
    found = soften(js.prune_tokens(1e-9, present=present)(chip), *args, t=1e-7)
    exact = chip(*args)
    np.testing.assert_allclose(found.logits[:, 0], exact, atol=2e-4)
    assert np.abs(exact - network("bert")(*args)).max() > 1e-2


def test_soft_masks_answer_in_the_floats_of_the_network():
    short = jax.tree.map(lambda a: a.astype(jnp.bfloat16), network("bert"))
    net = js.prune_tokens(0.1, present=present)(short)
    out = jax.eval_shape(lambda: net.soften(*inputs(KINDS["bert"]), temperature=1e-2))
    assert out.logits.dtype == jnp.bfloat16
    assert out.shares.dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "temperature", "said"),
    [
        (js.prune_tokens(0.1), 0.0, "temperature=0.0"),
        (js.prune_tokens(0.1), -1.0, "temperature=-1.0"),
        (js.prune_tokens(0.1, keeps=js.tokens.top), 0.1, "soft masks are of thresholds"),
        (js.exit_early(2), 0.1, "all its tokens stay"),
    ],
)
def test_what_has_no_soft_masks_is_refused_by_name(make, temperature, said):
    with pytest.raises(ValueError, match=said):
        make(network("vit")).soften(*inputs(KINDS["vit"]), temperature=temperature)


def test_a_layer_that_ends_with_pairs_of_tokens_is_refused():
    def model(p, x):
        x = x @ p["o"]
        pairs = jnp.tanh(x[:, :, None] + x[:, None])
        scores = jnp.einsum("bqd,bkd->bqk", x @ p["q"], x)
        x = x + jax.nn.softmax(scores) @ (x @ p["v"])
        return jnp.sum(jnp.max(pairs * x[:, None], 2), 1) @ p["o"]

    x = normal(2, 5, 8, seed=6)
    net = js.trace(model, {name: normal(8, 8, seed=i) for i, name in enumerate("qvo")}, x)
    pruned = js.prune_tokens(0.2)(net)
    with pytest.raises(ValueError, match=r"cannot scale the tokens behind dynamic/1: .* two axes"):
        pruned.soften(x, temperature=0.1)
