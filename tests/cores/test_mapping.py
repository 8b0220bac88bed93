import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.cores import cells
from jaxsim.cores.conductance import conductance
from jaxsim.cores.geometry import Dot
from jaxsim.cores.mapping import differential, offset, unit_column
from jaxsim.cores.op import Op
from jaxsim.formats.grid import Grid
from tests.oracles import quantiser
from tests.support import sites

KEY = jax.random.key(7)


def written(mapping, width=8):
    x, w = sites.operands(sites.CONV)
    state = sites.deployed([sites.quantize(width), mapping], sites.CONV, x, w)
    return np.asarray(state.inner), quantiser.quantise(Grid(width), w, sites.CONV.contracted)[0]


APART = (differential, {"apart": True})


def test_differential_holds_the_two_parts_and_one_of_them_is_zero():
    (plus, minus), codes = written(APART)
    np.testing.assert_array_equal(plus, np.maximum(codes, 0))
    np.testing.assert_array_equal(minus, np.maximum(-codes, 0))
    assert not np.any(plus * minus)


@pytest.mark.parametrize("width", [3, 8])
def test_offset_holds_no_negative_code_and_zero_in_the_middle(width):
    cells, codes = written(offset, width)
    top = 2 ** (width - 1) - 1
    np.testing.assert_array_equal(cells, codes + top)
    assert cells.min() >= 0
    assert cells.max() == 2 * top


def test_a_pair_that_is_read_as_one_is_held_as_its_difference():
    joined, codes = written(differential)
    np.testing.assert_array_equal(joined, codes)
    assert joined.dtype == np.int8


def test_offset_of_a_float_is_an_error():
    with pytest.raises(ValueError, match="wrap it in quantized"):
        sites.core_of(offset).write(Op(sites.DENSE), np.ones((20, 6), np.float32), None)


