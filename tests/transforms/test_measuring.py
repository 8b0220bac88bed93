"""What is measured or laid out before a transform, by clocks and devices that are put in."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.transforms import pipeline_shard, run_sparse
from jaxsim.transforms.observe import require_run
from jaxsim.transforms.pipeline_shard import _ones, _stage_devices
from jaxsim.transforms.run_sparse import _faster, _held, alternatives
from tests.support.models import normal


@pytest.mark.parametrize(
    ("faster", "found"),
    [
        ({0.99, 0.98, 0.95, 0.9, 0.85, 0.8}, 0.8),
        ({0.99, 0.98, 0.9}, 0.98),  # what lies above has to be faster too
        ({0.5}, 1.0),
        (set(run_sparse.GRID), 0.5),
        (set(), 1.0),
    ],
)
def test_zeros_pay_from_the_share_above_which_they_always_do(monkeypatch, faster, found):
    asked = []

    def both(K, N, M, share, layout, block):
        asked.append((K, N, M, layout, block))
        return ("dense", share), ("sparse", share)

    def compared(one, other):
        assert (one[0], other[0]) == ("sparse", "dense")
        return one[1] in faster

    monkeypatch.setattr(run_sparse, "alternatives", both)
    monkeypatch.setattr(run_sparse, "_faster", compared)
    assert js.measure_break_even(3, 4, 5, layout="rows", block=(6, 7)) == found
    assert set(asked) == {(3, 4, 5, "rows", (6, 7))}


def clocked(monkeypatch, first, second):
    """Compares two functions of which a call takes so long, at each of eight turns."""
    now, calls = [0.0], []

    def taking(name, seconds):
        left = [s for s in seconds for _ in range(5)]

        def call():
            calls.append(name)
            now[0] += left.pop(0)
            return jnp.float32(0)

        return call

    monkeypatch.setattr(run_sparse, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    return _faster(taking("a", first), taking("b", second)), calls


def test_the_faster_has_the_smaller_median_but_for_the_first_turn(monkeypatch):
    once, calls = clocked(monkeypatch, [99, 1, 1, 1, 1, 9, 9, 9], [0, 2, 2, 2, 2, 2, 2, 2])
    assert once
    assert calls == (["a"] * 5 + ["b"] * 5) * 8
    # four of seven decide, and the same is no faster
    assert not clocked(monkeypatch, [0, 1, 1, 1, 9, 9, 9, 9], [0] + [2] * 7)[0]
    assert not clocked(monkeypatch, [0] + [2] * 7, [0] + [2] * 7)[0]


def test_a_share_of_entries_or_of_blocks_is_left_out(monkeypatch):
    held = {}
    places = run_sparse.places

    def spy(mask, layout, block):
        held[layout] = mask
        return places(mask, layout, block)

    monkeypatch.setattr(run_sparse, "places", spy)
    for layout in ("rows", "blocks"):
        dense, sparse = alternatives(8, 12, 3, 0.75, layout, (2, 4))
        assert dense().shape == (3, 12)
        np.testing.assert_allclose(sparse(), dense(), rtol=1e-5, atol=1e-5)
        assert held[layout].mean() == 0.25
        assert np.abs(dense()).max() > 0
    blocks = held["blocks"].reshape(4, 2, 3, 4).mean((1, 3))
    assert set(blocks.ravel()) == {0.0, 1.0}


def test_entries_that_masks_leave_are_those_of_each_site():
    net = js.trace(lambda p, x: x @ p["a"] @ p["b"], {"a": normal(3, 4), "b": normal(4, 2)}, X)
    pruned = js.prune(0.5, sites="a")(net)
    held = _held(pruned, ["a", "b"])
    np.testing.assert_array_equal(held["a"], pruned.masks["a"])
    assert held["b"].shape == (4, 2)
    assert held["b"].all()


X = normal(2, 3)


def test_a_site_has_to_run_on_finite_values():
    site = types.SimpleNamespace(name="w", stack=(), chosen=False)
    require_run(site, jnp.array([1.0, 2.0]), jnp.array([0.0]), jnp.array([3.0]), idle="")
    for seen in ([0.0, 0.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="inputs: w did not run on them, so nothing is known"):
            require_run(site, jnp.array(seen), jnp.array([1.0]), idle="")
    for sums in ([[jnp.nan]], [[1.0], [jnp.inf]], [[1.0, jnp.nan], [2.0, 3.0]]):
        with pytest.raises(ValueError, match="inputs: NaN or infinite values reach w"):
            require_run(site, jnp.array([1.0]), *map(jnp.array, sums), idle="")


def test_an_expert_that_did_not_run_is_named_unless_none_did():
    site = types.SimpleNamespace(name="w", stack=(2, 3), chosen=True)
    seen = jnp.array([[1.0, 0.0, 2.0], [1.0, 1.0, 1.0]])
    told = r"chooses 1 of the 6 experts of w \(numbers 0,1\): they stay"
    with pytest.warns(UserWarning, match=told):
        require_run(site, seen, idle="they stay")
    with pytest.raises(ValueError, match="inputs: w did not run"):  # one layer's experts, all
        require_run(site, seen.at[1].set(0), idle="they stay")
    site.stack = (12,)
    with pytest.warns(UserWarning, match=r"11 of the 12 .*\(numbers 0, 1, 2, 3, 4, 5, 6, 7, …\)"):
        require_run(site, jnp.arange(12) == 11, idle="they stay")


@pytest.mark.parametrize(
    ("devices", "found"),
    [
        (["A", "B", "A"], [("A",), ("B",), ("A",)]),
        ([["A", "B"], ["C", "D"]], [("A", "B"), ("C", "D")]),
        ([("A", "B"), ("A", "B")], [("A", "B"), ("A", "B")]),
        (np.array([["A", "B"], ["C", "D"]]), [("A", "B"), ("C", "D")]),
    ],
)
def test_stages_have_the_devices_of_their_row(devices, found):
    assert [stage.devices for stage in _stage_devices(devices, len(found), 1)] == found


@pytest.mark.parametrize(
    ("devices", "stages", "said"),
    [
        (["A", "B"], 3, "devices: 2 of them for stages=3"),
        (["A", "B", "C"], 2, "devices: 3 of them for stages=2"),
        ([["A", "B"], ["C"]], 2, "each stage needs equally many, and no device twice"),
        ([["A", "A"], ["B", "C"]], 2, "each stage needs equally many, and no device twice"),
        ([[], []], 2, "each stage needs equally many"),
    ],
)
def test_devices_that_do_not_fit_the_stages_are_refused(devices, stages, said):
    with pytest.raises(ValueError, match=said):
        _stage_devices(devices, stages, 1)


def test_the_first_devices_there_are_stand_in_for_none(monkeypatch):
    monkeypatch.setattr(pipeline_shard.jax, "devices", lambda: ["A", "B", "C"])
    assert [s.devices for s in _stage_devices(None, 2, 1)] == [("A",), ("B",)]
    assert len(_stage_devices(None, 3, 1)) == 3
    with pytest.raises(ValueError, match="stages=4: there are 3 devices; name them in devices=…"):
        _stage_devices(None, 4, 1)


def test_devices_that_run_several_stages_come_round_again(monkeypatch):
    """Six stages, two of them on each of three devices."""
    found = [("A",), ("B",), ("C",)] * 2
    assert [s.devices for s in _stage_devices(["A", "B", "C"], 6, 2)] == found
    monkeypatch.setattr(pipeline_shard.jax, "devices", lambda: ["A", "B", "C"])
    assert [s.devices for s in _stage_devices(None, 6, 2)] == found
    with pytest.raises(ValueError, match="devices: 6 of them for stages=6, chunks=2"):
        _stage_devices(["A"] * 6, 6, 2)
    with pytest.raises(ValueError, match="stages=8: there are 3 devices"):
        _stage_devices(None, 8, 2)


def test_stages_are_timed_on_ones_and_on_a_key():
    shapes = [jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), jax.eval_shape(lambda: jax.random.key(0))]
    ones, key = _ones(shapes)
    assert ones.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ones, np.ones((2, 3)))
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
