import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsim.cores.bit_sliced import bit_sliced
from jaxsim.cores.conv import Conv
from jaxsim.cores.geometry import Dot
from jaxsim.cores.grouped import grouped
from jaxsim.cores.mapping import differential, offset
from jaxsim.cores.op import Op
from jaxsim.cores.quantized import quantized, stored
from jaxsim.cores.tiled import tiled
from jaxsim.cores.wrapper import build
from jaxsim.formats import clipping
from jaxsim.formats.grid import Grid
from tests.oracles import quantiser
from tests.support import sites
from tests.support.compiled import core_of
from tests.support.geometries import geometries, seeds

grids = st.builds(
    Grid,
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    per=st.sampled_from(["tensor", "channel"]),
)
holdings = st.lists(
    st.one_of(
        st.just((differential, {})),
        st.just((offset, {})),
        st.builds(lambda bits: (bit_sliced, {"bits": bits}), st.integers(1, 7)),
        st.builds(lambda rows: (tiled, {"rows": rows}), st.integers(1, 9)),
    ),
    max_size=4,
)
some = settings(max_examples=12)


@pytest.mark.slow
@some
@given(geometries, grids, grids, seeds)
def test_quantised_products_equal_the_exact_integers(site, weights, inputs, seed):
    geometry, x_shape = site
    x, w = sites.operands(geometry, seed, x_shape)
    grid_pair = {"weights": weights, "inputs": inputs}
    y = sites.read([(quantized, grid_pair)], geometry, x, w)
    expected = quantiser.product(geometry, x, w, **grid_pair)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


@pytest.mark.slow
@some
@given(geometries, grids, grids, holdings, seeds, st.booleans())
def test_however_codes_are_held_the_result_is_the_same_bits(
    site, weights, inputs, holding, seed, deployed
):
    geometry, x_shape = site
    x, w = sites.operands(geometry, seed, x_shape)
    plain = (quantized, {"weights": weights, "inputs": inputs})

    @jax.jit
    def both(wrapped, x, w):
        found = []
        for pieces, ranges in zip(
            wrapped, ("stored" if deployed else "batch", "batch"), strict=True
        ):
            op, core = Op(geometry, integer=True, ranges=ranges), build(pieces)
            state = core.write(op, w, None)
            if ranges == "stored":
                state = core.calibrate(op, state, x)
            found.append(core.read(op, state, x, None))
        return found

    held, whole = both((sites.wrappers([plain, *holding]), sites.wrappers([plain])), x, w)
    np.testing.assert_array_equal(held, whole)


@pytest.mark.parametrize("holding", [[], [differential], [offset], [(bit_sliced, {"bits": 2})]])
@pytest.mark.parametrize("symmetric", [True, False])
def test_long_sums_of_the_largest_codes_are_exact(holding, symmetric):
    """4608 products of 127 · 127 exceed 2^24, where float32 would round."""
    geometry = Dot((1,), (), (0,), (), 2, (4608, 2))
    x, w = np.ones((1, 4608), np.float32), np.ones((4608, 2), np.float32)
    x[0, 0], w[0, 1], w[1:, 1] = 126 / 127, -126 / 127, -1
    plain = sites.quantize(symmetric=symmetric)
    tiles = [*holding, (tiled, {"rows": 1000}), differential]
    y = sites.read([plain, *tiles], geometry, x, w)
    expected = quantiser.product(geometry, x, w, **plain[1])
    np.testing.assert_allclose(y, expected, rtol=1e-7)


def test_the_smallest_affine_code_survives_every_mapping():
    """-(-128) is no int8."""
    x, w = sites.operands(sites.DENSE)
    plain = sites.quantize(symmetric=False)
    for holding in ([differential], [offset], [differential, (bit_sliced, {"bits": 7})]):
        np.testing.assert_array_equal(
            sites.read([plain, *holding], sites.DENSE, x, -abs(w)),
            sites.read([plain], sites.DENSE, x, -abs(w)),
        )


def test_deployed_weights_are_stored_as_int8_codes():
    x, w = sites.operands(sites.CONV)
    state = sites.deployed([sites.quantize()], sites.CONV, x, w)
    codes, scale, _ = quantiser.quantise(Grid(8), w, sites.CONV.contracted)
    assert state.inner.dtype == jnp.int8
    np.testing.assert_array_equal(state.inner, codes)
    np.testing.assert_array_equal(state.scale, scale)


