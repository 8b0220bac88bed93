"""Adapters beside programmed cells of a decoder: the digital computation of what was programmed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim.models.llama import tiny
from jaxsim.train import distillation, distillation_targets, fit

KEY = jax.random.key(0)
LAYERS = "layers*"
SIGMA = 0.05


@functools.cache
def decoder():
    """A decoder, and text that it wrote by itself."""
    model = tiny(width=32, hidden=32, heads=2, groups=1)
    ids = np.arange(12).reshape(2, 6)
    net = js.trace(model, jax.jit(model.init)(KEY, ids), ids)
    start = np.arange(8)[:, None] * 11
    cache = model.cache(8, 10)
    text = js.language.generate(net, start, cache, count=9, temperature=1.0, key=KEY)
    return net, np.concatenate([start, text], 1)


@functools.cache
def programmed():
    """The decoder in pairs of cells that are off, with adapters of drawn numbers."""
    net, _ = decoder()
    cells = js.cells.independent(SIGMA)
    form = js.quantize(js.Grid(8, per="channel"), None, sites=LAYERS)
    chip = js.compose(form, js.analog(cells=cells, sites=LAYERS), js.lora(2, KEY, sites=LAYERS))
    chip = js.deploy(chip(net), key=KEY, keep_floats=False)
    values = {
        name: 0.1 * jax.random.normal(jax.random.fold_in(KEY, i), a.shape)
        for i, (name, a) in enumerate(js.adapters(chip).items())
    }
    return js.with_adapters(chip, values)


def as_floats(of):
    """The decoder in floats with other weights: `of(name, weight)`; with the same adapters."""
    net, _ = decoder()

    def changed(path, weight):
        name = "/".join(key.key for key in path)
        return of(name, np.asarray(weight)) if name in programmed().cores else weight

    params = jax.tree_util.tree_map_with_path(changed, net.params)
    plain = js.lora(2, KEY, sites=LAYERS)(dataclasses.replace(net, params=params))
    return js.with_adapters(plain, js.adapters(programmed()))


def read_back(name, weight):
    """What a site's cells hold: the difference of each pair, in steps of the weight's grid."""
    scale = np.abs(weight).max(1, keepdims=True) / 127
    return np.asarray(programmed().states[name].inner).reshape(weight.shape) * 127 * scale


@jax.jit
def slopes(values, net, ids):
    """The loss of next tokens and its gradient with respect to adapters."""

    def loss(values):
        logits = js.with_adapters(net, values)(ids[:, :-1])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
        return each.mean()

    return jax.value_and_grad(loss)(values)


def test_gradients_of_adapters_are_those_beside_the_programmed_weights():
    _, text = decoder()
    values = js.adapters(programmed())
    found, grads = slopes(values, programmed(), text)
    expected, by_hand = slopes(values, as_floats(read_back), text)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # beside the weights that were asked for, gradients are others
    _, asked = slopes(values, as_floats(lambda _, weight: weight), text)
    for name, grad in grads.items():
        size = np.abs(by_hand[name]).max()
        np.testing.assert_allclose(grad, by_hand[name], atol=1e-4 * size)
        assert np.abs(asked[name] - by_hand[name]).max() > 1e-2 * size


def test_adapters_train_on_self_written_text_and_cells_stay():
    net, text = decoder()
    ids, following = text[:, :-1], text[:, 1:]
    labels = distillation_targets(np.asarray(jax.jit(net.__call__)(ids)), following)
    loss = distillation(temperature=1.0, weight=1.0)
    fresh = {n: a if n.endswith("down") else 0 * a for n, a in js.adapters(programmed()).items()}
    chip = js.with_adapters(programmed(), fresh)
    run = {"key": KEY, "batch_size": 8, "loss": loss, "quiet": True, "epochs": 12}
    tuned = fit(chip, ids, labels, optimizer=optax.adam(0.02), **run)
    for a, b in zip(jax.tree.leaves(chip.states), jax.tree.leaves(tuned.states), strict=True):
        np.testing.assert_array_equal(a, b)
    of = jax.jit(lambda net: loss(net(ids), labels))
    assert of(tuned) < 0.6 * of(chip)
    assert of(net) < 1e-6


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_loss_of_a_row_is_the_mean_over_its_places(weight):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 4, 7))
    classes = rng.integers(0, 7, (3, 4))
    q = np.exp(student / 2) / np.exp(student / 2).sum(-1, keepdims=True)
    p = np.exp(teacher / 2) / np.exp(teacher / 2).sum(-1, keepdims=True)
    divergence = 4 * (p * np.log(p / q)).sum(-1).mean()
    whole = np.exp(student) / np.exp(student).sum(-1, keepdims=True)
    surprise = -np.log(np.take_along_axis(whole, classes[..., None], -1)).mean()
    labels = distillation_targets(teacher, classes)
    assert labels.shape == (3, 4, 8)
    found = distillation(temperature=2.0, weight=weight)(jnp.asarray(student), jnp.asarray(labels))
    np.testing.assert_allclose(found, weight * divergence + (1 - weight) * surprise, rtol=1e-5)
    with pytest.raises(ValueError, match=r"labels\[3, 5\] for logits\[3, 4, 7\]"):
        distillation_targets(teacher, np.zeros((3, 5), int))
