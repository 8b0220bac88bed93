import flax.linen as nn
import numpy as np
import pytest

import jaxsim as js
from jaxsim.search import blocks as search
from jaxsim.search.blocks import (
    Search,
    _bisect_budget,
    _drop_expensive,
    _summarize,
    _Table,
    pareto_fronts,
    search_blocked,
)
from jaxsim.search.config import Choice, Config, configs
from jaxsim.search.sensitivity import site_sensitivity
from tests.support import models
from tests.support.networks import SITES, X, cnn, run, stack
from tests.support.printed import header, rows

FEW = configs((3, 4))


def eight():
    return js.quantize(8, 8)(cnn())


@pytest.fixture(scope="module")
def expected():
    return np.asarray(run(js.deploy(eight(), calibrate=X), X))


def scored(expected):
    """A stand-in for accuracy: how near the outputs are, 1 where they are equal."""

    def evaluate(net):
        calls.append(net)
        return 1 - np.abs(np.asarray(run(net, X)) - expected).mean() / np.abs(expected).mean()

    calls = []
    return evaluate, calls


@pytest.fixture(scope="module")
def found(expected):
    evaluate, calls = scored(expected)
    compiled = run._cache_size()
    result = search_blocked(eight(), X, evaluate, drop=0.2, candidates=FEW, quiet=True)
    return result, len(calls), run._cache_size() - compiled


def test_candidates_are_every_choice_of_both_operands():
    assert len(configs((4,))) == 3**2
    assert len(configs((3,))) == 5**2
    assert len(configs((2,))) == 7**2
    assert set(FEW) < set(configs())
    assert Config(4) in FEW
    assert Config(3, 2, 1, ("dynamic", "static")) in FEW


def test_choices_are_accurate_enough_and_layers_beat_the_network(found):
    result, _, _ = found
    assert result.exact == 1
    for choice in (result.network, result.layers):
        assert choice.accuracy >= result.exact - 0.2
        assert choice.energy_gain > 1
    assert result.layers.energy < result.network.energy
    assert len(set(result.network.by_site.values())) == 1
    assert len({config.K for config in result.layers.by_site.values()}) == 1


def test_a_choice_is_the_transform_it_was_evaluated_as(found, expected):
    result, _, _ = found
    evaluate, _ = scored(expected)
    for choice in (result.network, result.layers):
        net = choice(eight())
        assert evaluate(js.deploy(net, calibrate=X)) == pytest.approx(choice.accuracy, abs=1e-6)
        model = js.Hardware().estimate(net)
        assert model.energy == pytest.approx(choice.energy)
        assert model.energy_gain == pytest.approx(choice.energy_gain)
        assert model.speed_gain == pytest.approx(choice.speed_gain)


def test_no_choice_of_the_list_is_beaten_by_one_that_was_tried(found):
    result, _, _ = found
    points = [(choice.energy, choice.accuracy) for choice in result.pareto]
    assert points == sorted(points)
    assert [a for _, a in points] == sorted({a for _, a in points})
    for choice in result.tried:
        assert any(e <= choice.energy and a >= choice.accuracy for e, a in points)
    assert "analytic model" in str(result)
    assert "← layers" in str(result)


def test_evaluations_are_counted_and_compile_once(found):
    result, calls, compiled = found
    assert result.evaluations == calls == 1 + len(result.tried)
    assert compiled <= 2  # one for the exact network, one for all choices


def test_a_search_goes_on_where_it_was_stopped(tmp_path, expected, found):
    evaluate, calls = scored(expected)
    log = tmp_path / "search.json"

    def interrupted(net):
        if len(calls) == 5:
            raise KeyboardInterrupt
        return evaluate(net)

    with pytest.raises(KeyboardInterrupt):
        search_blocked(eight(), X, interrupted, drop=0.2, candidates=FEW, log=log, quiet=True)
    again = search_blocked(eight(), X, evaluate, drop=0.2, candidates=FEW, log=log, quiet=True)
    assert again.layers.by_site == found[0].layers.by_site
    assert again.evaluations == found[0].evaluations == len(calls)
    known = search_blocked(eight(), X, None, drop=0.2, candidates=FEW, log=log, quiet=True)
    assert known.layers == again.layers  # nothing was left to measure
    with pytest.raises(ValueError, match="is of another network, inputs or candidates"):
        search_blocked(eight(), X + 1, evaluate, candidates=FEW, log=log, quiet=True)


