import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.geometry import Dot
from jaxsim.cores.lookup import codebook_lookup
from jaxsim.cores.minifloat import minifloat
from jaxsim.cores.quantized import quantized
from jaxsim.formats.grid import Grid
from tests.oracles import contraction, quantiser
from tests.support import sites
from tests.support.compiled import core_of

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
    core = core_of((codebook_lookup, {"weights": js.nf4()}))
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


SMALL = Dot((1,), (), (0,), (), 2, (4, 3))


def cost(book, op, w):
    meter = {}
    core = core_of((codebook_lookup, {"weights": book}))
    jax.eval_shape(lambda w: core.write(dataclasses.replace(op, meter=meter), w, None), w)
    return meter


@pytest.mark.parametrize(
    ("book", "masked", "bits", "cells"),
    [
        # 12 weights of 4 bits; without a zero in the table a bit more says which are pruned
        (js.nf4(), False, 12 * 4, 12),
        (js.nf4(), True, 12 * 4, 12),
        (js.Codebook((-1.0, -0.5, 0.5, 1.0, 2.0)), False, 12 * 3, 12),
        (js.Codebook((-1.0, -0.5, 0.5, 1.0, 2.0)), True, 12 * 3 + 12, 12),
        # three floats and 2 bits a weight; five vectors of 3 beside one a 3-vector, 4 filled to 6
        (js.Codebook(size=3), False, 32 * 3 + 12 * 2, 12),
        (js.Codebook(size=3), True, 32 * 3 + 12 * 2 + 12, 12),
        (js.Codebook(size=5, length=3), False, 32 * 5 * 3 + 6 * 3, 6),
        (js.Codebook(size=99, length=3), False, 32 * 6 * 3 + 6 * 3, 6),
    ],
)
def test_bits_and_cells_of_a_table_by_hand(book, masked, bits, cells):
    w = np.arange(-5, 7, dtype=np.float32).reshape(4, 3)
    assert cost(book, js.Op(SMALL, masked=masked), w) == {"weight_bits": bits, "cells": cells}


def test_a_pruned_weight_stays_zero_and_any_other_takes_the_nearest_level():
    w = jnp.float32([[4, -4, 8], [0, 0, 0], [1, 4, -8], [0, 1.1, 0]])
    book = js.Codebook((-1.0, -0.25, 0.3, 1.0))  # the nearest to zero is -0.25
    core = core_of((codebook_lookup, {"weights": book}))
    held = np.array([[4, -4, 8], [-1, -1, -2], [1.2, 4, -8], [-1, 1.2, -2]])
    for masked, expected in ((False, held), (True, np.where(w == 0, 0, held))):
        op = js.Op(SMALL, masked=masked)
        y = core.read(op, core.write(op, w, None), jnp.eye(4), None)
        np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_a_scale_that_is_zero_holds_zeros_whatever_the_table():
    book = js.Codebook((0.5, 1.0), per="channel")
    core = core_of((codebook_lookup, {"weights": book}))
    w = jnp.float32([[4, 0, 8]] * 4)
    state = core.write(js.Op(SMALL), w, None)
    np.testing.assert_array_equal(state.scale, [[4, 0, 8]])
    np.testing.assert_array_equal(core.read(js.Op(SMALL), state, jnp.eye(4), None)[:, 1], 0)


def test_many_entries_are_pointed_to_by_words():
    w = np.random.default_rng(0).normal(size=(300, 1)).astype(np.float32)
    op = js.Op(Dot((1,), (), (0,), (), 2, (300, 1)), integer=True)
    for size, dtype in ((256, jnp.uint8), (257, jnp.int32)):
        book = js.Codebook(size=size, iterations=1)
        core = core_of((codebook_lookup, {"weights": book}))
        state = jax.eval_shape(lambda w, core=core: core.write(op, w, None), w)
        assert state.pointers.dtype == dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_short_floats_by_hand(dtype):
    """The largest magnitude becomes 448; with the exponents of float32 a power of two is enough."""
    form = js.Floating(dtype, per="channel")
    core = core_of((minifloat, {"weights": form, "inputs": None}))
    w = jnp.float32([[7, 0.5, 0], [-3.5, 14, 0], [1, 2, 0], [0, 0, 0]])
    state = core.write(js.Op(SMALL), w, None)
    scale = [[4, 8, 1]] if dtype == "bfloat16" else [[7 / 448, 14 / 448, 1]]
    np.testing.assert_allclose(state.scale, scale)
    held = w / np.float32(scale)
    np.testing.assert_allclose(state.inner, held, rtol=2.0**-4)
    meter = {}
    core.write(js.Op(SMALL, integer=True, meter=meter), w, None)
    assert meter["weight_bits"] == 12 * (16 if dtype == "bfloat16" else 8)


def test_short_inputs_meet_floats_near_one():
    core = core_of((minifloat, {"weights": None, "inputs": js.Floating()}))
    w = jnp.float32([[5, 0, -12], [0, 1, 1], [-1, 0, 0], [2, 3, 4]])
    state = core.write(js.Op(SMALL), w, None)
    np.testing.assert_array_equal(state.inner, w / 8)
    np.testing.assert_array_equal(state.scale, [[8, 8, 8]])
    x = jnp.float32([[448, -224, 7, 0]])  # all of them floats of 8 bits, their scale one
    np.testing.assert_allclose(core.read(js.Op(SMALL), state, x, None), x @ w, rtol=1e-6)
    np.testing.assert_array_equal(core.read(js.Op(SMALL), state, 0 * x, None), 0)
