"""Which equations take slices, rows or parts of an array, and what they choose, by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsim import internals
from jaxsim.network.experts import _labels, products, ragged_product, routed_product
from jaxsim.network.folded_tables import fold_table
from jaxsim.network.lookups import as_looked_up, looked_up_axis, row_ids, rows_as_outputs
from jaxsim.network.routes import Route, Routes, follow, taken_slices

MODES = lax.GatherScatterMode
W = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)


def equation(fn, *operands):
    *_, eqn = jax.make_jaxpr(fn)(*operands).jaxpr.eqns
    return eqn


def gather(shape, sizes, axes, collapsed, *, mode=MODES.CLIP, fill=None, batch=(), ids=(2,)):
    """A gather of an array of a shape, at places along some of its axes."""
    rank = len(shape) - len(collapsed) - len(batch)
    at = len(ids)
    numbers = lax.GatherDimensionNumbers(
        tuple(range(at, at + rank)),
        collapsed,
        axes,
        operand_batching_dims=batch,
        start_indices_batching_dims=tuple(range(len(batch))),
    )
    places = np.zeros((*ids, len(axes)), np.int32)
    return equation(
        lambda w, i: lax.gather(w, i, numbers, sizes, mode=mode, fill_value=fill),
        np.zeros(shape, np.float32),
        places,
    )


FILL = MODES.FILL_OR_DROP

TAKEN = {
    "whole matrices": (gather((3, 4, 5), (1, 4, 5), (0,), (0,)), True),
    "matrices of the middle axis": (gather((4, 3, 5), (4, 1, 5), (1,), (1,)), True),
    "matrices with their axis": (gather((3, 4, 5), (1, 4, 5), (0,), ()), True),
    "at two integers": (gather((2, 3, 4, 5), (1, 1, 4, 5), (0, 1), (0, 1)), True),
    "rows": (gather((3, 4), (1, 4), (0,), (0,)), False),
    "two matrices at a time": (gather((3, 4, 5), (2, 4, 5), (0,), ()), False),
    "the first columns": (gather((3, 4, 5), (1, 4, 2), (0,), (0,)), False),
    "vectors at two integers": (gather((3, 4, 5), (1, 1, 5), (0, 1), (0, 1)), False),
    "all of it": (gather((3, 4, 5), (3, 4, 5), (0,), ()), False),
    "filled with NaN": (gather((3, 4, 5), (1, 4, 5), (0,), (0,), mode=FILL), True),
    "filled with zeros": (gather((3, 4, 5), (1, 4, 5), (0,), (0,), mode=FILL, fill=0.0), True),
    "filled with ones": (gather((3, 4, 5), (1, 4, 5), (0,), (0,), mode=FILL, fill=1.0), False),
    "a whole axis moved outside": (
        gather((3, 4, 5), (1, 4, 5), (0, 1), (0,), mode=FILL, fill=0.0),
        False,
    ),
    "a whole axis moved and clipped": (gather((3, 4, 5), (1, 4, 5), (0, 1), (0,)), True),
    "a batch": (gather((2, 3, 4, 5), (1, 1, 4, 5), (1,), (1,), batch=(0,)), False),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_is_a_stack_s_slices_where_they_are_whole_matrices(name):
    eqn, taken = TAKEN[name]
    assert eqn.primitive.name == "gather"
    assert (taken_slices(eqn, 7) is not None) is taken


def cut(shape, sizes):
    starts = [np.int32(0)] * len(shape)
    return equation(lambda w, *i: lax.dynamic_slice(w, i, sizes), np.zeros(shape), *starts)


@pytest.mark.parametrize(
    ("shape", "sizes", "taken"),
    [
        ((3, 4, 5), (1, 4, 5), True),
        ((3, 4, 5), (2, 4, 5), True),
        ((3, 4, 5), (1, 1, 5), False),
        ((3, 4, 5), (3, 4, 5), False),
        ((3, 4), (1, 4), False),
        ((2, 3, 4, 5), (1, 3, 1, 5), True),
    ],
)
def test_a_dynamic_slice_is_one_of_matrices_where_two_axes_stay_whole(shape, sizes, taken):
    assert (taken_slices(cut(shape, sizes), 0) is not None) is taken


def test_other_equations_take_nothing():
    assert taken_slices(equation(lambda w: w[1:2], W), 0) is None
    assert looked_up_axis(equation(lambda w: w[1:2], W[0]), [None]) is None
    assert fold_table(equation(lambda w: w[1:2], W)) is None


def test_slices_of_a_gather_their_integers_and_what_is_missing():
    eqn = gather((3, 4, 5), (1, 4, 5), (0,), (0,), mode=FILL, ids=(4,))
    route = taken_slices(eqn, 7)
    assert (route.origin, route.along) == ((7, 0), (True, False, False))
    assert math.isnan(route.missing)
    ids = np.array([[2], [0], [-1], [3]], np.int32)
    np.testing.assert_array_equal(route.stack(W, ids), W)
    np.testing.assert_array_equal(route.chosen(W, ids), [2, 0, -1, -1])
    clipped = taken_slices(gather((3, 4, 5), (1, 4, 5), (0,), (0,), ids=(4,)), 7)
    assert clipped.missing == 0
    np.testing.assert_array_equal(clipped.chosen(W, ids), [2, 0, 0, 2])


def test_two_integers_choose_one_of_all_slices():
    """Of 2 · 3: the first counts threes."""
    w = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    route = taken_slices(gather((2, 3, 4, 5), (1, 1, 4, 5), (0, 1), (0, 1), ids=(3,)), 0)
    ids = np.array([[1, 2], [0, 1], [1, 9]], np.int32)
    np.testing.assert_array_equal(route.chosen(w, ids), [5, 1, 5])
    np.testing.assert_array_equal(route.stack(w, ids), w.reshape(6, 4, 5))
    turned = taken_slices(gather((2, 3, 4, 5), (1, 1, 4, 5), (1, 0), (0, 1), ids=(3,)), 0)
    np.testing.assert_array_equal(turned.chosen(w, ids[:, ::-1]), [5, 1, 5])


def test_slices_of_a_window_are_those_that_follow_its_start():
    """Two of three matrices, from 1 where 9 is asked for; of the middle axis of the array."""
    route = taken_slices(cut((4, 3, 5), (4, 2, 5)), 2)
    w = np.arange(60.0).reshape(4, 3, 5)
    assert route.along == (False, True, False)
    np.testing.assert_array_equal(route.chosen(w, 0, 9, 0), [1, 2])
    np.testing.assert_array_equal(route.chosen(w, 0, -2, 0), [0, 1])
    np.testing.assert_array_equal(route.stack(w, 0, 0, 0), w.transpose(1, 0, 2))


def test_windows_along_two_axes_are_counted_through_all_slices():
    """Of 2 and 4: the second row, from its second slice."""
    w = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    route = taken_slices(cut((2, 3, 4, 5), (1, 3, 2, 5)), 0)
    assert route.along == (True, False, True, False)
    np.testing.assert_array_equal(route.chosen(w, 1, 0, 1, 0), [[5, 6]])
    np.testing.assert_array_equal(
        route.stack(w, 0, 0, 0, 0), w.transpose(0, 2, 1, 3).reshape(8, 3, 5)
    )


ROWS = {
    "rows": (gather((3, 4), (1, 4), (0,), (0,)), 0),
    "columns": (gather((3, 4), (3, 1), (1,), (1,)), 1),
    "parts of rows": (gather((3, 4), (1, 2), (0,), (0,)), None),
    "rows with their axis": (gather((3, 4), (1, 4), (0,), ()), None),
    "numbers": (gather((3, 4), (1, 1), (0, 1), (0, 1)), None),
    "a batch": (gather((3, 4), (1, 1), (1,), (1,), batch=(0,), ids=(3,)), None),
    "matrices": (gather((3, 4, 5), (1, 4, 5), (0,), (0,)), None),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_a_matrix_are_looked_up_along_their_axis(name):
    eqn, axis = ROWS[name]
    assert looked_up_axis(eqn, [object(), None]) == axis


@pytest.mark.parametrize(
    ("sizes", "known", "axis"),
    [
        ((2, 4), (False, False), 0),
        ((3, 1), (False, False), 1),
        ((3, 1), (True, False), 1),
        ((3, 1), (False, True), None),  # which columns no input decides
        ((2, 4), (True, False), None),
        ((2, 2), (False, False), None),
        ((3, 4), (False, False), None),
    ],
)
def test_a_window_of_rows_is_looked_up_where_inputs_place_it(sizes, known, axis):
    tags = [object(), *(object() if k else None for k in known)]
    assert looked_up_axis(cut((3, 4), sizes), tags) == axis


def test_a_lookup_is_a_product_whose_outputs_are_rows():
    rows, columns = rows_as_outputs((3, 4), 0), rows_as_outputs((3, 4), 1)
    assert (rows.x_contract, rows.w_contract, rows.w_shape) == ((1,), (1,), (3, 4))
    assert columns.w_contract == (0,)
    assert rows.precision == lax.Precision.HIGHEST


def test_rows_of_a_window_are_counted_from_where_it_lies():
    eqn = cut((5, 4), (2, 4))
    for start, expected in ((1, [1, 2]), (4, [3, 4]), (-3, [0, 1])):
        np.testing.assert_array_equal(row_ids(eqn, [None, start, 0]), expected)
    columns = cut((5, 4), (5, 3))
    np.testing.assert_array_equal(row_ids(columns, [None, 0, 9]), [1, 2, 3])
    rows = np.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(as_looked_up(eqn, [None, 1, 0], rows), rows)
    np.testing.assert_array_equal(as_looked_up(columns, [None, 0, 1], rows), rows.T)


@pytest.mark.parametrize(("fill", "expected"), [(None, np.nan), (7.0, 7.0)])
def test_rows_outside_of_a_table_read_what_is_filled_in(fill, expected):
    eqn = gather((3, 4), (1, 4), (0,), (0,), mode=FILL, fill=fill, ids=(4,))
    ids = np.array([[-1], [0], [2], [3]], np.int32)
    rows = np.ones((4, 4), np.float32)
    found = as_looked_up(eqn, [None, ids], jnp.asarray(rows))
    np.testing.assert_array_equal(np.asarray(found)[:, 0], [expected, 1, 1, expected])


FOLDED = {
    "a matrix of matrices": (gather((3, 4, 5), (1, 1, 5), (0, 1), (0, 1)), True),
    "numbers": (gather((3, 4, 5), (1, 1, 1), (0, 1, 2), (0, 1, 2)), False),
    "a vector": (gather((3,), (1,), (0,), (0,)), False),
    "a window of a vector": (cut((5,), (2,)), False),
    "parts along each axis": (cut((3, 4), (2, 2)), False),
    "rows": (cut((3, 4), (2, 4)), True),
    "a whole axis that may lie outside": (gather((3, 4), (1, 4), (0, 1), (0,), mode=FILL), False),
    "a whole axis that is moved inside": (gather((3, 4), (1, 4), (0, 1), (0,)), True),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_table_is_folded_where_one_of_its_axes_is_taken_whole(name):
    eqn, folded = FOLDED[name]
    assert (fold_table(eqn) is not None) is folded


def ragged(shapes, dims, rows, groups, **more):
    numbers = lax.RaggedDotDimensionNumbers(dims, rows, groups)
    arrays = [np.zeros(shape, np.float32) for shape in shapes[:2]]
    sizes = np.zeros(shapes[2], np.int32)
    return equation(
        lambda x, w, s: lax.ragged_dot_general(x, w, s, numbers, **more), *arrays, sizes
    )


PLAIN = (((1,), (1,)), ((), ()))
RAGGED = {
    "rows": (ragged([(6, 4), (3, 4, 5), (3,)], PLAIN, [0], [0]), True),
    "what is summed": (ragged([(6, 4), (4, 5), (3,)], (((1,), (0,)), ((), ())), [1], []), False),
    "a batch": (
        ragged([(3, 6, 4), (3, 4, 5), (3,)], (((2,), (1,)), ((0,), (0,))), [0], []),
        False,
    ),
    "rows of a batch": (
        ragged([(2, 6, 4), (2, 3, 4, 5), (2, 3)], (((2,), (2,)), ((0,), (0,))), [1], [1]),
        True,
    ),
}


@pytest.mark.parametrize("name", RAGGED)
def test_groups_are_of_rows_alone(name):
    eqn, said = RAGGED[name]
    assert (ragged_product(eqn) is not None) is said


def test_groups_that_begin_behind_the_first_weight_are_told(monkeypatch):
    """As no JAX says them yet."""
    eqn, read = RAGGED["rows"][0], internals.ragged_dot
    monkeypatch.setattr(internals, "ragged_dot", lambda eqn: read(eqn)._replace(offset=True))
    assert ragged_product(eqn) is None


def test_each_row_is_multiplied_by_the_one_weight_that_it_chose():
    assert products(RAGGED["rows"][0]) == 6 * 5 * 4
    assert products(RAGGED["rows of a batch"][0]) == 2 * 6 * 5 * 4
    several = equation(
        lambda x, w: jnp.einsum("abc,bcd->ad", x, w),
        np.zeros((2, 3, 4)),
        W[:, :, 0].reshape(3, 4, 1),
    )
    assert products(several) == 2 * 1 * 3 * 4


@pytest.mark.parametrize(
    ("contract", "batch", "ranks", "labels"),
    [
        (((2,), (0,)), ((), ()), (3, 2), ([0, 1, 2], [2, 4])),
        (((1,), (1,)), ((0,), (0,)), (2, 3), ([0, 1], [0, 1, 4])),
        (((), ()), ((), ()), (1, 3), ([0], [1, 2, 3])),
    ],
)
def test_axes_that_belong_together_have_one_name(contract, batch, ranks, labels):
    assert _labels(contract, batch, ranks) == labels


def route(*along):
    return Route((0, 0), (), None, None, along)


def dot(x, w, contract, batch=((), ())):
    arrays = np.zeros(x, np.float32), np.zeros(w, np.float32)
    return equation(lambda x, w: lax.dot_general(x, w, (contract, batch)), *arrays)


@pytest.mark.parametrize(
    ("eqn", "along", "said"),
    [
        # rows by the matrix that each chose
        (dot((6, 4), (6, 4, 5), ((1,), (1,)), ((0,), (0,))), (True, False, False), True),
        # nothing of a slice is left behind what is chosen
        (dot((6, 4), (6, 4, 5), ((1,), (1,)), ((0,), (0,))), (True, False, True), False),
        # nothing of a slice is summed over
        (dot((6, 4), (6, 4, 5), ((1,), (1,)), ((0,), (0,))), (True, True, False), False),
        (dot((6, 4), (4, 5), ((1,), (0,))), (False, False), True),
        # no free axis at all: vectors by vectors
        (dot((6, 4), (6, 4), ((1,), (1,)), ((0,), (0,))), (True, False), False),
    ],
)
def test_a_slice_that_is_multiplied_is_a_matrix(eqn, along, said):
    assert (routed_product(eqn, 1, route(*along)) is not None) is said


MOVES = {
    "a cast to floats": (lambda w: lax.convert_element_type(w, jnp.bfloat16), True),
    "a cast to integers": (lambda w: lax.convert_element_type(w, jnp.int32), False),
    "a sum": (lambda w: w.sum(0), False),
    "a product": (lambda w: lax.neg(w), False),
    "a turn": (lambda w: lax.transpose(w, (2, 0, 1)), True),
    "an axis": (lambda w: lax.reshape(w, (3, 1, 4, 5)), True),
    "integers joined with what they choose": (lambda w: lax.reshape(w, (12, 5)), False),
    "two of what they choose": (lambda w: lax.reshape(w, (3, 20)), True),
    "a split of a slice": (lambda w: lax.split(w, (1, 3), axis=1)[1], True),
    "a slice of each slice": (lambda w: jnp.unstack(w, axis=1)[3], True),
    "each slice": (lambda w: jnp.unstack(w)[2], True),
    "a split of the integers": (lambda w: lax.split(w, (1, 2), axis=0)[1], False),
}


@pytest.mark.parametrize("name", MOVES)
def test_slices_are_followed_where_they_are_moved(name):
    fn, followed = MOVES[name]
    eqn = equation(fn, W)
    found = follow(eqn, route(True, False, False))
    assert (found is not None) is followed
    if followed:
        assert len(found) == len(eqn.outvars)


ALONG = {
    "a turn": (lambda w: lax.transpose(w, (2, 0, 1)), [(False, True, False)]),
    "an axis": (lambda w: lax.reshape(w, (3, 1, 4, 5)), [(True, False, False, False)]),
    "a split": (lambda w: lax.split(w, (1, 3), axis=1), [(True, False, False)] * 2),
    "parts of each slice": (lambda w: jnp.unstack(w, axis=2), [(True, False)] * 5),
    "each slice": (lambda w: jnp.unstack(w, axis=0), [(False, False)] * 3),
    "a part": (lambda w: lax.slice(w, (1, 0, 2), (3, 4, 5), (1, 3, 2)), [(True, False, False)]),
    "a part as it is": (lambda w: lax.slice(w, (1, 0, 2), (3, 3, 5)), [(True, False, False)]),
    "copies": (
        lambda w: lax.broadcast_in_dim(w, (3, 1, 2, 4, 5), (0, 3, 4)),
        [(True, False, True, False, False)],
    ),
}


@pytest.mark.parametrize("name", ALONG)
def test_a_moved_value_is_made_of_moved_slices_and_integers(name):
    """By what each entry stands for: 1000 times its integer and its place in the slice."""
    fn, along = ALONG[name]
    eqn, ids = equation(fn, W), np.arange(3, dtype=np.int32)
    start = Route((0, 0), (), lambda w, i: w, lambda w, i: i, (True, False, False))
    slices = np.arange(20, dtype=np.float32).reshape(1, 4, 5)
    whole = 1000 * ids[:, None, None] + slices
    results = jax.tree.leaves(fn(jnp.asarray(whole)))
    found = follow(eqn, start)
    assert [r.along for r in found] == along
    for each, expected in zip(found, results, strict=True):
        stack, chosen = each.stack(slices, ids), np.asarray(each.chosen(slices, ids))
        sizes = iter(chosen.shape)
        spread = [next(sizes) if a else 1 for a in each.along]
        of_slice = np.asarray(stack[0]).reshape(
            [1 if a else n for a, n in zip(each.along, expected.shape, strict=True)]
        )
        made = 1000 * chosen.reshape(spread) + of_slice
        np.testing.assert_array_equal(np.broadcast_to(made, expected.shape), expected)


def test_readers_that_neither_move_nor_multiply_slices_are_noted():
    jaxpr = jax.make_jaxpr(lambda a, b, c: (a + b, c))(1.0, 2.0, 3.0).jaxpr
    a, b, c = jaxpr.invars
    routes = Routes()
    mine, other = route(True)._replace(origin=(2, 0)), route(True)._replace(origin=(5, 1))
    routes.begin(a, mine)
    routes.begin(b, other)
    assert routes.of([a, c, b]) == [mine, None, other]
    routes.leave([a, c], multiplied=mine)
    assert routes.otherwise == set()
    routes.leave([a, b, c], multiplied=mine)
    assert routes.otherwise == {(5, 1)}
    routes.leave([a])
    assert routes.otherwise == {(5, 1), (2, 0)}
