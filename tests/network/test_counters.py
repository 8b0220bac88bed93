"""Which slices of a parameter a loop reads at which turn, and how many turns it has."""

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsim.network.counters import Fixed, Read, find_reads
from jaxsim.network.plan import Provenance

W, X = jnp.zeros((6, 2, 3)), jnp.zeros((3,))


def found(fn, w=W):
    """What the one loop of a function of a parameter and an input reads."""
    jaxpr = jax.make_jaxpr(fn)(w, X).jaxpr
    (eqn,) = [e for e in jaxpr.eqns if e.primitive.name in ("scan", "while")]
    tags = {jaxpr.invars[0]: Provenance("w")}
    return find_reads(
        eqn,
        [
            Provenance(integers=np.asarray(v.val, v.aval.dtype))
            if isinstance(v, jex.Literal)
            else tags.get(v)
            for v in eqn.invars
        ],
    )


def turns(n, read, start=0):
    return lambda w, x: lax.fori_loop(start, n, lambda i, c: c + jnp.sum(read(w, i)), X)


def starts(fn, w=W):
    """First indices of the one read, and the depths that they depend on."""
    (read,) = found(fn, w).slices.values()
    return read.starts.tolist(), read.over


INDICES = {
    "in order": (turns(6, lambda w, i: w[i]), [0, 1, 2, 3, 4, 5]),
    "from the third": (turns(6, lambda w, i: w[i], start=2), [2, 3, 4, 5]),
    "from the end": (turns(6, lambda w, i: w[5 - i]), [5, 4, 3, 2, 1, 0]),
    "in steps": (turns(3, lambda w, i: w[2 * i + 1]), [1, 3, 5]),
    "moved inside": (turns(4, lambda w, i: jnp.take(w, 2 * i, axis=0, mode="clip")), [0, 2, 4, 5]),
    "a window": (turns(5, lambda w, i: lax.dynamic_slice_in_dim(w, i, 3)), [0, 1, 2, 3, 3]),
    "below zero": (turns(3, lambda w, i: lax.dynamic_slice_in_dim(w, i - 7 + 6, 1)), [5, 0, 1]),
}


@pytest.mark.parametrize("name", INDICES)
def test_slices_begin_where_the_counter_says(name):
    fn, first = INDICES[name]
    assert starts(fn) == ([[i, 0, 0] for i in first], (0,))


def test_an_axis_within_is_read_at_its_own_counter():
    fn = turns(3, lambda w, i: lax.dynamic_slice(w, (2 * i, i % 2, i), (1, 1, 1)))
    assert starts(fn) == ([[0, 0, 0], [2, 1, 1], [4, 0, 2]], (0,))
    taken = turns(3, lambda w, i: w[i + 1, :, i])
    assert starts(taken) == ([[1, 0, 0], [2, 0, 1], [3, 0, 2]], (0,))


def nested(read, outer=2, inner=3):
    def fn(w, x):
        def within(i, c):
            return lax.fori_loop(0, inner, lambda j, c: c + jnp.sum(read(w, i, j)), c)

        return lax.fori_loop(0, outer, within, x)

    return fn


def test_reads_of_nested_loops_say_on_whose_turns_they_depend():
    both = [[[3 * i + j, 0, 0] for j in range(3)] for i in range(2)]
    assert starts(nested(lambda w, i, j: w[3 * i + j])) == (both, (0, 1))
    assert starts(nested(lambda w, i, j: w[4 * i])) == ([[0, 0, 0], [4, 0, 0]], (0,))
    # all of it is read again at each turn of the outer loop, where the inner one hands it out
    assert found(nested(lambda w, i, j: w[j])).slices == {}


def test_a_step_may_be_a_number_of_the_loop_around():
    """Steps of one, then of two, from nothing; less, from four."""

    def fn(start, step):
        def outer(j, x):
            by = j + 1
            body = lambda c, _: ((step(c[0], by), c[1] + jnp.sum(w_of[0][c[0]])), None)  # noqa: E731
            return lax.scan(body, (start, x), length=2)[0][1]

        w_of = []

        def run(w, x):
            w_of[:] = [w]
            return lax.fori_loop(0, 2, outer, x)

        return run

    for start, step, first in (
        (0, lambda i, by: i + by, [[0, 1], [0, 2]]),
        (0, lambda i, by: by + i, [[0, 1], [0, 2]]),
        (4, lambda i, by: i - by, [[4, 3], [4, 2]]),
    ):
        expected = [[[i, 0, 0] for i in row] for row in first]
        assert starts(fn(start, step)) == (expected, (0, 1))


def test_a_loop_without_turns_reads_nothing():
    def fn(last):
        read = lambda w: lambda c: (c[0] + 1, c[1] + jnp.sum(w[c[0]]))  # noqa: E731
        return lambda w, x: lax.while_loop(lambda c: c[0] < last, read(w), (0, x))[1]

    assert [len(found(fn(last)).slices) for last in (0, 1)] == [0, 1]


