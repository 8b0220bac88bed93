import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsim.cores.blocked import blocked, grouped, pair_set, product_set
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.tiled import tiled
from jaxsim.cores.wrapper import build
from jaxsim.formats.grid import Grid
from tests.oracles import blocks as oracle
from tests.oracles import contraction, quantiser
from tests.support import sites
from tests.support.geometries import geometries, integers, seeds

CODES = np.arange(-127, 128).astype(np.int8)
EXPERTS = Dot((2,), (0,), (1,), (0,), 3, (3, 7, 5))  # ebd,edf->ebf
ODD = {
    Dot((1,), (), (0,), (), 2, (17, 5)): (3, 17),
    Dot((1,), (), (1,), (), 2, (9, 33), weight_first=True): (7, 33),
    EXPERTS: (3, 11, 7),
    sites.CONV: sites.SHAPES[sites.CONV],
}
BOTH = (True, True)
NEITHER = (False, False)


def kept(bits, K, n, mode, rounding="trunc"):
    return product_set(bits, K, (n, n), dynamic=(mode == "dynamic",) * 2, rounding=rounding)


@functools.partial(jax.jit, static_argnums=1)
def read(blocks, geometry, x, w):
    """What a core reads of integer codes, the weights written before."""
    core = sites.core_of((blocked, {"blocks": blocks, "bits": (8, 8)}))
    op = Op(geometry, integer=True)
    return core.read(op, core.write(op, w, None), x, None)


@functools.partial(jax.jit, static_argnums=2)
def cut_of(cut, codes, bits=8):
    """What remains of codes."""
    return cut(codes, bits)


def contractions(blocks, geometry, x, w):
    """How many products a read of written weights computes, and of what."""
    core = sites.core_of((blocked, {"blocks": blocks, "bits": (8, 8)}))
    op = Op(geometry, integer=True)
    state = core.write(op, w, None)
    equations = jax.make_jaxpr(lambda state, x: core.read(op, state, x, None))(state, x).eqns
    found = [e for e in equations if e.primitive.name in ("dot_general", "conv_general_dilated")]
    assert all(v.aval.dtype == jnp.int8 for e in found for v in e.invars)
    return len(found)


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("K", range(1, 8))
def test_all_blocks_make_the_exact_integers(K, extreme):
    """As one product, and with every pair of blocks named."""
    for geometry, x_shape in ODD.items():
        x, w = integers(K, x_shape), integers(K + 1, geometry.w_shape)
        if extreme:
            x, w = (np.where(a < 0, -127, 127).astype(np.int8) for a in (x, w))
        expected = contraction.contract(geometry, x, w)
        every = [(i, j) for i in range(oracle.count(K)) for j in range(oracle.count(K))]
        for blocks in (
            product_set((8, 8), K, (None, None), dynamic=NEITHER, rounding="trunc"),
            pair_set((8, 8), K, every, dynamic=NEITHER),
        ):
            np.testing.assert_array_equal(read(blocks, geometry, x, w), expected)


TABLE = {
    (4, 1, "trunc"): (796.582, 0.21725, 3585, 0.8274),
    (4, 1, "unbiased"): (325.340, 0.10611, 1856, 1.0047),
    (3, 2, "trunc"): (220.910, 0.03741, 1729, 0.9381),
    (2, 2, "trunc"): (533.248, 0.10891, 3585, 0.8602),
    (2, 3, "trunc"): (95.432, 0.01624, 753, 0.9734),
    (1, 3, "trunc"): (596.344, 0.13377, 3585, 0.8516),
}


@pytest.mark.parametrize(("K", "n", "rounding"), TABLE)
def test_errors_over_all_products_of_codes_are_those_of_the_research(K, n, rounding):
    """Mean and mean relative error, largest error and gain, over 255 × 255 products."""
    outer = Dot((1,), (), (0,), (), 2, (1, 255))
    y = read(kept((8, 8), K, n, "dynamic", rounding), outer, CODES[:, None], CODES[None])
    exact = np.multiply.outer(CODES.astype(int), CODES.astype(int))
    error = np.abs(exact - np.asarray(y))
    gain = np.sum(exact * np.asarray(y)) / np.sum(exact**2)
    relative = (error[exact != 0] / np.abs(exact[exact != 0])).mean()
    mean, mean_relative, largest, expected_gain = TABLE[K, n, rounding]
    assert round(error.mean(), 3) == mean
    assert round(relative, 5) == mean_relative
    assert error.max() == largest
    assert round(gain, 4) == expected_gain


