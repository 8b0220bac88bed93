"""Training goes through what the cores do, and a run that was cut off ends as the whole one."""

import dataclasses
import functools
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsim as js
from benchmarks.common.chips import retrained
from jaxsim.checkpoint.log import program_digest
from jaxsim.data import fashion_mnist
from jaxsim.models.resnet import ResNet
from jaxsim.train.loop import fit
from jaxsim.train.losses import cross_entropy
from jaxsim.train.reference import CALL
from tests.support.models import NnxCnn, normal

X = np.asarray(normal(8, 6, 6, 3, seed=3))
LABELS = np.arange(8) % 3
RUN = {
    "epochs": 3,
    "optimizer": optax.adam(1e-2),
    "key": jax.random.key(0),
    "batch_size": 4,
    "quiet": True,
}


@functools.cache
def layers():
    """Two dense layers."""

    def fn(params, x):
        return jnp.tanh(x.reshape(len(x), -1) @ params["a"]) @ params["b"]

    return js.trace(fn, {"a": normal(108, 4), "b": normal(4, 3, seed=1)}, X)


def leaves(net):
    return [np.asarray(p) for p in jax.tree.leaves((net.params, net.buffers))]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_a_step_of_sgd_is_the_gradient_step():
    net = layers()

    @jax.jit
    @jax.grad
    def slope(params):
        logits = dataclasses.replace(net, params=params)(X)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(8), LABELS])

    expected = jax.tree.map(lambda p, g: np.asarray(p) - 0.5 * g, net.params, slope(net.params))
    found = fit(
        net, X, LABELS, **{**RUN, "epochs": 1, "batch_size": 8, "optimizer": optax.sgd(0.5)}
    )
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_training_through_noise_is_repeated_by_its_key():
    noisy = js.compose(
        js.quantize(8, 8, sites="b"), js.analog(cells=js.cells.independent(0.1), sites="b")
    )(layers())
    # all images in one batch: that their order is the key's too changes next to nothing
    run = {**RUN, "batch_size": 8, "optimizer": optax.sgd(1.0)}
    first, again, other = (
        fit(noisy, X, LABELS, **{**run, "key": jax.random.key(k)}) for k in (0, 0, 1)
    )
    assert equal(first, again)
    apart = [np.abs(a - b).max() for a, b in zip(leaves(first), leaves(other), strict=True)]
    assert min(apart) > 1e-4


def test_pruned_weights_stay_pruned_through_momentum_and_decay():
    sparse = js.prune(0.5)(layers())
    trained_on = fit(sparse, X, LABELS, **{**RUN, "optimizer": optax.adamw(1e-2, weight_decay=0.1)})
    assert set(trained_on.masks) == {"a", "b"}
    for name, mask in trained_on.masks.items():
        assert not np.any(np.asarray(trained_on.masked_params()[name])[~np.asarray(mask)])


