"""Meta-solvers step by step: their iterates in numpy, and their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim.solvers as js
from jaxsim.solvers import mixing

# one agent beats the others by unlike amounts; the Nash mixture is (2, 5, 3) / 10
A = np.array([[0, 3, -5], [-3, 0, 2], [5, -2, 0]], float)
ROOM = jnp.pad(jnp.asarray(A, jnp.float32), ((0, 2), (0, 2)), constant_values=9.0)
THREE = jnp.int32(3)


def predictive_regret_matching(a, steps, power=2):
    """The mean of the iterates of PRM+ in self-play, weighted by their number to a power."""
    regret, last, total = np.zeros(len(a)), np.zeros(len(a)), np.zeros(len(a))
    for t in range(1, steps + 1):
        positive = np.maximum(regret + last, 0)
        x = positive / positive.sum() if positive.sum() > 0 else np.full(len(a), 1 / len(a))
        gain = a @ x
        regret, last = np.maximum(regret + gain, 0), gain
        total += t**power * x
    return total / total.sum()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
def test_the_mixture_is_the_mean_weighted_by_the_square_of_the_step(steps):
    expected = predictive_regret_matching(A / 5, steps)
    found = js.nash(steps)(ROOM, THREE)
    np.testing.assert_allclose(found[:3], expected, atol=2e-6)
    assert not np.any(found[3:])
    if steps > 2:
        for power in (0, 1, 3):
            other = predictive_regret_matching(A / 5, steps, power)
            assert np.abs(other - expected).max() > 1e-3


def test_the_mixture_does_not_depend_on_the_size_of_payoffs():
    np.testing.assert_allclose(js.nash(7)(100 * ROOM, THREE), js.nash(7)(ROOM, THREE), atol=1e-6)
    np.testing.assert_array_equal(js.nash(3)(jnp.zeros((4, 4)), jnp.int32(2)), [0.5, 0.5, 0, 0])


def projected(x, floor):
    """The nearest point of the simplex with a floor, by trying every set of those at the floor."""
    best, least = None, np.inf
    for mask in range(1, 2 ** len(x)):
        free = np.array([bool(mask >> i & 1) for i in range(len(x))])
        y = np.full(len(x), floor)
        y[free] = x[free] + (1 - floor * (~free).sum() - x[free].sum()) / free.sum()
        if (y >= floor - 1e-12).all() and ((x - y) ** 2).sum() < least:
            best, least = y, ((x - y) ** 2).sum()
    return best


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(("rate", "least"), [(0.5, 0.3), (0.1, 1e-3), (2.0, 0.6)])
def test_replicator_steps_are_projected_and_averaged(steps, rate, least):
    x, total = np.full(3, 1 / 3), np.zeros(3)
    for _ in range(steps):
        x = projected(x + rate * x * (A / 5 @ x), least / 3)
        total += x
    found = js.projected_replicator(steps, rate=rate, least=least)(ROOM, THREE)
    np.testing.assert_allclose(found[:3], total / total.sum(), atol=2e-6)
    assert not np.any(found[3:])


def test_the_least_weight_of_replicators_is_shared_by_those_who_are_there():
    found = js.projected_replicator(400, rate=0.5, least=0.3)(
        jnp.array([[0.0, 1, 9], [-1, 0, 9], [-9, -9, 0]]), jnp.int32(2)
    )
    assert found[1] == pytest.approx(0.15, abs=0.01)
    even = js.projected_replicator(5, least=1.0)(ROOM, THREE)
    np.testing.assert_allclose(even, [1 / 3] * 3 + [0, 0], rtol=1e-5)
    np.testing.assert_allclose(js.projected_replicator(5, least=0)(ROOM, THREE).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([0.5, 0.5, 0.0], [0.5, 0.5, 0.0]),
        ([1.0, 1.0, 1.0], [1 / 3] * 3),
        ([2.0, 0.0, 0.0], [1, 0, 0]),
        ([0.9, 0.5, -3.0], [0.7, 0.3, 0]),
        ([0.8, 0.4, 0.1], [0.7, 0.3, 0]),
        ([0.8, 0.5, 0.2], [0.6333333, 0.3333333, 0.0333333]),
    ],
)
def test_points_of_the_simplex_by_hand(x, expected):
    found = mixing._project_to_simplex(jnp.array(x), jnp.zeros(3), jnp.ones(3, bool))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_agents_who_are_not_there_are_not_projected():
    found = mixing._project_to_simplex(
        jnp.array([0.2, 0.1, 7.0]), jnp.array([0.1, 0.1, 0]), jnp.array([True, True, False])
    )
    np.testing.assert_allclose(found, [0.55, 0.45, 0], atol=1e-6)


def test_a_programme_without_an_optimum_is_an_error(monkeypatch):
    import scipy.optimize

    class Failed:
        status, message = 4, "numbers"

    monkeypatch.setattr(scipy.optimize, "linprog", lambda *args, **options: Failed)
    with pytest.raises(RuntimeError, match="HiGHS found no equilibrium: numbers"):
        mixing.solve_lp(A)


def test_the_linear_programme_finds_the_only_equilibrium():
    np.testing.assert_allclose(mixing.solve_lp(A), [0.2, 0.5, 0.3], atol=1e-9)
    np.testing.assert_allclose(js.nash_lp()(ROOM, THREE), [0.2, 0.5, 0.3, 0, 0], atol=1e-6)
    # of a game that is not fair: rows (2, -1), (-1, 1) are mixed 2 to 3
    np.testing.assert_allclose(mixing.solve_lp(np.array([[2, -1], [-1, 1.0]])), [0.4, 0.6])
    np.testing.assert_allclose(mixing.solve_lp(1e-6 * A), [0.2, 0.5, 0.3], atol=1e-6)
    assert mixing.solve_lp(np.zeros((2, 2))).sum() == 1


def test_uniform_latest_and_the_scale_count_those_who_are_there():
    np.testing.assert_allclose(js.uniform()(ROOM, THREE), [1 / 3] * 3 + [0, 0])
    np.testing.assert_array_equal(js.latest()(ROOM, THREE), [0, 0, 1, 0, 0])
    mask = mixing.agent_mask(ROOM, THREE)
    assert mask.tolist() == [True] * 3 + [False] * 2
    np.testing.assert_allclose(mixing.scale_payoffs(ROOM, mask)[:3, :3], A / 5)
    assert not np.any(mixing.scale_payoffs(ROOM, mask)[3:])
    negative = jnp.array([[0.0, -2.0], [-1.0, 0.0]])
    np.testing.assert_array_equal(mixing.scale_payoffs(negative, jnp.ones(2, bool)), negative / 2)
    assert not np.any(mixing.scale_payoffs(jnp.zeros((2, 2)), jnp.ones(2, bool)))


def told(p):
    """A meta-solver that says one mixture."""
    return jax.tree_util.Partial(lambda payoffs, size: jnp.asarray(p))


def test_a_mixture_that_wins_less_than_it_leaves_is_answered_itself():
    """(3, 1) / 4 of payoffs ±1 wins 3/16 of itself, and leaves 1/4 to the first agent."""
    p = np.array([0.75, 0.25])
    a = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    np.testing.assert_allclose(mixing._rectified(told(p), a, jnp.int32(2)), p)


@pytest.mark.parametrize(("lost", "rectified"), [(0.12, True), (0.13, False)])
def test_a_mixture_is_rectified_where_it_wins_more_than_twice_what_it_leaves(lost, rectified):
    """The cycle's Nash mixture (1, 2, 3) / 6 wins (6 + 6 + 6) / 108 = 1/6 of itself.

    A fourth agent would win 2/3 of `lost` of each, where the largest payoff is 1: 0.160 or 0.173.
    """
    cycle, p = np.array([[0, 3, -2], [-3, 0, 1], [2, -1, 0]]) / 3, np.array([1, 2, 3]) / 6
    whole = np.zeros((4, 4))
    whole[:3, :3], whole[3, :3], whole[:3, 3] = cycle, 2 / 3 * lost, -2 / 3 * lost
    found = mixing._rectified(told(np.append(p, 0)), jnp.asarray(whole), jnp.int32(4))
    # 1 beats 2 by 3, 2 beats 3 by 1, 3 beats 1 by 2: p_i p_j of each are 2, 6 and 3
    np.testing.assert_allclose(found[:3], [6 / 18, 6 / 18, 6 / 18] if rectified else p, atol=1e-6)


def test_agents_are_met_as_often_as_the_mixture_beats_them():
    """Cycles of three within (1, 2, 3, 4, 5) / 15: each agent wins p_k where it beats the next.

    1 beats 2 by 3, 2 beats 3 by 1, 3 beats 1 by 2; twice: 2 beats 4 by 5, 4 beats 5 by 2, 5 beats 2
    by 4. p_i p_j M_ij is 6 on the first cycle and 2 · 40 on the second.
    """
    p, a = np.arange(1.0, 6) / 15, np.zeros((5, 5))
    for (i, j, k), times in (((0, 1, 2), 1), ((1, 3, 4), 2)):
        for x, y, z in ((i, j, k), (j, k, i), (k, i, j)):
            a[x, y] += times * 15 * p[z]
            a[y, x] -= times * 15 * p[z]
    np.testing.assert_allclose(a @ p, 0, atol=1e-12)
    found = mixing._rectified(told(p), jnp.asarray(a), jnp.int32(5))
    np.testing.assert_allclose(found, np.array([6, 86, 6, 80, 80]) / 258, rtol=1e-5)


@pytest.mark.parametrize(
    ("message", "make"),
    {
        "iterations=0": lambda: js.projected_replicator(0),
        "iterations=-1": lambda: js.rectified(-1),
        "rate=0": lambda: js.projected_replicator(rate=0),
        "least=-0.1": lambda: js.projected_replicator(least=-0.1),
        "least=1.1": lambda: js.projected_replicator(least=1.1),
        "iterations=2147483648": lambda: js.nash(2**31),
    }.items(),
)
def test_numbers_out_of_range_are_refused(message, make):
    with pytest.raises(ValueError, match=message):
        make()
