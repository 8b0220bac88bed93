"""Parts of a step of training, each by itself."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim.cores.partition import Partitioned
from jaxsim.inputs.batches import Batch
from jaxsim.network.leaves import is_array
from jaxsim.staged.lengths import ShortRows
from jaxsim.staged.network import Staged
from jaxsim.staged.trained import trained_values, with_values
from jaxsim.train.loop import _Data, like_lengths, only
from jaxsim.train.soft import Soft
from jaxsim.train.step import Descent, _merge, compile_step
from tests.support.transformers import KINDS, inputs, network

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


def softened(logits, shares):
    """A step's network, whose soft masks give products of its parameter, level and temperature."""
    net = js.prune_tokens(np.float32([0.5, 4.0, 1.0]))(network("vit"))
    net = dataclasses.replace(net, params=jnp.float32(1.5))

    def soften(self, x, *, temperature, key=None):
        del key
        return types.SimpleNamespace(
            logits=jnp.stack([99 * x, logits(self.params, x)], 1)[:, :, None],
            shares=shares(self.tokens.level, temperature),
        )

    return net, soften


X, Y = np.float32([2.0, 3.0]), np.float32([[11.0], [13.0]])


def product(logits, y):
    return jnp.sum(logits * y)


def test_a_step_with_soft_masks_weighs_what_is_left_and_keeps_levels_from_falling_below_zero(
    monkeypatch,
):
    """By hand: 11 · 2 + 13 · 3 = 61; a share's slope is weight · temperature · n / 3."""
    n = np.float32([5, 7, 0])
    net, soften = softened(lambda p, x: p * x, lambda level, t: t * n * level)
    monkeypatch.setattr(Staged, "soften", soften)
    descent = Descent(optax.sgd(0.5), product, {}, (), Soft(3.0))
    state = descent.optimizer.init(descent.values(net))
    step, _ = compile_step(descent, net)
    after, _, lost = step(
        net, state, Partitioned.of(((X,), {}), is_array), Y, KEY, np.float32(0.25)
    )
    assert float(lost) == 1.5 * 61 + 3 * 0.25 * (5 * 0.5 + 7 * 4) / 3
    assert float(after.params) == 1.5 - 0.5 * 61
    np.testing.assert_allclose(after.tokens.level, [0, 4 - 0.5 * 3 * 0.25 * 7 / 3, 1], rtol=1e-6)


def test_levels_are_trained_where_it_is_said_alone():
    net = js.prune_tokens(0.1)(network("vit"))
    assert trained_values(net) is net.params
    values = trained_values(net, levels=True)
    assert list(values) == ["params", "level"]
    changed = with_values(net, {**values, "level": values["level"] + 1}, levels=True)
    np.testing.assert_allclose(changed.tokens.level, [1.1] * 3)
    pyramid = js.magic_pyramid(0.1, js.Rule())(network("vit"))
    assert list(trained_values(pyramid, levels=True)) == ["params", "heads", "level"]


@pytest.mark.parametrize(
    ("steps", "soft", "expected"),
    [(3, Soft(1.0, (0.4, 0.1)), [0.4, 0.2, 0.1]), (1, Soft(1.0, (0.4, 0.1)), [0.4])],
)
def test_temperatures_fall_geometrically(steps, soft, expected):
    seen = [soft.at(i, steps) for i in range(steps)]
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert {type(a) for a in seen} == {np.float32}


def batches(count, size, epoch=0):
    """Numbers of tokens of rows, their own numbers, shuffled, in batches."""
    data = _Data(Batch((np.arange(count),), {}), np.arange(count), count)
    lengths = ShortRows(np.random.default_rng(0).permutation(count), ((),))
    return [
        lengths.counts[y] for _, y, _ in data.epochs(range(epoch, epoch + 1), KEY, size, lengths)
    ]


def are_like(found):
    return all(sorted(b)[0] % 2 == 0 and sorted(b)[1] == sorted(b)[0] + 1 for b in found)


def test_rows_of_like_lengths_make_a_batch_within_a_pool_of_sixteen():
    """Of 32 rows all pairs are neighbors; of 34, two are a pool of their own."""
    found, other = batches(32, 2), batches(32, 2, epoch=1)
    assert are_like(found)
    assert are_like(other)
    first, second = (np.concatenate(each).tolist() for each in (found, other))
    assert sorted(first) == sorted(second) == list(range(32))
    assert first != second
    assert first[::2] != sorted(first[::2])
    assert sorted(np.concatenate(batches(34, 2)).tolist()) == list(range(34))
    assert not are_like(batches(34, 2))


def test_rows_that_fill_no_batch_are_left_out_by_chance_and_not_by_their_length():
    left = [set(range(7)) - set(np.concatenate(batches(7, 3, epoch=i)).tolist()) for i in range(9)]
    assert {len(rows) for rows in left} == {1}
    assert len(set.union(*left)) > 2


def test_batches_are_shuffled_and_sorted_within_by_the_key_alone():
    order, counts = np.arange(12).reshape(6, 2), np.arange(12)[::-1]
    found, again, other = (like_lengths(order, counts, jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(found, again)
    assert found.tolist() != other.tolist()
    assert sorted(map(tuple, found.tolist())) == [(i + 1, i) for i in range(0, 12, 2)]


def test_rows_are_cut_where_all_of_a_batch_are_short():
    ids, lengths = inputs(KINDS["bert"])
    short = ShortRows(np.array([9, 4, 8, 4, 8]), ((1,), ()))
    data = _Data(Batch((np.asarray(ids), np.asarray(lengths)), {}), np.arange(5), 5)
    for x, y, _ in data.epochs(range(2), KEY, 1, short):
        assert [np.shape(a) for a in x.arrays] == [(1, short.counts[y[0]]), (1,)]
        np.testing.assert_array_equal(x.arrays[0][0], ids[y[0], : short.counts[y[0]]])