def test_batch_statistics_are_kept():
    model = ResNet((), 4)
    net = js.trace(model, jax.jit(model.init)(jax.random.key(0), X), X)
    after = fit(net, X, LABELS, call=CALL, **RUN)
    assert not np.array_equal(*(jax.tree.leaves(n.buffers)[0] for n in (net, after)))


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    whole = fit(layers(), X, LABELS, **RUN)
    script = f"""
        import os, signal
        import jax
        from jaxsim.checkpoint import resume
        from jaxsim.train import fit
        from tests.train.test_loop import LABELS, RUN, X, layers

        hasty = {jax.config.read("jax_disable_most_optimizations")}
        jax.config.update("jax_disable_most_optimizations", hasty)  # compiled as the caller is
        add = resume.RunCheckpointer.add

        def add_and_die(self, step, tree):
            add(self, step, tree)
            self.manager.wait_until_finished()
            if step == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        resume.RunCheckpointer.add = add_and_die
        fit(layers(), X, LABELS, checkpoints={str(tmp_path / "run")!r}, **RUN)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert killed.returncode == -9
    assert equal(whole, fit(layers(), X, LABELS, checkpoints=tmp_path / "run", **RUN))


def test_dropout_draws_anew_at_every_step():
    """With rate one half and a zero learning rate, only the masks tell the losses apart."""
    masks = []

    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(16)(x.reshape(len(x), -1)))
            jax.debug.callback(lambda m: masks.append(np.asarray(m)), x == 0)
            return nn.Dense(3)(x)

    model = Dropped()
    net = js.trace(
        model, jax.jit(model.init, static_argnums=2)(jax.random.key(0), X, False), X, train=False
    )
    fit(net, X, LABELS, call={"train": True}, rngs=("dropout",), **RUN)
    jax.effects_barrier()
    drawn = [m for m in masks if m.any()]
    assert len({m.tobytes() for m in drawn}) == len(drawn) >= 6


def test_updates_of_nested_nnx_buffers_are_merged():
    model = NnxCnn(nnx.Rngs(0))
    x = np.asarray(normal(8, 8, 8, 3))
    net = js.trace(model, None, x)
    after = fit(net, x, LABELS, call={"mutable": (nnx.BatchStat, nnx.RngState)}, **RUN)
    assert jax.tree.structure(after.buffers) == jax.tree.structure(net.buffers)
    means, counts = (
        [read(n.buffers) for n in (net, after)]
        for read in (lambda b: b["norm"]["mean"], lambda b: b["drop"]["rngs"]["count"])
    )
    assert not np.array_equal(*means)
    assert counts[0] != counts[1]


def test_checkpoints_of_another_run_are_refused(tmp_path):
    fit(layers(), X, LABELS, checkpoints=tmp_path / "run", **RUN)
    with pytest.raises(ValueError, match="are of another run"):
        fit(layers(), X, LABELS[::-1], checkpoints=tmp_path / "run", **RUN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 9}, "batch_size=9: must be from 1 to 8"),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        fit(layers(), X, LABELS, **{**RUN, **change})


def test_labels_that_do_not_fit_and_deployed_networks_are_refused():
    with pytest.raises(ValueError, match="labels: 7 of them for 8 images"):
        fit(layers(), X, LABELS[:7], **RUN)
    with pytest.raises(ValueError, match="net is deployed"):
        fit(js.deploy(js.quantize(8, None)(layers())), X, LABELS, **RUN)


@pytest.mark.slow
def test_four_bit_aware_training_recovers_three_points_and_the_chip_loses_at_most_one():
    """The reduced form of `python -m benchmarks chips`, on some of the packaged subset."""
    train, test = (
        data._replace(images=data.images[:count], labels=data.labels[:count])
        for data, count in (
            (fashion_mnist("train", source="subset"), 3000),
            (fashion_mnist("test", source="subset"), 1000),
        )
    )
    model = ResNet(stages=(1,), features=16, stem_stride=4)
    init = jax.jit(model.init)(jax.random.key(0), train.images[:1])
    steps = 6 * (len(train.labels) // 128)
    net = fit(
        js.trace(model, init, train.images[:1]),
        train.images,
        train.labels,
        epochs=6,
        optimizer=optax.adamw(optax.cosine_decay_schedule(8e-3, steps)),
        key=jax.random.key(1),
        call=CALL,
        quiet=True,
    )

    def right(chip, seed=0):
        chip = js.deploy(chip, key=jax.random.key(seed), calibrate=train.images[:256])
        return np.mean(js.classify(chip, test.images) == test.labels)

    plain = np.mean(js.classify(net, test.images) == test.labels)
    assert plain > 0.6
    composed = js.compose(
        js.prune(0.1),
        js.quantize(8, js.Grid(8, symmetric=False)),
        js.slice_bits(2),
        js.analog(adc=8, cells=js.cells.proportional(0.02)),
    )(net)
    assert np.mean([right(composed, seed) for seed in range(3)]) > plain - 0.01
    four = js.quantize(weights=4, inputs=4)(net)
    aware = retrained(four, train, epochs=1, seed=0, quiet=True)
    assert right(aware) > right(four) + 0.03


def test_a_run_is_known_by_all_that_changes_its_result(tmp_path):
    """Images, labels, key, rate, schedule, loss, call and buffers; more epochs go on."""
    images, run = X, {**RUN, "optimizer": optax.adam(1e-2)}
    folder = {"checkpoints": tmp_path / "run"}
    one = fit(layers(), images, LABELS, **run, **folder)
    assert equal(
        one, fit(layers(), images, LABELS, **{**run, "optimizer": optax.adam(1e-2)}, **folder)
    )
    schedules = [optax.cosine_decay_schedule(1e-2, n) for n in (5, 50)]
    decay = [jax.tree.map(lambda p, s=s: jnp.full_like(p, s), layers().params) for s in (1.0, 2.0)]
    for optimizer in (
        optax.adam(0.5),
        optax.adam(1e-2, b2=0.99),
        *map(optax.adam, schedules),
        *(optax.chain(optax.adam(1e-2), scaled(d)) for d in decay),
    ):
        with pytest.raises(ValueError, match=r"another run \(other .*optimizer"):
            fit(layers(), images, LABELS, **{**run, "optimizer": optimizer}, **folder)
    for change, told in (
        ({"images": images * 2}, "other images"),
        ({"labels": LABELS[::-1]}, "other labels"),
        ({"key": jax.random.key(99)}, "other key"),
        ({"batch_size": 2}, "batch_size"),
        ({"loss": lambda z, y: 2 * cross_entropy(z, y)}, "other loss"),
    ):
        given = {**run, "images": images, "labels": LABELS, **change}
        with pytest.raises(ValueError, match=told):
            fit(layers(), given.pop("images"), given.pop("labels"), **given, **folder)
    longer = {**run, "epochs": run["epochs"] + 1}
    assert equal(
        fit(layers(), images, LABELS, **longer), fit(layers(), images, LABELS, **longer, **folder)
    )


def scaled(by):
    """A transformation whose arrays are known only by what they hold, inside a jitted function."""
    times = jax.jit(lambda u: jax.tree.map(lambda v, b: v * b, u, by))
    return optax.GradientTransformation(lambda _: (), lambda u, s, _=None: (times(u), s))


def test_arrays_inside_a_programme_tell_runs_apart():
    steps = [
        jax.jit(lambda x, c=c: x + jax.jit(lambda x: x * c)(x))
        for c in map(jnp.full, (50, 50), (1, 2))
    ]
    first, second = (program_digest(s, 1.0)[0] for s in steps)
    assert first != second
    assert program_digest(steps[0], 1.0) == (first, True)
    host = jax.jit(lambda x: jax.pure_callback(np.sin, x, x))
    assert not program_digest(host, np.float32(1))[1]


def test_what_is_not_compared_is_said(tmp_path):
    def loss(logits, labels):
        jax.debug.callback(lambda z: None, logits)
        return cross_entropy(logits, labels)

    with pytest.warns(UserWarning, match="host callbacks"):
        fit(layers(), X, LABELS, **{**RUN, "loss": loss}, checkpoints=tmp_path / "run")
