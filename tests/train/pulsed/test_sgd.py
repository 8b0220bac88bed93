"""Gradient descent by pulses: as plain descent where cells allow it, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsim.train import pulsed
from tests.oracles import pulses as oracle

KEY = jax.random.key(0)
FINE = 1e-4
SOFT = pulsed.soft_bounds(0.01, imbalance=0.1, spread=0.2, noise=0.3)
OPTIMIZERS = {
    "sgd": lambda key: pulsed.sgd(SOFT, 0.1, key),
    "tiki_taka": lambda key: pulsed.tiki_taka(SOFT, SOFT, 0.1, key, gain=0.5, read_noise=0.01),
    "chopped_tiki_taka": lambda key: pulsed.chopped_tiki_taka(
        SOFT, SOFT, 0.1, key, gain=0.5, reference_error=0.1
    ),
    "agad": lambda key: pulsed.agad(SOFT, SOFT, 0.1, key, gain=0.5, period=2),
}


def gradients(count, shape, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def through(optimizer, params, steps):
    """Parameters and state after gradients, in one program."""

    def step(at, grads):
        params, state = at
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), updates

    return jax.jit(lambda p, steps: jax.lax.scan(step, (p, optimizer.init(p)), steps))(
        params, steps
    )


def test_whole_pulses_on_soft_bounds_are_the_oracle():
    cells = pulsed.soft_bounds(1 / 64, imbalance=0.25, low=-0.5, high=0.75)
    grads = np.random.default_rng(1).integers(-9, 10, (12, 3, 2)) / 32.0
    w = np.random.default_rng(2).uniform(-0.4, 0.6, (3, 2))
    optimizer = pulsed.sgd(cells, 0.5, KEY, max_pulses=6)
    steps = {"w": jnp.asarray(grads, jnp.float32)}
    (found, _), _ = through(optimizer, {"w": jnp.asarray(w, jnp.float32)}, steps)

    def cell(up, down):
        return lambda w, n: oracle.soft(w, n, up / 64, down / 64, -0.5, 0.75)

    expected = oracle.sgd(w, grads, 0.5, cell(1.25, 0.75), 1 / 64, 6)
    np.testing.assert_allclose(found["w"], expected, atol=1e-6)
    swapped = oracle.sgd(w, grads, 0.5, cell(0.75, 1.25), 1 / 64, 6)
    unbounded = oracle.sgd(w, grads, 0.5, cell(1.25, 0.75), 1 / 64, 99)
    for wrong in (swapped, unbounded):
        assert np.abs(found["w"] - wrong).max() > 0.01


def test_fine_symmetric_steps_are_plain_descent_up_to_a_step():
    grads = {"w": jnp.asarray(gradients(40, (4, 3)))}
    params, cells = {"w": jnp.full((4, 3), 0.1)}, pulsed.constant_step(FINE)
    _, updates = through(pulsed.sgd(cells, 0.01, KEY, max_pulses=1000), params, grads)
    off = np.asarray(updates["w"] + 0.01 * grads["w"])
    assert np.abs(off).max() < 1.001 * FINE
    assert abs(off.mean()) < 4 * FINE / np.sqrt(12 * off.size)  # up as often as down
    coarse = pulsed.sgd(pulsed.constant_step(FINE, imbalance=0.1), 0.01, KEY, max_pulses=1000)
    _, updates = through(coarse, params, grads)
    assert np.abs(updates["w"] + 0.01 * grads["w"]).max() > 5 * FINE


def test_a_schedule_is_followed():
    grads = {"w": jnp.ones((3, 2, 2))}
    schedule = optax.piecewise_constant_schedule(0.5, {1: 0.5})
    optimizer = pulsed.sgd(pulsed.constant_step(0.125, low=-9.0, high=9.0), schedule, KEY)
    _, updates = through(optimizer, {"w": jnp.zeros((2, 2))}, grads)
    np.testing.assert_array_equal(updates["w"][:, 0, 0], [-0.5, -0.25, -0.25])


def test_the_first_update_brings_weights_within_what_cells_hold():
    """In all rows, whichever one is read."""
    params = {"w": jnp.array([[2.0, -3.0, 0.5], [0.25, 1.5, -1.5]])}
    for optimizer in (pulsed.sgd(SOFT, 0.1, KEY), pulsed.agad(SOFT, SOFT, 0.1, KEY, gain=0.0)):
        (held, _), _ = through(optimizer, params, {"w": jnp.zeros((1, 2, 3))})
        np.testing.assert_array_equal(held["w"], [[1.0, -1.0, 0.5], [0.25, 1.0, -1.0]])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_that_was_kept_goes_on_with_the_same_bits(name, tmp_path):
    """Through numpy's files: keys as their data, as checkpoints keep them."""
    grads = {"a": gradients(6, (2, 1, 2))}
    optimizer = OPTIMIZERS[name](KEY)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def after(at, numbers):
        for i in numbers:
            at = step(*at, {name: g[i] for name, g in grads.items()})
        return at

    params = {"a": jnp.zeros((2, 1, 2))}
    start = params, jax.jit(optimizer.init)(params)
    whole, (middle, state) = after(start, range(6)), after(start, range(3))
    data = state._replace(key=jax.random.key_data(state.key))
    leaves, tree = jax.tree.flatten((middle, data))
    np.savez(tmp_path / "state.npz", *leaves)
    with np.load(tmp_path / "state.npz") as file:
        middle, data = jax.tree.unflatten(tree, [jnp.asarray(file[n]) for n in file.files])
    state = data._replace(key=jax.random.wrap_key_data(data.key))
    found = after((middle, state), range(3, 6))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, whole))
    assert int(found[1].step) == 6
    other = after((middle, state._replace(key=jax.random.key(9))), range(3, 6))
    moved = [jax.tree.leaves((p, s._replace(key=()))) for p, s in (other, whole)]
    assert not all(map(np.array_equal, *moved))