def test_pareto_fronts_hold_what_nothing_beats_and_what_only_that_beats():
    points = np.array([[2, 1], [3, 3], [0, 3], [1, 3], [1, 2], [2, 2], [2, 3]], float)
    assert [tuple(points[i]) for i in pareto_fronts(points)] == [
        (0, 3),
        (1, 2),
        (1, 3),
        (2, 1),
        (2, 2),
    ]


def test_stacked_layers_are_chosen_together():
    net, x = js.quantize(8, 8)(stack()), models.normal(5, 4)
    y = np.asarray(run(js.deploy(net, calibrate=x), x))
    result = search_blocked(
        net,
        x,
        lambda n: -float(np.abs(run(n, x) - y).mean()),
        drop=0.05,
        candidates=FEW,
        quiet=True,
    )
    assert set(result.layers.by_site) == {"w", "head"}


def test_nothing_accurate_enough_is_no_choice(expected):
    evaluate, _ = scored(expected)
    coarse = [Config(4, 1, 1, ("static", "static")), Config(4, 1, 1, ("dynamic", "dynamic"))]
    result = search_blocked(eight(), X, evaluate, drop=0, candidates=coarse, steps=1, quiet=True)
    assert result.network is None
    assert result.layers is None
    assert result.pareto


BAD = {
    "drop=-1: must": lambda: search_blocked(eight(), X, float, drop=-1),
    r"candidates=\(\)": lambda: search_blocked(eight(), X, float, candidates=[]),
    "net is deployed": lambda: search_blocked(js.deploy(eight(), calibrate=X), X, float),
    "holds floats": lambda: search_blocked(cnn(), X, lambda net: 1.0, quiet=True),
    "affine grid": lambda: search_blocked(
        js.quantize(8, js.Grid(8, symmetric=False))(cnn()), X, lambda net: 1.0, quiet=True
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_sensitivity_is_the_error_at_the_outputs_of_a_site_alone():
    net, config = eight(), Config(3, 1, 1, ("dynamic", "dynamic"), "trunc")
    sensitivity = site_sensitivity(net, SITES, (config,), X)[:, 0]
    y = np.asarray(run(js.deploy(net, calibrate=X), X))
    for name, found in zip(SITES, sensitivity, strict=True):
        alone = Choice({n: config if n == name else Config(3) for n in SITES}, 0, 0, 0, 0)(net)
        approximate = np.asarray(run(js.deploy(alone, calibrate=X), X))
        assert found == pytest.approx(np.sum((approximate - y) ** 2) / np.sum(y**2), rel=1e-4)


def test_sensitivity_at_one_site_grows_with_the_error_there():
    """Relative to one another, candidates' sensitivities are their errors at the site itself."""
    net, name = eight(), SITES[0]
    two = (Config(3, 1, 1, ("dynamic", "dynamic")), Config(3, 2, 2, ("dynamic", "dynamic")))
    sensitivity = site_sensitivity(net, (name,), two, X)[0]

    def first(transform):
        return np.asarray(run(js.deploy(transform(conv), calibrate=X), X))

    conv = js.quantize(8, 8)(js.trace(nn.Conv(4, (3, 3), use_bias=False), _first_layer(), X))
    exact = first(js.block(3, mode="exact"))
    errors = [np.sum((first(config.transform()) - exact) ** 2) for config in two]
    assert sensitivity[0] / sensitivity[1] == pytest.approx(errors[0] / errors[1], rel=1e-3)


def _first_layer():
    return {"params": {"kernel": cnn().params["Conv_0"]["kernel"]}}


DEAR, CHEAP = Config(3, 2, 2, ("static", "static")), Config(4, 1, 1, ("static", "static"))


def test_what_costs_more_than_the_cheapest_exact_candidate_is_dropped():
    """Exact ones stay; of the others those of at most as much over both sites."""
    exact, other = Config(3), Config(2)
    energy = np.array([[4.0, 9.0, 5.0, 6.0], [6.0, 9.0, 5.0, 5.0]])
    cycles = np.arange(8.0).reshape(2, 4)
    kept, spent, steps = _drop_expensive((exact, other, DEAR, CHEAP), energy, cycles)
    assert kept == (exact, other, DEAR)
    np.testing.assert_array_equal(spent, energy[:, :3])
    np.testing.assert_array_equal(steps, cycles[:, :3])
    kept, _, _ = _drop_expensive((DEAR, CHEAP), energy[:, :2], cycles[:, :2])
    assert kept == (DEAR, CHEAP)  # with no exact one to compare to, all


def bisected(accurate, high=16.0, steps=4):
    """The budgets that bisection asks for, over one site whose options cost 0, 1, … 16."""
    candidates = (*(Config(3, n) for n in range(17)), Config(2))
    energy = np.concatenate([np.arange(17.0), [0.0]])[None]
    table = _Table(("a",), candidates, energy, energy, 0.0, 0.0)
    asked, said = [], []

    class Chooser:
        def __call__(self, picked):
            (c,) = picked
            asked.append(int(c))
            return Choice({}, float(accurate(c)), energy[0, c], 1.0, 1.0)

    chooser = Chooser()
    chooser.table = table
    errors = -np.concatenate([np.arange(17.0), [99.0]])[None]  # dearer is better
    errors -= errors.min()
    found = _bisect_budget(
        chooser, errors, 3, high=high, accuracy=0.5, steps=steps, advance=said.append
    )
    return asked, [choice.energy for choice in found], said


def test_bisection_halves_the_budget_between_what_is_and_what_is_not_accurate():
    asked, found, said = bisected(lambda c: c >= 5)
    assert asked == [8, 4, 6, 5]
    assert found == [8, 6, 5]
    assert said[1] == "layers: K=3, step 2 of 4"
    asked, found, _ = bisected(lambda c: 0)
    assert asked == [8, 12, 14, 15]
    assert found == []


def test_bisection_goes_on_below_what_was_spent_and_ends_where_nothing_is_left():
    """A choice of half the accuracy is accurate enough; of a budget of 7, 3.5 buys 3."""
    asked, found, _ = bisected(lambda c: 0.5, high=7.0, steps=3)
    assert asked == [3, 1, 0]
    assert found == [3, 1, 0]
    assert bisected(lambda c: 1, high=0.0) == ([], [], [])


def test_a_result_is_the_cheapest_of_the_accurate_and_the_best_of_all():
    a, b, c, d = (
        Choice({"s": Config(k)}, accuracy, energy, 1.0, 1.0)
        for k, accuracy, energy in [(2, 0.9, 4.0), (3, 0.8, 3.0), (4, 0.7, 5.0), (5, 0.8, 3.0)]
    )
    found = _summarize(0.95, a, [a, b], (a, b, c, d))
    assert found == Search(0.95, a, b, (b, a), (a, b, c, d), 5)
    assert _summarize(0.95, None, [], (c,)).layers is None


def test_the_printed_search_says_each_choice_and_its_gains():
    one = Choice({"a": Config(4), "b": Config(4)}, 0.91234, 1234.0, 1.5, 2.25)
    two = Choice({"a": Config(4), "b": CHEAP}, 0.8, 617.0, 3.0, 4.5)
    shown = Search(0.95, one, two, (two, one), (one, two), 3)
    assert "3 evaluations; energy and speed: analytic model" in str(shown)
    assert header(shown) == ["choice", "accuracy", "pJ", "energy gain", "speed gain"]
    assert rows(shown) == [
        [
            "by layer: K=4: all × all, K=4: 1 static × 1 static ← layers",
            *["0.8000", "617", "3.00×", "4.50×"],
        ],
        ["K=4: all × all ← network", *["0.9123", "1.23 k", "1.50×", "2.25×"]],
    ]


class Scores:
    """Scores that are known beforehand: nothing is deployed or measured."""

    def __init__(self, exact, errors, accuracy):
        self.known, self.accuracy = {"exact": exact, "harm": np.asarray(errors)}, accuracy

    def get(self, name, make):
        return self.known[name] if name in self.known else self.accuracy(name)


PLAIN, ONE, TWO = (
    Config(4),
    Config(4, 1, 1, ("static",) * 2),
    Config(4, None, 1, ("exact", "static")),
)


def searched(monkeypatch, accuracy, errors, drop, exact=0.9, **options):
    """A search over a scan's layers and a head; of K = 4, all, one by one, or all by one block."""
    scores = Scores(exact, errors, accuracy)
    monkeypatch.setattr(search, "_open_scores", lambda *given: scores)
    net = js.quantize(8, 8)(stack())
    candidates = (PLAIN, ONE, TWO)
    return search_blocked(net, X, None, drop=drop, candidates=candidates, quiet=True, **options)


def energies():
    """Of each site and candidate, by the model of the array."""
    net = js.quantize(8, 8)(stack())
    model = js.Hardware()
    return [[s.energy for s in model.estimate(c.transform()(net)).spent] for c in (PLAIN, ONE, TWO)]


ERRORS = [[0.0, 4.0, 1.0], [0.0, 1.0, 0.5]]


@pytest.mark.parametrize(
    ("drop", "cheapest"), [(0.25, ONE), (0.24, TWO), (0.125, TWO), (0.1, PLAIN)]
)
def test_an_accuracy_at_the_limit_is_enough(monkeypatch, drop, cheapest):
    """One block of each loses a quarter, one of the weights an eighth."""

    def accuracy(name):
        return 0.75 - 0.25 * ("4, 1, 1" in name) - 0.125 * ("4, None, 1" in name)

    exact = 0.75
    found = searched(monkeypatch, accuracy, ERRORS, drop, exact, steps=0)
    assert found.exact == exact
    assert set(found.network.by_site.values()) == {cheapest}
    assert found.layers == found.network
    assert found.evaluations == 4
    plain, one, two = (sum(each) for each in energies())
    spent = {c.by_site["w"]: c.energy for c in found.tried}
    assert spent == pytest.approx({PLAIN: plain, ONE: one, TWO: two})
    baseline = js.Hardware().estimate(js.quantize(8, 8)(stack()))
    base = sum(s.energy for s in baseline.baseline)
    assert found.network.energy_gain == pytest.approx(base / found.network.energy)


def test_layers_are_chosen_apart_where_one_of_them_suffers(monkeypatch):
    """The scan's layers lose with one block each, the head does not."""

    def accuracy(name):
        return 0.5 if "w: (4, 1, 1" in name else 0.9

    errors = [[0.0, 9.0, 1.0], [0.0, 0.1, 0.05]]
    found = searched(monkeypatch, accuracy, errors, 0.0, steps=8)
    assert set(found.network.by_site.values()) == {TWO}
    assert found.layers.by_site == {"w": TWO, "head": ONE}
    (_, _), (_, head), (w, _) = energies()
    assert found.layers.energy == pytest.approx(w + head)
    assert found.evaluations == 1 + len(found.tried)


def test_no_loss_at_all_may_be_asked_for():
    with pytest.raises(ValueError, match=r"drop=-1e-09: must be a number of at least 0"):
        search_blocked(js.quantize(8, 8)(stack()), X, float, drop=-1e-9)
