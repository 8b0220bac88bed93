import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsim.formats.rounding import Layer, adaround, cost, gptq, nearest, rounded
from tests.oracles import rounding as oracle

some = settings(max_examples=15)
seeds = st.integers(0, 2**16)
run = jax.jit(lambda rounding, of: rounding(of))


def layer(seed=0, B=1, K=6, N=3, bits=3, *, symmetric=True, rows=40):
    """A layer with correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, rows, K)) @ rng.normal(size=(B, K, K)) + rng.normal(size=(B, 1, K))
    w = rng.normal(size=(B, K, N)).astype(np.float32)
    hi = 2 ** (bits - 1) - 1
    lo = -hi if symmetric else -hi - 1
    if symmetric:
        scale = abs(w).max(1, keepdims=True) / hi
        zero = 0 * scale
    else:
        ends = np.minimum(w.min(1, keepdims=True), 0), np.maximum(w.max(1, keepdims=True), 0)
        scale = (ends[1] - ends[0]) / (hi - lo)
        zero = np.clip(np.rint(lo - ends[0] / scale), lo, hi)
    gram = np.einsum("bmk,bml->bkl", x, x) / rows
    arrays = (w, gram, scale * np.ones_like(w), zero * np.ones_like(w))
    return Layer(*(jnp.asarray(a, jnp.float32) for a in arrays), jnp.ones(w.shape, bool), lo, hi)


def surgeons(of, damping=0.01, *, by_activation=True):
    found = []
    for b in range(len(of.w)):
        w, gram, scale, zero = (np.asarray(a[b]) for a in of[:4])
        order = np.argsort(-np.diag(gram), kind="stable") if by_activation else np.arange(len(w))
        found.append(oracle.surgeon(w, gram, scale, zero, of.lo, of.hi, damping, order))
    return np.stack(found)


@some
@given(seeds, st.sampled_from([1, 2, 5, 9]), st.integers(2, 5), st.booleans(), st.booleans())
def test_gptq_is_the_optimal_brain_surgeon_row_by_row(seed, K, bits, symmetric, by_activation):
    of = layer(seed, 2, K, 3, bits, symmetric=symmetric)
    found = run(gptq(0.02, by_activation=by_activation), of)
    expected = surgeons(of, 0.02, by_activation=by_activation)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("K", [63, 64, 65, 150])
def test_gptq_feeds_errors_from_block_to_block(K):
    of = layer(1, 1, K, 4, 4, rows=300)
    found, expected = run(gptq(), of), surgeons(of)
    # float32 may decide a tie otherwise, and what follows then differs
    same = np.isclose(found, expected, atol=1e-4).all(1)
    assert same.mean() >= 0.75
    plain = oracle.cost(of.w[0], np.asarray(nearest(of))[0], of.gram[0])
    mine = oracle.cost(of.w[0], np.asarray(found)[0], of.gram[0])
    assert mine.sum() < 0.7 * plain.sum()


@pytest.mark.parametrize("rounding", [gptq(), adaround(300)])
def test_inputs_that_know_nothing_of_one_another_leave_rounding_to_nearest(rounding):
    of = layer(3, 2, 7, 4)._replace(gram=jnp.stack([jnp.eye(7)] * 2))
    np.testing.assert_array_equal(run(rounding, of), nearest(of))


@some
@given(seeds, st.booleans())
def test_the_last_row_is_rounded_in_closed_form(seed, symmetric):
    """With all rows but one kept, the best value is the nearest to w: no error is owed to it."""
    of = layer(seed, 1, 5, 4, symmetric=symmetric)
    free = np.zeros((1, 5, 4), bool)
    free[:, 2] = True
    found = run(gptq(), of._replace(free=jnp.asarray(free)))
    np.testing.assert_array_equal(found, np.where(free, nearest(of), of.w))


@some
@given(seeds, st.booleans())
def test_the_second_of_two_rows_makes_up_for_the_first(seed, symmetric):
    """w₁ + (H₀₁ / H₁₁) (w₀ - q₀) minimizes the cost over w₁: the surgeon's closed form."""
    of = layer(seed, 1, 2, 5, symmetric=symmetric)
    q = np.asarray(run(gptq(1e-6, by_activation=False), of))[0]
    w, gram, scale, zero = (np.asarray(a[0], np.float64) for a in of[:4])
    at = w[1] + gram[0, 1] / gram[1, 1] * (w[0] - q[0])
    second = (oracle.codes_near(at, scale[1], zero[1], of.lo, of.hi) - zero[1]) * scale[1]
    clear = abs(abs(at / scale[1] - np.floor(at / scale[1])) - 0.5) > 1e-3
    np.testing.assert_allclose(q[1][clear], second[clear], atol=1e-5)