@pytest.mark.parametrize("bits", [8, 5])
@pytest.mark.parametrize("rounding", ["trunc", "unbiased", "rounded"])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_every_code_is_cut_as_the_definition_says(mode, rounding, bits):
    codes = CODES[np.abs(CODES) < 2 ** (bits - 1)]
    for K in range(1, bits):
        for n in range(1, oracle.count(K, bits) + 1):
            blocks = kept((bits, bits), K, n, mode, rounding)
            expected = [
                oracle.kept(int(q), K, n, dynamic=mode == "dynamic", rounding=rounding, bits=bits)
                for q in codes
            ]
            for cut, q in zip(blocks.rows[0], (codes, codes.astype(np.float32)), strict=True):
                cut_codes = cut_of(cut, q, bits)
                assert cut_codes.dtype == q.dtype
                np.testing.assert_array_equal(cut_codes, expected)


def test_dropping_blocks_keeps_the_relative_error_within_its_bound():
    for K in range(1, 8):
        for n in range(1, oracle.count(K) + 1):
            cut = kept((8, 8), K, n, "dynamic").rows[0][0]
            magnitude = np.arange(1, 128)
            lost = magnitude - np.asarray(cut_of(cut, magnitude.astype(np.int8))).astype(int)
            assert np.all(lost >= 0)
            assert np.all(lost * (2 ** (K * (n - 1)) + 1) < magnitude)


def test_blocks_in_their_places_add_up_to_the_code():
    for K in range(1, 8):
        N = oracle.count(K)
        for dynamic in (False, True):
            alone = [pair_set((8, 8), K, [(i, i)], dynamic=(dynamic,) * 2) for i in range(N)]
            parts = [np.asarray(cut_of(blocks.rows[0][0], CODES)) for blocks in alone]
            np.testing.assert_array_equal(sum(parts), CODES)
            if not dynamic:
                places = 2 ** (K * np.arange(N))[:, None]
                np.testing.assert_array_equal(parts, oracle.split(CODES, K) * places)


@pytest.mark.parametrize("seed", range(20))
def test_any_pairs_are_the_sum_over_pairs_by_at_most_as_many_products_as_blocks(seed):
    rng = np.random.default_rng(seed)
    K = int(rng.integers(1, 5))
    N = oracle.count(K)
    chosen = rng.random((N, N)) < rng.choice([0.3, 0.6, 0.9])
    chosen[0, 0] |= not chosen.any()
    pairs = [(int(i), int(j)) for i, j in np.argwhere(chosen)]
    geometry = list(ODD)[seed % len(ODD)]
    x, w = integers(seed, ODD[geometry]), integers(seed + 1, geometry.w_shape)
    blocks = pair_set((8, 8), K, pairs, dynamic=NEITHER)
    expected = oracle.product(geometry, x, w, K, pairs)
    np.testing.assert_array_equal(read(blocks, geometry, x, w), expected)
    assert contractions(blocks, geometry, x, w) == len(blocks.rows) <= N


def test_pairs_counted_from_the_leading_block_multiply_what_truncation_leaves():
    """Leading and second block of either: without the second of both, exactly that is missing."""
    K, geometry = 3, Dot((1,), (), (0,), (), 2, (17, 5))
    x, w = integers(0, (4, 17)), integers(1, (17, 5))
    one, two = (
        [np.array([oracle.kept(int(q), K, n) for q in a.ravel()]).reshape(a.shape) for a in (x, w)]
        for n in (1, 2)
    )
    expected = two[0] @ two[1] - (two[0] - one[0]) @ (two[1] - one[1])
    y = read(pair_set((8, 8), K, [(0, 0), (0, 1), (1, 0)], dynamic=BOTH), geometry, x, w)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_product_set_is_one_int8_product(mode):
    x, w = integers(0, (4, 17)), integers(1, (17, 5))
    geometry = Dot((1,), (), (0,), (), 2, (17, 5))
    assert contractions(kept((8, 8), 2, 2, mode, "rounded"), geometry, x, w) == 1
    named = pair_set((8, 8), 2, [(i, j) for i in (1, 3) for j in (0, 2)], dynamic=NEITHER)
    assert contractions(named, geometry, x, w) == 1


