import itertools

import numpy as np
import pytest

from jaxsim.search.allocation import allocate

PLACES = range(5)


def brute(errors, spent, limits):
    """The least error over all choices within the limits, none where nothing is."""
    best = np.inf
    for choice in itertools.product(range(errors.shape[1]), repeat=len(errors)):
        within = all(spent[n][PLACES, choice].sum() <= most for n, most in limits.items())
        if within:
            best = min(best, errors[PLACES, choice].sum())
    return best


@pytest.mark.parametrize("seed", range(10))
def test_the_choice_is_the_best_of_all(seed):
    """Of 4 options at 5 places: all 1024 tried, under two limits, an option in five impossible."""
    rng = np.random.default_rng(seed)
    errors, energy, area = rng.exponential(size=(3, 5, 4))
    errors[rng.random((5, 4)) < 0.2] = np.inf
    errors[:, 0] = 9.0  # every place has an option
    spent = {"energy": energy, "area": area}
    limits = {"energy": energy[:, 0].sum(), "area": area[:, 0].sum() * 1.2}
    chosen = allocate(errors, spent, limits)
    for name, most in limits.items():
        assert spent[name][PLACES, chosen].sum() <= most * (1 + 1e-6)
    best = brute(errors, spent, limits)
    assert errors[PLACES, chosen].sum() == pytest.approx(best, rel=1e-9)
    one = {"energy": limits["energy"]}
    assert best >= brute(errors, spent, one)  # the second limit takes part


@pytest.mark.parametrize("seed", range(4))
def test_small_losses_are_not_lost_beside_a_large_one(seed):
    """A ruinous option beside losses of 1e-7: which of these is least is still found."""
    rng = np.random.default_rng(seed)
    errors, cost = 1e-7 * rng.exponential(size=(5, 4)), rng.exponential(size=(5, 4))
    errors[0, 0], limits = 1.0, {"cost": cost.min(1).sum() + 1.5}
    found = errors[PLACES, allocate(errors, {"cost": cost}, limits)].sum()
    assert found == pytest.approx(brute(errors, {"cost": cost}, limits), rel=1e-3)


def test_a_limit_is_kept_to_the_last_digits():
    """The better option costs a ten-millionth more than is allowed."""
    errors, cost = np.array([[0.0, 1.0]]), np.array([[1.0, 0.5]])
    assert allocate(errors, {"J": cost}, {"J": 1 - 1e-7}).tolist() == [1]
    assert allocate(errors, {"J": cost}, {"J": 1.0}).tolist() == [0]
    # Exactly at the limit, beside one that is a little above it and better.
    errors, cost = np.array([[0.0, 1.0, 2.0]]), np.array([[1.0 + 1e-7, 1.0, 0.5]])
    assert allocate(errors, {"J": cost}, {"J": 1.0}).tolist() == [1]


def test_the_best_choice_is_not_the_greedy_one():
    """Of 10 to spend: the dear option of the first place gains most and leaves nothing."""
    errors = np.array([[9.0, 4.0, 0.0], [9.0, 1.0, 0.5], [9.0, 1.0, 0.5]])
    cost = np.array([[1.0, 4.0, 8.0], [1.0, 3.0, 4.0], [1.0, 3.0, 4.0]])
    assert allocate(errors, {"pJ": cost}, {"pJ": 10}).tolist() == [1, 1, 1]
    assert allocate(errors * 1e-9, {"pJ": cost * 1e9}, {"pJ": 10e9}).tolist() == [1, 1, 1]
    assert allocate(0 * errors, {"pJ": cost}, {"pJ": 3}).tolist() == [0, 0, 0]  # all of the limit
    assert allocate(errors, {}, {}).tolist() == [2, 2, 2]


def test_limits_that_nothing_meets_say_the_least():
    ones = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"energy=1\.5: the cheapest choice costs 2$"):
        allocate(ones, {"energy": ones}, {"energy": 1.5})
    errors = np.array([[1.0, np.inf]])
    spent = {"energy": np.array([[5.0, 1.0]])}  # the cheap one cannot be chosen
    with pytest.raises(ValueError, match=r"energy=4: the cheapest choice costs 5$"):
        allocate(errors, spent, {"energy": 4.0})
    either = {"energy": np.array([[1.0, 9.0]]), "area": np.array([[9.0, 1.0]])}
    with pytest.raises(ValueError, match=r"energy=2, area=2: each can be met, all together cannot"):
        allocate(np.zeros((1, 2)), either, {"energy": 2.0, "area": 2.0})
    with pytest.raises(ValueError, match="place 1 has no option"):
        allocate(np.array([[1.0], [np.inf]]), {}, {})