@some
@given(seeds, st.booleans())
def test_no_rounding_costs_less_than_the_best_or_more_than_the_nearest(seed, symmetric):
    of = layer(seed, 1, 4, 3, symmetric=symmetric)
    w, gram, scale, zero = (np.asarray(a[0], np.float64) for a in of[:4])
    all_codes = np.arange(of.lo, of.hi + 1)
    grid = (all_codes - zero[..., None]) * scale[..., None]
    down = np.floor(w / scale) + zero
    near = (np.clip(np.stack([down, down + 1], -1), of.lo, of.hi) - zero[..., None]) * scale[
        ..., None
    ]
    plain = oracle.cost(w, np.asarray(nearest(of))[0], gram)
    for rounding, values in ((gptq(), grid), (adaround(500), near)):
        found = oracle.cost(w, np.asarray(rounded(rounding, of))[0], gram)
        assert np.all(found >= oracle.best(w, gram, values) * (1 - 1e-5) - 1e-6)
        assert np.all(found <= plain * (1 + 1e-5) + 1e-6)


def test_learned_rounding_takes_off_most_of_what_nearest_costs_above_the_best():
    """Over 40 outputs of 8 weights each, with the best of all 2⁸ ways found one by one."""
    of = layer(5, 1, 8, 40)
    w, gram, scale, zero = (np.asarray(a[0], np.float64) for a in of[:4])
    down = np.floor(w / scale) + zero
    near = np.clip(np.stack([down, down + 1], -1), of.lo, of.hi) * scale[..., None]
    optimum = oracle.best(w, gram, near).sum()
    found = oracle.cost(w, np.asarray(rounded(adaround(), of))[0], gram).sum()
    plain = oracle.cost(w, np.asarray(nearest(of))[0], gram).sum()
    assert 0 <= found - optimum < 0.3 * (plain - optimum)


