"""Tokens that leave early: beside a decoder in NumPy, and beside one without exits."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.evaluate.language import (
    early,
    exit_threshold,
    generate,
    score,
    score_early,
    write_early,
)
from jaxsim.models.llama.decoder import rotate, rotation_of
from tests.oracles import token_exits
from tests.support import llama_files

MODEL = llama_files.tiny(layers=4)
PROMPT = np.random.default_rng(3).integers(0, 96, (2, 4))
TEXT = np.random.default_rng(4).integers(0, 96, (5, 9))
COUNT, AFTER = 10, (1, 3)
# Between the confidences of this decoder, so that some tokens leave and others do not.
SOME = {"gap": 0.03, "similarity": 0.6}


@functools.cache
def net():
    return js.trace(MODEL, {"params": llama_files.params(MODEL)}, PROMPT)


def reader():
    return token_exits.Reader(
        llama_files.tensors(MODEL),
        layers=4,
        heads=MODEL.heads,
        groups=MODEL.groups,
        base=MODEL.base,
        epsilon=MODEL.epsilon,
    )


def write(which=None, rows=slice(None), *, count=COUNT, after=AFTER, **rule):
    which = net() if which is None else which
    cache = MODEL.cache(len(PROMPT[rows]), 4 + count)
    return write_early(which, PROMPT[rows], cache, count=count, after=after, **rule)


@functools.cache
def alone(end=None):
    return generate(net(), PROMPT, MODEL.cache(2, 4 + COUNT), count=COUNT, end=end)


@pytest.mark.parametrize("confidence", ["gap", "similarity"])
def test_texts_are_those_of_a_decoder_in_numpy(confidence):
    found = write(threshold=SOME[confidence], confidence=confidence)
    rule = {"after": AFTER, "threshold": SOME[confidence], "confidence": confidence}
    for row, prompt in enumerate(PROMPT):
        tokens, layers = token_exits.written(reader(), prompt, COUNT, **rule)
        assert found.tokens[row].tolist() == tokens
        assert found.layers[row].tolist() == layers
    assert {*found.layers[:, 1:].ravel()} == ({1, 3, 4} if confidence == "gap" else {3, 4})
    assert (found.tokens != alone()).any()  # what leaves early is not what would have come


def test_a_threshold_falls_over_the_text():
    found = write(threshold=0.02, decay=3.0, rows=slice(0, 1))
    falling = 0.9 * 0.02 + 0.1 * np.exp(-3.0 * np.arange(COUNT) / COUNT)
    tokens, layers = token_exits.written(
        reader(), PROMPT[0], COUNT, after=AFTER, thresholds=falling
    )
    assert (found.tokens[0].tolist(), found.layers[0].tolist()) == (tokens, layers)
    assert layers != write(threshold=0.02, rows=slice(0, 1)).layers[0].tolist()


@pytest.mark.parametrize("confidence", ["gap", "similarity"])
def test_never_is_greedy_and_zero_is_the_first_exit(confidence):
    found = write(threshold=math.inf, confidence=confidence)
    np.testing.assert_array_equal(found.tokens, alone())
    assert (found.layers == 4).all()
    early = write(threshold=0.0, confidence=confidence)
    assert (early.layers[:, 1:] == 1).all()
    assert early.flops < 0.6 * early.whole
    if confidence == "similarity":  # it takes no head
        assert found.flops == found.whole


def test_masked_rows_are_read_as_they_are_written():
    found = write(threshold=SOME["gap"])
    text = np.concatenate([PROMPT, found.tokens], 1)
    read = score_early(net(), text, cache=MODEL.cache, after=AFTER, threshold=SOME["gap"], prompt=4)
    np.testing.assert_array_equal(read.scores.choices, found.tokens[:, 1:])
    np.testing.assert_array_equal(read.layers, found.layers[:, 1:])
    assert read.flops == pytest.approx(found.flops)
    assert read.whole == found.whole


def test_scores_without_an_exit_are_those_of_the_network():
    read = score_early(net(), TEXT, cache=MODEL.cache, after=[2], threshold=math.inf, batch_size=5)
    plain = score(net(), TEXT, batch_size=5)
    np.testing.assert_allclose(read.scores.losses, plain.losses[:, 1:], atol=1e-5)
    np.testing.assert_array_equal(read.scores.choices, plain.choices[:, 1:])


def test_costs_are_counted_by_hand():
    d, k, g, h, V = 32, 8, 2, 64, 96
    found = write(threshold=0.0, count=4)
    filled = 2 * d * 2 * g * k  # keys and values of a layer
    layer = filled + 2 * d * 2 * d + 3 * 2 * d * h + 2 * 2 * 8 * d  # mixing, perceptron, attention
    assert found.whole == pytest.approx(4 * layer + 2 * d * V, rel=0.15)
    assert found.flops == pytest.approx(layer + 3 * filled + 2 * d * V, rel=0.15)


def test_one_program_for_all_thresholds():
    for threshold in (0.1, 0.2, jnp.float32(0.3)):
        write(threshold=threshold, decay=float(threshold))
    before = early._write._cache_size()
    write(threshold=0.7, decay=0.1)
    assert early._write._cache_size() == before


def test_rows_end_with_their_end():
    end = int(alone()[0, 5])
    found = write(threshold=math.inf, end=end)
    np.testing.assert_array_equal(found.tokens, alone(end))


def unrolled(params, ids, cache=None):
    """The same decoder, its layers one after the other, each with its arrays in the cache."""
    B, n = ids.shape
    x = params["embedding"][ids]
    length = 0 if cache is None else cache["length"]
    places = length + jnp.arange(n)
    seen = n if cache is None else cache["keys"][0].shape[1]
    allowed = places[:, None] >= jnp.arange(seen)
    turn = rotation_of(places, 8, MODEL.base)
    new = {"keys": [], "values": [], "length": length + n}

    def norm(x, scale):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + MODEL.epsilon) * scale

    for i, layer in enumerate(params["layers"]):
        w = {name: p["kernel"] for name, p in layer["attention"].items()}
        h = norm(x, layer["attention_norm"]["scale"])
        q = rotate((h @ w["query"]).reshape(B, n, 4, 8), turn).reshape(B, n, 2, 2, 8)
        k = rotate((h @ w["key"]).reshape(B, n, 2, 8), turn)
        v = (h @ w["value"]).reshape(B, n, 2, 8)
        if cache is not None:
            at = (0, length, 0, 0)
            k = jax.lax.dynamic_update_slice(cache["keys"][i], k, at)
            v = jax.lax.dynamic_update_slice(cache["values"][i], v, at)
            new["keys"].append(k)
            new["values"].append(v)
        scores = jnp.einsum("bngrk,bsgk->bgrns", q, k) * 8**-0.5
        shares = jax.nn.softmax(jnp.where(allowed, scores, -1e9))
        x = x + jnp.einsum("bgrns,bsgk->bngrk", shares, v).reshape(B, n, -1) @ w["mix"]
        w = {name: p["kernel"] for name, p in layer["feed_forward"].items()}
        h = norm(x, layer["feed_forward_norm"]["scale"])
        x = x + (jax.nn.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"]
    logits = norm(x, params["norm"]["scale"]) @ params["embedding"].T
    return logits if cache is None else (logits, new)


def test_layers_that_follow_one_another_are_found_too():
    params = llama_files.params(MODEL)
    layers = [jax.tree.map(lambda a, i=i: a[i], params["layers"]) for i in range(4)]
    other = js.trace(unrolled, jax.tree.map(jnp.asarray, {**params, "layers": layers}), PROMPT)
    empty = [jnp.zeros((2, 4 + COUNT, 2, 8))] * 4
    cache = {"keys": empty, "values": empty, "length": jnp.int32(0)}
    given = {"count": COUNT, "after": AFTER, "threshold": SOME["gap"]}
    found, stacked = write_early(other, PROMPT, cache, **given), write(threshold=SOME["gap"])
    np.testing.assert_array_equal(found.tokens, stacked.tokens)
    np.testing.assert_array_equal(found.layers, stacked.layers)
    assert found.flops == pytest.approx(stacked.flops, rel=0.1)


@pytest.mark.parametrize(
    "transform",
    [
        js.compose(js.quantize(js.Grid(6, per="channel"), js.Grid(8, per="token"))),
        js.code_cache(js.Grid(4, per="token"), first=1, latest=2),
        js.prune(0.3),
    ],
    ids=["codes", "coded cache", "pruned"],
)
def test_chips_are_left_as_they_write(transform):
    chip = transform(net())
    chip = js.deploy(chip, keep_floats=False) if chip.cores else chip
    expected = generate(chip, PROMPT, MODEL.cache(2, 4 + COUNT), count=COUNT)
    np.testing.assert_array_equal(write(chip, threshold=math.inf).tokens, expected)
    assert (write(chip, threshold=0.0).layers[:, 1:] == 1).all()


def test_a_threshold_keeps_its_promise_or_is_infinite():
    given = {"cache": MODEL.cache, "after": AFTER, "agreement": 0.2, "risk": 0.2, "steps": 4}
    found = exit_threshold(net(), np.tile(TEXT, (4, 1)), batch_size=20, **given)
    assert 0 < found.threshold < 1
    assert [p <= 0.2 for _, p in found.tried[:-1]] == [True] * (len(found.tried) - 1)
    assert found.agreement >= 0.2
    assert found.layers < 4
    strict = exit_threshold(net(), TEXT, **{**given, "agreement": 0.99})
    assert strict.threshold == math.inf
    assert len(strict.tried) == 1


def test_p_values_are_small_as_often_as_they_say():
    draws = np.random.default_rng(0)
    for most, W in ((0.1, 40), (0.3, 15)):
        values = [early._p_value(draws.random(W) < most, most) for _ in range(400)]
        assert np.mean(np.array(values) <= 0.1) <= 0.1
        low = [early._p_value(draws.random(W) < most / 10, most) for _ in range(100)]
        assert np.mean(low) < 0.2
    assert early._p_value(np.zeros(50), 0.1) == pytest.approx(0.9**50)  # of no loss at all


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"threshold": -1.0}, "threshold=-1.0: must be at least 0"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"threshold": 0.5, "after": [4]}, "after=4"),
        ({"threshold": 0.5, "after": [3, 1]}, "after=[3, 1]: must be rising"),
        ({"threshold": 0.5, "after": []}, "after=[]: must be numbers of layers"),
        ({"threshold": 0.5, "after": 2}, "after=2: must be numbers of layers"),
        ({"threshold": 0.5, "confidence": "taste"}, "confidence='taste': must be 'gap' or"),
        ({"threshold": 0.5, "decay": -1.0}, "decay=-1.0"),
        ({"threshold": 0.5, "count": 0}, "count=0"),
    ],
)
def test_what_cannot_be_is_refused(given, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        write(**given)


def test_networks_without_layers_are_refused():
    def table(p, ids, cache):
        return p["a"][ids] @ p["b"], {"length": cache["length"] + ids.shape[1]}

    params = {"a": jnp.ones((9, 4)), "b": jnp.ones((4, 9))}
    cache = {"length": jnp.int32(0)}
    flat = js.trace(table, params, PROMPT % 9, cache)
    with pytest.raises(ValueError, match="made by a head behind layers"):
        write_early(flat, PROMPT % 9, cache, count=3, after=[1], threshold=0.5)
    cut = js.pipeline_shard(2, 1, devices=jax.devices()[:1] * 2)(net())
    with pytest.raises(ValueError, match="write_early cannot follow pipeline_shard"):
        write(cut, threshold=0.5)
