import json

import jax
import numpy as np
import pytest

import jaxsim as js
from jaxsim.evaluate import sweep as sweeps
from tests.support.networks import X, cnn
from tests.support.processes import start

CELLS = js.compose(
    js.quantize(8, 8), js.analog(adc=8, cells=js.cells.proportional(0.1, noise=0.02))
)
KEY = jax.random.key(7)


def outputs(chip, x, key):
    return chip(x, key=key)


@pytest.fixture(scope="module")
def chips():
    return [js.deploy(CELLS(cnn()), calibrate=X, key=jax.random.key(i)) for i in range(5)]


@pytest.fixture(scope="module")
def loop(chips):
    one = jax.jit(outputs)
    return np.stack([one(chip, X, KEY) for chip in chips])


@pytest.mark.parametrize("way", ["map", "vmap"])
def test_a_sweep_is_its_loop_and_one_program_serves_any_number(chips, loop, way):
    """Numbers that do not fill a batch too; each chip reads by the same key as in the loop."""
    assert np.abs(loop[0] - loop[1]).max() > 1e-3
    before = sweeps._programs(outputs, None).compiled._cache_size()
    for count in (5, 4, 3):
        found = js.sweep(outputs, chips[:count], X, KEY, way=way, at_once=2)
        np.testing.assert_allclose(found, loop[:count], rtol=0, atol=1e-6)
    assert sweeps._programs(outputs, None).compiled._cache_size() == before + 1
    one = js.sweep(outputs, chips[4:], X, KEY, way=way)
    np.testing.assert_allclose(one, loop[4:], rtol=0, atol=1e-6)


def test_what_chips_have_in_common_is_held_once(chips):
    held = sweeps._Settings.of(chips, (X,))
    states = jax.tree.leaves([chip.states for chip in chips[:2]])
    assert len(held.rows[0]) <= len(states) // 2
    assert any(a is jax.tree.leaves(chips[0].params)[0] for a in held.held[0])
    assert held.held[1][0] is X


def test_settings_may_be_numbers_keys_and_trees():
    def function(setting, more):
        return {"sum": setting["a"] + more, "drawn": jax.random.normal(setting["key"])}

    keys = jax.random.split(KEY, 3)
    settings = [{"a": a, "key": key} for a, key in zip((1.0, 2.0, 3.0), keys, strict=True)]
    found = js.sweep(function, settings, 10)
    assert found["sum"].tolist() == [11, 12, 13]
    np.testing.assert_allclose(found["drawn"], jax.vmap(jax.random.normal)(keys), rtol=1e-6)
    assert js.sweep(lambda x: x**2, np.arange(11)).tolist() == [i**2 for i in range(11)]


def test_a_chip_may_be_written_inside():
    def score(key):
        return js.deploy(CELLS(cnn()), key=key, calibrate=X)(X, key=KEY)

    keys = jax.random.split(KEY, 3)
    found = js.sweep(score, keys, way="map", at_once=2)
    chips = [js.deploy(CELLS(cnn()), key=key, calibrate=X) for key in keys]
    expected = [chip(X, key=KEY) for chip in chips]
    np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=1e-5)


def test_what_fills_a_batch_up_is_not_computed():
    ran = []

    def function(x):
        jax.debug.callback(lambda x: ran.append(int(x)), x)
        return x

    js.sweep(function, np.arange(5), way="map", at_once=4)
    jax.effects_barrier()
    assert sorted(ran) == [0, 1, 2, 3, 4]


def test_the_faster_way_is_timed_once(monkeypatch):
    """A clock that says which: the program of one way takes longer, whatever it computes."""
    ran, now = [], [0.0]
    run = sweeps._Programs.run
    slow = {"map": 1.0, "vmap": 2.0}

    def slower(self, way, *given):
        ran.append(way)
        now[0] += slow[way]
        return run(self, way, *given)

    monkeypatch.setattr(sweeps._Programs, "run", slower)
    monkeypatch.setattr(sweeps.time, "perf_counter", lambda: now[0])
    for slow["vmap"], fast in ((2.0, "map"), (0.5, "vmap")):
        function = lambda x: x + 1  # noqa: E731
        assert js.sweep(function, np.arange(8), at_once=4).tolist() == [*range(1, 9)]
        assert ran[-2:] == [fast, fast]
        assert sweeps.fastest_way(function, np.arange(8), at_once=4) == fast
        timed = len(ran)
        js.sweep(function, np.arange(4), at_once=4)
        assert ran[timed:] == [fast]
    assert sweeps.fastest_way(lambda x: x, np.arange(1)) == "map"
    assert len(ran) == timed + 1  # one setting is not timed


def test_what_is_no_function_is_refused():
    with pytest.raises(ValueError, match="function=3: must be a function"):
        js.sweep(3, [1.0])


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ([], {}, "settings: there is none"),
        ([{}], {}, "settings: there is none that holds a number"),
        ([1.0, (1.0,)], {}, "settings: number 1 has another structure than number 0"),
        (
            [np.ones(2), np.ones(3)],
            {},
            "settings: number 1 has arrays of other shapes",
        ),
        ([1.0], {"way": "loop"}, "way='loop': must be one of"),
        ([1.0], {"at_once": 0}, "at_once=0"),
    ],
)
def test_bad_sweeps_are_refused(settings, change, message):
    with pytest.raises(ValueError, match=message):
        js.sweep(lambda x: x, settings, **change)


def test_on_two_devices_sweeps_and_explorations_are_those_of_one():
    process = start("tests.support.sweep_process", devices=2)
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-3000:]
    found = json.loads(output.splitlines()[-1])
    assert found["devices"] == 2
    assert len(found["off"]) == 6
    assert max(found["off"].values()) < 1e-6 < 1e-3 < found["apart"]
    assert found["programs"] == 2  # one for each way, whatever the number of chips
    assert found["choices"]
    assert found["errors"] < 1e-4
    assert found["accuracies"] < 1e-4
