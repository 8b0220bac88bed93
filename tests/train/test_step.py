"""Parts of a step of training, each by itself."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsim.adaptive.rule import Buckets
from jaxsim.inputs.batches import Batch
from jaxsim.train import pyramid
from jaxsim.train.loop import _Data, only
from jaxsim.train.pyramid import Soft, _compile_step, _endless, train_pyramid
from jaxsim.train.step import Descent, _merge
from tests.support.encoders import sequences

KEY = jax.random.key(3)


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)))


def test_each_random_stream_has_a_key_of_its_own():
    descent = Descent(optax.sgd(1.0), lambda z, y: 0, {}, ("dropout", "noise"))
    keys = descent.streams(KEY)["rngs"]
    assert list(keys) == ["dropout", "noise"]
    assert len({bits(k) for k in (*keys.values(), KEY)}) == 3
    assert Descent(optax.sgd(1.0), lambda z, y: 0, {}, ()).streams(KEY) == {}


def test_updates_come_second_where_they_are_asked_for():
    plain, mutable = (Descent(optax.sgd(1.0), None, c, ()) for c in ({}, {"mutable": ["s"]}))
    assert plain.outputs("y") == ("y", {})
    assert mutable.outputs(("y", {"s": 1})) == ("y", {"s": 1})


def test_updates_are_put_in_at_any_depth():
    before = {"a": {"b": 1, "c": 2}, "d": 3}
    after = _merge(before, {"a": {"c": 5}, "e": {"f": 6}})
    assert after == {"a": {"b": 1, "c": 5}, "d": 3, "e": {"f": 6}}
    assert before == {"a": {"b": 1, "c": 2}, "d": 3}


def epochs(numbers, rows=7, size=3):
    x = np.arange(2 * rows).reshape(rows, 2)
    data = _Data(Batch((x,), {}), 10 * np.arange(rows), rows)
    return [(*args.arrays, y, key) for args, y, key in data.epochs(numbers, KEY, size)]


def test_batches_of_an_epoch_are_whole_and_each_row_is_in_one():
    found = epochs(range(2))
    assert len(found) == 2 * 2
    orders = []
    for first, second in (found[:2], found[2:]):
        labels = np.concatenate([first[1], second[1]])
        assert len(set(labels.tolist())) == 6
        for x, y, _ in (first, second):
            np.testing.assert_array_equal(10 * x, np.stack([2 * y, 2 * y + 10], 1))
        orders.append(labels.tolist())
    assert orders[0] != orders[1]
    assert len({bits(key) for *_, key in found}) == 4
    assert bits(KEY) not in {bits(key) for *_, key in found}


def test_an_epoch_is_the_same_whichever_came_before():
    for a, b in zip(epochs(range(1, 3)), epochs(range(3))[2:], strict=True):
        np.testing.assert_array_equal(a[1], b[1])
        assert bits(a[2]) == bits(b[2])


def test_a_step_of_few_entries_moves_them_alone_and_lets_absent_ones_be():
    marks = {"w": jnp.array([1.0, 0.0]), "none": jnp.array(1.0)}
    params = {"w": jnp.array([2.0, 4.0]), "none": optax.MaskedNode()}
    # decay of a half: what is not marked has none either
    decayed = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0))
    optimizer = only(decayed, marks)
    updates, _ = optimizer.update(
        {"w": jnp.array([3.0, 5.0]), "none": optax.MaskedNode()}, optimizer.init(params), params
    )
    np.testing.assert_array_equal(updates["w"], [-(3 + 1), 0])
    assert isinstance(updates["none"], optax.MaskedNode)
    # and momentum gathers nothing of what is not marked
    heavy = only(optax.trace(0.9), {"w": marks["w"]})
    state = heavy.init({"w": params["w"]})
    for slope, expected in ((3.0, 3.0), (5.0, 5 + 0.9 * 3)):
        updates, state = heavy.update({"w": jnp.full(2, slope)}, state)
        np.testing.assert_allclose(updates["w"], [expected, 0])
        np.testing.assert_allclose(state.trace["w"], [expected, 0])


def test_marks_of_other_parameters_are_refused():
    with pytest.raises(ValueError, match=r"trained: .*; must be "):
        only(optax.sgd(1.0), {"w": 1.0}).init({"w": 1.0, "b": 1.0})


@dataclasses.dataclass(frozen=True)
class Straight:
    """A pyramid of one number a layer, whose outputs are products."""

    encoder: Any
    level: np.ndarray

    def soften(self, x, n, temperature):
        return types.SimpleNamespace(logits=self.encoder * x, shares=temperature * n * self.level)

    def exit_outputs(self, x, n):
        return types.SimpleNamespace(logits=jnp.stack([99 * x, 98 * x, self.encoder * n], 1))


X, N, Y = np.float32([2.0, 3.0]), np.float32([5.0, 7.0]), np.float32([11.0, 13.0])


def product(logits, y):
    return jnp.sum(logits * y)


def test_a_step_with_soft_masks_weighs_what_is_left_and_keeps_levels_from_falling_below_zero():
    """By hand: 11 · 2 + 13 · 3 = 61; a share's slope is weight · temperature · n / 2."""
    step = _compile_step(Straight(1.0, N), optax.sgd(0.5), Soft(3.0), product)
    values = {"encoder": jnp.float32(1.5), "level": jnp.float32([0.5, 4.0])}
    after, _, lost = step(values, optax.sgd(0.5).init(values), (X, N, Y), np.float32(0.25))
    assert float(lost) == 1.5 * 61 + 3 * 0.25 * (5 * 0.5 + 7 * 4) / 2
    assert float(after["encoder"]) == 1.5 - 0.5 * 61
    np.testing.assert_allclose(after["level"], [0, 4 - 0.5 * 3 * 0.25 * 7 / 2])


