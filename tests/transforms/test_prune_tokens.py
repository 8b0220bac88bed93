"""Tokens leave transformers of every kind, masked and compacted, as row by row in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

import jaxsim as js
from tests.oracles import tokens as oracle
from tests.support import transformers
from tests.support.models import normal
from tests.support.transformers import KINDS, inputs, network, params

simulate = jax.jit(lambda net, *args: net.simulate(*args))

LEVEL = np.array([0.08, 0.1, 0.13])
BUCKETS = js.Buckets(batch=2, token=2, max_batch=4)


def expected(name, level=LEVEL, **rule):
    kind = KINDS[name]
    ids, *lengths = inputs(kind)
    each = np.asarray(lengths[0]) if lengths else [None] * len(ids)
    rows = [
        oracle.row(kind, params(), i, level, length=n, **rule)
        for i, n in zip(ids, each, strict=True)
    ]
    assert min(row.margin for row in rows) > 1e-5  # else rounding decides
    return rows


def agrees(found, rows):
    np.testing.assert_array_equal(found.kept, [row.kept for row in rows])
    logits = np.stack([row.logits for row in rows])
    np.testing.assert_allclose(found.logits, logits, rtol=0, atol=2e-5 * np.abs(logits).max())


def options(name):
    return {"protect_last": 1} if KINDS[name].pool == "last" else {}


@pytest.mark.parametrize("keeps", ["above", "top"])
@pytest.mark.parametrize("name", KINDS)
def test_tokens_leave_as_if_they_were_taken_away(name, keeps):
    level = LEVEL if keeps == "above" else np.array([0.0, 0.4, 0.3])
    rows = expected(name, level, keeps=keeps, **options(name))
    assert 1 < np.mean([row.kept[-1] for row in rows]) < 0.7 * transformers.TOKENS
    args = inputs(KINDS[name])
    net = js.prune_tokens(level, keeps=getattr(js.tokens, keeps), **options(name))(network(name))
    agrees(net.simulate(*args), rows)
    agrees(net.run(*args, buckets=BUCKETS), rows)


def exit_logits(name, heads):
    """Logits of every exit of each row, and tokens that its layers keep, from the oracle."""
    kind, args = KINDS[name], inputs(KINDS[name])
    each = np.asarray(args[1]) if kind.padded else [None] * len(args[0])
    for ids, n in zip(args[0], each, strict=True):
        row = oracle.row(kind, params(), ids, LEVEL, length=n, **options(name))
        means = [x.mean(0) for x in row.states[:-1]]
        yield [*(m @ head for m, head in zip(means, heads, strict=True)), row.logits], row.kept


@pytest.mark.parametrize("name", ["vit", "scanned bert", "llama"])
def test_tokens_and_rows_leave_in_either_order(name):
    args = inputs(KINDS[name])
    kernels = [normal(transformers.WIDTH, transformers.CLASSES, seed=i) for i in range(2)]
    rows = [*exit_logits(name, [np.asarray(k, float) for k in kernels])]
    doubts = [[entropy(softmax(y)) / np.log(len(y)) for y in logits] for logits, _ in rows]
    threshold = np.sort([doubt[0] for doubt in doubts])[1:3].mean()  # two rows leave at once
    prune = js.prune_tokens(LEVEL, **options(name))
    pyramid = js.magic_pyramid(LEVEL, js.Rule(threshold), **options(name))(network(name))
    assert len(pyramid.exits) == transformers.LAYERS - 1
    exits = js.exit_early(pyramid.exits, js.Rule(threshold))
    heads = tuple({"kernel": k, "bias": jnp.zeros(transformers.CLASSES)} for k in kernels)
    nets = [
        dataclasses.replace(net, heads=heads)
        for net in (pyramid, exits(prune(network(name))), prune(exits(network(name))))
    ]
    found, *others = (simulate(net, *args) for net in nets)
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, found, other)
    for i, ((logits, kept), doubt) in enumerate(zip(rows, doubts, strict=True)):
        layer = next((i for i, u in enumerate(doubt[:-1], 1) if u < threshold), len(logits))
        assert found.layer[i] == layer
        assert found.kept[i].tolist() == [*kept[:layer], *[0] * (len(logits) - layer)]
        most = np.abs(logits[layer - 1]).max()
        np.testing.assert_allclose(found.logits[i], logits[layer - 1], rtol=0, atol=1e-4 * most)
    ran = nets[1].run(*args, buckets=BUCKETS)
    np.testing.assert_array_equal(ran.kept, found.kept)
    np.testing.assert_array_equal(ran.layer, found.layer)
    np.testing.assert_allclose(ran.flops, found.flops, rtol=1e-6)
    most = np.abs(found.logits).max()
    np.testing.assert_allclose(ran.logits, found.logits, rtol=0, atol=1e-5 * most)


def calibration(net):
    """Inputs of the network's kind."""
    padded = len(net.example.arrays) == 2
    return inputs(transformers.Kind(padded=padded))


TRANSFORMS = {
    "quantized": lambda net: js.deploy(js.quantize(8, 8)(net), calibrate=calibration(net)),
    "dynamic too": lambda net: js.quantize(8, 8, sites=["*", "dynamic*"])(net),
    "pruned": js.prune(0.5),
    "sliced": js.compose(js.quantize(4, 8), js.slice_bits(2)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["vit", "scanned bert"])
def test_what_was_done_to_a_network_stays_done(name, transform):
    args, make = inputs(KINDS[name]), TRANSFORMS[transform]
    plain = make(network(name))
    prune = js.prune_tokens(0.0)
    zero = prune(plain)
    np.testing.assert_allclose(simulate(zero, *args).logits, plain(*args), rtol=0, atol=2e-4)
    if transform == "pruned":
        behind = make(prune(network(name)))
        np.testing.assert_array_equal(zero(*args), behind(*args))
    net = dataclasses.replace(
        zero, tokens=dataclasses.replace(zero.tokens, level=jnp.asarray(LEVEL))
    )
    found = simulate(net, *args)
    assert (np.asarray(found.kept[:, -1]) < transformers.TOKENS).sum() > 0
    if plain.ranges == "batch" and plain.cores:
        with pytest.raises(ValueError, match="deploy"):
            net.run(*args, buckets=BUCKETS)
        return
    ran = net.run(*args, buckets=BUCKETS)
    np.testing.assert_array_equal(ran.kept, found.kept)
    np.testing.assert_allclose(ran.logits, found.logits, rtol=0, atol=2e-4)
