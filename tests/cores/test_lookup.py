import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.lookup import codebook_lookup
from jaxsim.cores.minifloat import minifloat
from jaxsim.cores.quantized import quantized
from jaxsim.formats.grid import Grid
from tests.oracles import contraction, quantiser
from tests.support import sites

GEOMETRIES = {"dense": sites.DENSE, "conv": sites.CONV}


def table(w, levels, axes):
    """Weights as the nearest entries of a table, by all distances."""
    scale = np.abs(w).max(axes, keepdims=True)
    pointers = np.abs((w / scale)[..., None] - np.asarray(levels, np.float32)).argmin(-1)
    return np.asarray(levels, np.float32)[pointers] * scale


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_a_site_of_nf4_is_the_contraction_with_the_nearest_entries(geometry, per):
    x, w = sites.operands(geometry)
    book = js.nf4(per=per)
    axes = None if per == "tensor" else geometry.contracted
    expected = contraction.contract(geometry, x, table(w, book.levels, axes))
    for read in (sites.read, sites.read_deployed):
        y = read([(codebook_lookup, {"weights": book})], geometry, x, w)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("length", [1, 4, 7])
def test_a_fitted_table_of_as_many_entries_as_vectors_is_exact(geometry, length):
    """Only if every vector comes back where it was, its filling cut off, does this hold."""
    x, w = sites.operands(geometry)
    outputs = w.size // np.prod([w.shape[a] for a in geometry.contracted])
    vectors = outputs * -(-(w.size // outputs) // length)
    book = js.Codebook(size=int(vectors), length=length)
    y = sites.read_deployed([(codebook_lookup, {"weights": book})], geometry, x, w)
    np.testing.assert_allclose(y, contraction.contract(geometry, x, w), rtol=1e-4, atol=1e-4)


def test_deployed_weights_are_bytes_and_the_table():
    x, w = sites.operands(sites.DENSE)
    state = sites.deployed([(codebook_lookup, {"weights": js.Codebook(size=8)})], sites.DENSE, x, w)
    assert state.pointers.dtype == jnp.uint8
    assert state.levels.shape == (8, 1)
    assert state.passed is None


def test_gradients_pass_to_the_weights_as_if_nothing_were_rounded():
    x, w = sites.operands(sites.DENSE)
    core = sites.core_of((codebook_lookup, {"weights": js.nf4()}))
    op = js.Op(sites.DENSE)
    found = jax.grad(lambda w: core.read(op, core.write(op, w, None), x, None).sum())(w)
    np.testing.assert_allclose(found, np.broadcast_to(x.sum(0)[:, None], w.shape), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float16"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_short_floats_are_those_of_numpy(geometry, dtype):
    x, w = sites.operands(geometry)
    form = js.Floating(dtype)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))

    def short(a):
        scale = np.float32(np.abs(a).max()) / np.float32(ml_dtypes.finfo(kind).max)
        return (a / scale).astype(kind).astype(np.float32) * scale

    expected = contraction.contract(geometry, short(x), short(w))
    for read in (sites.read, sites.read_deployed):
        y = read([(minifloat, {"weights": form, "inputs": form})], geometry, x, w)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    state = sites.deployed([(minifloat, {"weights": form, "inputs": form})], geometry, x, w)
    assert state.inner.dtype == kind


def test_a_table_of_weights_meets_inputs_of_codes():
    x, w = sites.operands(sites.DENSE)
    pieces = [
        (quantized, {"weights": None, "inputs": Grid(6)}),
        (codebook_lookup, {"weights": js.fp4()}),
    ]
    codes, step, _ = quantiser.quantise(Grid(6), x)
    expected = (codes * step) @ table(w, js.fp4().levels, 0)
    np.testing.assert_allclose(
        sites.read_deployed(pieces, sites.DENSE, x, w), expected, rtol=1e-4, atol=1e-5
    )