def test_a_step_without_them_reads_the_last_classifier():
    step = _compile_step(Straight(1.0, N), optax.sgd(0.5), None, product)
    values = {"encoder": jnp.float32(1.5)}
    after, _, lost = step(values, optax.sgd(0.5).init(values), (X, N, Y), np.float32(1))
    assert float(lost) == 1.5 * (5 * 11 + 7 * 13)
    assert float(after["encoder"]) == 1.5 - 0.5 * 146


@pytest.mark.parametrize(
    ("steps", "soft", "expected"),
    [
        (3, Soft(1.0, (0.4, 0.1)), [0.4, 0.2, 0.1]),
        (1, Soft(1.0, (0.4, 0.1)), [0.4]),
        (2, None, [1, 1]),
    ],
)
def test_temperatures_fall_geometrically(monkeypatch, steps, soft, expected):
    seen = []

    def compiled(*_):
        def update(values, state, batch, temperature):
            seen.append(temperature)
            return values, state, jnp.float32(0)

        return update

    monkeypatch.setattr(pyramid, "_compile_step", compiled)
    bounded = Straight(types.SimpleNamespace(positions=24), np.zeros(2))
    train_pyramid(
        bounded,
        *sequences(8),
        np.zeros(8),
        steps=steps,
        optimizer=optax.sgd(1.0),
        key=KEY,
        soft=soft,
        loss=product,
        buckets=Buckets(batch=4, token=24, max_batch=8),
        quiet=True,
    )
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert {a.dtype for a in seen} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("labels", "rows", "said"),
    [
        (np.full(8, np.nan), 8, "labels"),
        (np.zeros(7), 8, "ids, lengths, labels: 8, 8, 7 rows"),
        (np.zeros(7), 7, "ids: 7 rows; must be 8, a batch, or more"),
    ],
)
def test_rows_and_labels_that_do_not_fit_are_refused(labels, rows, said):
    ids, lengths = sequences(rows)
    bounded = Straight(types.SimpleNamespace(positions=24), np.zeros(2))
    with pytest.raises(ValueError, match=said):
        train_pyramid(
            bounded,
            ids,
            lengths,
            labels,
            steps=1,
            optimizer=optax.sgd(1.0),
            key=KEY,
            loss=product,
            buckets=Buckets(batch=4, token=24, max_batch=8),
            quiet=True,
        )


def batches(count, size, epochs=1):
    """Lengths of rows: their own numbers, shuffled."""
    lengths = np.random.default_rng(0).permutation(count)
    endless = _endless(lengths, KEY, size)
    return [lengths[next(endless)] for _ in range(epochs * (count // size))]


def are_like(found):
    return all(sorted(b)[0] % 2 == 0 and sorted(b)[1] == sorted(b)[0] + 1 for b in found)


def test_rows_of_like_lengths_make_a_batch_within_a_pool_of_sixteen():
    """Of 32 rows all pairs are neighbors; of 34, two are a pool of their own."""
    found = batches(32, 2, epochs=2)
    assert are_like(found)
    first, second = (np.concatenate(found[i : i + 16]).tolist() for i in (0, 16))
    assert sorted(first) == sorted(second) == list(range(32))
    assert first != second
    assert first[::2] != sorted(first[::2])
    assert sorted(np.concatenate(batches(34, 2)).tolist()) == list(range(34))
    assert not are_like(batches(34, 2))


def test_a_batch_that_is_not_full_is_left_out():
    found = batches(7, 3, epochs=2)
    assert {len(b) for b in found} == {3}
    assert len(set(np.concatenate(found[:2]).tolist())) == 6
