"""Stages that run a row at a time, since what is known of their tokens differs by row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.models import normal

ROWS, TOKENS, WIDTH = 4, 6, 8
X = normal(ROWS, TOKENS, WIDTH, seed=1)
SCALE = jnp.array([0.5, 2.0, 1.0, 3.0])
BUCKETS = js.Buckets(batch=2, token=1, max_batch=2)


def model(p, x, scale, shift):
    """Attention biased by distance; the second layer reads a number of each row, and one of all."""
    distance = jnp.arange(TOKENS)[:, None] - jnp.arange(TOKENS) + TOKENS - 1
    for i, layer in enumerate(p["layers"]):
        scores = jnp.einsum("bqd,bkd->bqk", x @ layer["q"], x) + p["bias"][distance]
        x = x + jax.nn.softmax(scores) @ (x @ layer["v"])
        if i:
            x = x * scale[:, None, None] + shift
        x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
    return x.mean(1) @ p["out"]


def network():
    names = {"q": 8, "v": 8, "up": 12}
    layers = [
        {name: normal(WIDTH, n, seed=i) / 2 for name, n in names.items()}
        | {"down": normal(12, WIDTH, seed=i + 9) / 2}
        for i in (2, 3)
    ]
    p = {"layers": layers, "bias": normal(2 * TOKENS - 1, seed=4), "out": normal(WIDTH, 3, seed=5)}
    return js.trace(model, p, X, SCALE, jnp.float32(0.3))


def test_a_row_keeps_its_own_arguments_where_stages_run_one_by_one():
    args = (X, SCALE, jnp.float32(0.3))
    net = js.prune_tokens(np.array([0.15, 0.17]))(network())
    expected = net.simulate(*args)
    assert len({tuple(row) for row in np.asarray(expected.kept).tolist()}) > 1
    assert (np.asarray(expected.kept) < TOKENS).any()
    found = net.run(*args, buckets=BUCKETS)
    np.testing.assert_array_equal(found.kept, expected.kept)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=2e-5, atol=2e-5)
    others = net.run(X, SCALE[::-1], jnp.float32(0.3), buckets=BUCKETS)
    assert np.abs(others.logits - expected.logits).max() > 0.1


def test_a_network_that_nothing_leaves_has_no_logits_of_exits():
    args = (X, SCALE, jnp.float32(0.3))
    pipe = js.pipeline_shard(2, 2, devices=jax.devices()[:1] * 2)(network())
    with pytest.raises(ValueError, match=r"net: has no exits; js\.exit_early"):
        pipe.exit_logits(*args)
    bad = dataclasses.replace(js.exit_early(["layers/1/q"])(network()), patience=-1)
    with pytest.raises(ValueError, match="patience"):
        bad.exit_logits(*args)


def test_tokens_along_two_axes_of_a_value_are_not_merged():
    def pairs(p, x):
        seen = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", x @ p["q"], x))
        x = x + seen @ (x @ p["v"])
        x = x + seen @ jnp.tanh(x @ p["w"])  # the probabilities cross the cut before this site
        return x.mean(1) @ p["o"]

    p = {name: normal(WIDTH, 3 if name == "o" else WIDTH, seed=i) for i, name in enumerate("qvwo")}
    net = js.trace(pairs, p, X)
    with pytest.raises(ValueError, match="tokens lie along two axes of a value"):
        js.prune_tokens([2], keeps=js.tokens.merge)(net)
