"""Architectures of today, by their papers: what is multiplied or looked up is reached."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.architectures.catalog import ARCHITECTURES
from tests.support.architectures.kit import linen, nnx_model

OF = {of.name: of for of in ARCHITECTURES}


@functools.cache
def network(name):
    model, variables = linen(OF[name].build, OF[name].inputs)
    return js.trace(model, variables, *OF[name].inputs), model, variables


@pytest.mark.parametrize("library", ["linen", "nnx"])
@pytest.mark.parametrize("name", OF)
def test_every_matrix_is_reached_or_named(name, library):
    inputs = OF[name].inputs
    net = (
        network(name)[0]
        if library == "linen"
        else js.trace(nnx_model(OF[name].build, inputs), *inputs)
    )
    matrices = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(net.params)
        if leaf.ndim > 1
    }
    rows = {row.name: row for row in js.quantize(8, 8)(net).coverage().rows}
    left = {name: n for name, n in matrices.items() if rows[name].reach != "transformed"}
    assert tuple(left.values()) == OF[name].moved
    assert all(".py:" in rows[name].reason for name in left)
    assert sum(left.values()) <= 0.01 * sum(matrices.values()) or OF[name].moved


def gated(core, *, gate):
    """What a core computes where a gate is one, what is computed without it where it is zero."""

    def read(op, state, x, key):
        stored, w = state
        return gate * core.read(op, stored, x, key) + (1 - gate) * js.float_core.read(op, w, x, key)

    return core._replace(write=lambda op, w, key: (core.write(op, w, key), w), read=read)


def one_by_one(net):
    """The outputs where only one site at a time rounds, where none does, and where all do."""
    names = [site.name for site in net.sites if site.kind != "dynamic"]
    quantized = js.quantize(8, 8)(net)

    @jax.jit
    def outputs(gates, *inputs):
        def gated_by(gate):
            around = {n: js.Wrapper.of(gated, gate=g) for n, g in zip(names, gate, strict=True)}
            cores = {name: (around[name], *chain) for name, chain in quantized.cores.items()}
            chip = dataclasses.replace(quantized, cores=cores)
            return jnp.concatenate([jnp.ravel(y) for y in jax.tree.leaves(chip(*inputs))])

        return jax.lax.map(gated_by, gates)

    gates = np.eye(len(names) + 2, len(names), dtype=np.float32)
    gates[-1] = 1
    return outputs, gates


@pytest.mark.parametrize("name", OF)
def test_each_layer_brings_an_error_of_its_own_and_together_they_add_as_noise(name):
    net, *_ = network(name)
    outputs, gates = one_by_one(net)
    *each, none, every = np.asarray(outputs(gates, *OF[name].inputs))
    errors = [np.sqrt(np.mean((y - none) ** 2)) for y in each]
    whole, together = np.sqrt(np.mean((every - none) ** 2)), np.sqrt(np.sum(np.square(errors)))
    assert min(errors) > 1e-6 * none.std()
    assert whole < none.std() / 8
    assert together / 4 < whole < 2 * together
