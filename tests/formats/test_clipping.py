import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsim.formats import clipping
from jaxsim.formats.grid import Grid, Range, encode, observe_range, scale_and_zero
from tests.oracles import quantiser, thresholds

LAPLACE = np.random.default_rng(0).laplace(size=4000).astype(np.float32)
observed = jax.jit(observe_range, static_argnames=("axes", "bits", "symmetric"))


@jax.jit
def errors(x, clips, grid):
    """The mean square errors of a grid over the ranges of several rules."""

    def error(clip):
        r = observe_range(x, clip=clip, bits=grid.bits, symmetric=grid.symmetric)
        scale, zero = scale_and_zero(grid, r)
        return jnp.mean(((encode(grid, x, scale, zero) - zero) * scale - x) ** 2)

    return [error(clip) for clip in clips]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_least_squares_is_within_two_percent_of_the_best_of_all_ranges(bits, symmetric):
    grid = Grid(bits, symmetric=symmetric)
    best = thresholds.least_error(LAPLACE, grid)
    found, whole = map(float, errors(LAPLACE, [clipping.least_squares(), None], grid))
    assert found <= 1.02 * best
    assert found <= whole


def test_two_bits_by_least_squares_beat_the_thresholds_of_ternary_weight_networks():
    w = np.random.default_rng(1).normal(size=5000).astype(np.float32)
    delta = 0.7 * np.abs(w).mean()
    alpha = np.abs(w[np.abs(w) > delta]).mean()
    ternary = np.mean((np.where(np.abs(w) > delta, alpha * np.sign(w), 0) - w) ** 2)
    assert float(errors(w, [clipping.least_squares()], Grid(2))[0]) <= ternary


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_entropy_threshold_is_that_of_a_search_by_hand(bits, symmetric):
    """Up to what sums of 2048 terms in float32 can tell apart."""
    x = LAPLACE if symmetric else np.maximum(LAPLACE, 0)
    r = observed(x, clip=clipping.entropy(), bits=bits, symmetric=symmetric)
    by_threshold = thresholds.divergences(x, bits, symmetric)
    nearest = min(by_threshold, key=lambda t: abs(t - float(r.hi)))
    assert nearest == pytest.approx(float(r.hi), rel=1e-5)
    assert by_threshold[nearest] <= min(by_threshold.values()) + 2e-6


def test_zeros_do_not_move_the_entropy_threshold():
    x = np.maximum(LAPLACE, 0)
    with_zeros, without = (observed(v, clip=clipping.entropy(), bits=4) for v in (x, x[x > 0]))
    assert with_zeros.hi == without.hi


def test_entropy_cuts_a_lone_outlier_off():
    x = np.append(LAPLACE, np.float32(1000))
    r = observed(x, clip=clipping.entropy(), bits=8, symmetric=True)
    assert float(r.hi) < 500


@settings(max_examples=20)
@given(st.floats(0.1, 5), st.booleans())
def test_rms_is_that_of_numpy(width, symmetric):
    r = observed(LAPLACE, clip=clipping.rms(width), symmetric=symmetric)
    if symmetric:
        expected = width * np.sqrt(np.mean(LAPLACE**2))
        np.testing.assert_allclose(r, (-expected, expected), rtol=1e-4)
    else:
        ends = LAPLACE.mean() - width * LAPLACE.std(), LAPLACE.mean() + width * LAPLACE.std()
        np.testing.assert_allclose(r, np.clip(ends, LAPLACE.min(), LAPLACE.max()), rtol=1e-3)


@pytest.mark.parametrize("clip", [clipping.least_squares(), clipping.entropy(), clipping.rms(2.0)])
def test_each_row_has_the_range_it_would_have_alone(clip):
    x = LAPLACE.reshape(4, 1000)
    together = observed(x, axes=(1,), clip=clip, bits=4, symmetric=True)
    for i, row in enumerate(x):
        alone = observed(row, clip=clip, bits=4, symmetric=True)
        np.testing.assert_allclose(together.hi[i, 0], alone.hi, rtol=1e-5)