@pytest.mark.parametrize("percentile", [None, 90.0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_calibration_stores_the_range_of_the_inputs(symmetric, percentile):
    x, w = sites.operands(sites.CONV)
    clip = None if percentile is None else clipping.percentile(percentile)
    grid = Grid(8, symmetric=symmetric, clip=clip)
    state = sites.deployed([(quantized, {"weights": None, "inputs": grid})], sites.CONV, x, w)
    expected = quantiser.observed(x, percentile=percentile, symmetric=symmetric)
    np.testing.assert_allclose(state.inputs, expected, rtol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
def test_undeployed_equals_deployed_when_calibrated_on_the_same_batch(geometry, symmetric):
    """Also where padding adds zeros that a percentile would otherwise count."""
    x, w = sites.operands(geometry)
    pieces = [sites.quantize(symmetric=symmetric, clip=clipping.percentile(80.0))]
    core = core_of(*pieces)

    @jax.jit
    def both(x, w):
        op, stored = (Op(geometry, integer=True, ranges=r) for r in ("batch", "stored"))
        state = core.calibrate(stored, core.write(stored, w, None), x)
        return core.read(op, core.write(op, w, None), x, None), core.read(stored, state, x, None)

    np.testing.assert_allclose(*both(x, w), rtol=5e-7, atol=1e-6)


def test_inputs_beyond_the_calibrated_range_saturate():
    x, w = sites.operands(sites.DENSE)
    pieces = [sites.quantize()]
    y = sites.read_deployed(pieces, sites.DENSE, 10 * x, w, calibrate=x)
    limit = np.abs(x).max()
    np.testing.assert_allclose(
        y, sites.read_deployed(pieces, sites.DENSE, np.clip(10 * x, -limit, limit), w), rtol=1e-5
    )


def test_borders_of_an_affine_padded_convolution_are_right():
    """Inputs far from zero: a padded zero that is not coded as zero shows at every border."""
    geometry = Conv((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1, *sites.PLAIN, (3, 2, 3, 3))
    x, w = sites.operands(geometry, x_shape=(1, 2, 4, 4))
    x = x + 5
    pieces = [sites.quantize(symmetric=False)]
    y = sites.read(pieces, geometry, x, w)
    np.testing.assert_allclose(y, quantiser.product(geometry, x, w, **pieces[0][1]), rtol=1e-6)
    exact = Op(geometry).contract(jnp.asarray(x), jnp.asarray(w))
    assert np.abs(y - exact).max() < 0.03 * np.abs(exact).max()


@pytest.mark.parametrize("side", ["weights", "inputs"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_one_side_alone(side, symmetric):
    x, w = sites.operands(sites.CONV)
    grid = Grid(6, symmetric=symmetric)
    other = "inputs" if side == "weights" else "weights"
    y = sites.read([(quantized, {side: grid, other: None})], sites.CONV, x, w)
    rounded = {"inputs": x, "weights": w}
    codes, step, zero = quantiser.quantise(grid, rounded[side])
    rounded[side] = ((codes - zero) * step).astype(np.float32)
    expected = Op(sites.CONV).contract(*map(jnp.asarray, rounded.values()))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_all_zero_weights_give_zeros_and_a_single_element_is_exact(symmetric):
    x, w = sites.operands(sites.DENSE)
    pieces = [sites.quantize(symmetric=symmetric)]
    np.testing.assert_array_equal(sites.read(pieces, sites.DENSE, x, 0 * w), 0)
    np.testing.assert_array_equal(sites.read(pieces, sites.DENSE, 0 * x, w), 0)
    one = Dot((0,), (), (0,), (), 1, (1,))
    y = sites.read(pieces, one, np.float32([0.7]), np.float32([-0.3]))
    np.testing.assert_allclose(y, -0.21, rtol=1e-6)


holding_lists = [
    [],
    [differential],
    [offset],
    [(bit_sliced, {"bits": 2})],
    [(tiled, {"rows": 7})],
    [(bit_sliced, {"bits": 3}), (tiled, {"rows": 4}), differential],
    [offset, (bit_sliced, {"bits": 2}), (tiled, {"rows": 5})],
]


@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
def test_gradients_are_those_of_fake_quantisation_however_codes_are_held(geometry):
    x, w = sites.operands(geometry)

    def loss(holding):
        core, op = core_of(sites.quantize(4, 6), *holding), Op(geometry)
        return lambda x, w: (core.read(op, core.write(op, w, None), x, None) ** 2).sum()

    def straight(x, w):
        return (Op(geometry).contract(_faked(x, 6), _faked(w, 4, geometry.contracted)) ** 2).sum()

    @jax.jit
    def slopes(x, w):
        return [jax.grad(f, (0, 1))(x, w) for f in (straight, *map(loss, holding_lists))]

    expected, *found = slopes(x, w)
    assert len(found) == len(holding_lists) == 7
    for holding, mine in zip(holding_lists, found, strict=True):
        for ours, theirs in zip(mine, map(np.asarray, expected), strict=True):
            np.testing.assert_allclose(
                ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max(), err_msg=f"{holding}"
            )


def _faked(v, bits, axes=None):
    """Symmetric fake quantization; every value lies inside its own range, so the slope is one."""
    top = 2 ** (bits - 1) - 1
    scale = jax.lax.stop_gradient(jnp.abs(v).max(axes, keepdims=axes is not None)) / top
    return v + jax.lax.stop_gradient(jnp.round(v / scale) * scale - v)


def values(grid, x, axes=None):
    """An array on a grid, its range its own."""
    codes, step, zero = quantiser.quantise(grid, x, axes)
    return (codes - zero) * step


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
def test_tokens_have_ranges_of_their_own(geometry, symmetric):
    """One input vector, or one image, far larger than the others changes nothing for them."""
    x, w = sites.operands(geometry)
    x[0] *= 100
    tokens = (quantized, {"weights": None, "inputs": Grid(5, symmetric=symmetric, per="token")})
    alone = (quantized, {"weights": None, "inputs": Grid(5, symmetric=symmetric)})
    together = sites.read_deployed([tokens], geometry, x, w)
    for i in range(len(x)):
        y = sites.read([alone], geometry, x[i : i + 1], w)
        np.testing.assert_allclose(together[i : i + 1], y, rtol=1e-4, atol=1e-4)


def test_tokens_of_a_weight_on_the_left_broadcast_to_its_outputs():
    geometry = Dot((2,), (0,), (1,), (0,), 3, (2, 5, 4), weight_first=True)
    x, w = sites.operands(geometry, x_shape=(2, 3, 5))
    tokens = (quantized, {"weights": None, "inputs": Grid(8, per="token")})
    on_grid = values(Grid(8), x, (2,))
    np.testing.assert_allclose(
        sites.read([tokens], geometry, x, w),
        np.einsum("bmk,bkn->bnm", on_grid, w),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
def test_groups_have_scales_of_their_own(geometry):
    """Rounding a group alone gives the same: sums over groups of separate products."""
    x, w = sites.operands(geometry)
    plain = (quantized, {"weights": Grid(3, per="channel"), "inputs": None})
    y = sites.read_deployed([(grouped, {"rows": 4}), plain], geometry, x, w)
    matmul = geometry.as_matmul()
    rows, columns = np.asarray(matmul.x(x)), np.asarray(matmul.w(w))
    groups = -(-rows.shape[-1] // 4)
    size = -(-rows.shape[-1] // groups)
    expected = 0
    for start in range(0, rows.shape[-1], size):
        part = columns[:, start : start + size]
        expected = expected + rows[..., start : start + size] @ values(Grid(3), part, (1,))
    np.testing.assert_allclose(y, matmul.y(jnp.asarray(expected), x.shape), rtol=1e-4, atol=1e-4)


def test_one_bit_is_the_sign_times_the_mean_magnitude():
    x, w = sites.operands(sites.DENSE)
    plain = (quantized, {"weights": Grid(1, per="channel"), "inputs": None})
    state = sites.deployed([plain], sites.DENSE, x, w)
    np.testing.assert_array_equal(state.inner, np.where(w >= 0, 1, -1))
    np.testing.assert_allclose(state.scale, np.abs(w).mean(0, keepdims=True), rtol=1e-6)
    y = sites.read_deployed([plain], sites.DENSE, x, w)
    np.testing.assert_allclose(y, x @ (np.sign(w) * np.abs(w).mean(0)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_powers_of_two_are_the_nearest_ones(bits):
    x, w = sites.operands(sites.DENSE)
    plain = (quantized, {"weights": Grid(bits, per="channel", spacing="powers"), "inputs": None})
    state = sites.deployed([plain], sites.DENSE, x, w)
    powers = 2.0 ** np.arange(2 ** (bits - 1) - 1)
    levels = np.concatenate([-powers, [0], powers])
    steps = w / np.asarray(state.scale)
    nearest = levels[np.abs(steps[..., None] - levels).argmin(-1)]
    np.testing.assert_array_equal(state.inner, nearest)
    assert state.inner.dtype == jnp.int8


@pytest.mark.parametrize("spacing", ["even", "powers"])
def test_stochastic_rounding_is_right_on_average_and_one_of_the_neighbours(spacing):
    _, w = sites.operands(sites.DENSE)
    grid = Grid(4, per="channel", spacing=spacing, rounding="stochastic")
    plain = (quantized, {"weights": grid, "inputs": None})
    keys = jax.random.split(jax.random.key(0), 2000)
    op, core = Op(sites.DENSE, integer=True), core_of(plain)
    codes = jax.jit(jax.vmap(lambda k: core.write(op, w, k).inner))(keys)
    steps = w / np.asarray(core.write(op, w, keys[0]).scale)
    gap, below = np.ones_like(steps), np.floor(steps)
    if spacing == "powers":
        gap = np.maximum(2 ** np.floor(np.log2(np.abs(steps) + 1e-9)), 1)
        below = np.sign(steps) * np.where(np.abs(steps) < 1, 0, gap)
    share = np.clip(np.abs(steps - below) / gap, 0, 1)
    deviation = np.abs(np.asarray(codes, np.float64).mean(0) - steps)
    n = len(keys)
    assert (deviation <= gap * (5 * np.sqrt(share * (1 - share) / n) + 5 / n)).all()
    assert (np.abs(np.asarray(codes) - steps) <= gap + 1e-4).all()


def test_stochastic_rounding_asks_for_a_key_and_calibration_does_without():
    x, w = sites.operands(sites.DENSE)
    plain = (quantized, {"weights": None, "inputs": Grid(4, rounding="stochastic")})
    with pytest.raises(ValueError, match="stochastic rounding of inputs needs a key"):
        sites.read([plain], sites.DENSE, x, w)
    sites.deployed([plain], sites.DENSE, x, w)


def test_a_moving_average_of_ranges_begins_with_the_first_batch():
    grid = Grid(8, average=0.75)
    plain = (quantized, {"weights": None, "inputs": grid})
    x, w = sites.operands(sites.DENSE)
    op, core = Op(sites.DENSE, integer=True, ranges="stored"), core_of(plain)
    state = core.calibrate(op, core.write(op, w, None), x)
    state = core.calibrate(op, state, 3 * x)
    most = np.abs(x).max()
    np.testing.assert_allclose(state.inputs.hi, 0.75 * most + 0.25 * 3 * most, rtol=1e-5)


HALF = Dot((1,), (), (0,), (), 2, (1, 1))


def rounded_up(key):
    """Whether the weight and the input of a site were rounded up, both halfway between codes."""
    grid = Grid(4, rounding="stochastic", clip=clipping.fixed(-7.0, 7.0))
    core, op = core_of((quantized, {"weights": grid, "inputs": grid})), Op(HALF, integer=True)
    state = core.write(op, jnp.full((1, 1), 2.5), key)
    y = core.read(op, state, jnp.full((1, 1), 4.5), key)
    return state.inner[0, 0] > 2, y[0, 0] / state.inner[0, 0] > 4


def test_weights_and_inputs_are_rounded_by_draws_of_their_own():
    """With one key for both, all of them would go the same way."""
    keys = jax.random.split(jax.random.key(0), 3000)
    weight, x = (np.asarray(a, float) for a in jax.jit(jax.vmap(rounded_up))(keys))
    assert np.mean(weight) == pytest.approx(0.5, abs=0.04)
    assert np.mean(x) == pytest.approx(0.5, abs=0.04)
    assert abs(np.corrcoef(weight, x)[0, 1]) < 0.06


def test_stochastic_rounding_draws_apart_from_what_the_array_draws():
    seen = []

    def spy(core):
        def write(op, w, key):
            seen.append(key)
            return core.write(op, w, key)

        return core._replace(write=write)

    grid = Grid(4, rounding="stochastic", clip=clipping.fixed(-7.0, 7.0))
    key, w = jax.random.key(0), jnp.full((2000, 1), 0.5)
    geometry = Dot((1,), (), (0,), (), 2, w.shape)
    core = sites.core_of((quantized, {"weights": grid, "inputs": None}), spy)
    state = core.write(Op(geometry), w, key)
    drawn = np.ravel(jax.random.uniform(seen[0], w.shape))
    assert abs(np.corrcoef(np.ravel(state.inner), drawn)[0, 1]) < 0.08
    assert seen == [key]
    np.testing.assert_array_equal(core.write(Op(geometry), w, key).inner, state.inner)
    assert np.any(core.write(Op(geometry), w, jax.random.key(1)).inner != state.inner)


FOUR = Dot((1,), (), (0,), (), 2, (4, 3))


@pytest.mark.parametrize("integer", [True, False])
def test_an_affine_site_is_its_four_terms_by_hand(integer):
    """Inputs on [-15, 30] of 16 codes: a step of 3, and zero at -8 + 5. Weights on [-7, 7] of 8
    codes: a step of 2, and zero at round(-4 + 3.5). Halves are rounded to even.
    """
    x = np.float32([[30, 6, -3, 0.4], [-15, 12, 1, 9]])
    w = np.float32([[7, -7, 2], [-3, 4, 0.3], [1, 5, -6], [-7, 7, 3]])
    ends = {"inputs": clipping.fixed(-15.0, 30.0), "weights": clipping.fixed(-7.0, 7.0)}
    grids = {
        "inputs": Grid(4, symmetric=False, clip=ends["inputs"]),
        "weights": Grid(3, symmetric=False, clip=ends["weights"]),
    }
    qx = np.array([[10, 2, -1, 0], [-5, 4, 0, 3]])  # less the code of zero, -3
    qw = np.array([[3, -4, 1], [-2, 2, 0], [0, 2, -3], [-4, 3, 2]])
    expected = (qx @ qw) * (3 * 2)
    y = sites.read([(quantized, grids)], FOUR, x, w, integer=integer)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("masked", "bits", "expected"),
    [(False, 1, 1), (True, 1, 2), (False, 5, 5), (True, 5, 5)],
)
def test_a_pruned_sign_takes_two_bits(masked, bits, expected):
    """Plus, minus or nothing."""
    meter = {}
    grid = Grid(bits, per="channel")
    op = Op(FOUR, masked=masked, meter=meter)
    core_of((quantized, {"weights": grid, "inputs": None})).write(
        op, jnp.arange(12.0).reshape(4, 3), None
    )
    assert meter["weight_bits"] == 12 * expected


@pytest.mark.parametrize(
    ("grid", "expected"),
    [(Grid(), True), (Grid(dynamic=True), False), (Grid(per="token"), False)],
)
def test_ranges_of_batches_and_tokens_are_not_stored(grid, expected):
    assert stored(grid) is expected
    core = core_of((quantized, {"weights": None, "inputs": grid}))
    state = core.write(Op(FOUR), jnp.ones((4, 3)), None)
    assert (state.inputs is not None) is expected
    assert core.calibrate(Op(FOUR), state, jnp.ones((2, 4))).inputs == (
        (-1, 1) if expected else None
    )


def test_pruned_one_bit_weights_keep_their_zeros_and_the_mean_of_the_others():
    w = jnp.array([[3.0, 0, -5], [0, 0, 1], [-1, 0, 0], [0, 0, 0]])
    pieces = (quantized, {"weights": Grid(1, per="channel"), "inputs": None})
    state = core_of(pieces).write(Op(FOUR, masked=True), w, None)
    np.testing.assert_allclose(state.scale, [[2, 0, 3]])
    np.testing.assert_array_equal(state.inner, np.sign(w))


def test_float_weights_are_held_near_one_by_a_power_of_two():
    w = jnp.float32([[5, 0, -12], [0, 1, 1], [-1, 0, 0], [2, 3, 4]])
    grid = Grid(8, clip=clipping.fixed(-127.0, 127.0))
    pieces = (quantized, {"weights": None, "inputs": grid})
    state = core_of(pieces).write(Op(FOUR), w, None)
    np.testing.assert_array_equal(state.inner, w / 8)
    np.testing.assert_array_equal(state.scale, [[8, 8, 8]])
    x = jnp.float32([[1, 2, 3, 4]])
    np.testing.assert_allclose(sites.read([pieces], FOUR, x, w), x @ w)


def written(weights, w=None, op=None):
    w = jnp.float32([[4, 0, -2], [0, 0, 6], [2, 0, 0], [0, 8, 0]]) if w is None else w
    core = core_of((quantized, {"weights": weights, "inputs": None}))
    return core.write(Op(FOUR) if op is None else op, w, None)


def test_zeros_count_for_a_rule_unless_they_are_pruned():
    """Of 4 0 2 0 the mean square is 20 / 4, of those kept 20 / 2; of 0 0 0 8 they are 16 and 64."""
    grid = Grid(8, per="channel", clip=clipping.rms(1.0))
    every, kept = (written(grid, op=Op(FOUR, masked=masked)).scale for masked in (False, True))
    np.testing.assert_allclose(every, np.sqrt([[5, 16, 10]]) / 127, rtol=1e-5)
    np.testing.assert_allclose(kept, np.sqrt([[10, 64, 20]]) / 127, rtol=1e-5)
    one = Grid(1, per="channel")
    every, kept = (written(one, op=Op(FOUR, masked=masked)) for masked in (False, True))
    np.testing.assert_allclose(every.scale, [[1.5, 2, 2]])
    np.testing.assert_allclose(kept.scale, [[3, 8, 4]])
    assert (np.asarray(every.inner) != 0).all()


def test_the_filling_of_a_last_group_is_no_weight():
    """Five products in groups of two: the last holds one, and nothing beside it."""
    core = core_of(
        (grouped, {"rows": 2}), (quantized, {"weights": Grid(1, per="channel"), "inputs": None})
    )
    op = Op(Dot((1,), (), (0,), (), 2, (5, 1)))
    state = core.write(op, jnp.float32([[1], [-3], [5], [5], [-7]]), None)
    np.testing.assert_allclose(np.ravel(state.scale), [2, 5, 7])
    np.testing.assert_array_equal(np.ravel(state.inner), [1, -1, 1, 1, -1, 0])


@pytest.mark.parametrize("deployed", [True, False])
def test_the_filling_of_inputs_counts_for_no_mean(deployed):
    """One bit: the mean magnitude of five inputs, not of six."""
    grids = {"weights": Grid(8, clip=clipping.fixed(-127.0, 127.0)), "inputs": Grid(1)}
    core = core_of((grouped, {"rows": 2}), (quantized, grids))
    geometry = Dot((1,), (), (0,), (), 2, (5, 1))
    op = Op(geometry, integer=True, ranges="stored" if deployed else "batch")
    x = jnp.float32([[1, -2, 3, -4, 5]])
    state = core.write(op, jnp.float32([[1], [1], [2], [2], [10]]), None)
    state = core.calibrate(op, state, x)
    np.testing.assert_allclose(
        core.read(op, state, x, None), [[3 * (1 - 1 + 2 - 2 + 10)]], rtol=1e-6
    )


def test_a_clip_is_shared_by_layers_or_one_for_each():
    """Of each channel: [3] is shared, [2, 3] has a row for each of two layers."""
    op = Op(FOUR, scan_index=(1,))
    shared = jnp.float32([127, 254, 381])
    for hi, expected in ((shared, [[1, 2, 3]]), (jnp.stack([shared, 10 * shared]), [[10, 20, 30]])):
        grid = Grid(8, per="channel", clip=clipping.fixed(-hi, hi))
        np.testing.assert_allclose(written(grid, op=op).scale, expected)
    for hi, expected in ((127.0, 1), (jnp.float32([127, 254]), 2)):
        state = written(Grid(8, clip=clipping.fixed(-1 * hi, hi)), op=op)
        np.testing.assert_allclose(state.scale, np.full((1, 3), expected))


def test_low_precision_is_lifted_before_it_is_rounded():
    """257 steps apart of bfloat16 there is 256: the codes are those of float32."""
    x, w = jnp.bfloat16([[1.0, 0.5, 0.25, 0.7]]), jnp.full((4, 3), 0.3, jnp.bfloat16)
    grid = Grid(8)
    pieces = (quantized, {"weights": grid, "inputs": grid})
    low = sites.read([pieces], FOUR, x, w)
    np.testing.assert_array_equal(
        low, sites.read([pieces], FOUR, x.astype(jnp.float32), w.astype(jnp.float32))
    )
    assert written(grid, w).scale.dtype == jnp.float32
    floats = core_of((quantized, {"weights": None, "inputs": grid})).write(Op(FOUR), w, None)
    assert floats.inner.dtype == jnp.float32
    np.testing.assert_array_equal(floats.zero, 0)
