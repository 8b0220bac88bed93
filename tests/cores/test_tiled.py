import numpy as np
import pytest

from jaxsim.cores.tiled import tiled
from jaxsim.formats.grid import Grid
from tests.oracles import quantiser
from tests.support import sites


@pytest.mark.parametrize("rows", [1, 3, 6, 7, 19, 20])
def test_tiles_hold_the_rows_in_order_and_fill_up_with_zeros(rows):
    x, w = sites.operands(sites.DENSE)
    state = sites.deployed([sites.quantize(), (tiled, {"rows": rows})], sites.DENSE, x, w)
    cells = np.asarray(state.inner)
    codes, _, _ = quantiser.quantise(Grid(8), w, (0,))
    if rows >= 20:
        np.testing.assert_array_equal(cells, codes)
        return
    batch, tiles, size, columns = cells.shape
    assert size <= rows
    assert tiles == -(-20 // rows)
    flat = cells.reshape(batch * tiles * size, columns)
    np.testing.assert_array_equal(flat[:20], codes)
    assert not flat[20:].any()


def test_tiles_of_floats_add_up_to_the_product():
    for geometry in (sites.DENSE, sites.CONV):
        x, w = sites.operands(geometry)
        whole = sites.read([], geometry, x, w)
        np.testing.assert_allclose(
            sites.read([(tiled, {"rows": 5})], geometry, x, w), whole, rtol=1e-4, atol=1e-4
        )
