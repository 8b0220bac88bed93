"""A pipeline computes what its network does, keeps its parameters' paths, and says what is wrong.

One device stands for all of them here; `test_pipeline_devices.py` has several.
"""

import dataclasses
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim.network.arguments import call_arguments
from jaxsim.train.loop import fit
from tests.support import pipelines
from tests.support.models import normal
from tests.support.networks import X, attention, cnn, deep_cnn, stack
from tests.support.pipelines import furthest, plain
from tests.support.variables import initial

ONE = jax.devices()[:1]


def pipe(net, stages=3, microbatches=2, **settings):
    """A pipeline of which every stage is on the same device."""
    return js.pipeline_shard(stages, microbatches, devices=ONE * stages, **settings)(net)


def stepped(net, case, params=None, key=None, **settings):
    """Loss and gradients of a pipeline."""
    made = pipe(net, **settings)
    return js.pipeline_value_and_grad(made, case.loss)(
        net.params if params is None else params, case.batch, key=key
    )


@pytest.mark.parametrize("remat", ["boundary", "none", jax.checkpoint_policies.dots_saveable])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_gradients_do_not_depend_on_what_is_kept(remat, schedule):
    case = pipelines.mlp()
    found = stepped(case.net, case, remat=remat, schedule=schedule, microbatches=4)
    assert furthest(found, plain(case)) < 1e-6


def test_a_loss_that_is_a_sum_is_added():
    case = pipelines.mlp()._replace(loss=lambda y, t: jnp.sum((y - t) ** 2))
    step = js.pipeline_value_and_grad(pipe(case.net), case.loss, reduction="sum")
    assert furthest(step(case.net.params, case.batch), plain(case)) < 1e-6


def test_outputs_may_come_from_any_stage_and_be_of_any_kind():
    """An early output, a known one, an argument handed on, an integer and a constant."""

    def model(params, x, scale):
        early = jnp.tanh(x @ params["a"])
        late = jnp.tanh(early @ params["b"]) @ params["c"] * scale
        return {
            "early": early.T,
            "late": late,
            "known": params["a"] * 2,
            "same": x,
            "class": jnp.argmax(late, -1),
            "mean": late.mean(),
            "one": 1.0,
        }

    params = {name: normal(4, 4, seed=i) for i, name in enumerate("abc")}
    x = normal(6, 4)
    net = js.trace(model, params, x, jnp.float32(2))
    found, expected = pipe(net)(x, jnp.float32(2)), net(x, jnp.float32(2))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_loss_of_an_early_output_reaches_the_early_stages():
    def model(params, x):
        early = jnp.tanh(x @ params["a"])
        return early, jnp.tanh(early @ params["b"]) @ params["c"], jnp.round(early).astype(int)

    def loss(outputs, target):
        return jnp.mean(outputs[0] ** 2) + jnp.mean((outputs[1] - target) ** 2)

    params = {**{n: normal(4, 4, seed=i) for i, n in enumerate("abc")}, "unused": normal(3)}
    x = normal(6, 4)
    case = pipelines.Case(js.trace(model, params, x), (x, x), loss)
    for remat in ("boundary", "none"):
        found = stepped(case.net, case, remat=remat)
        assert not np.any(found[1]["unused"])
        assert furthest(found, plain(case)) < 1e-6


