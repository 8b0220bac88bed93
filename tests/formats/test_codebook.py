import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxsim.formats.codebook import (
    Codebook,
    Floating,
    fp4,
    index_bits,
    k_means,
    nearest,
    nf4,
)
from jaxsim.formats.grid import Grid

# Mean squared errors of the best 1 to 4 bit tables for a normal variable: Max (1960), table 1.
LLOYD_MAX = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}


@pytest.mark.parametrize("bits", LLOYD_MAX)
def test_k_means_of_a_normal_variable_reaches_the_error_of_lloyd_and_max(bits):
    x = norm.ppf((np.arange(20_000) + 0.5) / 20_000).astype(np.float32)[:, None]
    centres, pointers = map(np.asarray, k_means(x, size=2**bits, iterations=100))
    error = float(np.mean((centres[pointers] - x) ** 2))
    assert error == pytest.approx(LLOYD_MAX[bits], rel=0.02)


@pytest.mark.parametrize("length", [1, 3])
def test_k_means_ends_where_centres_are_means_and_pointers_nearest(length):
    x = np.random.default_rng(1).normal(size=(400, length)).astype(np.float32)
    centres, pointers = (np.asarray(a) for a in k_means(x, size=8, iterations=300))
    distances = ((np.asarray(x)[:, None] - centres) ** 2).sum(-1)
    np.testing.assert_array_equal(pointers, distances.argmin(-1))
    for i, centre in enumerate(centres):
        np.testing.assert_allclose(centre, np.asarray(x)[pointers == i].mean(0), atol=1e-5)


def test_k_means_finds_clusters_that_its_start_missed():
    spots = np.array([[0.0], [1.0], [1.01], [50.0]])
    x = jnp.asarray(np.repeat(spots, [500, 1, 1, 1], 0), jnp.float32)
    centres, _ = k_means(x, size=4, iterations=50)
    np.testing.assert_allclose(centres, spots, atol=1e-5)


def test_nearest_is_that_of_all_distances():
    levels = jnp.asarray(nf4().levels)
    x = np.random.default_rng(2).normal(size=1000).astype(np.float32)
    expected = np.abs(np.asarray(x)[:, None] - np.asarray(levels)).argmin(-1)
    np.testing.assert_array_equal(nearest(x, levels), expected)


def test_nf4_is_symmetric_at_its_ends_holds_zero_and_spreads_a_normal_variable():
    levels = np.asarray(nf4().levels)
    assert len(levels) == 16
    assert (levels[0], levels[7], levels[-1]) == (-1, 0, 1)
    x = np.random.default_rng(0).normal(size=64 * 4000).reshape(-1, 64)
    x /= np.abs(x).max(1, keepdims=True)
    share = np.bincount(np.asarray(nearest(jnp.asarray(x.ravel()), jnp.asarray(levels))))
    assert share.max() / share.sum() < 0.1  # evenly used: int4 puts 15 % in its middle code


def test_fp4_is_the_float_of_two_exponent_bits_and_one_of_mantissa():
    import ml_dtypes

    codes = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_allclose(np.multiply(fp4().levels, 6), np.unique(codes), atol=1e-6)


# Dettmers et al. (2023), QLoRA, arXiv 2305.14314, appendix E.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def test_nf4_is_that_of_its_paper():
    np.testing.assert_allclose(nf4().levels, NF4, atol=2e-6)


def test_tables_have_a_scale_a_channel_unless_they_are_told():
    for make in (nf4, fp4):
        assert make().per == "channel"
        assert (make(per="group", rows=3).per, make(per="group", rows=3).rows) == ("group", 3)


@pytest.mark.parametrize(
    ("dtype", "bits", "largest", "scaled"),
    [
        ("float8_e4m3fn", 8, 448.0, True),
        ("float8_e5m2", 8, 57344.0, True),
        ("float16", 16, 65504.0, True),
        ("bfloat16", 16, 3.3895313892515355e38, False),
    ],
)
def test_short_floats_are_as_wide_and_as_large_as_published(dtype, bits, largest, scaled):
    form = Floating(dtype)
    assert (form.bits, form.largest, form.scaled) == (bits, largest, scaled)


@pytest.mark.parametrize(("size", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8)])
def test_an_index_takes_so_many_bits(size, bits):
    assert index_bits(size) == bits


def test_pointers_are_bytes_up_to_256_levels():
    for size, dtype in ((256, jnp.uint8), (257, jnp.int32)):
        levels = jnp.arange(size, dtype=jnp.float32)
        found = nearest(jnp.array([0.4, 0.6, 254.9, size + 3.0]), levels)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, [0, 1, 255, size - 1])


def test_k_means_counts_only_the_numbers_that_are_kept():
    """Vectors (1, 9), (3, -), (-, 20) and (-, 30) with two centers, by hand."""
    x = jnp.array([[1.0, 9], [3, 0], [0, 20], [0, 30], [0, 0]])
    kept = jnp.array([[True, True], [True, False], [False, True], [False, True], [False] * 2])
    centres, pointers = k_means(x, size=2, iterations=20, kept=kept)
    order = np.argsort(np.asarray(centres)[:, 1])
    np.testing.assert_allclose(np.asarray(centres)[order[0]], [2, 9], rtol=1e-6)
    assert float(centres[order[1], 1]) == pytest.approx(25)
    np.testing.assert_array_equal(np.asarray(pointers)[:4], order[[0, 0, 1, 1]])


