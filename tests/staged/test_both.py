"""Exits and devices in either order: the same network, which computes what it simulates."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim.staged.exit_queue import stage_devices
from jaxsim.train import cross_entropy, fit, over_exits
from tests.support.architectures.catalog import ARCHITECTURES
from tests.support.architectures.kit import linen, nnx_model
from tests.support.models import normal

BUCKETS = js.Buckets(batch=2, max_batch=2)
PAIR = jax.devices()[:1] * 2
OF = {of.name: of for of in ARCHITECTURES}
MODELS = {
    "resnet": "linen",
    "vit": "nnx",
    "bert": "linen",
    "llama": "nnx",
    "layers_scanned": "linen",
}


def logits_of(y):
    """Logits of whatever an architecture returns: means over places of its first output."""
    first = jax.tree.leaves(y)[0]
    return first if first.ndim == 2 else first.mean(tuple(range(1, first.ndim - 1)))


@functools.cache
def traced(name):
    """A network of an architecture, and inputs of six rows that differ."""
    inputs = OF[name].inputs
    if MODELS[name] == "linen":
        model, variables = linen(OF[name].build, inputs)
        net = js.trace(model, variables, *inputs)
    else:
        net = js.trace(nnx_model(OF[name].build, inputs), *inputs)
    rng = np.random.default_rng(0)
    rows = [np.concatenate([a] * 3) for a in map(np.asarray, inputs)]
    return net, tuple(
        rng.permuted(a, axis=1) if np.issubdtype(a.dtype, np.integer)
        else a + rng.normal(size=a.shape).astype(a.dtype)
        for a in rows
    )  # fmt: skip


def taught(net, inputs):
    """Its classifiers filled, and a threshold at which about half of the rows leave first."""
    heads = [
        {k: jnp.asarray(normal(*np.shape(a), seed=i)) for k, a in head.items()}
        for i, head in enumerate(net.heads)
    ]
    net = dataclasses.replace(net, heads=tuple(heads), threshold=0.0)
    doubts = np.sort(np.asarray(net.simulate(*inputs).uncertainty[:, 0]))
    middle = len(doubts) // 2
    return dataclasses.replace(net, threshold=float(doubts[middle - 1 : middle + 1].mean()))


def close(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def agree(net, expected, inputs):
    """That calls and `run` say row by row what `simulate` of another network says."""
    assert close(net(*inputs), expected.logits)
    out = net.run(*inputs, buckets=BUCKETS)
    assert out.layer.tolist() == expected.layer.tolist()
    assert close(out.logits, expected.logits)
    np.testing.assert_array_equal(out.flops, expected.flops)
    np.testing.assert_allclose(out.uncertainty, expected.uncertainty, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_either_order_is_the_same_network_and_computes_what_it_simulates(name):
    net, inputs = traced(name)
    exits, pipe = js.exit_early(2, output=logits_of), js.pipeline_shard(2, 3, devices=PAIR)
    alone = taught(exits(net), inputs)
    expected = alone.simulate(*inputs)
    assert set(expected.layer.tolist()) == {1, 2}
    first = pipe(alone)
    second = dataclasses.replace(exits(pipe(net)), heads=alone.heads, threshold=alone.threshold)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert first.cut_by == ("exit_early", "pipeline_shard")
    assert set(first.cuts) == {*first.exits, *first.layout.cuts}
    agree(first, expected, inputs)
    assert close(first.exit_logits(*inputs), alone.exit_logits(*inputs))
    assert not close(dataclasses.replace(first, threshold=0.0)(*inputs), expected.logits)


def mlp(p, x):
    for name in "abcd":
        x = jnp.tanh(x @ p[name]) + x
    return x @ p["e"]


WEIGHTS = {n: normal(8, 8, seed=i) / 2 for i, n in enumerate("abcd")} | {"e": normal(8, 4, seed=9)}
X, LABELS = normal(8, 8, seed=5), np.arange(8) % 4


@functools.cache
def exiting():
    """Exits before the second and the fourth of five layers."""
    net = js.trace(mlp, jax.tree.map(jnp.asarray, WEIGHTS), jnp.asarray(X))
    return taught(js.exit_early(["b", "d"])(net), (X,))


CHIPS = {
    "pruned": js.prune(0.5),
    "quantized": js.quantize(8, 8),
    "sliced": js.compose(js.quantize(8, 8), js.slice_bits(2)),
    "analog": js.compose(js.quantize(8, 8), js.slice_bits(2), js.analog(rows=4)),
}


@pytest.mark.parametrize("chip", CHIPS)
def test_hardware_before_and_behind_the_cuts_is_the_same(chip):
    net = js.trace(mlp, jax.tree.map(jnp.asarray, WEIGHTS), jnp.asarray(X))
    exits, pipe = js.exit_early(["b", "d"]), js.pipeline_shard(2, 2, devices=PAIR)
    made = js.compose(CHIPS[chip], exits, pipe)(net)
    behind = js.compose(pipe, exits, CHIPS[chip])(net)
    assert jax.tree.structure(made) == jax.tree.structure(behind)
    made = dataclasses.replace(made, heads=exiting().heads, threshold=exiting().threshold)
    written = js.deploy(made, calibrate=X) if made.cores else made
    agree(written, written.simulate(X), (X,))


LOSS = over_exits(cross_entropy, (0.25, 0.5, 1.0))


@functools.cache
def of_each_row():
    """The loss over all exits of each row and its gradients, in one program on one device."""

    def loss(values, x, label):
        changed = dataclasses.replace(exiting(), **values)
        return LOSS(changed.exit_logits(x[None]), label[None])

    values = {"params": exiting().params, "heads": exiting().heads}
    each = jax.vmap(jax.value_and_grad(loss), (None, 0, 0))
    return jax.tree.map(np.asarray, jax.jit(each)(values, X, LABELS))


@pytest.mark.parametrize("K", [1, 2, 3, 4])
def test_gradients_of_all_exits_go_through_the_stages(K):
    pipes = []  # that live share their programs
    for schedule, M in itertools.product(("gpipe", "1f1b", "zb-h1", "interleaved"), (1, 2, 4, 8)):
        chunks = 2 if schedule == "interleaved" else 1
        if K % chunks or (chunks > 1 and M % (K // chunks)):
            continue
        devices = jax.devices()[:1] * (K // chunks)
        shard = js.pipeline_shard(K, M, schedule=schedule, chunks=chunks, devices=devices)
        pipes.append(shard(exiting()))
        values = {"params": exiting().params, "heads": exiting().heads}
        loss, grads = js.pipeline_value_and_grad(pipes[-1], LOSS)(values, (X[:M], LABELS[:M]))
        value, slopes = jax.tree.map(lambda a, M=M: a[:M].mean(0), of_each_row())
        np.testing.assert_allclose(loss, value, rtol=1e-6)
        largest = max(np.abs(g).max() for g in jax.tree.leaves(slopes))
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(slopes), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 * largest)


def test_an_exit_without_weight_teaches_nothing():
    pipe = js.pipeline_shard(2, 2, devices=PAIR)(exiting())
    values = {"params": pipe.params, "heads": pipe.heads}
    blind = over_exits(cross_entropy, (0.0, 0.5, 1.0))
    _, grads = js.pipeline_value_and_grad(pipe, blind)(values, (X, LABELS))
    assert not np.any(grads["heads"][0]["kernel"])
    assert np.any(grads["heads"][1]["kernel"])


def test_training_of_all_exits_is_one_with_devices_and_without_and_resumes(tmp_path):
    pipe = js.pipeline_shard(2, 2, devices=PAIR)(exiting())
    options = {
        "optimizer": optax.sgd(0.1), "key": jax.random.key(0), "batch_size": 4, "quiet": True
    }  # fmt: skip
    one = fit(exiting(), X, LABELS, epochs=2, **options)
    two = fit(pipe, X, LABELS, epochs=2, **options)
    half = {**options, "checkpoints": tmp_path / "run"}
    fit(pipe, X, LABELS, epochs=1, **half)
    again = fit(pipe, X, LABELS, epochs=2, **half)
    for a, b in ((two, one), (again, two)):
        for name in ("params", "heads"):
            for p, q in zip(
                *map(jax.tree.leaves, (getattr(a, name), getattr(b, name))), strict=True
            ):
                np.testing.assert_allclose(p, q, atol=2e-6)
    moved = jax.tree.map(lambda p, q: float(np.abs(p - q).max()), one.heads, exiting().heads)
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_the_old_name_of_a_network_with_exits_goes_in_the_next_release():
    with pytest.warns(DeprecationWarning, match="now called Staged"):
        assert js.EarlyExit is js.Staged


def test_each_exit_is_weighed():
    logits = jnp.asarray(normal(8, 3, 4, seed=1))
    each = [float(cross_entropy(logits[:, i], LABELS)) for i in range(3)]
    assert float(over_exits()(logits, LABELS)) == pytest.approx(sum(each) / 3)
    weighed = float(over_exits(weights=(2, 3, 5))(logits, LABELS))
    assert weighed == pytest.approx(2 * each[0] + 3 * each[1] + 5 * each[2])
    with pytest.raises(ValueError, match="weights: 2 of them for 3 exits"):
        over_exits(weights=(1, 1))(logits, LABELS)
    with pytest.raises(ValueError, match=r"weights\[1\]=-1"):
        over_exits(weights=(1, -1))


def test_classifiers_are_counted_in_the_stage_that_they_stand_in():
    alone = js.pipeline_shard(2, 2, devices=PAIR)(base())
    both = js.pipeline_shard(2, 2, devices=PAIR)(exiting())
    assert both.layout.cuts == alone.layout.cuts == ("c",)
    rows = zip(both.stages.rows, alone.stages.rows, strict=True)
    for more, row in rows:
        assert more.params == row.params + 8 * 4 + 4
        # of 4 rows: a mean over no places (a sum and a quotient an entry), a product and a bias
        assert more.flops == row.flops + 4 * (2 * 8 + 2 * 8 * 4 + 4)
    assert both.memory().rows[0].params == 4 * both.stages.rows[0].params


@pytest.mark.parametrize("K", [1, 2])
def test_a_list_of_more_than_ten_weights_keeps_its_order(K):
    """By name the eleventh of them would come before the third."""
    weights = [jnp.asarray(normal(4, 4, seed=i)) for i in range(12)]

    def deep(p, x):
        for w in p:
            x = jnp.tanh(x @ w)
        return x

    x = normal(4, 4, seed=20)
    net = js.trace(deep, weights, x)
    pipe = js.pipeline_shard(K, 2, devices=jax.devices()[:1] * K)(net)
    assert close(pipe(x), deep(weights, x))
    assert not close(deep([weights[i] for i in sorted(range(12), key=str)], x), pipe(x))
    out = js.exit_early(["3"])(net).run(x, buckets=BUCKETS)
    assert close(out.logits, deep(weights, x))


@functools.cache
def base():
    return js.trace(mlp, jax.tree.map(jnp.asarray, WEIGHTS), jnp.asarray(X))


def test_stages_of_an_exit_are_on_the_device_that_they_are_cut_for():
    pipe = js.pipeline_shard(2, 2, devices=PAIR)(exiting())
    assert pipe.cuts == ("b", "c", "d")
    first, second = pipe.layout.devices
    assert stage_devices(pipe, pipe.cuts) == [first, first, second, second]
    assert stage_devices(exiting(), ("b", "d")) == [None] * 3


def test_what_one_of_both_cannot_do_is_refused_by_name():
    wide = js.trace(lambda p, x: x @ p[0] @ p[1], [jnp.eye(4)] * 2, jnp.ones((4, 4)))
    with pytest.raises(ValueError, match=r"net: has no exits; js\.exit_early"):
        js.pipeline_shard(2, 2, devices=PAIR)(wide).run(jnp.ones((4, 4)))
    for ask in (lambda net: net.placed(), lambda net: net.stages, lambda net: net.memory()):
        with pytest.raises(ValueError, match=r"is no pipeline; js\.pipeline_shard"):
            ask(exiting())
    spmd = dataclasses.replace(
        js.pipeline_shard(2, 2, devices=PAIR)(base()),
        layout=js.pipeline_shard(2, 2, devices=PAIR)(base()).layout._replace(engine="spmd"),
    )
    with pytest.raises(ValueError, match=r"exit_early cannot follow pipeline_shard.*spmd"):
        js.exit_early(["b"])(spmd)
    with pytest.raises(ValueError, match=r"pipeline_shard.*spmd.* cannot follow exit_early"):
        js.pipeline_shard(2, 2, devices=PAIR, engine="spmd")(exiting())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "eager"}, "schedule='eager': must be one of 'gpipe', '1f1b', 'interl"),
        ({"schedule": "interleaved"}, "schedule='interleaved', chunks=1: devices run 2"),
        ({"chunks": 2}, "schedule='gpipe', chunks=2"),
        ({"schedule": "interleaved", "chunks": 3}, "stages=4: must be a multiple of chunks=3"),
        (
            {"schedule": "interleaved", "chunks": 2, "microbatches": 3},
            "microbatches=3: 'interleaved' takes them up in turns, and needs a multiple of 2",
        ),
        ({"chunks": 0}, "chunks=0"),
    ],
)
def test_schedules_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        js.pipeline_shard(4, **{"microbatches": 4, **options})
    with pytest.raises(ValueError, match="devices: 3 of them for stages=4, chunks=2"):
        js.pipeline_shard(4, 4, schedule="interleaved", chunks=2, devices=[0, 1, 2])(base())
