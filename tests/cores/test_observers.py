import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxsim.cores.geometry import Dot
from jaxsim.cores.observers import moments, outputs, peaks
from jaxsim.cores.op import Op
from jaxsim.cores.quantized import quantized
from jaxsim.cores.scale_shift import bias_correction, smooth_scaling
from tests.oracles import contraction
from tests.support import sites
from tests.support.geometries import geometries, seeds

some = settings(max_examples=15)


@some
@given(geometries, seeds)
def test_the_moments_of_inputs_give_the_mean_square_of_every_output(site, seed):
    """Σ y² over all positions is wᵀ (Σ x xᵀ) w: true of any geometry, whatever its layout."""
    geometry, x_shape = site
    x, w = sites.operands(geometry, seed, x_shape)
    state = sites.deployed([(moments, {"weights": sites.Grid(8)})], geometry, x, w)
    found = np.einsum("bkn,bkl,bln->", state.w, state.gram, state.w)
    y = contraction.contract(geometry, x, w)
    np.testing.assert_allclose(found, np.square(y).sum(), rtol=1e-4, atol=1e-4)
    if y.size:
        np.testing.assert_allclose(state.seen * state.w.shape[0] * state.w.shape[2], y.size)


@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_grid_at_each_weight_is_that_of_the_quantised_site(geometry, per, symmetric):
    x, w = sites.operands(geometry)
    grid = sites.Grid(4, symmetric=symmetric, per=per)
    state = sites.deployed([(moments, {"weights": grid})], geometry, x, w)
    made = sites.deployed([(quantized, {"weights": grid, "inputs": None})], geometry, x, w)
    lo, hi = grid.code_range
    codes = np.clip(np.rint(state.w / state.scale) + state.zero, lo, hi)
    matrix = Op(geometry).geometry.as_matmul().w
    np.testing.assert_array_equal(codes, matrix(made.inner))
    low, high = state.ends
    step = np.squeeze(made.scale) if per == "channel" else np.unique(made.scale)
    np.testing.assert_allclose(
        np.broadcast_to((high - low) / (hi - lo), step.shape), step, rtol=1e-5
    )


@some
@given(geometries, seeds)
def test_measuring_changes_nothing_and_adds_up_over_batches(site, seed):
    geometry, x_shape = site
    x, w = sites.operands(geometry, seed, x_shape)
    plain = contraction.contract(geometry, x, w)
    core, op = sites.core_of(outputs), Op(geometry, integer=True, ranges="stored")
    state = core.write(op, jnp.asarray(w), None)
    for part in (x, 2 * x):
        state = core.calibrate(op, state, jnp.asarray(part))
    np.testing.assert_allclose(
        core.read(op, state, jnp.asarray(x), None), plain, rtol=1e-4, atol=1e-5
    )
    if plain.size == 0:
        return
    total = state.total.sum(), state.squares.sum(), state.seen * state.total.size
    expected = 3 * plain.sum(), 5 * np.square(plain).sum(), 2 * plain.size
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
def test_outputs_are_moved_to_the_mean_they_are_given(geometry):
    x, w = sites.operands(geometry)
    target = np.random.default_rng(0).normal(size=Op(geometry).per_output()).astype(np.float32)
    pieces = [(outputs, {"target": target}), sites.quantize(3, 4)]
    y = sites.read_deployed(pieces, geometry, x, w)
    axis = y.ndim - 1 if geometry is sites.DENSE else geometry.y_spec[1]
    means = y.mean(tuple(a for a in range(y.ndim) if a != axis))
    np.testing.assert_allclose(means, np.ravel(target), atol=1e-5)


@some
@given(geometries, seeds)
def test_smoothing_changes_no_product(site, seed):
    geometry, x_shape = site
    x, w = sites.operands(geometry, seed, x_shape)
    state = sites.deployed([peaks], geometry, x, w)
    channels = np.random.default_rng(seed).uniform(0.5, 2, state.x.shape).astype(np.float32)
    y = sites.read([(smooth_scaling, {"channels": channels})], geometry, x, w)
    np.testing.assert_allclose(y, contraction.contract(geometry, x, w), rtol=1e-4, atol=1e-4)


@some
@given(geometries, seeds)
def test_peaks_are_those_of_each_input_channel(site, seed):
    """None lies above its channel's, and each channel's is the magnitude of one."""
    geometry, x_shape = site
    x, w = sites.operands(geometry, seed, x_shape)
    state = sites.deployed([peaks], geometry, x, w)
    matmul = geometry.as_matmul()
    pairs = ((w, geometry.to_w(state.w), matmul.w), (x, geometry.to_x(state.x), matmul.x))
    for values, peak, matrix in pairs:
        magnitude = np.asarray(matrix(jnp.abs(jnp.asarray(values))))
        above = np.asarray(matrix(jnp.broadcast_to(peak, values.shape)))
        assert np.all(magnitude <= above)
        assert set(np.unique(peak)) <= {0.0, *np.unique(magnitude)}


def test_a_bias_is_added_to_its_own_channel():
    for geometry in (sites.DENSE, sites.CONV):
        x, w = sites.operands(geometry)
        bias = np.arange(np.prod(Op(geometry).per_output()), dtype=np.float32)
        bias = bias.reshape(Op(geometry).per_output())
        moved = sites.read([(bias_correction, {"bias": bias})], geometry, x, w)
        difference = np.asarray(moved - sites.read([], geometry, x, w))
        axis = difference.ndim - 1 if geometry is sites.DENSE else geometry.y_spec[1]
        by_channel = np.moveaxis(difference, axis, 0).reshape(bias.size, -1)
        np.testing.assert_allclose(by_channel, bias.reshape(-1, 1) + 0 * by_channel, atol=1e-5)


def test_moments_too_large_to_hold_are_refused_before_they_are_made():
    shape = (40_000, 1)
    op, w = Op(Dot((1,), (), (0,), (), 2, shape)), jax.ShapeDtypeStruct(shape, jnp.float32)
    core = sites.core_of((moments, {"weights": sites.Grid(8)}))
    with pytest.raises(MemoryError, match=r"second moments of 40000 inputs needs 6\.0 GiB.*sites="):
        jax.eval_shape(lambda w: core.write(op, w, None), w)