def test_a_table_may_be_made_of_parameters_and_of_nothing_else():
    def fn(table):
        return lambda w, x: lax.fori_loop(
            0, 3, lambda i, c: c + jnp.sum(lax.dynamic_slice_in_dim(table(w, x), i, 1)), X
        )

    assert found(fn(lambda w, x: w + x[0])).slices == {}
    (read,) = found(fn(lambda w, x: 2 * w)).slices.values()
    whole = np.arange(36.0, dtype=np.float32).reshape(6, 2, 3)
    np.testing.assert_array_equal(read.table.value([whole] * 5), 2 * whole)


def test_a_loop_that_acts_is_left_as_it_is():
    def acting(c):
        jax.debug.callback(lambda i: None, c[0])
        return c[0] + 1, c[1]

    plain, own = (lambda c: (c[0] + 1, c[1])), acting
    for body, trips in ((plain, {(): 3}), (own, {})):
        fn = lambda w, x, body=body: lax.while_loop(  # noqa: E731
            lambda c: c[0] < 3, body, (0, x + jnp.sum(w))
        )
        assert found(fn).trips == trips


def test_a_read_is_found_at_its_place_in_each_jaxpr():
    reads = found(nested(lambda w, i, j: w[3 * i + j])).slices
    ((outer, inner),) = reads
    body = jax.make_jaxpr(nested(lambda w, i, j: w[3 * i + j]))(W, X).jaxpr.eqns[0]
    (within,) = [body.params["jaxpr"].jaxpr.eqns[outer]]
    assert within.primitive.name == "scan"
    assert within.params["jaxpr"].jaxpr.eqns[inner].primitive.name in ("gather", "dynamic_slice")


def counted(start, goes_on, step):
    return lambda w, x: lax.while_loop(
        lambda c: goes_on(c[0]), lambda c: (step(c[0]), c[1] + jnp.sum(w)), (start, X)
    )


TRIPS = {
    # around the two lengths that are tried, 64 and 2^16
    "none": (0, 0, 1, 0),
    "one": (0, 1, 1, 1),
    "63": (0, 63, 1, 63),
    "64": (0, 64, 1, 64),
    "65": (0, 65, 1, 65),
    "65535": (0, 65535, 1, 65535),
    "65536": (0, 65536, 1, None),
    "in sevens": (3, 40, 7, 6),
    "from below": (-5, 4, 2, 5),
}


@pytest.mark.parametrize("name", TRIPS)
def test_turns_of_a_while_are_counted_by_hand(name):
    start, end, step, expected = TRIPS[name]
    trips = found(counted(start, lambda i: i < end, lambda i: i + step)).trips
    assert trips == ({(): expected} if expected else {})


def test_a_while_is_counted_the_same_whatever_side_the_step_stands_on():
    fn = counted(0, lambda i: i < 6, lambda i: 2 + i)
    assert found(fn).trips == {(): 3}
    assert found(counted(9, lambda i: i > 2, lambda i: i - 3)).trips == {(): 3}
    # 3 - i is no counter, and neither is one that is multiplied
    assert found(counted(9, lambda i: i > 2, lambda i: 3 - i)).trips == {}
    assert found(counted(1, lambda i: i < 9, lambda i: 2 * i)).trips == {}


def test_what_is_added_to_another_value_or_to_an_array_is_no_counter():
    """i = k + 1 at each turn, with k as it was; and two numbers that are counted together."""

    def other(w, x):
        def body(c):
            _, k, x = c
            return k + 1, k, x + jnp.sum(w)

        return lax.while_loop(lambda c: c[0] < 5, body, (0, 0, x))[2]

    assert found(other).trips == {}

    def pair(w, x):
        body = lambda c, _: ((c[0] + 1, c[1] + jnp.sum(w[c[0][0]])), None)  # noqa: E731
        return lax.scan(body, (jnp.zeros(2, int), x), length=3)[0]

    assert found(pair).slices == {}


def test_turns_that_differ_between_those_of_the_loop_around_are_unknown():
    def trips(most):
        def outer(i, x):
            goes_on = lambda c: c[0] < most(i)  # noqa: E731
            return lax.while_loop(goes_on, lambda c: (c[0] + 1, c[1] + 1), (0, x))[1]

        return found(lambda w, x: lax.fori_loop(0, 4, outer, x)).trips

    assert list(trips(lambda i: 3 + 0 * i).values()) == [3]
    assert trips(lambda i: 3 + i) == {}


def test_a_counter_wraps_around_as_its_type_does():
    def fn(w, x):
        def body(c, _):
            i, x = c
            place = (i + jnp.int8(-126)).astype(jnp.int32) + 4
            return (i + jnp.int8(1), x + jnp.sum(lax.dynamic_slice_in_dim(w, place, 1))), None

        return lax.scan(body, (jnp.int8(125), x), length=4)[0]

    # 125, 126, 127, -128; less 126: -1, 0, 1, 2
    assert starts(fn) == ([[3, 0, 0], [4, 0, 0], [5, 0, 0], [5, 0, 0]], (0,))


