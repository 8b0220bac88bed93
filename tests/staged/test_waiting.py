"""Rows that wait: taken from the front, joined at the back, their tokens gathered row by row."""

import numpy as np
import pytest

from jaxsim.staged.waiting import (
    Axes,
    Queue,
    filled_up,
    join,
    leave_out,
    rows_along,
    take_batch,
    with_tokens,
)


@pytest.mark.parametrize("axis", [0, 1])
def test_queues_are_taken_from_the_front_and_joined_at_the_back(axis):
    def values(*ids):
        rows = np.array([[i, 10 * i] for i in ids])
        return [rows if axis == 0 else rows.T]

    axes = Axes((axis,), ((),), (False,))
    queue = Queue(np.array([5, 3, 8]), values(5, 3, 8))
    first, rest = take_batch(queue, 2, axes)
    assert first.ids.tolist() == [5, 3]
    np.testing.assert_array_equal(first.live[0], values(5, 3)[0])
    assert rest.ids.tolist() == [8]
    np.testing.assert_array_equal(rest.live[0], values(8)[0])
    assert take_batch(queue, 3, axes) == (queue, None)
    joined = join([rest, Queue(np.array([1]), values(1))], axes)
    assert joined.ids.tolist() == [8, 1]
    np.testing.assert_array_equal(joined.live[0], values(8, 1)[0])
    assert join([queue], axes) is queue


@pytest.mark.parametrize(
    ("rows", "same"),
    [([0, 1, 2], True), ([0, 1], False), ([0, 2, 1], False), ([0, 1, 2, 0], False)],
)
def test_rows_that_are_all_there_in_order_are_the_array_itself(rows, same):
    a = np.arange(6).reshape(2, 3)
    found = rows_along(a, np.array(rows), 1)
    assert (found is a) == same
    np.testing.assert_array_equal(found, a[:, rows])


def waiting():
    """Three rows of four tokens: features with rows in front and behind, a mask of pairs."""
    rng = np.random.default_rng(0)
    shapes = (3, 4, 2), (2, 4, 3), (3, 1, 4, 4), (3, 5)
    present = np.array([[1, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]], bool)
    live = [*(rng.normal(size=s) for s in shapes), present, present.sum(1)]
    axes = Axes((0, 2, 0, 0, 0, 0), ((1,), (1,), (2, 3), (), (1,), ()), (False,) * 6)
    return Queue(np.arange(3), live), axes


@pytest.mark.parametrize("count", [3, 4])
def test_tokens_that_are_left_come_first_in_their_order(count):
    queue, axes = waiting()
    few = Queue(
        queue.ids[:2],
        [rows_along(a, np.arange(2), i) for a, i in zip(queue.live, axes.rows, strict=True)],
    )
    found = leave_out(few, count, axes)
    if count == 4:
        assert found is few
        return
    order = [[0, 2, 3], [0, 1, 2]]  # of the second row one that has left is held on
    for row, tokens in enumerate(order):
        np.testing.assert_array_equal(found.live[0][row], few.live[0][row, tokens])
        np.testing.assert_array_equal(found.live[1][:, :, row], few.live[1][:, tokens, row])
        pairs = few.live[2][row][:, tokens][:, :, tokens]
        np.testing.assert_array_equal(found.live[2][row], pairs)
    np.testing.assert_array_equal(found.live[3], few.live[3])
    assert found.live[4].tolist() == [[True, True, True], [True, True, False]]
    assert found.live[5].tolist() == [3, 2]


def test_places_that_no_token_fills_are_not_there():
    queue, axes = waiting()
    found = filled_up(queue, 6, axes)
    np.testing.assert_array_equal(found.live[0][:, :4], queue.live[0])
    assert found.live[0].shape == (3, 6, 2)
    assert not found.live[4][:, 4:].any()
    np.testing.assert_array_equal(found.live[4][:, :4], queue.live[4])
    assert filled_up(queue, 4, axes) is queue
    again = with_tokens(found, np.tile(np.arange(4), (3, 1)), axes)
    for a, b in zip(again.live, queue.live, strict=True):
        np.testing.assert_array_equal(a, b)
