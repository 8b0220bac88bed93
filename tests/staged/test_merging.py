"""Tokens that are merged into others: matched, averaged and attended to as in NumPy, row by row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.staged import exit_step
from tests.oracles import tokens as oracle
from tests.support import transformers
from tests.support.architectures import kit
from tests.support.architectures.catalog import ARCHITECTURES
from tests.support.models import normal
from tests.support.transformers import KINDS, inputs, network, params, present

LEVEL = np.array([2, 1, 2])
PAIR = jax.devices()[:1] * 2
BUCKETS = js.Buckets(batch=2, token=2, max_batch=4)
MODELS = {"vit": {}, "vit, mean": {}, "bert": {"present": present}, "scanned bert": {}}

simulate = jax.jit(lambda net, *args: net.simulate(*args))


def merging(name, net=None, **options):
    level = LEVEL * np.array([1, 1, not KINDS[name].scanned])
    prune = js.prune_tokens(level, keeps=js.tokens.merge, **MODELS[name], **options)
    return prune(network(name) if net is None else net)


def expected(name, **options):
    """Rows of the oracle; nothing is merged behind the last slice of a scan."""
    kind, (ids, *lengths) = KINDS[name], inputs(KINDS[name])
    each = np.asarray(lengths[0]) if lengths else [None] * len(ids)
    level = LEVEL * np.array([1, 1, not kind.scanned])
    rows = [
        oracle.merged_row(kind, params(), i, level, length=n, **options)
        for i, n in zip(ids, each, strict=True)
    ]
    assert min(row.margin for row in rows) > 1e-3  # else rounding decides
    return rows


def logits(rows):
    return np.stack([row.logits for row in rows])


def close(a, b):
    return np.abs(np.asarray(a) - b).max() <= 2e-5 * np.abs(b).max()


@pytest.mark.parametrize("name", MODELS)
def test_tokens_merge_as_row_by_row(name):
    args, rows, net = inputs(KINDS[name]), expected(name), merging(name)
    for found in (simulate(net, *args), net.run(*args, buckets=BUCKETS)):
        np.testing.assert_array_equal(found.kept, [row.kept for row in rows])
        assert close(found.logits, logits(rows))
    assert not close(logits(expected(name, blind=True)), logits(rows))


def test_a_match_is_that_of_all_pairs_and_leaves_padding_and_what_is_fixed():
    rng = np.random.default_rng(0)
    for level in range(5):
        keys, valid = rng.normal(size=(6, 11, 3)), rng.random((6, 11)) < 0.8
        fixed = rng.random((6, 11)) < 0.2
        into = np.asarray(js.tokens.merge(level + 0.5, jnp.asarray(keys), valid, fixed))
        for row in range(6):
            there = np.flatnonzero(valid[row])
            one = [i for i in there[::2] if not fixed[row, i]]
            two = [i for i in there[1::2] if not fixed[row, i]]
            unit = keys[row] / np.linalg.norm(keys[row], axis=-1, keepdims=True)
            best = {i: max((unit[i] @ unit[j], j) for j in two) for i in one if two}
            gone = sorted(best, key=lambda i: -best[i][0])[:level]
            wanted = [best[i][1] if i in gone else i for i in range(11)]
            assert into[row].tolist() == wanted


def test_tokens_merge_and_rows_leave():
    args = inputs(KINDS["bert"])
    made = js.magic_pyramid(LEVEL, js.Rule(0.0), keeps=js.tokens.merge, present=present)
    net = made(network("bert"))
    kernels = [normal(transformers.WIDTH, transformers.CLASSES, seed=i) for i in range(2)]
    heads = tuple({"kernel": jnp.asarray(k), "bias": jnp.zeros(3)} for k in kernels)
    net = dataclasses.replace(net, heads=heads)
    doubts = np.sort(simulate(net, *args).uncertainty[:, 0])
    net = dataclasses.replace(net, threshold=jnp.float32(doubts[1:3].mean()))
    found, ran = simulate(net, *args), net.run(*args, buckets=BUCKETS)
    assert 1 < np.mean(found.layer) < 3
    np.testing.assert_array_equal(ran.layer, found.layer)
    np.testing.assert_array_equal(ran.kept, found.kept)
    assert close(ran.logits, found.logits)
    heads = [np.asarray(k, float) for k in kernels]
    for i, row in enumerate(expected("bert")):
        says = [x.mean(0) @ k for x, k in zip(row.states, heads, strict=False)]
        assert close(found.logits[i], [*says, row.logits][int(found.layer[i]) - 1])


def test_where_nothing_merges_nothing_changes_and_levels_compile_once():
    args, net = inputs(KINDS["vit"]), merging("vit")
    before = simulate._cache_size()
    for scale in (0.0, 1.0):
        rule = dataclasses.replace(net.tokens, level=scale * net.tokens.level)
        found = simulate(dataclasses.replace(net, tokens=rule), *args)
        if not scale:
            assert close(found.logits, np.asarray(network("vit")(*args)))
    assert simulate._cache_size() <= before + 1
    buckets = js.Buckets(batch=3, token=4, max_batch=3)
    assert net.warm_up(*args, buckets=buckets) > 0
    count = exit_step.count_programs()
    net.run(*args, buckets=buckets)
    assert exit_step.count_programs() == count


def test_gradients_go_through_the_averages():
    args, net = inputs(KINDS["vit, mean"]), merging("vit, mean")

    @jax.jit
    def loss(up):
        layers = [{**layer} for layer in net.params["layers"]]
        layers[0]["up"] = up
        changed = dataclasses.replace(net, params={**net.params, "layers": layers})
        return jnp.sum(changed(*args) ** 2) / 100

    up = net.params["layers"][0]["up"]
    way = normal(*up.shape, seed=9)
    there, back = (loss(up + s * 2e-3 * way) for s in (1, -1))
    slope = jnp.sum(jax.grad(loss)(up) * way)
    np.testing.assert_allclose(slope, (there - back) / 4e-3, rtol=2e-2)


@pytest.mark.parametrize(("name", "library"), [("vit", "linen"), ("bert", "nnx_model")])
def test_models_of_either_library_as_they_are(name, library):
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    args = architecture.inputs
    made = getattr(kit, library)(architecture.build, args)
    net = js.trace(*(made if isinstance(made, tuple) else (made,)), *args)
    small = js.prune_tokens(2, keeps=js.tokens.merge)(net)
    found, ran = simulate(small, *args), small.run(*args, buckets=js.Buckets(2, 1, 2))
    np.testing.assert_array_equal(ran.kept, found.kept)
    assert close(ran.logits, np.asarray(found.logits))
    attended = max(site.w_shape[-1] for site in net.sites if site.kind == "dynamic")
    assert np.min(found.kept) < attended


def crossing(p, x, y):
    x = x + jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", x @ p["q"], x)) @ (x @ p["v"])
    return jnp.sum(jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", y, x)) @ (x @ p["o"]), 1)


def paired(p, x, mask):
    scores = jnp.where(mask, jnp.einsum("bqd,bkd->bqk", x @ p["q"], x), -1e9)
    x = x + jax.nn.softmax(scores) @ (x @ p["v"])
    return jnp.tanh(x @ p["o"])[:, 0]


P, X = {n: normal(8, 8, seed=i) for i, n in enumerate("qvo")}, normal(2, 5, 8, seed=6)


@pytest.mark.parametrize(
    ("net", "steps", "said"),
    [
        (lambda: network("llama"), (), "merge: ge .*tells pairs of tokens apart by their places"),
        (lambda: network("t5 encoder"), (), "merge: sub at .*tells pairs of tokens apart"),
        (
            lambda: js.trace(paired, P, X, np.ones((2, 5, 5), bool)),
            (),
            "an argument or parameter .*tells pairs",
        ),
        (lambda: js.trace(crossing, P, X, X[:, :3]), (), "queries from elsewhere attend"),
        (lambda: network("scanned bert"), (), "level: no cut follows dynamic/1.2. before"),
        (
            lambda: network("vit"),
            (js.pipeline_shard(2, 1, devices=PAIR, balance=["layers/1/mix"]),),
            "merge: the network is cut at layers/1/mix, between",
        ),
    ],
)
def test_what_has_no_meaning_for_merged_tokens_is_refused_by_name(net, steps, said):
    prune = js.prune_tokens([2] * (3 if steps or net().example.arrays[0].ndim == 2 else 1),
                            keeps=js.tokens.merge, protect_last=1)  # fmt: skip
    for order in ((prune, *steps), (*steps, prune)):
        with pytest.raises(ValueError, match=said):
            js.compose(*order)(net())


def test_pairs_of_tokens_that_are_there_may_be_masked():
    """A mask of pairs says no more of places than one of tokens."""

    def model(p, x, valid):
        pairs = valid[:, None, :] & valid[:, :, None]
        return paired(p, x, pairs)

    valid = np.arange(5) < np.array([[5], [4]])
    net = js.prune_tokens(1, keeps=js.tokens.merge)(js.trace(model, P, X, valid))
    found, ran = simulate(net, X, valid), net.run(X, valid, buckets=js.Buckets(2, 1, 2))
    assert close(ran.logits, np.asarray(found.logits))
    np.testing.assert_array_equal(ran.kept, found.kept)


def test_an_exit_between_an_attention_and_its_merge_is_refused():
    net = js.exit_early(["layers/1/mix"], feature=lambda live, present: live[0][:, 0])
    with pytest.raises(ValueError, match="merge: the network is cut at layers/1/mix, between"):
        net(merging("vit"))(*inputs(KINDS["vit"]))
    with pytest.raises(ValueError, match=r"soft masks are of thresholds, tokens\.above"):
        merging("vit").soften(*inputs(KINDS["vit"]), temperature=0.1)


CUTS = {
    "vit": ["layers/1/down"],
    "vit, mean": ["layers/1/q"],
    "bert": ["layers/1/up"],
    "scanned bert": ["layers/q[1]"],
}


def piped(name, **options):
    return js.pipeline_shard(2, 2, devices=PAIR, balance=CUTS[name], **options)


@pytest.mark.parametrize("name", MODELS)
def test_stages_merge_what_one_device_does(name):
    """Before the cut, at it and behind it; the oracle's tokens, where micro-batches are rows."""
    args, net = inputs(KINDS[name], rows=4), merging(name)
    expected, pipe = simulate(net, *args), piped(name)(net)
    other = merging(name, net=piped(name)(network(name)))
    assert jax.tree.structure(pipe) == jax.tree.structure(other)
    assert close(pipe(*args), np.asarray(expected.logits))
    assert close(jax.jit(lambda net, *args: net(*args))(other, *args), np.asarray(expected.logits))
    none = dataclasses.replace(pipe.tokens, level=0 * pipe.tokens.level)
    few = dataclasses.replace(pipe, tokens=none)(*args)
    assert close(few, np.asarray(network(name)(*args)))
    assert not close(few, np.asarray(expected.logits))
    ran = pipe.run(*args, buckets=BUCKETS)
    np.testing.assert_array_equal(ran.kept, expected.kept)
    assert close(ran.logits, np.asarray(expected.logits))


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_gradients_go_through_stages_in_which_tokens_were_merged(schedule):
    args, net = inputs(KINDS["vit, mean"], rows=4), merging("vit, mean")
    net = dataclasses.replace(net, params=jax.tree.map(lambda a: a / 2, net.params))

    def squared(logits, targets):
        return jnp.mean((logits - targets) ** 2)

    value, slopes = jax.value_and_grad(
        lambda params: squared(dataclasses.replace(net, params=params)(*args), 0.0)
    )(net.params)
    pipe = piped("vit, mean", schedule=schedule)(net)
    found, grads = js.pipeline_value_and_grad(pipe, squared)(net.params, (args, jnp.zeros(())))
    np.testing.assert_allclose(found, value, rtol=1e-6)
    most = max(np.abs(a).max() for a in jax.tree.leaves(slopes))
    for a, b in zip(*map(jax.tree.leaves, (grads, slopes)), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-6 * most


def test_tokens_merge_and_rows_leave_in_stages():
    args = inputs(KINDS["bert"], rows=4)
    net = js.magic_pyramid(LEVEL, js.Rule(0.0), keeps=js.tokens.merge, present=present)(
        network("bert")
    )
    kernels = [normal(transformers.WIDTH, transformers.CLASSES, seed=i) for i in range(2)]
    heads = tuple({"kernel": jnp.asarray(k), "bias": jnp.zeros(3)} for k in kernels)
    net = dataclasses.replace(net, heads=heads)
    doubts = np.sort(simulate(net, *args).uncertainty[:, 0])
    net = dataclasses.replace(net, threshold=jnp.float32(doubts[1:3].mean()))
    pipe, expected = piped("bert")(net), simulate(net, *args)
    assert len(set(expected.layer.tolist())) > 1
    assert close(pipe(*args), np.asarray(expected.logits))
    for own, one in zip(pipe.exit_logits(*args), net.exit_logits(*args), strict=True):
        assert close(own, np.asarray(one))
    ran = pipe.run(*args, buckets=BUCKETS)
    np.testing.assert_array_equal(ran.layer, expected.layer)
    np.testing.assert_array_equal(ran.kept, expected.kept)


def late_values(p, x):
    """A model that makes its values once the scores are there."""
    scores = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", jnp.tanh(x @ p["q"]), x))
    return jnp.tanh((x + scores @ (x @ p["v"])) @ p["o"])[:, 0]


@pytest.mark.parametrize(
    "step",
    [
        js.pipeline_shard(2, 1, devices=PAIR, balance=["v"]),
        js.exit_early(["v"], feature=lambda live, *present: jnp.mean(live[0], 1)),
    ],
)
def test_a_cut_within_an_attention_is_refused(step):
    """Its keys are matched where its values are read, and would be another stage's."""
    prune = js.prune_tokens(1, keeps=js.tokens.merge)
    for order in ((prune, step), (step, prune)):
        with pytest.raises(ValueError, match="merge: the network is cut at v, within an attention"):
            js.compose(*order)(js.trace(late_values, P, X))(X)