@pytest.mark.parametrize("clip", [None, clipping.least_squares(), clipping.entropy()])
def test_zeros_have_a_finite_range_and_step_one(clip):
    r = observed(np.zeros(50, np.float32), clip=clip, bits=8, symmetric=True)
    scale, _ = scale_and_zero(Grid(8), Range(*(np.round(end, 20) for end in r)))
    assert np.isfinite(r.hi)
    assert np.isfinite(scale)


def rounded(x, lo, hi, grid, rule):
    clip = rule(lo, hi) if rule is clipping.learned else rule(hi)
    x, r = clipping.cut(
        clip, x, observe_range(x, clip=clip, bits=grid.bits, symmetric=grid.symmetric)
    )
    scale, zero = scale_and_zero(grid, r)
    return (encode(grid, x, scale, zero) - zero) * scale


def test_a_learned_step_has_the_derivative_of_lsq():
    grid, x, hi = Grid(3), LAPLACE[:50], 1.2
    found = jax.jit(
        jax.vmap(
            jax.grad(lambda h, v: rounded(v[None], -h, h, grid, clipping.learned)[0]), (None, 0)
        )
    )
    step = hi / 3
    by_step = np.where(np.abs(x / step) <= 3.5, np.rint(x / step) - x / step, 3 * np.sign(x))
    inside = np.abs(np.rint(x / step)) <= 3
    by_step = np.where(inside, by_step, 3 * np.sign(x))
    np.testing.assert_allclose(found(hi, x), by_step / 3 / np.sqrt(3), rtol=1e-4, atol=1e-5)


