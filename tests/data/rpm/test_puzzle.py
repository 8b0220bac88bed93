"""Matrices have one answer, which only the matrix tells."""

import numpy as np
import pytest

from jaxsim.data import rpm
from jaxsim.data.rpm.rule import _distinct
from jaxsim.data.rpm.solver import completing_choices
from tests.oracles.matrices import completing


@pytest.mark.parametrize("configuration", list(rpm.CONFIGURATIONS))
def test_one_choice_completes_by_rules_tried_one_at_a_time(configuration):
    puzzles = rpm.generate(40, configuration=configuration, seed=1)
    places = [len(part.places) for part in rpm.CONFIGURATIONS[configuration]]
    for panels, answer in zip(puzzles.panels, puzzles.answers, strict=True):
        assert completing(panels, places) == [answer]
    np.testing.assert_array_equal(rpm.solve(puzzles.panels, configuration), puzzles.answers)


def test_the_solver_and_the_slow_one_agree_on_damaged_matrices():
    configuration = "grid_3"
    rng = np.random.default_rng(0)
    panels = rpm.generate(60, configuration=configuration).panels
    for p in panels:
        a, b = rng.choice(16, 2, replace=False)
        column = rng.integers(4)
        p[a, -1, column] = p[b, -1, column]
    good = completing_choices(panels, configuration)
    places = [len(part.places) for part in rpm.CONFIGURATIONS[configuration]]
    slow = [completing(p, places) for p in panels]
    assert [list(np.flatnonzero(g)) for g in good] == slow
    assert len({len(found) for found in slow}) > 2  # none, one and several
    one = good.sum(1) == 1
    np.testing.assert_array_equal(rpm.solve(panels, configuration)[~one], -1)


@pytest.mark.parametrize("configuration", ["center", "grid_2", "out_in_grid"])
def test_choices_alone_tell_nothing(configuration):
    """Each column has at most two values, four choices each: no choice is the mode."""
    puzzles = rpm.generate(600, configuration=configuration, seed=2)
    choices = puzzles.panels[:, 8:].reshape(600, 8, -1)
    for column in np.moveaxis(choices, 2, 0):
        same = (column == column[:, :1]).sum(1)
        assert set(np.unique(same)) <= {4, 8}
    assert np.abs(np.bincount(puzzles.answers, minlength=8) / 600 - 1 / 8).max() < 0.05
    # A guess by what values are frequent among answers elsewhere does no better than chance.
    train, test = slice(0, 300), slice(300, 600)
    right = choices[np.arange(600), puzzles.answers]
    score = np.zeros((300, 8))
    for c in range(choices.shape[2]):
        n = 1 + max(choices[..., c].max(), right[:, c].max())
        share = (np.bincount(right[train, c], minlength=n) + 1) / (
            np.bincount(choices[train, :, c].ravel(), minlength=n) / 8 + 1
        )
        score += np.log(share)[choices[test, :, c]]
    assert np.mean(score.argmax(1) == puzzles.answers[test]) < 0.125 + 3 * 0.019


def test_rules_held_out_and_wanted():
    held = {("color", "arithmetic"), ("type", "progression")}
    seen = rpm.generate(60, allowed=set(rpm.RULES) - held)
    unseen = rpm.generate(60, wanted=held)

    def used(puzzles):
        return [{(r.attribute, r.kind) for part in p for r in part} for p in puzzles.rules]

    assert not any(pairs & held for pairs in used(seen))
    assert all(pairs & held for pairs in used(unseen))


def test_a_puzzle_depends_on_its_seed_and_place_alone():
    few, many = rpm.generate(5, seed=3), rpm.generate(9, seed=3)
    np.testing.assert_array_equal(few.panels, many.panels[:5])
    other = rpm.generate(5, seed=4)
    assert (few.panels != other.panels).any()