def test_arrays_and_steps_draw_apart():
    """Two equal arrays, and two equal steps, with equal gradients of half a pulse."""
    cells = pulsed.constant_step(0.01, spread=0.1, low=-9.0, high=9.0)
    grads = jnp.full((2, 20, 20), 0.05)
    optimizer = pulsed.sgd(cells, 0.1, KEY)
    params = {"a": jnp.zeros((20, 20)), "b": jnp.zeros((20, 20))}
    (_, state), updates = through(optimizer, params, {"a": grads, "b": grads})
    got = [np.asarray(u).ravel() != 0 for u in (*updates["a"], *updates["b"])]
    sizes = [np.asarray(state.parts[name].up).ravel() for name in "ab"]
    for many in (got, sizes):
        off = np.corrcoef(many) - np.eye(len(many))
        assert np.abs(off).max() < 0.2


def test_it_works_beside_and_inside_other_transformations():
    params = {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}
    grads = {"kernel": jnp.ones((4, 3, 2)), "bias": jnp.ones((4, 2))}
    array = optax.chain(optax.clip(0.5), pulsed.sgd(pulsed.constant_step(0.125), 0.25, KEY))
    rank = lambda p: jax.tree.map(lambda a: "array" if a.ndim > 1 else "digital", p)  # noqa: E731
    both = optax.multi_transform({"array": array, "digital": optax.sgd(0.5)}, rank)
    (found, _), updates = through(both, params, grads)
    np.testing.assert_array_equal(updates["kernel"], np.full((4, 3, 2), -0.125))
    np.testing.assert_array_equal(found["bias"], np.full(2, -2.0))
    alone = optax.masked(array, lambda p: jax.tree.map(lambda a: a.ndim > 1, p))
    _, updates = through(alone, params, grads)
    np.testing.assert_array_equal(updates["bias"], np.ones((4, 2)))  # passed on, as optax does


def test_numbers_are_traced():
    count = []

    @jax.jit
    def moved(size, imbalance, noise, rate, gain, most, every, threshold, flip, period):
        count.append(1)
        cells = pulsed.soft_bounds(size, imbalance=imbalance, spread=noise, noise=noise)
        shared = {"gain": gain, "every": every, "max_pulses": most, "read_noise": noise}
        params = {"w": jnp.zeros((2, 2))}
        found = []
        for optimizer in (
            pulsed.sgd(cells, rate, KEY, max_pulses=most),
            pulsed.chopped_tiki_taka(
                cells, cells, rate, KEY, threshold=threshold, flip=flip, forget=flip, **shared
            ),
            pulsed.agad(cells, cells, rate, KEY, period=period, tail=threshold, **shared),
        ):
            updates, _ = optimizer.update({"w": jnp.ones((2, 2))}, optimizer.init(params), params)
            found.append(updates["w"])
        return found

    one = moved(0.01, 0.1, 0.2, 0.1, 0.5, 9, 1, 0.5, 0.5, 2)
    two = moved(0.02, 0.3, 0.1, 0.2, 0.6, 5, 2, 1.5, 0.2, 3)
    assert not np.array_equal(one[0], two[0])
    assert len(count) == 1


REFUSED = {
    "whole": (jnp.ones((2, 2), jnp.int32), "whole is int32"),
    "wave": (jnp.ones((2, 2), jnp.complex64), "wave is complex64"),
    "half": (jnp.ones((2, 2), jnp.bfloat16), "half is bfloat16"),
    "bias": (jnp.ones(3), r"bias is \[3\], and no array of rows and columns; train it digitally"),
    "empty": (jnp.ones((0, 3)), r"empty is \[0, 3\]"),
}


@pytest.mark.parametrize("leaf", REFUSED)
def test_parameters_that_are_no_arrays_are_named(leaf):
    value, said = REFUSED[leaf]
    for make in OPTIMIZERS.values():
        optimizer = make(KEY)
        with pytest.raises(ValueError, match=f"params: {said}"):
            optimizer.init({"layer": jnp.ones((2, 2)), leaf: value})
        with pytest.raises(ValueError, match="params=None"):
            optimizer.update({"w": jnp.ones((2, 2))}, optimizer.init({"w": jnp.ones((2, 2))}))


ARGUMENTS = {
    "cells": (lambda v: pulsed.sgd(v, 0.1, KEY), (0.1, None, pulsed.soft_bounds)),
    "key": (lambda v: pulsed.sgd(SOFT, 0.1, v), (None, 0)),
    "learning_rate": (lambda v: pulsed.sgd(SOFT, v, KEY), (-0.1, np.nan, "fast")),
    "max_pulses": (lambda v: pulsed.sgd(SOFT, 0.1, KEY, max_pulses=v), (0, 1.5, np.nan)),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_out_of_range_are_named(name):
    make, values = ARGUMENTS[name]
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}="):
            make(value)