@pytest.mark.parametrize("rounding", [gptq(), adaround(100)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_value_is_one_the_grid_holds_and_kept_weights_are_kept(rounding, symmetric):
    of = layer(7, 2, 9, 4, symmetric=symmetric)
    free = jax.random.bernoulli(jax.random.key(0), 0.6, of.w.shape)
    found = rounded(rounding, of._replace(free=free))
    codes = found / of.scale + of.zero
    whole = np.where(free, codes, 0)
    np.testing.assert_allclose(whole, np.rint(whole), atol=1e-4)
    assert whole.min() >= of.lo
    assert whole.max() <= of.hi
    np.testing.assert_array_equal(np.where(free, 0, found), np.where(free, 0, of.w))


def test_what_never_flows_in_is_rounded_to_nearest():
    of = layer(2, 1, 6, 3)
    dead = of.gram.at[:, 4].set(0).at[:, :, 4].set(0)
    found = run(gptq(), of._replace(gram=dead))
    np.testing.assert_array_equal(found[:, 4], nearest(of)[:, 4])
    nothing = of._replace(gram=0 * of.gram)
    for rounding in (gptq(), adaround(50)):
        np.testing.assert_array_equal(rounded(rounding, nothing), nearest(of))


def test_the_cost_is_the_mean_square_error_of_the_outputs():
    rng = np.random.default_rng(0)
    x, of = rng.normal(size=(50, 6)).astype(np.float32), layer(0, 1, 6, 3)
    of = of._replace(gram=jnp.asarray(x.T @ x)[None] / 50)
    q = nearest(of)
    expected = np.square(x @ np.asarray(of.w - q)[0]).mean(0)
    np.testing.assert_allclose(cost(of, q)[0], expected, rtol=1e-4)


def test_sweeps_of_a_method_compile_once():
    of = layer(0, 1, 5, 2)
    rounded.clear_cache()
    for damping in (0.001, 0.01, 0.1):
        rounded(gptq(damping), of)
    rounded(gptq(0.01, by_activation=False), of)
    assert rounded._cache_size() == 1
    for steps, rate, pull in ((10, 0.01, 1.0), (20, 0.1, 1), (5, 0.01, 0.1)):
        rounded(adaround(steps, rate=rate, pull=pull), of)
    assert rounded._cache_size() == 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: gptq(0), "damping=0"),
        (lambda: gptq(float("nan")), "damping=nan"),
        (lambda: adaround(0), "steps=0"),
        (lambda: adaround(1.5), "steps=1.5"),
        (lambda: adaround(rate=-1), "rate=-1"),
        (lambda: adaround(pull=0), "pull=0"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_learned_rounding_decides_as_the_equations_of_its_paper_do():
    """10 000 weights after ten steps, when many are about to turn; other constants turn others."""
    of, numbers = layer(4, 2, 5, 1000, 3, symmetric=False), (10, 0.3, 30.0)
    found = run(adaround(numbers[0], rate=numbers[1], pull=numbers[2]), of)

    def agreement(*of_it, **constants):
        return np.isclose(found, oracle.learned(of, *of_it, **constants), atol=1e-4).mean()

    least = 0.9978  # what float32 turns otherwise is less
    assert agreement(*numbers) > least
    for wrong in (
        {"ends": (-0.11, 1.1)},
        {"ends": (-0.1, 1.12)},
        {"still": 0.22},
        {"betas": (22.0, 2.0)},
        {"betas": (20.0, 3.0)},
    ):
        assert agreement(*numbers, **wrong) < least
    assert agreement(10, 0.3, 33.0) < least
    assert agreement(11, 0.3, 30.0) < least


def test_the_defaults_of_the_methods_are_those_that_are_told():
    assert float(gptq().keywords["damping"]) == pytest.approx(0.01)
    assert bool(gptq().keywords["by_activation"])
    numbers = {name: float(value) for name, value in adaround().keywords.items()}
    assert numbers == pytest.approx({"steps": 2000, "rate": 0.01, "pull": 3.0})


def test_an_output_that_nearest_rounding_serves_better_keeps_it():
    """One output is rounded away from its weights by a method of one's own, the other is not."""
    of = layer(1, 1, 3, 2)._replace(gram=jnp.eye(3)[None])
    worse = jnp.concatenate([nearest(of)[..., :1], nearest(of)[..., 1:] + of.scale[..., 1:]], -1)
    np.testing.assert_array_equal(rounded(jax.tree_util.Partial(lambda of: worse), of), nearest(of))
    flat = of._replace(gram=0 * of.gram)  # as good: the nearest, too
    np.testing.assert_array_equal(
        rounded(jax.tree_util.Partial(lambda of: worse), flat), nearest(of)
    )


@pytest.mark.parametrize("damping", [0.01, 0.5])
def test_damping_is_a_share_of_the_mean_second_moment(damping):
    """A hundredfold gram is damped a hundredfold, and rounds the same."""
    of = layer(6, 2, 5, 40)
    found = run(gptq(damping), of)
    np.testing.assert_array_equal(run(gptq(damping), of._replace(gram=100 * of.gram)), found)
    same = np.isclose(found, surgeons(of, damping), atol=1e-5)
    other = np.isclose(found, surgeons(of, damping * 1.3), atol=1e-5)
    assert same.mean() > 0.995 > other.mean()