def test_pictures_show_what_the_symbols_say():
    panel = np.array([[[1, 1, 5, 0]], [[1, 1, 5, 9]], [[1, 1, 0, 9]], [[1, 4, 5, 9]]])
    square, dark, small, circle = rpm.draw(panel, "center", side=64, turned=False)
    assert square[32, 32] == 255
    assert dark[32, 32] == round(255 * 0.1)
    # Dark pixels over all: the share of the inscribed square and of the circle.
    area = [np.mean(1 - p / 255.0) / 0.9 for p in (dark, small, circle)]
    assert area[0] == pytest.approx(0.9**2 / 2, rel=0.06)
    assert area[1] == pytest.approx(0.4**2 / 2, rel=0.15)
    assert area[2] == pytest.approx(0.9**2 * np.pi / 4, rel=0.06)
    places = rpm.draw(np.array([[0b0110, 4, 5, 9]]), "grid_2", side=64)
    dark = [places[y, x] < 128 for y in (16, 48) for x in (16, 48)]
    assert dark == [False, True, True, False]
    turned = [rpm.draw(panel[:1], "center", seed=s) for s in (0, 0, 1, 2, 3)]
    np.testing.assert_array_equal(turned[0], turned[1])
    assert any((t != turned[0]).any() for t in turned[2:])


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("count=0", lambda: rpm.generate(0)),
        ("seed=-1", lambda: rpm.generate(1, seed=-1)),
        ("configuration='spiral'", lambda: rpm.generate(1, configuration="spiral")),
        ("allowed", lambda: rpm.generate(1, allowed=[("type", "arithmetic")])),
        ("has no rule for type", lambda: rpm.generate(1, allowed=[("size", "constant")])),
        ("wanted", lambda: rpm.generate(1, wanted=[("smell", "constant")])),
        (
            "must be allowed as well",
            lambda: rpm.generate(
                1, allowed=[("type", "constant")], wanted=[("type", "progression")]
            ),
        ),
        (
            "no puzzle found",
            lambda: rpm.generate(1, wanted=[("position", "constant")]),
        ),
        ("panels", lambda: rpm.solve(np.zeros((16, 2, 4), int), "center")),
        ("panels", lambda: rpm.draw(np.zeros((2, 4), int), "center")),
        ("type must be from 0 to 4", lambda: rpm.draw(np.array([[1, 5, 0, 0]]), "center")),
        ("side=8", lambda: rpm.draw(np.array([[1, 0, 0, 0]]), "center", side=8)),
    ],
)
def test_bad_arguments(says, call):
    with pytest.raises(ValueError, match=says):
        call()


def test_more_pictures_than_memory_holds_are_refused():
    panels = np.broadcast_to(rpm.generate(1).panels, (10_000, 16, 1, 4))
    with pytest.raises(MemoryError, match=r"160000 pictures of side = 100 needs .* draw fewer"):
        rpm.draw(panels, "center", side=100)


def test_three_values_are_all_different_and_allowed():
    rng = np.random.default_rng(0)
    assert sorted(_distinct("size", 3, rng)) == [0, 1, 2]
    assert sorted(_distinct("number", 3, rng)) == [1, 2, 3]
    assert sorted(_distinct("position", 2, rng)) == [1, 2, 3]  # places of a set that is not empty
    assert _distinct("size", 2, rng) is None
    assert _distinct("position", 1, rng) is None
    rows = np.array([_distinct("position", 3, rng) for _ in range(200)])
    assert {*rows.ravel().tolist()} == {*range(1, 8)}


def test_places_of_each_configuration_by_hand():
    """Center and side of each, as shares of the panel."""
    places = {name: [part.places for part in own] for name, own in rpm.CONFIGURATIONS.items()}
    assert places["center"] == [((0.5, 0.5, 1.0),)]
    assert places["left_right"] == [((0.25, 0.5, 0.5),), ((0.75, 0.5, 0.5),)]
    assert places["up_down"] == [((0.5, 0.25, 0.5),), ((0.5, 0.75, 0.5),)]
    assert places["out_in_center"] == [((0.5, 0.5, 1.0),), ((0.5, 0.5, 0.33),)]
    corners = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
    assert places["grid_2"] == [tuple((x, y, 0.5) for x, y in corners)]
    inside = np.array(places["out_in_grid"][1])
    np.testing.assert_allclose(inside[0], [0.33 + 0.085, 0.33 + 0.085, 0.17])
    np.testing.assert_allclose(inside[3], [0.33 + 0.255, 0.33 + 0.255, 0.17])
    np.testing.assert_allclose(places["grid_3"][0][5], [5 / 6, 0.5, 1 / 3])