def test_turns_of_a_scan_from_the_end_count_from_the_last_slice():
    def fn(w, x):
        body = lambda c, _: ((c[0] + 2, c[1] + jnp.sum(w[c[0]])), None)  # noqa: E731
        return lax.scan(body, (1, x), length=3, reverse=True)[0]

    assert starts(fn) == ([[5, 0, 0], [3, 0, 0], [1, 0, 0]], (0,))


def test_as_many_copies_as_are_allowed_are_made_and_no_more():
    """Slices of 4 of 16 entries: 256 turns read 64 copies, 257 a little more."""
    w = jnp.zeros((4, 2, 2))
    assert len(found(turns(256, lambda w, i: w[i % 4]), w).slices) == 1
    assert found(turns(257, lambda w, i: w[i % 4]), w).slices == {}


def test_what_a_model_fills_in_is_no_slice_and_the_last_slice_is_one():
    fill = lambda last: turns(3, lambda w, i: w.at[i + last].get(mode="fill"))  # noqa: E731
    assert len(found(fill(3)).slices) == 1
    assert found(fill(4)).slices == {}
    assert (
        found(
            turns(3, lambda w, i: w.at[i - 1].get(mode="fill", wrap_negative_indices=False))
        ).slices
        == {}
    )


def test_several_slices_a_turn_are_no_slice():
    assert found(turns(3, lambda w, i: w[jnp.stack([i, i + 1])])).slices == {}


def read(starts, sizes, whole, shape, lengths):
    starts = np.asarray(starts).reshape(*lengths, len(whole))
    over = tuple(range(len(lengths)))
    return Read(Fixed(None, (), 0, True), whole, starts, sizes, shape, over)


STACKS = {
    # first indices, sizes of a slice, shape of the table and of a result, lengths, gathered or not
    "all in order": ([[i, 0] for i in range(4)], (1, 6), (4, 6), (6,), (4,), False),
    "kept axis": ([[i, 0] for i in range(4)], (1, 6), (4, 6), (1, 6), (4,), False),
    "blocks of rows": ([[2 * i, 0] for i in range(2)], (2, 6), (4, 6), (2, 6), (2,), False),
    "columns": ([[0, j] for j in range(6)], (4, 1), (4, 6), (4,), (6,), False),
    "blocks of columns": ([[0, 3 * j] for j in range(2)], (4, 3), (4, 6), (4, 3), (2,), False),
    "both axes": (
        [[i, j, 0] for i in range(2) for j in range(3)],
        (1, 1, 4),
        (2, 3, 4),
        (4,),
        (2, 3),
        False,
    ),
    "rows in two loops": ([[i, 0] for i in range(6)], (1, 4), (6, 4), (4,), (2, 3), False),
    "a row and blocks": (
        [[i, 3 * j] for i in range(4) for j in range(2)],
        (1, 3),
        (4, 6),
        (3,),
        (4, 2),
        False,
    ),
    "whole": ([[0, 0]], (4, 6), (4, 6), (4, 6), (1,), False),
    "whole again": ([[0, 0]] * 3, (4, 6), (4, 6), (4, 6), (3,), True),
    "backwards": ([[3 - i, 0] for i in range(4)], (1, 6), (4, 6), (6,), (4,), True),
    "not all": ([[i, 0] for i in range(3)], (1, 6), (4, 6), (6,), (3,), True),
    "over each other": ([[i, 0] for i in range(3)], (2, 6), (4, 6), (2, 6), (3,), True),
    "blocks of both": (
        [[2 * i, 3 * j] for i in range(2) for j in range(2)],
        (2, 3),
        (4, 6),
        (2, 3),
        (2, 2),
        True,
    ),
}


@pytest.mark.parametrize("name", STACKS)
def test_slices_are_stacked_turn_by_turn(name):
    """The table itself, where all of it is read in order: nothing is gathered."""
    first, sizes, whole, shape, lengths, gathers = STACKS[name]
    each = read(first, sizes, whole, shape, lengths)
    table = np.arange(np.prod(whole), dtype=np.float32).reshape(whole)
    run = jax.make_jaxpr(lambda table: each.stack([table]))
    closed = run(table)
    assert ("gather" in {e.primitive.name for e in closed.jaxpr.eqns}) is gathers
    (stack,) = jax.core.eval_jaxpr(closed.jaxpr, closed.consts, table)
    slices = [table[tuple(slice(i, i + n) for i, n in zip(at, sizes, strict=True))] for at in first]
    np.testing.assert_array_equal(stack, np.reshape(slices, (*lengths, *shape)))
    assert each.is_plain is (name in ("all in order", "kept axis"))


def test_a_value_of_the_operands_is_computed_once_from_their_expression():
    eqn = jax.make_jaxpr(lambda a, b: lax.sort((a, b), num_keys=1))(X, X).jaxpr.eqns[0]
    sides = (Fixed(None, (), 1, False), Fixed(None, (np.float32([2, 4, 6]),), 0, False))
    second = Fixed(eqn, sides, 1, False)
    np.testing.assert_array_equal(second.value([None, np.float32([3, 1, 2])]), [4, 6, 2])