@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1))
def test_grouping_takes_each_pair_once_and_few_groups(pairs):
    groups = grouped(pairs)
    taken = [(i, j) for rows, columns in groups for i in rows for j in columns]
    assert sorted(taken) == sorted(pairs)
    rows = {frozenset(j for a, j in pairs if a == i) for i, _ in pairs}
    columns = {frozenset(i for i, b in pairs if b == j) for _, j in pairs}
    assert len(groups) == min(len(rows), len(columns))


@pytest.mark.slow
@settings(max_examples=12)
@given(geometries, st.integers(1, 7), st.data(), seeds)
def test_blocked_sites_multiply_cut_codes_in_both_arithmetics(site, K, data, seed):
    geometry, x_shape = site
    n_x, n_w = (data.draw(st.integers(1, oracle.count(K))) for _ in range(2))
    x, w = sites.operands(geometry, seed, x_shape)
    blocks = product_set((8, 8), K, (n_x, n_w), dynamic=BOTH, rounding="rounded")
    pieces = [sites.quantize(), (blocked, {"blocks": blocks, "bits": (8, 8)})]
    grid = Grid(8, per="channel")
    qw, sw, _ = quantiser.quantise(grid, w, geometry.contracted)
    qx, sx, _ = quantiser.quantise(Grid(8), x)
    cut = [
        np.vectorize(lambda q, n=n: oracle.kept(int(q), K, n, rounding="rounded"))(codes)
        for codes, n in ((qx, n_x), (qw, n_w))
    ]
    expected = contraction.contract(geometry, cut[0], cut[1] * sw.astype(np.float64)) * sx
    tiles = [*pieces, (tiled, {"rows": 3})]

    @jax.jit
    def read_in_every_way(wrapped, x, w):
        def read(wrapped, **of):
            op, core = Op(geometry, **of), build(wrapped)
            state = core.write(op, w, None)
            if "ranges" in of:
                state = core.calibrate(op, state, x)
            return core.read(op, state, x, None)

        plain, tiles = wrapped
        return {
            "integers": read(plain, integer=True),
            "floats": read(plain),
            "deployed": read(plain, integer=True, ranges="stored"),
            "tiles": read(tiles, integer=True),
        }

    found = read_in_every_way((sites.wrappers(pieces), sites.wrappers(tiles)), x, w)
    for arithmetic in ("integers", "floats"):
        np.testing.assert_allclose(found[arithmetic], expected, rtol=2e-6, atol=1e-6)
    for same in ("deployed", "tiles"):
        np.testing.assert_array_equal(found[same], found["integers"])


@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
@pytest.mark.parametrize("pairs", [None, [(0, 2), (1, 1), (2, 0)]])
def test_the_derivative_is_that_of_the_exact_product(geometry, pairs):
    """With respect to inputs and weights, where the value is the approximate one."""
    x, w = sites.operands(geometry)
    blocks = (
        kept((8, 8), 3, 1, "dynamic")
        if pairs is None
        else pair_set((8, 8), 3, pairs, dynamic=NEITHER)
    )
    plain = sites.quantize()
    approximate = [plain, (blocked, {"blocks": blocks, "bits": (8, 8)})]

    def gradients(pieces):
        core, op = sites.core_of(*pieces), Op(geometry)

        def loss(x, w):
            y = core.read(op, core.write(op, w, None), x, None)
            return jnp.sum(y * np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape))

        return jax.value_and_grad(loss, (0, 1))

    both = jax.jit(lambda x, w: (gradients(approximate)(x, w), gradients([plain])(x, w)))
    (value, found), (exact, expected) = both(x, w)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert abs(value - exact) > 1e-3


def test_training_pays_for_no_further_product():
    """The exact product lends its derivative; its value is dead code."""
    x, w = sites.operands(sites.DENSE)
    op = Op(sites.DENSE)

    def products(*pieces):
        core = sites.core_of(sites.quantize(), *pieces)

        def loss(x, w):
            return jnp.sum(core.read(op, core.write(op, w, None), x, None) ** 2)

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, w).compile()
        return compiled.as_text().count(" dot(")

    assert (
        products((blocked, {"blocks": kept((8, 8), 3, 2, "dynamic"), "bits": (8, 8)})) == products()
    )


