import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsim.cores.conv import Conv
from jaxsim.cores.core import float_core
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.wrapper import Wrapper
from jaxsim.numerics.packed import Packed
from tests.oracles import contraction
from tests.support.geometries import geometries, integers, planes, seeds

some = settings(max_examples=20)


@pytest.mark.slow
@some
@given(geometries, planes, planes, seeds)
def test_contract_as_matmul_and_row_sum_equal_the_loops_over_every_plane(
    site, x_planes, w_planes, seed
):
    """All in one program; `as_matmul` is the same contraction, a row sum that with ones."""
    geometry, x_shape = site
    x = integers(seed, (*x_planes, *x_shape))
    w = integers(seed + 1, (*w_planes, *geometry.w_shape))
    matmul = geometry.as_matmul()
    assert jax.eval_shape(matmul.w, w).shape == (*w_planes, *matmul.geometry.w_shape)

    @jax.jit
    def computed(x, w):
        product = Op(matmul.geometry).contract(matmul.x(x), matmul.w(w))
        return Op(geometry).contract(x, w), matmul.y(product, x_shape), Op(geometry).row_sum(x)

    y, as_matmul, total = map(np.asarray, computed(x, w))
    expected = contraction.over_planes(geometry, x, w)
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(as_matmul, expected)
    ones = contraction.over_planes(geometry, x, np.ones(geometry.w_shape, np.int8))
    np.testing.assert_array_equal(np.broadcast_to(total, ones.shape), ones)


@some
@given(geometries, seeds)
def test_column_sum_and_to_output_follow_the_weight_to_its_output(site, seed):
    """Where nothing pads, an input of ones sums the weights of every output."""
    geometry, x_shape = site
    w = integers(seed, geometry.w_shape)
    if isinstance(geometry, Conv):
        still = ((0, 0),) * len(geometry.strides)
        ones = (1,) * len(geometry.strides)
        geometry = Conv(ones, still, ones, ones, geometry.groups, *_specs(geometry), w.shape)
        x_shape = list(x_shape)
        for x_axis, w_axis in zip(geometry.x_spec[2:], geometry.w_spec[2:], strict=True):
            x_shape[x_axis] = w.shape[w_axis] + 1
    op = Op(geometry)
    expected = contraction.contract(geometry, np.ones(x_shape, np.int8), w)
    scale = integers(seed + 1, op.channel_shape(), dtype=np.float32)
    total, factor = jax.jit(lambda w, scale: (op.column_sum(w), op.to_output(scale)))(w, scale)
    np.testing.assert_array_equal(np.broadcast_to(total, expected.shape), expected)
    scaled = contraction.contract(geometry, np.ones(x_shape), w * scale)
    np.testing.assert_array_equal(expected * np.asarray(factor), scaled)


@some
@given(geometries, planes, seeds)
def test_pad_makes_padding_explicit(site, x_planes, seed):
    geometry, x_shape = site
    x, w = integers(seed, (*x_planes, *x_shape)), integers(seed + 1, geometry.w_shape)
    seen = []

    @jax.jit
    def padded_by(x):
        padded, op = Op(geometry).pad(x)
        seen.append(op)
        return padded

    padded = padded_by(x)
    (op,) = seen
    if isinstance(geometry, Conv):
        assert not np.any(op.geometry.padding)
        assert set(op.geometry.lhs_dilation) == {1}
    y = contraction.over_planes(op.geometry, np.asarray(padded), w)
    np.testing.assert_array_equal(y, contraction.over_planes(geometry, x, w))


def _specs(geometry):
    return geometry.x_spec, geometry.w_spec, geometry.y_spec


@pytest.mark.parametrize("geometry", [Dot((1,), (), (0,), (), 2, (4608, 3))])
def test_sums_of_codes_do_not_overflow_or_round(geometry):
    x = np.full((2, 4608), 127, np.int8)
    w = np.full((4608, 3), -127, np.int8)
    y = Op(geometry).contract(jnp.asarray(x), jnp.asarray(w))
    np.testing.assert_array_equal(y, np.full((2, 3), -127 * 127 * 4608))


def test_contract_keeps_the_dtypes_of_the_model():
    bf16 = jnp.bfloat16
    dot = Dot((1,), (), (0,), (), 2, (4, 3))
    wide = Dot((1,), (), (0,), (), 2, (4, 3), dtype=jnp.float32)
    x, w = jnp.ones((2, 4), bf16), jnp.ones((4, 3), bf16)
    assert Op(dot).contract(x, w).dtype == bf16
    assert Op(wide).contract(x, w).dtype == jnp.float32
    assert Op(dot).contract(x, w.astype(jnp.int8)).dtype == bf16


