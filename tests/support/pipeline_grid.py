"""`python -m tests.support.pipeline_grid NAME …`: checks of pipelines that need several devices.

Run with `--xla_force_host_platform_device_count=8`, as `tests/pipeline/test_devices.py`
does; each prints the largest error it met.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support import pipelines

# Stages and micro-batches: each number of either twice, fewer of one, equally many, and more.
PAIRS = [(1, 1), (1, 4), (2, 2), (2, 8), (4, 1), (4, 4), (8, 2), (8, 8)]

# Eight stages of these are cut inside blocks too, where a skip connection passes a stage.
SMALL = {
    "cnn": functools.partial(pipelines.cnn, blocks=4),
    "encoder": functools.partial(pipelines.encoder, layers=2),
    "mlp": pipelines.mlp,
}


def grid(name: str, dtype: str) -> float:
    """The largest relative error of a gradient over stages, micro-batches and schedules.

    Micro-batches are of one example, so that programs are compiled once for each number of
    stages.
    """
    return _furthest(SMALL[name](dtype=jnp.dtype(dtype)), PAIRS)


def single() -> float:
    """The same in single precision, for one pair."""
    return max(_furthest(make(), [(4, 8)]) for make in SMALL.values())


def _furthest(case: pipelines.Case, pairs: list[tuple[int, int]]) -> float:
    expected, worst = {}, 0.0
    for K, M in pairs:
        cut = case._replace(batch=jax.tree.map(lambda a, M=M: a[:M], case.batch))
        if M not in expected:
            expected[M] = pipelines.plain(cut)
        for schedule in ("gpipe", "1f1b"):
            pipe = js.pipeline_shard(K, M, schedule=schedule)(cut.net)
            step = js.pipeline_value_and_grad(pipe, cut.loss)
            loss, grads = step(cut.net.params, cut.batch)
            error = abs(float(loss / expected[M][0]) - 1)
            worst = max(worst, error, pipelines.furthest(grads, expected[M][1]))
    return worst


def spmd(name: str, K: str, M: str, replicas: str) -> float:
    """The engine of one program, its outputs and gradients."""
    case, K, M, R = pipelines.CASES[name](), int(K), int(M), int(replicas)
    devices = np.asarray(jax.devices()[: K * R]).reshape(K, R)
    pipe = js.pipeline_shard(K, M, engine="spmd", devices=devices)(case.net)
    inputs, _ = case.batch
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    difference = np.abs(np.asarray(pipe(*args)) - np.asarray(case.net(*args))).max()
    loss, grads = js.pipeline_value_and_grad(pipe, case.loss)(case.net.params, case.batch)
    expected = pipelines.plain(case)
    error = abs(float(loss / expected[0]) - 1)
    return max(float(difference), error, pipelines.furthest(grads, expected[1]))


def replicas(name: str, dtype: str) -> float:
    """Stages that two devices share, by a mesh; batch statistics are of the whole micro-batch."""
    mesh = jax.make_mesh((4, 2), ("stage", "data"))
    case = SMALL[name](dtype=jnp.dtype(dtype))
    pipe = js.pipeline_shard(4, 2, devices=mesh)(case.net)
    single = js.pipeline_shard(4, 2)(case.net)
    results = []
    for net in (pipe, single):
        more = {"train": True, "mutable": ["batch_stats"]} if name == "cnn" else {}
        step = js.pipeline_value_and_grad(net, case.loss)
        results.append(jax.tree.map(np.asarray, step(case.net.params, case.batch, **more)))
    assert all(len(row.devices) == 2 for row in pipe.stages.rows)
    return pipelines.furthest(*results)


def placed() -> float:
    """Parameters and gradients stay on the devices of their stages; a tied one on the first."""
    case = SMALL["encoder"]()
    pipe = js.pipeline_shard(4, 2)(case.net).placed()
    step = js.pipeline_value_and_grad(pipe, case.loss)
    _, grads = step(pipe.params, case.batch)
    homes = {str(p.devices()) for p in jax.tree.leaves(pipe.params)}
    assert len(homes) == 4
    for p, g in zip(jax.tree.leaves(pipe.params), jax.tree.leaves(grads), strict=True):
        assert p.devices() == g.devices()
    assert pipe.params["Embed_0"]["embedding"].devices() == {jax.devices()[0]}
    return pipelines.furthest(grads, pipelines.plain(case)[1])


def raising() -> float:
    """What a device raises in the middle comes out of the step; nothing has been changed."""
    lost = {3}  # the micro-batches whose third stage raises

    def check(number):
        if int(number) in lost:
            raise RuntimeError("device lost")
        return number

    def model(params, x):
        number = x[0, 0]
        for i, w in enumerate(params):
            x = jnp.tanh(x @ w)
            if i == 2:
                same = jax.ShapeDtypeStruct((), x.dtype)
                x = x + 0 * jax.pure_callback(check, same, jax.lax.stop_gradient(number))
        return x

    params = [pipelines.normal(4, 4, seed=i) for i in range(4)]
    x = jnp.repeat(jnp.arange(5.0), 2)[:, None] * jnp.ones(4)
    net = js.trace(model, params, x)
    pipe = js.pipeline_shard(4, 5)(net)
    step = js.pipeline_value_and_grad(pipe, pipelines.squares)
    before = [np.array(p) for p in params]
    with pytest.raises(Exception, match="device lost"):
        step(params, (x, x))
    assert all(np.array_equal(a, b) for a, b in zip(before, params, strict=True))
    lost.clear()
    _, grads = step(params, (x, x))  # and the pipeline goes on
    plain = jax.grad(lambda p: pipelines.squares(dataclasses.replace(net, params=p)(x), x))
    return pipelines.furthest(grads, plain(params))


def refused() -> float:
    """What one program for all devices cannot run."""
    spmd = functools.partial(js.pipeline_shard, 2, 2, engine="spmd")
    with pytest.raises(ValueError, match="has convolutions, and XLA's CPU backend"):
        spmd()(pipelines.cnn().net)
    with pytest.raises(ValueError, match="schedule='1f1b': engine='spmd'"):
        spmd(schedule="1f1b")(pipelines.mlp().net)
    shapes = [(4, 8), (8, 6), (6, 4)]
    params = [pipelines.normal(*shape) for shape in shapes]
    unequal = js.trace(
        lambda params, x: functools.reduce(jnp.matmul, params, x), params, pipelines.normal(8, 4)
    )
    with pytest.raises(ValueError, match="no run of equal blocks for stages=2"):
        spmd()(unequal)
    made, x = spmd()(pipelines.mlp().net), pipelines.mlp().batch[0]
    with pytest.raises(ValueError, match="engine='spmd' takes no key"):
        made(x, key=jax.random.key(0))
    with pytest.raises(ValueError, match="engine='spmd' has one program"):
        made.memory()
    mixed = spmd()(js.quantize(8, None, sites="layers/3/*")(pipelines.mlp().net))
    with pytest.raises(ValueError, match="the blocks differ in their hardware"):
        mixed(x)
    chip = js.deploy(js.compose(js.prune(0.5), js.quantize(8, 8))(pipelines.mlp().net), calibrate=x)
    return 0.0 if np.allclose(spmd()(chip)(x), chip(x), atol=1e-5) else 1.0


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if "float64" in arguments:
        jax.config.update("jax_enable_x64", True)
    print("worst", float(globals()[name](*arguments)))
