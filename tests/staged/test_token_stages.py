"""Tokens leave in stages on several devices as on one, masked and really gone."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.train import Soft, fit, over_exits
from tests.support.models import normal
from tests.support.processes import finished, start
from tests.support.transformers import CLASSES, KINDS, WIDTH, inputs, network, present

LEVEL = np.array([0.08, 0.1, 0.13])
PAIR = jax.devices()[:1] * 2
BUCKETS = js.Buckets(batch=2, token=2, max_batch=2)
MODELS = {
    "vit": ({}, ["layers/1/down"]),
    "bert": ({"present": present}, ["layers/1/up"]),
    "scanned llama": ({"protect_last": 1}, ["layers/q[1]"]),
}

simulate = jax.jit(lambda net, *args: net.simulate(*args))


@functools.cache
def alone(name):
    """Tokens and rows leave on one device, half of the rows at the first exit; and inputs."""
    args = inputs(KINDS[name], rows=4)
    net = js.magic_pyramid(LEVEL, js.Rule(0.0), **MODELS[name][0])(network(name))
    heads = [normal(WIDTH, CLASSES, seed=i) for i in range(len(net.exits))]
    bias = jnp.zeros(CLASSES)
    net = dataclasses.replace(
        net, heads=tuple({"kernel": jnp.asarray(k), "bias": bias} for k in heads)
    )
    doubts = np.sort(simulate(net, *args).uncertainty[:, 0])
    return dataclasses.replace(net, threshold=jnp.float32(doubts[1:3].mean())), args


def cut(name, **options):
    return js.pipeline_shard(2, 2, devices=PAIR, balance=MODELS[name][1], **options)


def leaving_nothing(net):
    return dataclasses.replace(
        net, tokens=dataclasses.replace(net.tokens, level=0 * net.tokens.level)
    )


def close(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("name", MODELS)
def test_any_order_is_one_network_that_computes_what_one_device_does(name):
    net, args = alone(name)
    prune = js.prune_tokens(LEVEL, **MODELS[name][0])
    steps = prune, js.exit_early(net.exits), cut(name)
    first, *others = (js.compose(*order)(network(name)) for order in itertools.permutations(steps))
    pyramid = js.magic_pyramid(LEVEL, js.Rule(), **MODELS[name][0])
    others += [pyramid(cut(name)(network(name))), cut(name)(pyramid(network(name)))]
    assert {jax.tree.structure(other) for other in others} == {jax.tree.structure(first)}
    assert first.cut_by == ("exit_early", "prune_tokens", "pipeline_shard")
    pipe = dataclasses.replace(first, heads=net.heads, threshold=net.threshold)
    expected = simulate(net, *args)
    assert set(expected.layer.tolist()) > {1}
    jax.tree.map(np.testing.assert_array_equal, simulate(pipe, *args), expected)
    assert close(pipe(*args), expected.logits)
    assert close(jax.jit(lambda net, *args: net(*args))(pipe, *args), expected.logits)
    assert close(pipe.exit_logits(*args), net.exit_logits(*args))
    assert not close(leaving_nothing(pipe)(*args), expected.logits)
    ran = pipe.run(*args, buckets=BUCKETS)
    np.testing.assert_array_equal(ran.kept, expected.kept)
    np.testing.assert_array_equal(ran.layer, expected.layer)
    np.testing.assert_allclose(ran.flops, expected.flops, rtol=1e-6)
    assert close(ran.logits, expected.logits)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [2, 3])
def test_numbered_exits_and_stages_are_the_same_in_any_order(name, count):
    prune = js.prune_tokens(LEVEL, **MODELS[name][0])
    steps = prune, js.exit_early(count), js.pipeline_shard(2, 2, devices=PAIR)
    made = [js.compose(*order)(network(name)) for order in itertools.permutations(steps)]
    assert len({(net.exits, net.layout) for net in made}) == 1


@pytest.mark.parametrize("name", ["bert", "scanned llama"])
def test_tokens_alone_leave_in_stages(name):
    options, _ = MODELS[name]
    args = alone(name)[1]
    one = js.prune_tokens(LEVEL, **options)(network(name))
    pipe = cut(name)(one)
    expected = simulate(one, *args)
    assert close(pipe(*args), expected.logits)
    ran = pipe.run(*args, buckets=BUCKETS)
    np.testing.assert_array_equal(ran.kept, expected.kept)
    assert close(ran.logits, expected.logits)


def test_a_stage_before_any_attention_lets_padding_be_found_behind_it():
    """No token is known to be there then, and none to be padding."""
    args = inputs(KINDS["bert"], rows=4)
    one = js.prune_tokens(LEVEL)(network("bert"))
    pipe = js.pipeline_shard(2, 2, devices=PAIR, balance=["layers/0/q"])(one)
    expected = simulate(one, *args)
    assert close(pipe(*args), expected.logits)
    assert pipe.warm_up(*args, buckets=BUCKETS) > 0
    ran = pipe.run(*args, buckets=BUCKETS)
    np.testing.assert_array_equal(ran.kept, expected.kept)
    assert close(ran.logits, expected.logits)


def squared(logits, targets):
    return jnp.mean((logits - targets) ** 2)


@functools.cache
def of_one_device(name, exits):
    """A loss of all rows and its gradients, where tokens leave on one device.

    Weights are halved: attention is less sharp then, and rounding less enlarged.
    """
    net, args = alone(name)
    net = net if exits else js.prune_tokens(LEVEL, **MODELS[name][0])(network(name))
    net = dataclasses.replace(net, params=jax.tree.map(lambda a: a / 2, net.params))
    values = {"params": net.params, "heads": net.heads} if exits else {"params": net.params}
    loss = over_exits(squared, (0.2, 0.3, 0.5)) if exits else squared

    def total(values):
        changed = dataclasses.replace(net, **values)
        return loss(changed.exit_logits(*args) if exits else changed(*args), 0.0)

    found = jax.jit(jax.value_and_grad(total))(values)
    return net, args, loss, (values if exits else net.params), found


def furthest(one, other):
    """The largest difference of gradients, as a share of the largest of them."""
    pairs = [*zip(*map(jax.tree.leaves, (one, other)), strict=True)]
    most = max(np.abs(b).max() for _, b in pairs)
    return max(np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in pairs) / most


@pytest.mark.parametrize(
    ("name", "schedule"), [*((name, "1f1b") for name in MODELS), ("bert", "zb-h1")]
)
def test_gradients_of_all_exits_go_through_stages_in_which_tokens_left(name, schedule):
    net, args, loss, values, (value, slopes) = of_one_device(name, True)
    pipe = cut(name, schedule=schedule)(net)
    found, grads = js.pipeline_value_and_grad(pipe, loss)(values, (args, jnp.zeros(())))
    np.testing.assert_allclose(found, value, rtol=1e-6)
    assert furthest(grads, slopes) < 1e-6
    if schedule == "1f1b":
        step = js.pipeline_value_and_grad(leaving_nothing(pipe), loss)
        assert furthest(step(values, (args, jnp.zeros(())))[1], slopes) > 1e-2


def test_a_loss_reads_the_logits_where_there_are_no_exits():
    net, args, loss, params, (value, slopes) = of_one_device("bert", False)
    pipe = cut("bert", remat="none")(net)
    found, grads = js.pipeline_value_and_grad(pipe, loss)(params, (args, jnp.zeros(())))
    np.testing.assert_allclose(found, value, rtol=1e-6)
    assert furthest(grads, slopes["params"]) < 1e-6


def test_quantized_layers_lose_tokens_in_stages():
    args = alone("vit")[1]
    chip = js.deploy(js.quantize(8, 8)(network("vit")), calibrate=args)
    one = js.prune_tokens(LEVEL)(chip)
    pipe = js.pipeline_shard(3, 4, devices=PAIR[:1] * 3)(one)
    assert np.abs(pipe(*args) - simulate(one, *args).logits).max() < 2e-4
    assert (simulate(one, *args).kept[:, -1] < 9).all()


def test_an_attention_in_a_call_inside_a_scan_is_counted_once():
    """Stages know by such counts which level is whose: levels of slices differ."""

    @jax.checkpoint
    def attend(x, q, v):
        scores = jnp.einsum("bqd,bkd->bqk", x @ q, x)
        return x + jax.nn.softmax(scores) @ (x @ v)

    def layer(x, p):
        x = attend(x, p["q"], p["v"])
        return x + jnp.tanh(x @ p["up"]), None

    def model(p, x):
        return jax.lax.scan(layer, x, p["layers"])[0].mean(1) @ p["out"]

    layers = {name: normal(4, 8, 8, seed=i) / 2 for i, name in enumerate(["q", "v", "up"])}
    x = normal(4, 6, 8, seed=5)
    net = js.trace(model, {"layers": layers, "out": normal(8, 3, seed=6)}, x)
    level = np.array([0.0, 0.14, 0.0, 0.2])
    one = js.prune_tokens(level)(net)
    pipe = js.pipeline_shard(2, 2, devices=PAIR, balance=["layers/q[2]"])(one)
    expected = simulate(one, x)
    assert 0 < expected.kept[:, 1].min() < 6
    assert (expected.kept[:, 3] < expected.kept[:, 2]).any()
    assert close(pipe(x), expected.logits)
    ran = pipe.run(x, buckets=BUCKETS)
    np.testing.assert_array_equal(ran.kept, expected.kept)


def test_what_crosses_a_cut_is_counted_with_its_tokens():
    """Behind the first attention a truth for each token and a number for each row cross too."""
    net, _ = alone("vit")
    alone_ = js.pipeline_shard(2, 2, devices=PAIR, balance=["layers/1/q"])(network("vit"))
    pipe = js.pipeline_shard(2, 2, devices=PAIR, balance=["layers/1/q"])(net)
    rows, before = pipe.stages.rows[1], alone_.stages.rows[1]
    micro = pipe.stages.micro
    assert rows.boundary_bytes == before.boundary_bytes + micro * (9 + 4)
    assert rows.params == before.params + 3 + (WIDTH + 1) * CLASSES
    assert pipe.memory().peak > 0
    ahead = js.pipeline_shard(2, 2, devices=PAIR, balance=["layers/0/q"])
    assert (
        ahead(net).stages.rows[1].boundary_bytes
        == ahead(network("vit")).stages.rows[1].boundary_bytes
    )


def test_a_pipeline_whose_tokens_leave_moves_and_is_loaded(tmp_path):
    net, args = alone("bert")
    pipe = cut("bert")(net)
    js.save(tmp_path / "net", pipe)
    loaded = js.load(tmp_path / "net", cut("bert")(leaving_nothing(net)))
    for other in (pipe.placed(), loaded):
        np.testing.assert_array_equal(other(*args), pipe(*args))


def test_stages_on_two_devices_compute_where_they_are_placed():
    *_, word, error, held = finished(start("tests.support.token_process", devices=2))
    assert word == "worst"
    assert float(error) < 1e-5
    assert held == "cpu:0,cpu:1"


def test_what_tokens_cannot_do_in_stages_is_refused_by_name():
    net, args = alone("vit")
    pipe = cut("vit")(net)
    options = {"key": jax.random.key(0), "optimizer": None, "epochs": 1, "batch_size": 4}
    with pytest.raises(ValueError, match=r"soft: the share of the tokens.*prune_tokens\(present="):
        fit(pipe, args, np.zeros(4, int), soft=Soft(), **options)
    with pytest.raises(ValueError, match=r"engine='spmd'\) cannot follow prune_tokens"):
        js.pipeline_shard(2, 2, devices=PAIR, engine="spmd")(js.prune_tokens(LEVEL)(network("vit")))
    plain = js.pipeline_shard(2, 2, devices=PAIR)(network("vit"))
    spmd = dataclasses.replace(plain, layout=plain.layout._replace(engine="spmd"))
    with pytest.raises(
        ValueError, match=r"prune_tokens cannot follow pipeline_shard\(engine='spmd"
    ):
        js.prune_tokens(LEVEL)(spmd)
