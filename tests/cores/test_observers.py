import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxsim.cores.geometry import Dot
from jaxsim.cores.observers import moments, outputs, peaks, rows_seen
from jaxsim.cores.op import Op
from jaxsim.cores.quantized import quantized
from jaxsim.cores.scale_shift import bias_correction, smooth_scaling
from tests.oracles import contraction
from tests.support import sites
from tests.support.compiled import core_of
from tests.support.geometries import geometries, seeds

some = settings(max_examples=15)


@some
@given(geometries, seeds)
def test_what_is_observed_at_any_geometry(site, seed):
    """All in one program, whatever the layout of the geometry.

    Of moments: Σ y² over all positions is wᵀ (Σ x xᵀ) w. Of peaks: none lies above its channel's,
    and each channel's is the magnitude of one. Measuring outputs changes nothing and adds up over
    batches; smoothing changes no product.
    """
    geometry, x_shape = site
    x, w = sites.operands(geometry, seed, x_shape)
    matmul, op = geometry.as_matmul(), Op(geometry, integer=True, ranges="stored")

    @jax.jit
    def observed(x, w):
        core = core_of((moments, {"weights": sites.Grid(8)}))
        gram = core.calibrate(op, core.write(op, w, None), x)
        core = core_of(outputs)
        state = core.write(op, w, None)
        for part in (x, 2 * x):
            state = core.calibrate(op, state, part)
        read = core.read(op, state, x, None)
        core = core_of(peaks)
        peak = core.calibrate(op, core.write(op, w, None), x)
        channels = np.random.default_rng(seed).uniform(0.5, 2, peak.x.shape).astype(np.float32)
        core = core_of((smooth_scaling, {"channels": channels}))
        smooth = core.read(Op(geometry, integer=True), core.write(op, w, None), x, None)
        sides = (w, geometry.to_w(peak.w), matmul.w), (x, geometry.to_x(peak.x), matmul.x)
        largest = [
            (of(jnp.abs(values)), of(jnp.broadcast_to(most, values.shape)), most)
            for values, most, of in sides
        ]
        return jax.tree.map(jnp.asarray, (gram, state, read, smooth, largest))

    gram, state, read, smooth, largest = jax.tree.map(np.asarray, observed(x, w))
    y = contraction.contract(geometry, x, w)
    found = np.einsum("bkn,bkl,bln->", gram.w, gram.gram, gram.w)
    np.testing.assert_allclose(found, np.square(y).sum(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(read, y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(smooth, y, rtol=1e-4, atol=1e-4)
    for magnitude, above, most in largest:
        assert np.all(magnitude <= above)
        assert set(np.unique(most)) <= {0.0, *np.unique(magnitude)}
    if y.size:
        np.testing.assert_allclose(gram.seen.sum() * gram.w.shape[2], y.size)
        total = state.total.sum(), state.squares.sum(), state.seen.sum()
        expected = 3 * y.sum(), 5 * np.square(y).sum(), 2 * y.size
        np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-3)


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


@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
def test_outputs_are_moved_to_the_mean_they_are_given(geometry):
    x, w = sites.operands(geometry)
    target = np.random.default_rng(0).normal(size=Op(geometry).per_output()).astype(np.float32)
    pieces = [(outputs, {"target": target}), sites.quantize(3, 4)]
    y = sites.read_deployed(pieces, geometry, x, w)
    axis = y.ndim - 1 if geometry is sites.DENSE else geometry.y_spec[1]
    means = y.mean(tuple(a for a in range(y.ndim) if a != axis))
    np.testing.assert_allclose(means, np.ravel(target), atol=1e-5)


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
    core = core_of((moments, {"weights": sites.Grid(8)}))
    with pytest.raises(MemoryError, match=r"second moments of 40000 inputs needs 6\.0 GiB.*sites="):
        jax.eval_shape(lambda w: core.write(op, w, None), w)


FEW = Dot((1,), (), (0,), (), 2, (3, 2))
W = np.float32([[1, -7], [2, 4], [-5, 0]])
X = np.float32([[1, 2, -3], [0, -4, 5]])


def seen(core, op, *batches):
    state = core.write(op, jnp.asarray(W), None)
    for x in batches:
        state = core.calibrate(op, state, jnp.asarray(x))
    return state


def test_moments_add_up_over_batches_by_hand():
    core = core_of((moments, {"weights": sites.Grid(4, per="channel")}))
    state = seen(core, Op(FEW), X, 2 * X[:1])
    np.testing.assert_array_equal(state.gram[0], X.T @ X + 4 * np.outer(X[0], X[0]))
    assert (state.seen == 3).all()
    np.testing.assert_array_equal(state.w, W[None])
    np.testing.assert_allclose(state.scale[0], np.broadcast_to(np.float32([5, 7]) / 7, (3, 2)))
    np.testing.assert_allclose(state.ends, [[-5, -7], [5, 7]])
    np.testing.assert_allclose(core.read(Op(FEW), state, jnp.asarray(X), None), X @ W)


def test_the_ends_of_an_affine_grid_are_its_first_and_last_code_less_its_zero():
    """[-7, 4] on 16 codes of a step of 11/15: zero at round(-8 + 7 · 15/11) = 2."""
    grid = sites.Grid(4, symmetric=False)
    state = seen(core_of((moments, {"weights": grid})), Op(FEW))
    np.testing.assert_allclose(state.ends, [-10 * 11 / 15, 5 * 11 / 15], rtol=1e-6)
    np.testing.assert_array_equal(state.zero, 2)


@pytest.mark.parametrize(("depth", "fits"), [(32_768, True), (32_769, False)])
def test_moments_are_held_up_to_the_limit_and_no_further(depth, fits):
    """4 · 32768² is 4 GiB."""
    geometry = Dot((1,), (), (0,), (), 2, (depth, 1))
    core = core_of((moments, {"weights": sites.Grid(8)}))
    write = lambda w: core.write(Op(geometry), w, None)  # noqa: E731
    w = jax.ShapeDtypeStruct((depth, 1), jnp.float32)
    if fits:
        assert jax.eval_shape(write, w).gram.shape == (1, depth, depth)
    else:
        with pytest.raises(MemoryError, match="second moments of 32769 inputs needs"):
            jax.eval_shape(write, w)


def test_moments_of_groups_are_counted_with_their_groups():
    geometry = Dot((2,), (0,), (1,), (0,), 3, (5, 16_384, 1))
    core = core_of((moments, {"weights": sites.Grid(8)}))
    with pytest.raises(MemoryError, match=r"of 16384 inputs, 5 times needs 5\.0 GiB"):
        jax.eval_shape(
            lambda w: core.write(Op(geometry), w, None),
            jax.ShapeDtypeStruct(geometry.w_shape, jnp.float32),
        )


def test_peaks_are_the_largest_of_all_batches_and_count_those_with_inputs():
    state = seen(core_of(peaks), Op(FEW), X, np.zeros((0, 3), np.float32), 2 * X[:1])
    np.testing.assert_array_equal(state.x, [[2, 4, 6]])
    np.testing.assert_array_equal(state.w, [[7, 4, 5]])
    assert state.seen == 2


def test_means_and_variances_of_outputs_are_those_of_numpy():
    batches = X, 3 * X[:1]
    core = core_of(outputs)
    state = seen(core, Op(FEW), *batches)
    y = np.concatenate([x @ W for x in batches])
    assert (state.seen == 3).all()
    np.testing.assert_allclose(state.mean, y.mean(0, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(state.variance, y.var(0, keepdims=True), rtol=1e-5)
    nothing = seen(core, Op(FEW))
    np.testing.assert_array_equal([nothing.mean, nothing.variance], np.zeros((2, 1, 2)))


def test_an_output_is_moved_by_its_target_less_what_was_seen():
    core = core_of((outputs, {"target": np.float32([[10, -20]])}))
    state = seen(core, Op(FEW), X)
    y = X @ W
    found = core.read(Op(FEW), state, jnp.asarray(X), None)
    np.testing.assert_allclose(found, y - y.mean(0) + [10, -20], rtol=1e-5)


def test_smoothing_divides_inputs_and_multiplies_weights_by_hand():
    channels = np.float32([[2, 4, 8]])
    noted = []

    def spy(core):
        def write(op, w, key):
            noted.append(w)
            return core.write(op, w, key)

        def read(op, state, x, key):
            noted.append(x)
            return core.read(op, state, x, key)

        def calibrate(op, state, x):
            noted.append(x)
            return core.calibrate(op, state, x)

        return core._replace(write=write, read=read, calibrate=calibrate)

    core = sites.core_of((smooth_scaling, {"channels": channels}), spy)
    state = seen(core, Op(FEW), X)
    np.testing.assert_allclose(core.read(Op(FEW), state, X, None), X @ W)
    w, calibrated, x = noted
    np.testing.assert_array_equal(w, W * channels.T)
    np.testing.assert_array_equal(x, X / channels)
    np.testing.assert_array_equal(calibrated, x)


def test_rows_that_an_expert_does_not_multiply_are_none_of_its_inputs():
    geometry = Dot((1,), (), (0,), (), 2, (3, 2), False, None, None)
    op = dataclasses.replace(Op(geometry), rows=jnp.array([[0.0], [2.0], [1.0], [0.0]]))
    x = jnp.arange(12.0).reshape(4, 3) + 1
    np.testing.assert_array_equal(rows_seen(op, x)[0], np.diag([0, 1, 1, 0]) @ x)
    np.testing.assert_array_equal(rows_seen(Op(geometry), x)[0], x)