def test_wrappers_that_differ_in_floats_share_a_structure():
    def make(core, **settings):
        return core

    same = {"name": "a", "count": 2, "hook": make}
    one, two = (Wrapper.of(make, **same, sigma=sigma) for sigma in (0.1, 0.2))
    other = Wrapper.of(make, **{**same, "count": 3}, sigma=0.1)
    assert jax.tree.structure(one) == jax.tree.structure(two) != jax.tree.structure(other)
    assert jax.tree.leaves(one) == [0.1]
    rebuilt = jax.tree.map(lambda leaf: leaf, one)
    assert list(rebuilt.settings.items()) == list(one.settings.items())
    assert rebuilt(float_core) is float_core


@given(st.integers(1, 300), st.integers(0, 300))
def test_weight_bits_hold_every_level(hi, lo):
    meter = {}
    op = Op(Dot((1,), (), (0,), (), 2, (4, 3)), meter=meter).codes(-lo, hi)
    float_core.write(op, jnp.zeros((4, 3)), None)
    bits = (hi + lo).bit_length()  # codes -lo..hi count hi + lo + 1 levels
    assert meter == {"weight_bits": 12 * bits, "cells": 12}


SMALL = {
    "depthwise": ((3, 3, 1, 6), 6),
    "depthwise, two features each": ((2, 3, 1, 12), 6),
    "grouped": ((3, 3, 3, 8), 2),
    "few features": ((3, 3, 6, 8), 1),
    "pointwise": ((1, 1, 6, 48), 1),
    "many features": ((3, 2, 6, 48), 1),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("w_planes", [(), (2,)])
def test_convolutions_of_codes_are_exact_whatever_computes_them(name, w_planes):
    """Depthwise filters by taps, few features and groups by patches, others as they are."""
    w_shape, groups = SMALL[name]
    specs = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    geometry = Conv((2, 1), ((1, 2), (0, 1)), (1, 2), (2, 1), groups, *specs, w_shape=w_shape)
    x, w = integers(1, (2, 3, 7, 6, 6)), integers(2, (*w_planes, *w_shape))
    y = jax.jit(Op(geometry).contract)(x, w)
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(y, contraction.over_planes(geometry, x, w))


def test_old_names_of_an_op_warn_and_work():
    op = Op(Dot((1,), (), (0,), (), 2, (3, 2)))
    for old, new in {"at": "scan_index", "quiet": "deterministic"}.items():
        with pytest.warns(DeprecationWarning, match=new):
            assert getattr(op, old) == getattr(op, new)
    with pytest.warns(DeprecationWarning, match="channel_shape"):
        assert op.per_output() == op.channel_shape()
    with pytest.raises(AttributeError, match="no attribute 'of'"):
        _ = op.of


DEEP = Dot((1,), (), (0,), (), 2, (1, 1))


@pytest.mark.parametrize(
    ("depth", "x_most", "w_most"), [(1, 4097, 4097), (3, 2365, 2365), (4, 2049, 2049)]
)
def test_products_of_wide_codes_are_exact_where_floats_would_round(depth, x_most, w_most):
    """An odd sum just above 2^24 is no float32; where it stays below, floats compute it."""
    geometry = dataclasses.replace(DEEP, w_shape=(depth, 1))
    op = Op(geometry, integer=True).codes(np.array(-1), np.array(w_most)).inputs(-1, x_most)
    x, w = np.full((1, depth), x_most, np.int16), np.full((depth, 1), w_most, np.int16)
    x[0, 0] -= (depth * x_most * w_most) % 2 == 0  # to an odd one
    exact = int((x.astype(int) @ w.astype(int)).item())
    assert exact > 2**24
    assert exact % 2
    assert int(op.contract(jnp.asarray(x), jnp.asarray(w)).item()) == exact


def test_products_without_known_ranges_are_exact_for_all_their_types_hold():
    """-2^15 · -2^15, and -128 of int8 with 2^15 products of weights of int16."""
    op = Op(DEEP, integer=True)
    low = jnp.full((1, 1), -(2**15), jnp.int16)
    assert int(op.contract(low, low).item()) == 2**30
    geometry = dataclasses.replace(DEEP, w_shape=(5, 1))
    x, w = jnp.full((1, 5), -127, jnp.int8), jnp.full((5, 1), 2**15 - 1, jnp.int16)
    assert int(Op(geometry, integer=True).contract(x, w).item()) == -127 * 5 * (2**15 - 1)
    one = Op(geometry, integer=True).codes(np.array(0), np.array(2**15 - 1))
    assert int(one.contract(x, w).item()) == -127 * 5 * (2**15 - 1)


def test_the_lower_end_of_an_input_decides_as_the_upper_does():
    op = Op(DEEP, integer=True).codes(np.array(0), np.array(4097)).inputs(-4097, 1)
    x, w = jnp.full((1, 1), -4097, jnp.int16), jnp.full((1, 1), 4097, jnp.int16)
    assert int(op.contract(x, w).item()) == -(4097**2)


def test_a_contraction_counts_its_products_over_all_planes():
    meter = {}
    geometry = Dot((2,), (0,), (1,), (0,), 3, (3, 7, 5))
    op = Op(geometry, meter=meter)
    x, w = jnp.ones((2, 3, 11, 7)), jnp.ones((4, 3, 7, 5))
    assert op.contract(x, w).shape == (2, 4, 3, 11, 5)
    assert meter == {"macs": 2 * 4 * 3 * 11 * 5 * 7}
    op.count("macs", 0.5)
    op.count("other", 2)
    assert meter == {"macs": 9240.5, "other": 2}
    Op(geometry).count("macs", 1)  # nowhere


def test_shapes_and_axes_of_an_op_by_hand():
    op = Op(Dot((2,), (0,), (1,), (0,), 3, (3, 7, 5)))
    assert op.depth == 7
    assert op.channel_shape() == (3, 1, 5)
    assert op.scale_axes("tensor") == (0, 1, 2)
    assert op.scale_axes("channel") == (1,)
    assert op.planes == 0
    coded = dataclasses.replace(op, code_bits=3).codes(np.zeros((2, 4)), np.ones((2, 4)))
    assert (coded.planes, coded.code_bits) == (2, None)
    assert coded.x_planes(np.zeros((6, 3, 2, 7))) == 1
    assert coded.w_planes(np.zeros((2, 4, 3, 7, 5))) == (2, 4)
    total = coded.row_sum(jnp.ones((6, 3, 2, 7), jnp.int8))
    assert total.shape == (6, 1, 1, 3, 2, 1)
    assert total.dtype == jnp.int32
    np.testing.assert_array_equal(total, 7)


def test_a_layer_takes_its_slice_of_a_setting():
    setting = np.arange(24).reshape(2, 3, 4)
    op = Op(DEEP, scan_index=(1, 2))
    np.testing.assert_array_equal(op.slice_for_layer(setting), [20, 21, 22, 23])
    np.testing.assert_array_equal(Op(DEEP).slice_for_layer(setting), setting)


def test_a_range_is_the_batch_s_the_stored_one_or_missing():
    for ranges, expected in (("batch", "of the batch"), ("stored", "stored")):
        op = Op(DEEP, ranges=ranges)
        assert op.range("the grid", "stored", lambda: "of the batch") == expected
    with pytest.raises(ValueError, match="calibrate=None: the grid needs deploy"):
        Op(DEEP, ranges="missing").range("the grid", "stored", lambda: "of the batch")


@pytest.mark.parametrize(
    ("dtype", "code_bits", "codes", "bits"),
    [
        (jnp.float32, None, None, 32),
        (jnp.bfloat16, None, None, 16),
        (jnp.int8, 5, (-15, 15), 5),
        (jnp.int8, None, (-15, 15), 5),
        (jnp.int8, None, (-15, 16), 5),
        (jnp.int8, None, (-16, 16), 6),
        (jnp.int8, None, (0, 15), 4),
    ],
)
def test_a_stored_number_takes_its_bits_or_those_of_its_levels(dtype, code_bits, codes, bits):
    meter = {}
    op = Op(DEEP, meter=meter)
    op = op if codes is None else op.codes(*map(np.asarray, codes))
    op = dataclasses.replace(op, code_bits=code_bits)
    float_core.write(op, jnp.zeros((4, 3), dtype), None)
    assert meter == {"weight_bits": 12 * bits, "cells": 12}


def test_a_stack_of_planes_takes_the_mean_of_their_bits():
    meter = {}
    op = Op(DEEP, meter=meter).codes(np.array([0, 0, 0]), np.array([7, 3, 0]))
    float_core.write(op, jnp.zeros((3, 4, 5), jnp.int8), None)
    assert meter == {"weight_bits": 60 * (3 + 2 + 0) / 3, "cells": 60}


@pytest.mark.parametrize(("lo", "hi"), [(-128, 127), (-128, 1)])
def test_the_lower_end_of_a_weight_decides_as_the_upper_does(lo, hi):
    """518 · 255 · 127 is below 2^24; 517 · 255 · 128 + 255 · 127 is above it, and odd."""
    depth = 518
    op = Op(dataclasses.replace(DEEP, w_shape=(depth, 1)), integer=True)
    op = op.codes(np.array(lo), np.array(hi)).inputs(0, 255)
    x, w = jnp.full((1, depth), 255, jnp.int16), jnp.full((depth, 1), -128, jnp.int16)
    w = w.at[0].set(-127)
    assert int(op.contract(x, w).item()) == -(517 * 255 * 128 + 255 * 127)


def test_the_largest_plane_decides_for_all():
    op = Op(DEEP, integer=True).codes(np.array([0, 0]), np.array([1, 4097])).inputs(0, 4097)
    x, w = jnp.full((1, 1), 4097, jnp.int16), jnp.array([[[1]], [[4097]]], jnp.int16)
    np.testing.assert_array_equal(np.ravel(op.contract(x, w)), [4097, 4097**2])


@pytest.mark.parametrize(
    ("geometry", "shape"),
    [
        (Dot((1,), (), (0,), (), 2, (40, 6)), (1, 40)),
        (Dot((0,), (), (1,), (), 1, (6, 40)), (40,)),
        (Dot((0,), (), (1,), (), 1, (6, 40), weight_first=True), (40,)),
        (Dot((2,), (0,), (0,), (1,), 3, (40, 3, 6)), (3, 1, 40)),
        (Dot((1, 0), (), (1, 2), (), 4, (6, 8, 5), weight_first=True), (5, 8, 1, 1)),
    ],
)
def test_a_row_of_bytes_is_multiplied_as_rows_are(geometry, shape):
    """Beside rows of zeros, which XLA is faster with; other rows, and floats, as they come."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-127, 128, s).astype(np.int8) for s in (shape, geometry.w_shape))
    apply = jax.jit(geometry.apply, static_argnums=2)

    def rows(x, w, dtype):
        (product,) = (
            e
            for e in jax.make_jaxpr(lambda x, w: geometry.apply(x, w, dtype))(x, w).eqns
            if e.primitive.name == "dot_general"
        )
        return product.outvars[0].aval.size // 6 // math.prod(shape[a] for a in geometry.x_batch)

    expected = apply(x.astype(np.int32), w.astype(np.int32), jnp.int32)
    np.testing.assert_array_equal(apply(x, w, jnp.int32), expected)
    assert rows(x, w, jnp.int32) == 3
    assert rows(x.astype(np.float32), w.astype(np.float32), jnp.float32) == 1
    planes = np.stack([x, -x])
    assert rows(planes, w, jnp.int32) == 2
    np.testing.assert_array_equal(apply(planes, w, jnp.int32), [expected, -expected])


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize(
    ("geometry", "shape"),
    [
        (Dot((1, 2), (), (0, 1), (), 3, (3, 9, 4)), (2, 3, 9)),
        (Dot((2, 1), (0,), (1, 3), (2,), 3, (4, 9, 2, 7), weight_first=True), (2, 7, 9)),
    ],
)
def test_numbers_that_share_bytes_are_multiplied_as_they_are(geometry, shape, bits):
    """The axis that is packed is the last of those that are summed; planes are in front."""
    rng = np.random.default_rng(bits)
    most = 2 ** (bits - 1) - 1
    w = rng.integers(-most, most + 1, geometry.w_shape).astype(np.int8)
    x = rng.normal(size=(3, *shape)).astype(np.float32)
    op = Op(geometry, integer=True, layout="paired")
    op = dataclasses.replace(op.codes(np.asarray(-most), np.asarray(most)), layout="paired")
    state = float_core.write(op, jnp.asarray(w), None)
    assert isinstance(state, Packed)
    y = float_core.read(op, state, jnp.asarray(x), None)
    expected = op.contract(x, w)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    jaxpr = jax.make_jaxpr(lambda state, x: float_core.read(op, state, x, None))(state, x)
    assert str(jaxpr).count("dot_general[") == len(state.parts()) > 1
