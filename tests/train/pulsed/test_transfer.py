"""Tiki-Taka and its successors against an oracle that goes cell by cell."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.cores.cells import normal
from jaxsim.train import pulsed
from tests.oracles import pulses as oracle
from tests.train.pulsed.test_sgd import KEY, through

SHAPE = (3, 2)
GRADS = np.random.default_rng(0).integers(-4, 7, (60, *SHAPE)) / 16.0
W = np.random.default_rng(1).uniform(-0.3, 0.3, SHAPE)
FAST = pulsed.soft_bounds(1 / 32, imbalance=0.25, low=-0.5, high=0.75)
SLOW = pulsed.soft_bounds(0.01)
SYMMETRY = 0.5 / (1.25 / 0.75 + 0.75 / 0.5)


def fast(w, n):
    return oracle.soft(w, n, 1.25 / 32, 0.75 / 32, -0.5, 0.75)


def slow(w, n):
    return oracle.soft(w, n, 0.01, 0.01, -1.0, 1.0)


EXACT = {"rate": 0.5, "every": 2, "fast": fast, "fast_size": 1 / 32}
EXACT |= {"slow": slow, "slow_size": 0.01}
RULES = {
    "v2": (pulsed.buffered_tiki_taka, {"threshold": 0.7}, {}),
    "v2 that forgets": (pulsed.buffered_tiki_taka, {"forget": 0.25}, {}),
    "v2 of one pulse": (pulsed.buffered_tiki_taka, {"max_transfer_pulses": 1}, {"most_sent": 1}),
    "chopped": (pulsed.chopped_tiki_taka, {"flip": 1.0}, {}),
    "agad": (pulsed.agad, {"period": 3, "tail": 2.0}, {"period": 3, "tail": 2.0}),
    "agad of a long tail": (pulsed.agad, {"period": 2}, {"period": 2}),
}
GAIN = 0.3


@functools.cache
def found(name):
    rule, options, _ = RULES[name]
    optimizer = rule(FAST, SLOW, 0.5, KEY, gain=GAIN, every=2, **options)
    steps = {"w": jnp.asarray(GRADS, jnp.float32)}
    (params, state), _ = through(optimizer, {"w": jnp.asarray(W, jnp.float32)}, steps)
    pair = state.pairs["w"]
    return np.asarray(pair.fast), np.asarray(params["w"]), np.asarray(pair.memory.hidden)


def expected(name, **wrong):
    _, options, own = RULES[name]
    more = {k: v for k, v in options.items() if k in ("threshold", "forget")}
    settings = {"way": name.split()[0], "gain": GAIN, "symmetry": SYMMETRY}
    return oracle.two_arrays(W, GRADS, **EXACT, **{**settings, **more, **own, **wrong})


@pytest.mark.parametrize("name", RULES)
def test_each_rule_is_the_oracle(name):
    for ours, theirs in zip(found(name), expected(name), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert np.abs(found(name)[1] - W).max() > 0.05


WRONG = {
    "v2": [{"wrong": "no reference"}, {"wrong": "never taken off"}, {"threshold": 1.0}],
    "v2 that forgets": [{"forget": 0.0}, {"forget": None}],
    "v2 of one pulse": [{"most_sent": 31}],
    "chopped": [{"wrong": "unsigned writes"}, {"way": "v2"}, {"wrong": "no reference"}],
    "agad": [{"wrong": "unsigned writes"}, {"period": 2}, {"tail": 1.0}, {"wrong": "no reference"}],
}


@pytest.mark.parametrize("name", WRONG)
def test_an_oracle_that_is_wrong_is_noticed(name):
    for wrong in WRONG[name]:
        off = [
            np.abs(a - b).max() for a, b in zip(found(name), expected(name, **wrong), strict=True)
        ]
        assert max(off) > 1e-3, wrong


def test_plain_tiki_taka_is_the_oracle():
    """Steps that are powers of two: reads are whole numbers of pulses, and nothing is rounded."""
    cells = {size: pulsed.constant_step(size, low=-8.0, high=8.0) for size in (1 / 32, 1 / 128)}
    optimizer = pulsed.tiki_taka(cells[1 / 32], cells[1 / 128], 0.5, KEY, gain=0.25, every=2)
    steps = {"w": jnp.asarray(GRADS, jnp.float32)}
    w = np.round(W * 128) / 128
    (params, state), _ = through(optimizer, {"w": jnp.asarray(w, jnp.float32)}, steps)

    def cell(size):
        return lambda w, n: oracle.constant(w, n, size, size, -8.0, 8.0)

    exact = {**EXACT, "fast": cell(1 / 32), "slow": cell(1 / 128), "slow_size": 1 / 128}
    settings = {**exact, "way": "v1", "symmetry": 0.0}
    fast_array, slow_array, _ = oracle.two_arrays(w, GRADS, gain=0.25, **settings)
    np.testing.assert_array_equal(state.pairs["w"].fast, np.float32(fast_array))
    np.testing.assert_array_equal(params["w"], np.float32(slow_array))
    for wrong in ({"gain": 0.5}, {"gain": 0.25, "every": 1}, {"gain": 0.25, "reference_off": 0.25}):
        assert (
            np.abs(oracle.two_arrays(w, GRADS, **{**settings, **wrong})[1] - params["w"]).max()
            > 0.01
        )


def test_few_pulses_are_sent_at_once():
    cells, params = pulsed.constant_step(0.01), {"w": jnp.zeros((1, 2))}
    optimizer = pulsed.tiki_taka(cells, cells, 1.0, KEY, gain=1.0, max_transfer_pulses=2)
    (_, state), updates = through(optimizer, params, {"w": jnp.full((1, 1, 2), 0.05)})
    np.testing.assert_allclose(updates["w"][0], [[-0.02, -0.02]], atol=1e-6)
    np.testing.assert_allclose(state.pairs["w"].fast, [[-0.05, -0.05]], atol=1e-6)


def test_pulses_noise_of_reads_and_rules_draw_apart():
    """Half a pulse to each array; the rule draws, and keeps what it drew and read."""
    shape = (1, 3000)

    def read(memory, row, gain, key):
        del memory, gain
        drawn = normal(key, row.shape)
        return jnp.full_like(row, 0.5), (row, drawn)

    rule = pulsed.Rule(lambda s, key: (0 * s, (0 * s, 0 * s)), lambda memory: 1.0, read)
    cells = pulsed.constant_step(0.01)
    options = {"learning_rate": 0.1, "gain": 1.0, "read_noise": 1.0}
    optimizer = pulsed.transfer(cells, cells, rule, KEY, **options)
    (params, state), _ = through(
        optimizer, {"w": jnp.zeros(shape)}, {"w": jnp.full((1, *shape), -0.05)}
    )
    pair = state.pairs["w"]
    drawn = [pair.fast[0] > 0, params["w"][0] > 0, pair.memory[0][0], pair.memory[1][0]]
    assert np.abs(np.corrcoef(np.asarray(drawn, float)) - np.eye(4)).max() < 0.08


def test_rows_are_read_in_turn_and_an_array_is_as_wide_as_its_last_axis():
    """Kernels of convolutions: what changes at each update is one row, of each array its own."""
    cells = pulsed.constant_step(0.01)
    optimizer = pulsed.tiki_taka(cells, cells, 1.0, KEY, gain=1.0, every=2)
    shapes = {"conv": (2, 1, 2, 3), "dense": (3, 5)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    grads = {name: jnp.full((12, *shape), 0.02) for name, shape in shapes.items()}
    _, updates = through(optimizer, params, grads)
    for name, rows in {"conv": 4, "dense": 3}.items():
        moved = np.asarray(updates[name]).reshape(12, rows, -1) != 0
        expected = np.zeros((12, rows), bool)
        expected[np.arange(1, 12, 2), np.arange(6) % rows] = True
        np.testing.assert_array_equal(moved.any(2), expected)
        np.testing.assert_array_equal(moved.all(2), expected)


def test_references_and_reads_are_off_by_what_was_asked():
    cells, params = pulsed.constant_step(1e-3), {"w": jnp.zeros((2, 2000))}
    off = pulsed.chopped_tiki_taka(cells, cells, 0.0, KEY, gain=1.0, reference_error=0.2)
    reference = off.init(params).pairs["w"].memory.reference
    assert abs(float(reference.std()) / 0.2 - 1) < 0.05
    assert abs(float(reference.mean())) < 0.015
    noisy = pulsed.buffered_tiki_taka(
        cells, cells, 0.0, KEY, gain=0.5, read_noise=0.3, threshold=1e6
    )
    (_, state), _ = through(noisy, params, {"w": jnp.zeros((4, 2, 2000))})
    hidden = state.pairs["w"].memory.hidden  # two reads of each row
    assert abs(float(hidden.std()) / (0.5 * 0.3 * np.sqrt(2)) - 1) < 0.05
    assert abs(np.corrcoef(hidden)[0, 1]) < 0.08


def test_signs_flip_with_the_chance_that_was_asked():
    cells = pulsed.constant_step(0.01)
    optimizer = pulsed.chopped_tiki_taka(cells, cells, 0.0, KEY, gain=1.0, flip=0.3)

    @jax.jit
    def signs():
        params = {"w": jnp.zeros((2, 1))}

        def step(state, _):
            _, state = optimizer.update(params, state, params)
            return state, state.pairs["w"].memory.sign[:, 0]

        return jax.lax.scan(step, optimizer.init(params), None, length=3000)[1]

    path = np.asarray(signs())
    flips = path[1:] != path[:-1]
    read = np.arange(1, 3000) % 2  # which row
    assert not flips[np.arange(2999), 1 - read].any()
    assert abs(flips[np.arange(2999), read].mean() - 0.3) < 4 * np.sqrt(0.21 / 2999)


def test_the_fast_and_the_slow_array_are_of_different_cells():
    cells = pulsed.soft_bounds(0.01, spread=0.3)
    optimizer = pulsed.tiki_taka(cells, cells, 0.1, KEY, gain=1.0)
    pair = optimizer.init({"w": jnp.zeros((20, 20))}).pairs["w"]
    both = [np.asarray(p.up).ravel() for p in (pair.fast_parts, pair.slow_parts)]
    assert abs(np.corrcoef(both)[0, 1]) < 0.2


BAD = {
    "fast": (0.1, None),
    "slow": (0.1, pulsed.soft_bounds),
    "learning_rate": (-0.1, np.nan),
    "gain": (-0.1, "high"),
    "key": (None, 0),
    "every": (0, 1.5),
    "read_noise": (-0.1, np.nan),
    "max_pulses": (0, 2.5),
    "max_transfer_pulses": (0, np.nan),
}
OWN = {
    pulsed.tiki_taka: {"reference_error": (-0.1,)},
    pulsed.chopped_tiki_taka: {
        "flip": (-0.1, 1.1),
        "reference_error": (-1.0,),
        "threshold": (0.0, -1.0),
        "forget": (-0.1, 1.1),
    },
    pulsed.buffered_tiki_taka: {"threshold": (0.0,), "forget": (2.0,)},
    pulsed.agad: {"period": (0, 1.5), "tail": (0.0,), "threshold": (0.0,), "forget": (-1.0,)},
}


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.__name__)
def test_arguments_out_of_range_are_named(rule):
    good = {"fast": SLOW, "slow": SLOW, "learning_rate": 0.1, "key": KEY, "gain": 0.5}
    for name, values in {**BAD, **OWN[rule]}.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name}="):
                rule(**{**good, name: value})