COMPOSED = {
    "pruned and quantized": js.compose(js.prune(0.5), js.quantize(4, None)),
    "wrapped": js.wrap(lambda core: js.Core(core.write, core.calibrate, core.read)),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_a_composed_network_pipelines(name):
    """Training through it too: what looks at no other example is the same."""
    net = COMPOSED[name](cnn())
    np.testing.assert_allclose(pipe(net, 2)(X), net(X), rtol=1e-5, atol=1e-6)
    case = pipelines.Case(net, (X, jnp.arange(8) % 3), pipelines.entropy)
    assert furthest(stepped(net, case, stages=2), plain(case)) < 2e-5


@pytest.mark.parametrize("sites", ["*", "dynamic*"])
def test_a_deployed_chip_pipelines(sites):
    """Quantized, sliced and analog with programming errors: the same codes, ranges and cells."""
    if sites == "*":
        net, x, parts = cnn(), X, 4
        composed = js.compose(
            js.prune(0.3),
            js.quantize(8, 8),
            js.slice_bits(2),
            js.analog(adc=8, cells=js.cells.proportional(0.05)),
        )(net)
    else:
        # a contraction of two activations stores nothing and takes the range of its micro-batch
        net, x, parts = attention(), normal(2, 5, 4), 1
        composed = js.quantize(None, 8, sites=["*", "dynamic*"])(net)
    chip = js.deploy(composed, key=jax.random.key(3), calibrate=x)
    np.testing.assert_allclose(
        pipe(chip, 2, parts)(x, key=jax.random.key(0)), chip(x, key=jax.random.key(0)), atol=2e-6
    )


def test_a_pipeline_is_composed_and_deployed_like_any_network():
    composed = js.compose(js.pipeline_shard(2, 2, devices=ONE * 2), js.quantize(8, 8))(cnn())
    chip = js.deploy(composed, calibrate=X)
    plain_chip = js.deploy(js.quantize(8, 8)(cnn()), calibrate=X)
    np.testing.assert_allclose(chip(X), plain_chip(X), atol=2e-6)
    labels = np.arange(8) % 3
    table = js.compare(cnn(), composed, (np.asarray(X), labels), batch_size=8)
    assert table.rows[1].params == table.rows[0].params
    assert composed.cost().params == cnn().cost().params
    assert "Conv_0/kernel" in str(composed)


def test_noise_is_the_networks_for_one_micro_batch_and_differs_between_several():
    noisy = js.compose(js.quantize(8, None), js.analog(cells=js.cells.independent(0.1)))(cnn())
    key = jax.random.key(5)
    same = jnp.concatenate([X[:4], X[:4]])
    np.testing.assert_allclose(
        pipe(noisy, 2, microbatches=1)(X, key=key), noisy(X, key=key), atol=1e-6
    )
    # programming errors are of the call, so they do not tell its micro-batches apart
    twice = np.asarray(pipe(noisy, 2)(same, key=key))
    np.testing.assert_allclose(twice[:4], twice[4:], atol=1e-6)
    with pytest.raises(ValueError, match="key"):
        pipe(noisy, 2)(X)


def test_dropout_differs_between_micro_batches():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(16)(x)
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=False)(x))

    x, model, key = jnp.ones((8, 5)), Dropped(), jax.random.key(1)
    variables = model.init({"params": key, "dropout": key}, x)
    net = js.trace(model, variables, x, rngs={"dropout": key})
    one = pipe(net, 2, 1)(x, rngs={"dropout": key})
    np.testing.assert_allclose(one, net(x, rngs={"dropout": key}), atol=1e-6)
    halves = np.asarray(pipe(net, 2)(x, rngs={"dropout": key}))
    assert np.abs(halves[:4] - halves[4:]).max() > 0.1


def test_under_jit_and_grad_it_is_the_same_function():
    case = pipelines.mlp()
    made = pipe(case.net, microbatches=4)
    x, target = case.batch
    np.testing.assert_allclose(jax.jit(lambda n, x: n(x))(made, x), case.net(x), atol=1e-6)

    def loss(params):
        return case.loss(dataclasses.replace(made, params=params)(x), target)

    found = jax.jit(jax.value_and_grad(loss))(case.net.params)
    assert furthest(found, plain(case)) < 1e-6


def test_other_batch_sizes_need_no_new_trace_and_equal_shapes_compile_once():
    from jaxsim.staged.plan import pipeline_plan

    case = pipelines.mlp()
    made = pipe(case.net)
    for batch in (2, 4, 8):
        x = normal(batch, 12)
        np.testing.assert_allclose(made(x), case.net(x), atol=1e-6)
    again = pipe(case.net, microbatches=4, schedule="1f1b")
    arguments = [call_arguments((normal(n, 12),), {}) for n in (8, 16)]
    first, second = (pipeline_plan(n, a) for n, a in zip((made, again), arguments, strict=True))
    assert first.programs is second.programs  # micro-batches of four


# Batch normalization


class Normed(nn.Module):
    """Two layers with BatchNorm."""

    @nn.compact
    def __call__(self, x):
        for momentum in (0.9, 0.7):
            x = nn.Dense(5)(x)
            x = jnp.tanh(nn.BatchNorm(False, momentum=momentum)(x))
        return nn.Dense(5)(x)


