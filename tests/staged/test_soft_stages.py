"""Tokens are scaled by soft masks in stages as on one device, with the same gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim.staged.gradient import soft_value_and_grad
from jaxsim.staged.trained import trained_values, with_values
from jaxsim.train import Soft, fit, over_exits
from tests.support.compilations import compilations
from tests.support.models import normal
from tests.support.transformers import CLASSES, KINDS, WIDTH, inputs, network, present

LEVEL = np.array([0.08, 0.1, 0.13])
PAIR, THREE = jax.devices()[:1] * 2, jax.devices()[:1] * 3
HEAT, WEIGHT = 0.03, 0.7


def all_there(ids):
    return jnp.ones(ids.shape[:2], bool)


# Cut behind an attention, whose mask crosses, where a layer begins, and between slices of a scan.
CASES = {
    "bert": ["layers/1/up"],
    "scanned bert": ["layers/q[1]"],
    "vit, mean": ["layers/2/q"],
}


def squared(logits, targets):
    return jnp.mean((logits - targets) ** 2)


@functools.cache
def case(name, exits=False):
    """A network whose weights are halved, so that rounding is less enlarged, and its inputs."""
    kind = KINDS[name]
    rule = {"present": present if kind.padded else all_there}
    net = js.prune_tokens(LEVEL, **rule)(network(name))
    if exits:
        net = js.magic_pyramid(LEVEL, js.Rule(0.5), **rule)(network(name))
        heads = [normal(WIDTH, CLASSES, seed=i) for i in range(len(net.exits))]
        made = tuple({"kernel": k, "bias": jnp.zeros(CLASSES)} for k in heads)
        net = dataclasses.replace(net, heads=made)
    return dataclasses.replace(net, params=jax.tree.map(lambda a: a / 2, net.params)), inputs(
        kind, rows=4
    )


@functools.cache
def of_one_device(name, exits=False):
    net, args = case(name, exits)
    values = trained_values(net, levels=True)

    def total(values):
        found = with_values(net, values, levels=True).soften(*args, temperature=HEAT)
        loss = over_exits(squared) if exits else squared
        read = found.logits if exits else found.logits[:, 0]
        return loss(read, 0.0) + WEIGHT * jnp.mean(found.shares)

    return jax.jit(jax.value_and_grad(total))(values)


def in_stages(name, devices=PAIR, microbatches=2, *, exits=False, **settings):
    net, args = case(name, exits)
    pipe = js.pipeline_shard(len(devices), microbatches, devices=devices, **settings)(net)
    loss = over_exits(squared) if exits else squared
    step = soft_value_and_grad(pipe, loss, WEIGHT)
    return step(trained_values(pipe, levels=True), (args, jnp.zeros(())), HEAT)


def furthest(one, other):
    """The largest difference of gradients, as a share of the largest of each array."""
    pairs = [*zip(*map(jax.tree.leaves, (one, other)), strict=True)]
    return max(
        np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(b).max(), 1e-4) for a, b in pairs
    )


@pytest.mark.parametrize("schedule", ["gpipe", "zb-h1"])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_one_device(name, schedule):
    remat = "boundary" if schedule == "gpipe" else "none"
    loss, grads = in_stages(name, balance=CASES[name], schedule=schedule, remat=remat)
    expected, slopes = of_one_device(name)
    np.testing.assert_allclose(loss, expected, rtol=2e-6)
    assert sorted(grads) == ["level", "params"]
    assert (np.abs(slopes["level"]) > 1e-3).all()
    assert furthest(grads, slopes) < 2e-5


@pytest.mark.parametrize("microbatches", [1, 4])
def test_shares_are_of_all_tokens_of_a_mini_batch(microbatches):
    """Rows differ in length: a mean of the shares of micro-batches would be another number."""
    _, (_, lengths) = case("bert")
    assert len(set(np.asarray(lengths).tolist())) > 1
    loss, grads = in_stages("bert", THREE, microbatches, schedule="1f1b")
    expected, slopes = of_one_device("bert")
    np.testing.assert_allclose(loss, expected, rtol=2e-6)
    assert furthest(grads, slopes) < 2e-5


@pytest.mark.parametrize("name", ["bert", "scanned bert"])
def test_classifiers_read_scaled_tokens_in_the_stage_they_stand_in(name):
    loss, grads = in_stages(name, exits=True, balance=CASES[name], schedule="1f1b")
    expected, slopes = of_one_device(name, True)
    np.testing.assert_allclose(loss, expected, rtol=2e-6)
    assert sorted(grads) == ["heads", "level", "params"]
    assert furthest(grads, slopes) < 2e-5


def test_levels_are_learned_in_stages_as_on_one_device():
    net, args = case("bert")
    settings = {
        "epochs": 3,
        "batch_size": 2,
        "optimizer": optax.sgd(1e-3),
        "key": jax.random.key(2),
        "soft": Soft(30.0, (0.1, 0.05)),
        "pad_to": 3,
        "quiet": True,
    }
    labels = np.arange(4) % CLASSES
    whole = fit(net, args, labels, **settings)
    pipe = js.pipeline_shard(2, 2, devices=PAIR, balance=CASES["bert"])(net)
    cut = fit(pipe, args, labels, **settings)
    assert np.abs(whole.tokens.level - net.tokens.level).max() > 1e-3
    np.testing.assert_allclose(cut.tokens.level, whole.tokens.level, rtol=1e-4)
    assert furthest(cut.params, whole.params) < 1e-4


def test_quantized_layers_are_softened_in_stages():
    net, args = case("bert")
    coded = js.quantize(4, None)(net)
    pipe = js.pipeline_shard(2, 2, devices=PAIR, balance=CASES["bert"])(coded)
    step = soft_value_and_grad(pipe, squared, WEIGHT)
    loss, _ = step(trained_values(pipe, levels=True), (args, jnp.zeros(())), HEAT)
    found = coded.soften(*args, temperature=HEAT)
    expected = squared(found.logits[:, 0], 0.0) + WEIGHT * jnp.mean(found.shares)
    np.testing.assert_allclose(loss, expected, rtol=2e-6)
    assert abs(loss - of_one_device("bert")[0]) > 1e-4


def test_temperatures_and_levels_compile_no_stage_anew():
    net, args = case("bert")
    pipe = js.pipeline_shard(2, 2, devices=PAIR, balance=CASES["bert"])(net)
    step = soft_value_and_grad(pipe, squared, WEIGHT)
    values = trained_values(pipe, levels=True)
    step(values, (args, jnp.zeros(())), HEAT)
    hotter = {**values, "level": 2 * values["level"]}
    with compilations() as compiled:
        step(hotter, (args, jnp.zeros(())), 3 * HEAT)
    assert not compiled
