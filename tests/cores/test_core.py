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
from tests.oracles import contraction
from tests.support.geometries import geometries, integers, planes, seeds

some = settings(max_examples=20)


@pytest.mark.slow
@some
@given(geometries, planes, planes, seeds)
def test_contract_equals_the_loops_over_every_plane(site, x_planes, w_planes, seed):
    geometry, x_shape = site
    x = integers(seed, (*x_planes, *x_shape))
    w = integers(seed + 1, (*w_planes, *geometry.w_shape))
    y = Op(geometry).contract(jnp.asarray(x), jnp.asarray(w))
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(y, contraction.over_planes(geometry, x, w))


@pytest.mark.slow
@some
@given(geometries, planes, planes, seeds)
def test_as_matmul_is_the_same_contraction(site, x_planes, w_planes, seed):
    geometry, x_shape = site
    x = integers(seed, (*x_planes, *x_shape))
    w = integers(seed + 1, (*w_planes, *geometry.w_shape))
    matmul = geometry.as_matmul()
    product = Op(matmul.geometry).contract(matmul.x(jnp.asarray(x)), matmul.w(jnp.asarray(w)))
    assert matmul.w(jnp.asarray(w)).shape == (*w_planes, *matmul.geometry.w_shape)
    np.testing.assert_array_equal(
        matmul.y(product, x_shape), contraction.over_planes(geometry, x, w)
    )


@some
@given(geometries, planes, seeds)
def test_row_sum_is_the_contraction_with_ones(site, x_planes, seed):
    geometry, x_shape = site
    x = integers(seed, (*x_planes, *x_shape))
    expected = contraction.over_planes(geometry, x, np.ones(geometry.w_shape, np.int8))
    total = Op(geometry).row_sum(jnp.asarray(x))
    np.testing.assert_array_equal(np.broadcast_to(total, expected.shape), expected)


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
    np.testing.assert_array_equal(
        np.broadcast_to(op.column_sum(jnp.asarray(w)), expected.shape), expected
    )
    scale = integers(seed + 1, op.channel_shape(), dtype=np.float32)
    scaled = contraction.contract(geometry, np.ones(x_shape), w * scale)
    np.testing.assert_array_equal(expected * np.asarray(op.to_output(jnp.asarray(scale))), scaled)


@some
@given(geometries, planes, seeds)
def test_pad_makes_padding_explicit(site, x_planes, seed):
    geometry, x_shape = site
    x, w = integers(seed, (*x_planes, *x_shape)), integers(seed + 1, geometry.w_shape)
    padded, op = Op(geometry).pad(jnp.asarray(x))
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