def by_hand(variables, x, M):
    """Outputs and moving averages: micro-batch statistics normalize, mini-batch ones are kept."""
    p, held = variables["params"], variables["batch_stats"]
    parts = np.split(np.asarray(x, np.float64), M)
    kept = {}
    for i, momentum in enumerate((0.9, 0.7)):
        dense, norm = p[f"Dense_{i}"], p[f"BatchNorm_{i}"]
        parts = [h @ np.asarray(dense["kernel"], np.float64) + dense["bias"] for h in parts]
        whole = np.concatenate(parts)
        old = held[f"BatchNorm_{i}"]
        kept[f"BatchNorm_{i}"] = {
            "mean": momentum * old["mean"] + (1 - momentum) * whole.mean(0),
            "var": momentum * old["var"] + (1 - momentum) * whole.var(0),
        }
        parts = [
            np.tanh((h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * norm["scale"] + norm["bias"])
            for h in parts
        ]
    return np.concatenate(parts) @ p["Dense_2"]["kernel"] + p["Dense_2"]["bias"], kept


@pytest.mark.parametrize("M", [1, 4])
def test_batch_statistics_are_of_micro_batches_and_their_averages_of_the_mini_batch(M):
    """In double precision: four rows that lie far from zero lose half the digits of a variance."""
    with jax.enable_x64(True):
        x = 3 + 2 * normal(16, 5, dtype=jnp.float64)
        variables = jax.tree.map(np.float64, initial(Normed(), x))
        stats = jax.tree.map(lambda a: a + 0.3, variables["batch_stats"])
        variables = {**variables, "batch_stats": stats}
        net = js.trace(Normed(), variables, x, mutable=["batch_stats"])
        outputs, averages = by_hand(variables, x, M)
        made = pipe(net, microbatches=M)
        y, updates = made(x)
        np.testing.assert_allclose(y, outputs, rtol=1e-9, atol=1e-10)
        assert furthest(updates["batch_stats"], averages) < 1e-10

        def loss(y, t):
            return jnp.mean((y - t) ** 2)

        (_, updates), grads = js.pipeline_value_and_grad(made, loss)(net.params, (x, x))
        assert furthest(updates["batch_stats"], averages) < 1e-10

        def reference(params):
            now = dataclasses.replace(net, params=params)
            parts = [loss(now(part)[0], part) for part in jnp.split(x, M)]
            return sum(parts) / M

        assert furthest(grads, jax.jit(jax.grad(reference))(net.params)) < 1e-10


# Checkpoints and training


def test_a_checkpoint_restores_under_any_number_of_stages(tmp_path):
    four, two = pipe(deep_cnn(), 4), pipe(deep_cnn(), 2)
    moved = dataclasses.replace(four, params=jax.tree.map(lambda p: p + 1, four.params))
    js.save(tmp_path / "four", moved)
    back = js.load(tmp_path / "four", two)
    assert len(back.stages.rows) == 2
    assert all(map(np.array_equal, *map(jax.tree.leaves, (back.params, moved.params))))
    assert type(js.load(tmp_path / "four", deep_cnn())) is js.Network


def test_training_goes_on_under_another_number_of_stages(tmp_path):
    """Optimizer state included: two epochs of four stages and two of two are four of either."""
    settings = {
        "optimizer": optax.adam(1e-2),
        "key": jax.random.key(0),
        "batch_size": 4,
        "quiet": True,
    }
    (x, _), labels = pipelines.mlp().batch, np.arange(8) % 3
    net = pipelines.mlp().net
    kept = {**settings, "checkpoints": tmp_path / "run"}
    fit(pipe(net, 4), x, labels, epochs=2, **kept)
    resumed = fit(pipe(net, 2), x, labels, epochs=4, **kept)
    whole = fit(net, x, labels, epochs=4, **settings)
    assert furthest(resumed.params, whole.params) < 1e-4


def test_a_pipeline_trains_with_batch_norm():
    x = np.asarray(normal(8, 5))
    net = js.trace(Normed(), initial(Normed(), x), x, mutable=["batch_stats"])
    after = fit(
        pipe(net, 2),
        x,
        np.arange(8) % 3,
        epochs=1,
        optimizer=optax.sgd(0.1),
        key=jax.random.key(0),
        batch_size=8,
        call={"mutable": ["batch_stats"]},
        quiet=True,
    )
    before = jax.tree.leaves(net.buffers)
    assert not any(map(np.array_equal, before, jax.tree.leaves(after.buffers)))


# Cuts, memory, tables


def test_stages_can_be_named_measured_or_weighed():
    net = pipelines.mlp().net
    named = pipe(net, 2, balance=["layers/3/kernel"])
    assert [row.name for row in named.stages.rows] == ["layers/0/kernel", "layers/3/kernel"]
    assert [row.params for row in named.stages.rows] == [3 * 156, 5 * 156]
    for balance in ("flops", "bytes"):
        rows = pipe(net, 4, balance=balance).stages.rows
        assert {row.params for row in rows} == {2 * 156}
        assert len({row.flops for row in rows}) == 1
    measured = pipe(net, 4, balance="time")
    assert len(measured.stages.rows) == 4
    assert "layers/3/kernel" in str(named.stages)


@pytest.mark.parametrize(("balance", "begins"), [("flops", "d"), ("bytes", "c")])
def test_operations_and_bytes_make_other_stages_equal(balance, begins):
    """Of 64 rows through widths 4, 4, 4, 64 and 4: of 16, 16, 256 and 256 products a row.

    Stages of 288 and 256 are the most equal. Weights and outputs are 272, 272,
    4352 and 512 numbers, of which 544 and 4864 are less unequal than 4896 and 512.
    """
    shapes = {"a": (4, 4), "b": (4, 4), "c": (4, 64), "d": (64, 4)}

    def model(p, x):
        return x @ p["a"] @ p["b"] @ p["c"] @ p["d"]

    net = js.trace(model, {n: jnp.ones(s) for n, s in shapes.items()}, jnp.ones((64, 4)))
    assert [row.name for row in pipe(net, 2, 1, balance=balance).stages.rows] == ["a", begins]


def test_a_layer_that_takes_long_is_measured():
    def model(params, x):
        for i, w in enumerate(params):
            x = jnp.tanh(x @ w)
            if i == 3:
                shape = jax.ShapeDtypeStruct((), x.dtype)
                x = x + jax.pure_callback(wait, shape, jax.lax.stop_gradient(x[0, 0]))
        return x

    def wait(number):
        time.sleep(0.05)
        return np.zeros_like(number)

    net = js.trace(model, [normal(16, 16, seed=i) for i in range(4)], normal(8, 16))
    assert pipe(net, 2, balance="flops").stages.rows[1].name == "2"
    assert pipe(net, 2, balance="time").stages.rows[1].name == "3"


def test_the_simulated_bubble_of_equal_stages_is_exact():
    net = pipelines.mlp().net
    for K, M in ((2, 4), (4, 8), (8, 2)):
        for schedule in ("gpipe", "1f1b"):
            found = js.simulate_schedule(pipe(net, K, M, schedule=schedule))
            assert found.bubble == (K - 1) / (M + K - 1)


def test_memory_follows_the_formula_of_the_paper():
    """Boundaries of all micro-batches, and the inside of one stage for one micro-batch."""
    net = pipelines.mlp(batch=64, layers=8, width=64).net
    x = jax.ShapeDtypeStruct((1024, 64), jnp.float32)
    boundary = 1024 * 64 * 4  # bytes of an activation of the mini-batch
    inside = {}
    for K, M in ((1, 1), (1, 4), (2, 4), (4, 4), (4, 16)):
        table = pipe(net, K, M).memory(x)
        for row in table.rows:
            assert row.kept * row.in_flight == boundary
            assert row.params == row.gradients == 8 // K * (64 * 65) * 4
        inside[K, M] = max(row.temporary for row in table.rows)
        # of 8/K layers a share 1/M, each one's output (and what XLA needs beside them)
        layers = 8 // K * boundary // M
        assert 0.7 * layers <= inside[K, M] <= 2 * layers + 3 * boundary // M
        simulated = js.simulate_schedule(pipe(net, K, M), x).peak_bytes
        for row, peak in zip(table.rows, simulated, strict=True):
            # what the compiler shares between layers counts twice when simulated
            assert row.activations <= 1.3 * peak <= 3 * row.activations
    assert inside[4, 16] < inside[1, 1] / 20
    early = pipe(net, 4, 16, schedule="1f1b").memory(x)
    assert [row.in_flight for row in early.rows] == [4, 3, 2, 1]
    kept = pipe(net, 4, 4, remat="none").memory(x)
    assert kept.peak > pipe(net, 4, 4).memory(x).peak


def test_memory_of_a_model_that_is_not_there():
    """Parameters may be shapes: nothing is allocated."""
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), stack().params)
    net = js.trace(lambda p, x: x @ p["head"] @ p["head"].T, abstract, normal(5, 4))
    table = pipe(net, 2, 5).memory()
    assert table.rows[0].params == 2 * 4 * 4
    assert "peak" in str(table)


# Errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": 0}, "stages=0: must be an int of at least 1"),
        ({"microbatches": 2.5}, "microbatches=2.5: must be an int of at least 1"),
        (
            {"schedule": "zero"},
            "schedule='zero': must be one of 'gpipe', '1f1b', 'interleaved', 'zb-h1'",
        ),
        ({"remat": "all"}, "remat='all': must be 'boundary', 'none'"),
        ({"engine": "mpi"}, "engine='mpi': must be 'mpmd', 'spmd' or 'auto'"),
        ({"balance": "size"}, "balance='size': must be 'flops', 'time', 'bytes' or a list"),
        ({"balance": ["Dense_0/kernel"]}, "3 stages begin at 2 cuts, not 1"),
        ({"balance": ["Dense_0/kernel", "Dense_9/kernel"]}, "no cut at Dense_9/kernel"),
        ({"stages": 9}, "stages=9: the network has 3 cuts, for at most 4 stages"),
        ({"engine": "spmd"}, "as many different devices"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    settings = {"stages": 3, "microbatches": 2, **settings}
    devices = ONE * settings["stages"]
    with pytest.raises(ValueError, match=message):
        js.pipeline_shard(devices=devices, **settings)(deep_cnn())


def test_devices_are_counted():
    with pytest.raises(ValueError, match=rf"stages=99: there are {len(jax.devices())} devices"):
        js.pipeline_shard(99)(deep_cnn())
    with pytest.raises(ValueError, match="devices: 1 of them for stages=3"):
        js.pipeline_shard(3, devices=ONE)(deep_cnn())
    with pytest.raises(ValueError, match="equally many, and no device twice"):
        js.pipeline_shard(2, devices=[ONE * 2, ONE * 2])(deep_cnn())


def test_what_a_call_or_step_cannot_take_is_named():
    made = pipe(deep_cnn())
    with pytest.raises(ValueError, match="batch of 7 is not divisible into microbatches=2"):
        made(X[:7])
    step = js.pipeline_value_and_grad(made, pipelines.entropy)
    with pytest.raises(ValueError, match="inputs and targets"):
        step(made.params, X)
    with pytest.raises(ValueError, match="not the tree"):
        step({}, (X, X))
    wrong = jax.tree.map(lambda p: p[:1], made.params)
    with pytest.raises(ValueError, match=r"params: Conv_0/bias is \[1\], the network's is \[4\]"):
        step(wrong, (X, X))
    whole = jax.tree.map(lambda p: p.astype(int), made.params)
    with pytest.raises(ValueError, match="params: Conv_0/bias is int32 and has no gradient"):
        step(whole, (X, X))
    rows = js.pipeline_value_and_grad(made, lambda y, t: y)
    with pytest.raises(ValueError, match=r"loss_fn: returned float32\[4, 3\]; a loss is one float"):
        rows(made.params, (X, X))


def test_what_is_no_pipeline_is_refused():
    for function in (js.simulate_schedule, lambda n: js.pipeline_value_and_grad(n, len)):
        with pytest.raises(ValueError, match=r"is no pipeline; js.pipeline_shard\(…\)\(net\)"):
            function(deep_cnn())
    with pytest.raises(ValueError, match="cannot follow pipeline_shard"):
        pipe(pipe(deep_cnn()))
    with pytest.raises(ValueError, match="takes a Network, not int"):
        js.pipeline_shard()(3)
    chip = pipe(js.deploy(js.quantize(8, None)(deep_cnn())))
    with pytest.raises(ValueError, match="net is deployed"):
        js.pipeline_value_and_grad(chip, pipelines.entropy)
    with pytest.raises(ValueError, match="reduction='max'"):
        js.pipeline_value_and_grad(pipe(deep_cnn()), len, reduction="max")


def test_pipelines_answer_in_the_floats_of_the_network():
    def model(p, x):
        for n in "abc":
            x = jnp.tanh(x @ p[n])
        return x

    x, w = jnp.ones((4, 8), "bfloat16"), {n: jnp.eye(8, dtype="bfloat16") for n in "abc"}
    made = pipe(js.trace(model, w, x), 2)
    value, grads = js.pipeline_value_and_grad(made, lambda y, t: jnp.mean((y - t) ** 2))(w, (x, x))
    found = {a.dtype for a in (made(x), value, *grads.values())}
    assert found == {jnp.dtype("bfloat16")}