def test_k_means_of_numbers_leaves_pruned_zeros_out():
    x = jnp.array([[0.0], [0], [0], [0], [1], [3], [10], [12]])
    centres, _ = k_means(x, size=2, iterations=20, kept=x != 0)
    np.testing.assert_allclose(centres, [[2], [11]], rtol=1e-6)


@pytest.mark.parametrize(
    ("book", "said"),
    [
        (Codebook(size=1), "size=1: must be an int from 2 to 65536"),
        (Codebook(size=2**16 + 1), "size=65537"),
        (Codebook(length=0), "length=0: must be an int of at least 1"),
        (Codebook(iterations=0), "iterations=0"),
        (Codebook(per="group", rows=2), "per='group': a fitted table is one a tensor"),
        (Codebook(per="token"), "per='token', must be one of"),
        (Codebook((0.0, 1.0), rows=3), "rows=3 with per='channel'"),
        (Codebook((0.0, 1.0), length=2), "length=2: only fitted tables hold vectors"),
        (Codebook((0.0,)), "must be 2 to 65536 finite numbers"),
        (Codebook((0.0, np.inf)), "must be 2 to 65536 finite numbers"),
        (Codebook((0.0, 0.0)), "must rise"),
        (Codebook((1.0, 0.0)), "must rise"),
    ],
)
def test_settings_of_tables_are_refused_just_outside(book, said):
    with pytest.raises(ValueError, match=said):
        book.checked("weights")


def test_settings_of_tables_are_taken_at_their_ends():
    for book in (
        Codebook(size=2, length=1, iterations=1),
        Codebook(size=2**16),
        Codebook((0.0, 1.0)),
        Codebook((-1.0, 1.0), per="group", rows=1),
        Codebook((-1.0, 1.0), per="tensor"),
    ):
        assert book.checked("weights") == book
    with pytest.raises(ValueError, match=r"inputs=.*must be an int, a Grid, a Floating or None"):
        Codebook().checked("inputs")


@pytest.mark.parametrize(
    ("form", "side", "said"),
    [
        (Floating("float32"), "weights", "dtype='float32', must be one of float8_e4m3fn"),
        (Floating(per="group"), "weights", "per='group', must be one of 'tensor', 'channel'"),
        (Floating(per="channel"), "inputs", "inputs: per='channel'"),
    ],
)
def test_settings_of_short_floats_are_refused_by_name(form, side, said):
    with pytest.raises(ValueError, match=said):
        form.checked(side)
    assert Floating(per="channel").checked("weights") == Floating(per="channel")
    assert Floating("bfloat16").checked("inputs") == Floating("bfloat16")


def test_numbers_begin_at_quantiles_and_vectors_at_those_of_their_norms():
    """One step from the 11th and the 31st of forty: what lies up to 20 beside what lies beyond."""
    numbers = np.random.default_rng(0).permutation(40).astype(np.float32)[:, None]
    centres, pointers = k_means(numbers, size=2, iterations=1)
    np.testing.assert_allclose(centres, [[10], [30]], rtol=1e-6)
    np.testing.assert_array_equal(pointers, numbers[:, 0] > 20)
    vectors = numbers * np.float32([1.0, -2.0])  # the longer, the smaller their sum
    centres, pointers = k_means(vectors, size=2, iterations=1)
    np.testing.assert_allclose(centres, [[10, -20], [30, -60]], rtol=1e-6)
    np.testing.assert_array_equal(pointers, numbers[:, 0] > 20)


def test_an_unfitted_table_has_its_defaults_and_prints_them():
    book = Codebook()
    assert (book.size, book.length, book.iterations, book.per) == (16, 1, 25, "channel")
    assert [str(Codebook(size=8)), str(Codebook(size=8, length=2))] == [
        "k-means of 8",
        "k-means of 8 × 2",
    ]
    assert str(Codebook((0.0, 1.0, 2.0), per="tensor")) == "table of 3 per tensor"
    assert str(Floating("float16", per="channel")) == "float16 per channel"


def test_tables_hold_up_to_65536_levels_in_a_row_that_rises_all_the_way():
    levels = tuple(range(2**16))
    assert len(Codebook(levels).checked("weights").levels) == 2**16
    for bad, said in (
        ((*levels, 2**16), "must be 2 to 65536"),
        (((0.0, 1.0), (2.0, 3.0)), "must be 2 to 65536 finite numbers"),
        ((0.0, 1.0, 0.5), "must rise"),
        ((0.5, 0.0, 1.0), "must rise"),
    ):
        with pytest.raises(ValueError, match=said):
            Codebook(bad).checked("weights")


def test_whole_numbers_of_numpy_become_ints():
    """They are static: others would be other programs."""
    one = np.int64(2)
    fitted = Codebook(size=one, length=one, iterations=one, per="tensor").checked("weights")
    table = Codebook((0.0, 1.0), per="group", rows=one).checked("weights")
    grid = Grid(one, per="group", rows=one).checked("weights")
    for value in (fitted.size, fitted.length, fitted.iterations, table.rows, grid.bits, grid.rows):
        assert type(value) is int


def test_an_empty_center_moves_to_what_is_served_worst_in_what_counts():
    """Two centers begin at (5, 100): that (5, -) lies 100 away in what is pruned does not count."""
    x = jnp.array([[5.0, 0], *[[5.0, 100]] * 6, [9, 100]])
    kept = jnp.array([[True, False], *[[True, True]] * 7])
    centres, _ = k_means(x, size=2, iterations=1, kept=kept)
    np.testing.assert_allclose(centres, [[5.5, 100], [9, 100]], rtol=1e-6)