def test_pact_trains_its_end_by_what_it_cuts_off():
    grid = Grid(4, symmetric=False)

    @jax.jit
    def slopes(x):
        by_end = jax.jacobian(lambda h: rounded(x, 0.0, h, grid, clipping.pact))(1.0)
        by_x = jax.grad(lambda v: rounded(v[None], 0.0, 1.0, grid, clipping.pact)[0])
        return by_end, jax.vmap(by_x)(x)

    by_end, by_x = slopes(np.float32([-1.0, 0.3, 0.9, 1.1, 7.0]))
    np.testing.assert_array_equal(by_end, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(by_x, [0, 1, 1, 0, 0])


@functools.partial(jax.jit, static_argnames=("bits", "symmetric"))
def ends(rule, rows, *, bits, symmetric):
    """The range that a rule finds for each row."""
    return rule(rows, bits=bits, symmetric=symmetric)


def slopes_of_ends(make, n, bits, *, symmetric):
    """Derivatives of the upper and the lower end of a range by (lo, hi), and the range."""

    def found(lo, hi):
        r = make(lo, hi)(jnp.zeros((2, n)), bits=bits, symmetric=symmetric)
        return r, r

    slopes, r = jax.jit(jax.jacobian(found, (0, 1), has_aux=True))(-0.5, 2.0)
    return r, jax.tree.map(lambda a: np.asarray(a)[0], slopes)


@pytest.mark.parametrize(
    ("n", "bits", "symmetric", "share"),
    [
        (5, 4, True, 1 / np.sqrt(5 * 7)),
        (5, 4, False, 1 / np.sqrt(5 * 15)),
        (3, 8, True, 1 / np.sqrt(3 * 127)),
        (3, 1, True, 1 / np.sqrt(3)),
        (0, 2, False, 1 / np.sqrt(3)),
    ],
)
def test_the_derivative_of_a_learned_end_is_scaled_by_values_and_codes(n, bits, symmetric, share):
    """1 / sqrt(n * largest code): section 2.2 of LSQ; a symmetric range hangs on one number."""
    r, (lo, hi) = slopes_of_ends(clipping.learned, n, bits, symmetric=symmetric)
    np.testing.assert_allclose(r, [[-2.0 if symmetric else -0.5] * 2, [2.0] * 2], rtol=1e-6)
    expected = ((0, -share), (0, share)) if symmetric else ((share, 0), (0, share))
    np.testing.assert_allclose((lo, hi), expected, rtol=1e-6)


@pytest.mark.parametrize(("symmetric", "low"), [(True, -2.0), (False, 0.0)])
def test_the_range_of_pact_begins_at_zero_or_mirrors_its_end(symmetric, low):
    r, (lo, hi) = slopes_of_ends(lambda _, hi: clipping.pact(hi), 3, 4, symmetric=symmetric)
    np.testing.assert_array_equal(r, [[low] * 2, [2.0] * 2])
    assert (lo[1], hi[1]) == (low / 2, 1)


def test_a_fixed_range_is_trained_by_nothing_that_is_cut_off():
    x, r = jnp.array([-3.0, 0.5, 9.0]), Range(jnp.float32(-1), jnp.float32(2))
    for clip in (None, clipping.fixed(-1.0, 2.0), clipping.learned(-1.0, 2.0), lambda rows: r):
        values, ends = clipping.cut(clip, x, r)
        assert values is x
        assert ends is r
    values, ends = clipping.cut(clipping.pact(2.0), x, r)
    np.testing.assert_array_equal(values, [-1, 0.5, 2])
    assert ends == r


ROWS = np.float32([[0.0, 0.0, 0.0, 0.0, 1.0, -2.0, 3.0, 6.0], [0.0] * 8, [0.0] * 7 + [5.0]])
KEPT = {
    # of the magnitudes 1 2 3 6 the median lies at 2.5; of -2 1 3 6 the quarters at 0.25 and 3.75
    "percentile": (clipping.percentile(50.0), [-2.5, 2.5], [0.25, 3.75]),
    # the mean square is 50 / 4; the mean 2, the variance 12.5 - 4
    "rms": (clipping.rms(0.5), [-np.sqrt(12.5) / 2, np.sqrt(12.5) / 2], [2 - 8.5**0.5 / 2] * 2),
}
KEPT["rms"][2][1] = 2 + 8.5**0.5 / 2


@pytest.mark.parametrize("name", KEPT)
def test_rules_of_pruned_weights_look_at_those_that_are_kept(name):
    clip, symmetric, affine = KEPT[name]
    among = clipping.over_kept(clip)

    @functools.partial(jax.jit, static_argnums=1)
    def both(rows, symmetric):
        return [rule(rows, bits=4, symmetric=symmetric) for rule in (among, clip)]

    for is_symmetric, expected in ((True, symmetric), (False, affine)):
        r, every = jax.tree.map(np.asarray, both(ROWS, is_symmetric))
        np.testing.assert_allclose([end[0] for end in r], expected, rtol=1e-5)
        np.testing.assert_array_equal([end[1] for end in r], 0)
        half = 2.5 if is_symmetric and name == "rms" else 5  # of the one value that is kept
        np.testing.assert_allclose([end[2] for end in r], [-half if is_symmetric else half, half])
        assert not np.allclose([end[0] for end in every], expected, rtol=0.05)


def test_one_bit_weights_that_are_kept_decide_their_step():
    """Of 1 and 3 the best ±s is 2; the two zeros, were they stored, would pull it to 1."""
    rows = np.float32([[1.0, -3.0, 0.0, 0.0]])
    plain = clipping.least_squares()
    rules = clipping.over_kept(plain), plain
    both = jax.jit(lambda rows: [rule(rows, bits=1, symmetric=True).hi[0] for rule in rules])
    found, every = both(rows)
    assert found == pytest.approx(2, rel=0.01)
    assert every == pytest.approx(1, rel=0.01)


def test_rules_that_zeros_do_not_move_stay_what_they_are():
    for clip in (None, clipping.entropy(), clipping.fixed(0.0, 1.0), clipping.pact(1.0), max):
        assert clipping.over_kept(clip) is clip


def test_a_search_looks_at_values_evenly_spaced_over_the_whole_row(monkeypatch):
    assert clipping.SAMPLE == 65_536
    monkeypatch.setattr(clipping, "SAMPLE", 4)
    for n, step in ((1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (12, 3), (13, 4)):
        rows = np.arange(2 * n).reshape(2, n)
        np.testing.assert_array_equal(clipping._sampled(rows), rows[:, ::step])
    # its end holds what its beginning does not, and half of its values are near 1
    row = np.concatenate([np.zeros(8), np.linspace(0.9, 1.1, 8)]).astype(np.float32)
    rule = clipping.least_squares()
    found = jax.jit(lambda rows: rule(rows, bits=2, symmetric=True).hi)(row[None])[0]
    assert found == pytest.approx(0.9 + 0.2 / 7 * 2, rel=0.02)  # the mean of the 9th and the 13th


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_least_squares_finds_the_best_share_to_half_a_percent_whatever_the_unit(scale):
    """Two bits, of 60 000 values v beside a single 1: (60000 v + 1) / 60001 is the best by hand."""
    shares, n = np.array([0.0094, 0.0213, 0.0571, 0.1313, 0.3137, 0.6233, 1.0]), 60_000
    rows = np.repeat(shares[:, None], n + 1, 1)
    rows[:, 0] = 1
    found = ends(clipping.least_squares(), np.float32(rows * scale), bits=2, symmetric=True).hi
    np.testing.assert_allclose(np.asarray(found) / scale, (n * shares + 1) / (n + 1), rtol=0.005)


def test_few_small_values_are_given_up_for_a_large_one_and_none_gets_more_than_it_takes():
    """500 · 0.011² is less than 1. And steps of 0.36 would hold 0.36 exactly, but reach 1.08."""
    row = np.append(1, np.full(499, 0.011)).astype(np.float32)[None]
    found = ends(clipping.least_squares(), row, bits=2, symmetric=True).hi[0]
    assert found == pytest.approx(1, rel=0.01)
    row = np.append(1, np.full(99, 0.36)).astype(np.float32)[None]
    assert ends(clipping.least_squares(), row, bits=3, symmetric=True).hi[0] <= 1


@pytest.mark.parametrize("bits", [3, 4])
def test_values_that_lie_on_codes_keep_their_whole_range(bits):
    top = 2 ** (bits - 1) - 1
    grids = {True: np.arange(-top, top + 1.0, dtype="f"), False: np.arange(0, 2.0**bits, dtype="f")}
    for symmetric, row in grids.items():
        r = ends(clipping.least_squares(), row[None], bits=bits, symmetric=symmetric)
        np.testing.assert_allclose(r, [[row[0]], [row[-1]]], rtol=1e-6)


def test_root_mean_squares_stay_within_floats_and_affine_ends_within_the_values():
    row = jnp.array([[1.0, 2.0, 3e38]])
    assert clipping.rms(3.0)(row, bits=8, symmetric=True).hi[0] == clipping.MOST
    np.testing.assert_array_equal(
        clipping.rms(9.0)(jnp.array([[1.0, 2.0, 6.0]]), bits=8, symmetric=False), [[1], [6]]
    )


def test_fixed_ranges_may_differ_by_channel():
    x, hi = jnp.ones((3, 5)), jnp.array([1.0, 2.0, 4.0])
    r = observe_range(x, axes=(1,), clip=clipping.fixed(-hi, hi))
    np.testing.assert_array_equal(r.hi, hi[:, None])


def test_a_sweep_over_a_rule_compiles_once():
    seen = []

    @jax.jit
    def codes(grid, x):
        seen.append(None)
        r = observe_range(x, clip=grid.clip, bits=grid.bits, symmetric=grid.symmetric)
        return encode(grid, x, *scale_and_zero(grid, r))

    for width in (1.0, 2, 3.5):
        codes(Grid(4, clip=clipping.rms(width)), jnp.asarray(LAPLACE))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("message", "make"),
    {
        "percentile: share=0": lambda: clipping.percentile(0),
        "percentile: share=100.5": lambda: clipping.percentile(100.5),
        "rms: width=-1": lambda: clipping.rms(-1),
        "lo=1.0, hi=0.0": lambda: clipping.fixed(1.0, 0.0),
        "lo=nan": lambda: clipping.learned(float("nan"), 1.0),
        "pact: hi=0": lambda: clipping.pact(0),
        "percentile: share=nan": lambda: clipping.percentile(float("nan")),
        "rms: width=0": lambda: clipping.rms(0),
        "lo=-inf": lambda: clipping.fixed(-np.inf, 0.0),
        "hi=inf": lambda: clipping.fixed(0.0, np.inf),
        "lo=.*-inf": lambda: clipping.fixed(np.array([0.0, -np.inf]), 1.0),
        "hi=.*inf": lambda: clipping.fixed(0.0, np.array([np.inf, 1.0])),
        "at most hi": lambda: clipping.fixed(np.array([0.0, 2.0]), np.array([1.0, 1.0])),
    }.items(),
)
def test_bad_rules_are_refused(message, make):
    with pytest.raises(ValueError, match=message):
        make()


def test_rules_take_the_ends_of_what_they_allow():
    clipping.percentile(100)
    clipping.percentile(1e-3)
    clipping.rms(1e-3)
    np.testing.assert_array_equal(
        clipping.fixed(2.0, 2.0)(jnp.ones((3, 1)), bits=4, symmetric=True), np.full((2, 3), 2)
    )


def test_the_oracle_codes_as_the_package_does():
    grid = Grid(4)
    codes, step, _ = quantiser.quantise(grid, LAPLACE)
    assert thresholds.squared_error(LAPLACE, grid, -abs(LAPLACE).max(), abs(LAPLACE).max()) == (
        pytest.approx(np.mean((codes * step - LAPLACE) ** 2), rel=1e-5)
    )


RULES = [
    None,
    clipping.percentile(50.0),
    clipping.rms(1.0),
    clipping.fixed(-1.0, 2.0),
    clipping.learned(-1.0, 2.0),
    clipping.pact(2.0),
    clipping.least_squares(),
    clipping.entropy(),
]


@pytest.mark.parametrize("clip", RULES)
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_every_rule_gives_one_range_a_row(clip, shape):
    r = observed(
        np.arange(np.prod(shape), dtype=np.float32).reshape(shape),
        axes=(len(shape) - 1,),
        clip=clip,
        bits=4,
        symmetric=True,
    )
    assert r.lo.shape == r.hi.shape == (*shape[:-1], 1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_few_bins_have_the_entropy_threshold_of_a_search_by_hand(symmetric, monkeypatch):
    """Forty rows of 60 values in 64 bins, where one value more or less moves the threshold."""
    monkeypatch.setattr(clipping, "BINS", 64)
    rows = np.random.default_rng(5).laplace(size=(40, 60)).astype(np.float32)
    rows = rows if symmetric else np.abs(rows)
    rule = clipping.entropy()
    found = np.asarray(jax.jit(lambda rows: rule(rows, bits=3, symmetric=symmetric).hi)(rows))
    for row, threshold in zip(rows, found, strict=True):
        by_threshold = thresholds.divergences(row, 3, symmetric, bins=64)
        nearest = min(by_threshold, key=lambda t: abs(t - threshold))
        assert nearest == pytest.approx(threshold, rel=1e-5)
        assert by_threshold[nearest] <= min(by_threshold.values()) + 1e-5


def test_ends_may_be_traced_one_by_one_and_numbers_are_floats():
    for ends in (lambda v: (v, 5.0), lambda v: (-5.0, v)):
        r = jax.jit(lambda v, ends=ends: clipping.fixed(*ends(v))(ROWS, bits=4, symmetric=False))(
            1.0
        )
        assert r.lo.shape == (3,)
    assert isinstance(clipping.percentile(50).args[0], float)  # an int would compile anew
    assert isinstance(clipping.rms(2).args[0], float)
