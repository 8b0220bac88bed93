import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.tiled import tiled
from jaxsim.cores.tiles import real
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


TALL = Dot((1,), (), (0,), (), 2, (130, 3))


@pytest.mark.parametrize("rows", [2, 3, 44])
def test_slopes_of_tiles_are_those_of_the_product(rows):
    """Of 65 tiles, which are reduced, of 44 and of 3, which are added one by one."""
    rng = np.random.default_rng(5)
    x, w, pull = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 130), (130, 3), (4, 3))
    )

    def loss(x, w):
        return (sites.read([(tiled, {"rows": rows})], TALL, x, w, integer=False) * pull).sum()

    value, (of_x, of_w) = jax.value_and_grad(loss, (0, 1))(x, w)
    assert value == pytest.approx(float(((x @ w) * pull).sum()), rel=1e-4)
    np.testing.assert_allclose(of_x, pull @ w.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_w, x.T @ pull, rtol=1e-4, atol=1e-5)
    _, along = jax.jvp(loss, (x, w), (jnp.ones_like(x), jnp.zeros_like(w)))
    assert along == pytest.approx(float((pull * w.sum(0)).sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("depth", "rows", "tiles", "size"),
    [(20, 7, 3, 7), (20, 19, 2, 10), (20, 6, 4, 5), (20, 1, 20, 1), (21, 4, 6, 4), (7, 6, 2, 4)],
)
def test_tiles_share_the_rows_evenly(depth, rows, tiles, size):
    """20 products of at most 19 rows are two tiles of 10 rather than one of 19 and a rest."""
    geometry = Dot((1,), (), (0,), (), 2, (depth, 2))
    seen = []

    def spy(core):
        return core._replace(write=lambda op, w, key: seen.append((op, w)))

    w = np.arange(2.0 * depth, dtype=np.float32).reshape(depth, 2) + 1
    sites.core_of((tiled, {"rows": rows}), spy).write(Op(geometry), w, None)
    ((op, cells),) = seen
    assert cells.shape == op.geometry.w_shape == (1, tiles, size, 2)
    assert op.filled == tiles * size - depth
    expected = np.concatenate([w, np.zeros((op.filled, 2), np.float32)])
    np.testing.assert_array_equal(np.reshape(cells, (-1, 2)), expected)


def test_a_matrix_of_as_many_rows_as_an_array_is_one_array():
    geometry = Dot((1,), (), (0,), (), 2, (6, 2))
    for rows, shape in ((6, (6, 2)), (7, (6, 2)), (5, (1, 2, 3, 2))):
        state = sites.core_of((tiled, {"rows": rows})).write(Op(geometry), np.ones((6, 2)), None)
        assert state.shape == shape


@pytest.mark.parametrize("filled", [0, 1, 4])
def test_the_filling_is_what_lies_behind_the_last_products(filled):
    geometry = Dot((3,), (0, 1), (2,), (0, 1), 4, (2, 3, 5, 4))
    op = Op(geometry, filled=filled)
    found = np.asarray(real(op, np.zeros((7, 2, 3, 8, 5))))
    assert found.shape == (7, 2, 3, 8, 5)
    flat = np.moveaxis(found, 3, 2).reshape(7, 2, 8, 15)  # tiles and their rows in order
    np.testing.assert_array_equal(flat, np.broadcast_to(np.arange(15) < 15 - filled, flat.shape))


@pytest.mark.parametrize(("rows", "shape"), [(5, (1, 2, 7, 3)), (6, (7, 6)), (7, (7, 6))])
def test_arrays_are_calibrated_on_what_they_read(rows, shape):
    seen = []

    def spy(core):
        return core._replace(calibrate=lambda op, state, x: seen.append((op, x)))

    op = Op(Dot((1,), (), (0,), (), 2, (6, 2)))
    core, x = sites.core_of((tiled, {"rows": rows}), spy), np.arange(42.0).reshape(7, 6)
    core.calibrate(op, core.write(op, np.ones((6, 2)), None), x)
    ((inner, tiles),) = seen
    assert tiles.shape == shape
    expected = x if rows > 5 else x.reshape(7, 2, 3).swapaxes(0, 1)[None]
    np.testing.assert_array_equal(tiles, expected)
    assert (inner.geometry == op.geometry) is (rows > 5)


def test_tiles_are_summed_in_the_precision_of_the_whole():
    geometry = Dot(
        (1,), (), (0,), (), 2, (6, 2), precision=lax.Precision.HIGHEST, dtype=jnp.float32
    )
    seen = []

    def spy(core):
        return core._replace(write=lambda op, w, key: seen.append(op.geometry))

    sites.core_of((tiled, {"rows": 3}), spy).write(Op(geometry), np.ones((6, 2)), None)
    assert (seen[0].precision, seen[0].dtype) == (lax.Precision.HIGHEST, jnp.float32)