@pytest.mark.parametrize("pairs", [None, [(0, 2), (1, 1), (2, 0)]])
def test_deployed_sites_pass_gradients_to_their_inputs(pairs):
    x, w = sites.operands(sites.DENSE)
    blocks = (
        kept((8, 8), 3, 3, "dynamic")
        if pairs is None
        else pair_set((8, 8), 3, pairs, dynamic=NEITHER)
    )
    chain = [sites.quantize(), (blocked, {"blocks": blocks, "bits": (8, 8)})]
    found = []
    for pieces in (chain, [sites.quantize()]):
        state = sites.deployed(pieces, sites.DENSE, x, w)
        core, op = sites.core_of(*pieces), Op(sites.DENSE, ranges="stored")
        found.append(jax.jit(jax.grad(lambda x: core.read(op, state, x, None).sum()))(x))  # noqa: B023
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_weights_are_cut_once_and_stored_as_int8():
    x, w = sites.operands(sites.CONV)
    blocks = kept((8, 8), 4, 1, "dynamic")
    state = sites.deployed(
        [sites.quantize(), (blocked, {"blocks": blocks, "bits": (8, 8)})], sites.CONV, x, w
    )
    codes, _, _ = quantiser.quantise(Grid(8), w, sites.CONV.contracted)
    (held,) = state.inner.inner
    assert held.dtype == jnp.int8
    np.testing.assert_array_equal(held, np.vectorize(lambda q: oracle.kept(int(q), 4, 1))(codes))
    assert state.inner.exact is None


def test_one_compilation_serves_every_product_set():
    x, w = sites.operands(sites.DENSE)
    op, plain = Op(sites.DENSE, integer=True), sites.quantize()

    @jax.jit
    def run(blocks, x, w):
        core = sites.core_of(plain, (blocked, {"blocks": blocks, "bits": (8, 8)}))
        return core.read(op, core.write(op, w, None), x, None)

    seen = set()
    sizes = {
        "static": ((1, 4), (2, 2), (2, 3), (3, 1)),
        "dynamic": ((1, 3), (2, 2), (3, 1), (4, 1)),
    }
    for mode, kinds in sizes.items():
        for rounding in ("trunc", "unbiased", "rounded"):
            for K, n in kinds:
                seen.add(np.asarray(run(kept((8, 8), K, n, mode, rounding), x, w)).tobytes())
    run(pair_set((8, 8), 2, [(3, 3)], dynamic=NEITHER), x, w)
    assert run._cache_size() == 1
    assert len(seen) == 24


def test_what_is_kept_may_be_traced():
    swept = jax.vmap(
        lambda K, n: product_set((8, 8), K, (n, None), dynamic=BOTH, rounding="rounded").rows[0][0](
            CODES, 8
        )
    )(jnp.array([1, 2, 3]), jnp.array([3, 2, 1]))
    for K, n, found in zip((1, 2, 3), (3, 2, 1), swept, strict=True):
        np.testing.assert_array_equal(
            found, [oracle.kept(int(q), K, n, rounding="rounded") for q in CODES]
        )


def test_stored_bits_count_sign_blocks_and_index():
    def bits(K, n, mode):
        return int(kept((8, 8), K, n, mode).w_bits)

    # 1 + 4, of 2 places; 1 + 6, of 2; 1 + 4, of 3; never more than the code
    assert [bits(4, 1, "dynamic"), bits(3, 2, "dynamic"), bits(2, 2, "dynamic")] == [6, 8, 7]
    assert bits(1, 3, "dynamic") == 1 + 3 + 3
    # 4 and 1 bits lie below the kept blocks
    assert [bits(4, 1, "static"), bits(3, 1, "static"), bits(2, 1, "static")] == [4, 2, 2]
    assert bits(3, 3, "dynamic") == bits(3, 3, "static") == 8
    pairs = pair_set((8, 8), 2, [(0, 3), (1, 3)], dynamic=NEITHER)
    assert [int(pairs.x_bits), int(pairs.w_bits)] == [1 + 4, 1 + 1]


def test_products_of_blocks_are_counted_and_stored_weights_once():
    x, w = sites.operands(sites.DENSE)
    three = pair_set((8, 8), 3, [(0, 0), (1, 2), (2, 1)], dynamic=NEITHER)
    for blocks in (kept((8, 8), 4, 1, "dynamic"), three):
        meter = {}
        core = sites.core_of(sites.quantize(), (blocked, {"blocks": blocks, "bits": (8, 8)}))
        op = dataclasses.replace(Op(sites.DENSE, integer=True), meter=meter)
        core.read(op, core.write(op, w, None), x, None)
        assert meter["macs"] == 5 * 6 * 20
        assert meter["block_products"] == int(blocks.products) * 5 * 6 * 20
        assert meter["weight_bits"] == int(blocks.w_bits) * w.size
        assert meter["cells"] == w.size
