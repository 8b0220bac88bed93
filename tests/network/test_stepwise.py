"""Sites that are alike are written and calibrated by programs of their own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim import internals
from jaxsim.network import deployment, stepwise, writer
from tests.support.models import normal

X = normal(3, 8, seed=1)
HARDWARE = js.compose(js.quantize(8, 8), js.slice_bits(2), js.analog(rows=4))


def layer(p, x):
    return jax.nn.silu(x @ p["up"]) @ p["down"]


@functools.cache
def decoder(layers, wrapped=lambda f: f):
    """Layers one behind the other, an embedding before and a loop behind them."""
    params = {
        "table": normal(9, 8),
        "layers": [
            {"up": normal(8, 12, seed=2 * i + 2), "down": normal(12, 8, seed=2 * i + 3)}
            for i in range(layers)
        ],
        "loop": normal(2, 8, 8, seed=90),
    }
    one = wrapped(layer)

    def run(p, x):
        x = x + p["table"][jnp.argmax(x, -1)]
        for each in p["layers"]:
            x = x + one(each, x)
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["loop"])[0]

    return js.trace(run, params, X)


def layer_names(net):
    return [site.name for site in net.sites if site.name.startswith("layers/")]


@pytest.mark.parametrize("wrapped", [jax.jit, jax.checkpoint], ids=["jit", "checkpoint"])
def test_ranges_are_those_of_one_program(wrapped, monkeypatch):
    net, batches = js.quantize(8, 8)(decoder(4, wrapped)), [X, 2 * X]
    chip = js.deploy(net, calibrate=batches)
    monkeypatch.setattr(deployment, "mostly_alike", lambda plan, cores: False)
    whole = js.deploy(net, calibrate=batches)
    for name in ("loop", *layer_names(net)):
        found, expected = (np.asarray(c.states[name].inputs) for c in (chip, whole))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert (expected != 0).any()
    y, z = chip(X), whole(X)
    assert np.abs(y - z).max() < 0.02 * np.abs(z).max()


def test_as_many_programs_whatever_the_number_of_layers():
    counts = []
    for layers in (4, 6):
        jax.clear_caches()
        js.deploy(HARDWARE(decoder(layers)), calibrate=X)
        programs = (stepwise._run_block, writer._write, writer._write_most)
        counts.append(internals.compile_count(*programs, deployment._calibrate))
    assert counts[0] == counts[1] < 16


def test_each_alike_site_draws_its_own_cells():
    """Keys are those of the sites' names, as where each is written by itself."""
    net = js.compose(
        js.quantize(8, None, sites="layers/*"),
        js.analog(cells=js.cells.proportional(0.1), sites="layers/*"),
    )(decoder(4))
    key = jax.random.key(3)
    states = js.deploy(net, key=key).states
    cells = {name: np.asarray(jax.tree.leaves(states[name].inner)[0]) for name in layer_names(net)}
    alone = {
        name: js.deploy(dataclasses.replace(net, cores={name: net.cores[name]}), key=key).states[
            name
        ]
        for name in ("layers/0/up", "layers/3/up")
    }
    for name, state in alone.items():
        np.testing.assert_array_equal(cells[name], jax.tree.leaves(state.inner)[0])
    assert (cells["layers/0/up"] != cells["layers/3/up"]).any()


def test_masks_of_alike_sites_are_their_own():
    net = js.quantize(8, None)(js.prune(0.5)(decoder(4)))
    states = js.deploy(net).states
    for name in layer_names(net):
        assert (np.asarray(states[name].inner)[~np.asarray(net.masks[name])] == 0).all()
