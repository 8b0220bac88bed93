import numpy as np
import pytest

from jaxsim.cores.mapping import differential, offset, unit_column
from jaxsim.cores.op import Op
from jaxsim.formats.grid import Grid
from tests.oracles import quantiser
from tests.support import sites


def written(mapping, width=8):
    x, w = sites.operands(sites.CONV)
    state = sites.deployed([sites.quantize(width), mapping], sites.CONV, x, w)
    return np.asarray(state.inner), quantiser.quantise(Grid(width), w, sites.CONV.contracted)[0]


def test_differential_holds_the_two_parts_and_one_of_them_is_zero():
    (plus, minus), codes = written(differential)
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