def test_differential_of_floats_is_their_difference():
    x, w = sites.operands(sites.DENSE)
    np.testing.assert_allclose(
        sites.read([differential], sites.DENSE, x, w), x @ w, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
def test_a_column_of_zeros_takes_the_offset_off_exactly(geometry):
    x, w = sites.operands(geometry)
    plain = sites.read_deployed([sites.quantize()], geometry, x, w)
    y = sites.read_deployed([sites.quantize(), unit_column], geometry, x, w)
    np.testing.assert_array_equal(y, plain)


def test_the_column_of_zeros_is_one_for_all_outputs_and_stores_the_middle():
    x, w = sites.operands(sites.CONV)
    state = sites.deployed([sites.quantize(), unit_column], sites.CONV, x, w).inner
    groups, depth = 2, 3 * 3 * 2
    assert state.column.shape == (groups, depth, 1)
    np.testing.assert_array_equal(state.column, 127)
    assert state.inner.shape == sites.CONV.w_shape


def keys_of(mapping, *, key):
    """The keys that writes and reads of an inner core are given, and their shapes."""
    seen = []

    def spy(core):
        def write(op, w, key):
            seen.append(("write", w.shape, key))
            return w

        def read(op, state, x, key):
            seen.append(("read", x.shape, key))
            return core.read(op, state, x, key)

        return core._replace(write=write, read=read)

    op, core = Op(sites.DENSE, integer=True).codes(-3, 3), sites.core_of(mapping, spy)
    x, w = np.ones((5, 20), np.int8), np.ones((20, 6), np.int8)
    core.read(op, core.write(op, w, key), x, key)
    return seen


def test_the_column_of_zeros_draws_apart_from_its_array():
    """At each write and each read: errors of one key would be the same numbers."""
    (_, array, a), (_, column, b), (_, _, c), (_, _, d) = keys_of(unit_column, key=KEY)
    assert (array, column) == ((20, 6), (1, 20, 1))
    np.testing.assert_array_equal(*(jax.random.key_data(k) for k in (a, c)))
    np.testing.assert_array_equal(*(jax.random.key_data(k) for k in (b, d)))
    first, second = (np.ravel(jax.random.normal(k, (4000,))) for k in (a, b))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    assert [k for *_, k in keys_of(unit_column, key=None)] == [None] * 4


def test_an_error_of_the_column_of_zeros_is_not_that_of_the_first_weights():
    """One output, as long as the column: with one draw for both, the two errors would cancel."""
    geometry, device = Dot((1,), (), (0,), (), 2, (8, 1)), cells.independent(0.1)
    op = Op(geometry).codes(-3, 3)
    core = sites.core_of(unit_column, (conductance, {"device": device}))
    write = jax.jit(jax.vmap(lambda key: core.write(op, jnp.zeros((8, 1)), key)))
    state = write(jax.random.split(KEY, 500))
    array, column = (np.ravel(a) - np.float32(0.5) for a in (state.inner, state.column))
    assert np.std(array) == pytest.approx(0.1, rel=0.05)
    assert abs(np.corrcoef(array, column)[0, 1]) < 0.06


@pytest.mark.parametrize(
    ("mapping", "lo", "hi", "expected"),
    [
        # a pair holds the larger end on both sides; an offset moves the lower end to zero
        (differential, -3, 5, ([0, 0], [5, 5])),
        (differential, -6, 5, ([0, 0], [6, 6])),
        (offset, -3, 5, (0, 8)),
        (offset, 0, 5, (0, 5)),
        (offset, 2, 5, (2, 5)),
        (unit_column, -6, 5, (0, 11)),
    ],
)
def test_codes_that_cells_hold_range_by_hand(mapping, lo, hi, expected):
    seen = []

    def spy(core):
        return core._replace(write=lambda op, w, key: seen.append((op.w_lo, op.w_hi)))

    core = sites.core_of(mapping, spy)
    core.write(Op(sites.DENSE).codes(lo, hi), np.full((20, 6), lo, np.int8), None)
    for ends in seen:
        np.testing.assert_array_equal(ends, expected)


@pytest.mark.parametrize("missing", ["w_lo", "w_hi"])
@pytest.mark.parametrize("mapping", [offset, unit_column])
def test_an_offset_needs_both_ends_of_its_codes(mapping, missing):
    op = dataclasses.replace(Op(sites.DENSE).codes(-1, 1), **{missing: None})
    with pytest.raises(ValueError, match="wrap it in quantized"):
        sites.core_of(mapping).write(op, np.ones((20, 6), np.int8), None)


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [(APART, "int16"), (differential, "int8"), (offset, "int16"), (unit_column, "int16")],
)
def test_codes_widen_where_the_largest_leaves_their_type(mapping, expected):
    """-(-128), and 127 + 128, are no int8; 127 + 0 and -(-127) are."""
    whole = sites.core_of(mapping).write(
        Op(sites.DENSE).codes(-128, 127), np.full((20, 6), -128, np.int8), None
    )
    assert {a.dtype.name for a in jax.tree.leaves(whole)} == {expected}
    half = sites.core_of(mapping).write(
        Op(sites.DENSE).codes(-63, 63), np.full((20, 6), -63, np.int8), None
    )
    assert {a.dtype.name for a in jax.tree.leaves(half)} == {"int8"}


def test_each_plane_of_a_pair_holds_its_own_larger_end():
    seen = []

    def spy(core):
        return core._replace(write=lambda op, w, key: seen.append((op.w_lo, op.w_hi)))

    op = Op(sites.DENSE).codes(np.array([-3, -1]), np.array([2, 5]))
    sites.core_of(differential, spy).write(op, np.zeros((2, 20, 6), np.int8), None)
    np.testing.assert_array_equal(seen[0], [np.zeros((2, 2)), [[3, 5], [3, 5]]])


def test_a_pair_of_integers_whose_ends_are_unknown_is_their_parts():
    w = np.tile(np.array([[-5, 0, 7]], np.int8), (20, 2))
    for op in (
        Op(sites.DENSE),
        dataclasses.replace(Op(sites.DENSE).codes(-7, 7), w_lo=None),
        dataclasses.replace(Op(sites.DENSE).codes(-7, 7), w_hi=None),
    ):
        plus, minus = sites.core_of(APART).write(op, w, None)
        np.testing.assert_array_equal(plus, np.maximum(w, 0))
        np.testing.assert_array_equal(minus, np.maximum(-w, 0))
        assert plus.dtype == np.int8


def test_the_plane_of_the_largest_codes_decides_the_type_of_all():
    op = Op(sites.DENSE).codes(np.array([-2, -100]), np.array([0, 100]))
    w = np.stack([np.full((20, 6), -2, np.int8), np.full((20, 6), 100, np.int8)])
    held = sites.core_of(offset).write(op, w, None)
    assert held.dtype == np.int16
    np.testing.assert_array_equal(held[:, 0, 0], [98, 200])
