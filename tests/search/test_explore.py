import dataclasses
import itertools
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

import jaxsim as js
from jaxsim.accelerators.calls import prepared_call
from jaxsim.search.explore import explore
from jaxsim.search.front import dominated_area, non_dominated
from jaxsim.search.options import apply_options, fit_options, named_options
from jaxsim.search.part_costs import part_costs
from tests.support.explored_process import explored
from tests.support.networks import X, deep_cnn
from tests.support.printed import header
from tests.support.processes import start

CHIP = js.accelerators.mixed()
OPTIONS = {
    "8": js.quantize(8, 8),
    "4": js.quantize(4, 8),
    "2": js.quantize(2, 8),
    "analog": js.Option(
        js.compose(js.quantize(8, 8), js.slice_bits(2), js.analog(rows=128, adc=6)),
        sites=["Conv*"],
        part="analog",
    ),
}
SETTING = {"drop": 0.02, "points": 4, "steps": 3, "quiet": True}


@jax.jit
def outputs(net):
    return net(X)


def closeness(calls):
    """A stand-in for accuracy: 1 where outputs are those of the network as it was given."""
    y = np.asarray(outputs(deep_cnn()))

    def evaluate(net):
        calls.append(net)
        return 1 - float(np.sum((np.asarray(outputs(net)) - y) ** 2) / np.sum(y**2))

    return evaluate


@pytest.fixture(scope="module")
def found():
    calls, compiled = [], outputs._cache_size()
    front = explore(
        deep_cnn(),
        CHIP,
        OPTIONS,
        X,
        closeness(calls),
        baselines=("greedy", "random"),
        key=jax.random.key(0),
        **SETTING,
    )
    return front, len(calls), outputs._cache_size() - compiled


def test_all_choices_are_one_program(found):
    front, calls, compiled = found
    assert calls == front.evaluations == 1 + len(front.tried)
    assert compiled <= 2  # the network as it was given, and every choice


def test_points_are_the_networks_that_they_say(found):
    """Accuracy and cost of each are those of its network, deployed and estimated by itself."""
    front, _, _ = found
    evaluate = closeness([])
    for i, point in enumerate(front.points):
        net = front.network(i)
        parts = {n: "analog" for n, o in point.by_place.items() if o == "analog"}
        spent = js.estimate(net, CHIP, parts=parts)
        assert (point.energy, point.latency, point.area) == pytest.approx(
            (spent.energy, spent.latency, spent.area), rel=1e-9
        )
        assert front.estimate(i) == front.estimate(point) == spent
        chip = js.deploy(net, calibrate=X, key=jax.random.fold_in(jax.random.key(0), 0))
        assert evaluate(chip) == pytest.approx(point.accuracy, abs=1e-5)


def test_costs_of_places_sum_to_that_of_the_network(found):
    front, _, _ = found
    rows, names = np.arange(len(front.fit.places)), front.fit.options
    for name in ("energy", "latency", "area"):
        rest = [
            getattr(p, name)
            - front.spent[name][rows, [names.index(o) for o in p.by_place.values()]].sum()
            for p in front.tried
        ]
        assert rest == pytest.approx([rest[0]] * len(rest), rel=1e-6, abs=1e-12)


def test_the_program_chooses_as_trying_every_choice_does(found):
    front, _, _ = found
    rows, names = np.arange(len(front.fit.places)), front.fit.options
    energy = front.spent["energy"]
    for point in front.tried:
        if "program" not in point.found_by:
            continue
        choice = [names.index(o) for o in point.by_place.values()]
        budget = energy[rows, choice].sum()
        best = min(
            front.errors[rows, other].sum()
            for other in itertools.product(range(len(names)), repeat=len(rows))
            if energy[rows, other].sum() <= budget * (1 + 1e-9)
        )
        assert point.predicted == pytest.approx(best, rel=1e-6)


def test_the_program_beats_uniform_choices_and_the_front_is_what_nothing_beats(found):
    front, _, _ = found
    costs = np.array([[p.energy, -p.accuracy] for p in front.tried])
    for point in front.points:
        own = np.array([point.energy, -point.accuracy])
        assert not ((costs <= own).all(1) & (costs < own).any(1)).any()
    assert {p.energy for p in front.points} == {costs[i, 0] for i in non_dominated(costs)}
    everything = front.hypervolume()
    assert everything >= front.hypervolume(["program", "uniform"]) > front.hypervolume(["uniform"])
    assert front.within(0.02).energy < min(
        p.energy for p in front.tried if "uniform" in p.found_by and p.accuracy >= 0.98
    )
    assert front.within(-1.0) is None
    lucky = [front.tried[0]._replace(accuracy=3.0), *front.tried[1:]]
    level = [front.tried[0]._replace(accuracy=front.exact), *front.tried[1:]]
    areas = [front._replace(tried=tuple(points)).hypervolume() for points in (lucky, level)]
    assert areas[0] == areas[1] <= 1


def test_why_says_what_the_next_option_would_gain(found):
    front, _, _ = found
    energy, names = front.spent["energy"], front.fit.options
    for i, reason in enumerate(front.why(0)):
        o = names.index(reason.option)
        assert (reason.error, reason.spent) == (front.errors[i, o], energy[i, o])
        better = [
            k
            for k in range(len(names))
            if energy[i, k] > energy[i, o] and front.errors[i, k] < front.errors[i, o]
        ]
        if better:
            best = min(better, key=lambda k: front.errors[i, k])
            assert reason.next == names[best]
            gain = (front.errors[i, o] - front.errors[i, best]) / (energy[i, best] - energy[i, o])
            assert reason.gain == pytest.approx(gain)
        else:
            assert reason.next == ""


def test_a_recipe_makes_the_network(found):
    front, _, _ = found
    names = {"js": js, "compose": js.compose, "quantize": js.quantize}
    names |= {"slice_bits": js.slice_bits, "analog": js.analog}
    for i in range(len(front.points)):
        made = eval(front.recipe(i), names)(deep_cnn())
        assert made.cores == front.network(i).cores


def test_a_front_prints(found):
    front, _, _ = found
    assert header(front)[1:] == ["accuracy", "pJ", "s", "mm²", "found by", "places"]
    assert repr(front) == f"Front({len(front.points)} points, {front.evaluations} evaluations)"


def test_a_stopped_exploration_goes_on_to_the_same_front(found, tmp_path):
    """Stopped in the middle of evaluations: what was measured is not measured again."""
    front, calls, _ = found
    log, seen = tmp_path / "log.json", []
    evaluate = closeness(seen)

    def stopping(net):
        if len(seen) == 5:
            raise KeyboardInterrupt
        return evaluate(net)

    setting = {**SETTING, "baselines": ("greedy", "random"), "key": jax.random.key(0), "log": log}
    with pytest.raises(KeyboardInterrupt):
        explore(deep_cnn(), CHIP, OPTIONS, X, stopping, **setting)
    again = explore(deep_cnn(), CHIP, OPTIONS, X, evaluate, **setting)
    assert len(seen) == calls
    assert again.points == front.points
    with pytest.raises(ValueError, match="another network, inputs or options"):
        explore(deep_cnn(), CHIP, {"8": js.quantize(8, 8)}, X, evaluate, **setting)
    assert json.loads(log.read_text())["exact"] == [1.0]


def test_an_exploration_that_was_killed_goes_on_to_the_same_front(tmp_path):
    """By SIGKILL in the middle of an evaluation, in another process; it measures what is left."""
    log = tmp_path / "log.json"
    process = start("tests.support.explored_process", log, 3)
    process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL
    whole, calls = explored(None)
    again, left = explored(log)
    assert again.points == whole.points
    assert left == calls - 2


def test_evaluations_may_run_at_once(found):
    front, _, _ = found
    with ThreadPoolExecutor(2) as pool:
        again = explore(
            *(deep_cnn(), CHIP, OPTIONS, X, closeness([])),
            **{**SETTING, "baselines": ("greedy", "random"), "key": jax.random.key(0)},
            executor=pool,
        )
    assert again.points == front.points


def test_limits_hold_and_what_is_minimized_may_be_another():
    evaluate = closeness([])
    options = {name: OPTIONS[name] for name in ("8", "analog")}
    free = explore(deep_cnn(), CHIP, options, X, evaluate, **SETTING)
    digital = min(p.latency for p in free.tried)
    most = digital + 1e-5  # one convolution in cells takes 0.7e-5, the other 2.8e-5
    assert max(p.latency for p in free.tried) > most
    found = explore(deep_cnn(), CHIP, options, X, evaluate, limits={"latency": most}, **SETTING)
    assert all(p.latency <= most for p in found.tried)
    assert len({p.energy for p in found.tried}) > 1
    exact = sorted({p.latency for p in found.tried})[1]
    for most, allowed in ((exact * (1 + 1e-9), True), (exact * (1 - 1e-6), False)):
        tight = explore(deep_cnn(), CHIP, options, X, evaluate, limits={"latency": most}, **SETTING)
        assert (max(p.latency for p in tight.tried) == exact) is allowed
    most = sorted({p.energy for p in free.tried})[1] * (1 - 1e-6)  # with what is no site
    cheap = explore(deep_cnn(), CHIP, options, X, evaluate, limits={"energy": most}, **SETTING)
    assert all(p.energy <= most for p in cheap.tried)
    fast = explore(deep_cnn(), CHIP, options, X, evaluate, minimize="latency", **SETTING)
    assert fast.points[0].latency == pytest.approx(digital)


def test_draws_are_other_chips_of_one_program():
    cells = js.compose(
        js.quantize(8, 8), js.slice_bits(2), js.analog(rows=128, cells=js.cells.proportional(0.2))
    )
    evaluate, compiled = closeness([]), outputs._cache_size()
    options = {"8": js.quantize(8, 8), "cells": cells}
    setting = {**SETTING, "points": 2, "steps": 0, "key": jax.random.key(1)}
    front = explore(deep_cnn(), CHIP, options, X, evaluate, draws=3, **setting)
    assert outputs._cache_size() - compiled <= 1
    drawn = {tuple(p.by_place.values()): p.deviation for p in front.tried}
    assert drawn[("8",) * 4] == 0 < drawn[("cells",) * 4]
    chips = [
        js.deploy(cells(deep_cnn()), calibrate=X, key=jax.random.fold_in(jax.random.key(1), i))
        for i in range(3)
    ]
    each = np.array([evaluate(chip) for chip in chips])
    point = next(p for p in front.tried if set(p.by_place.values()) == {"cells"})
    assert point.accuracy == pytest.approx(each.mean(), abs=1e-5)
    assert point.deviation == pytest.approx(each.std(ddof=1) / 3**0.5, rel=1e-2)


def test_networks_that_rows_leave_are_explored_by_what_reaches_their_stages():
    """Places by what the network as given leaves, points by what their own chips do."""
    net = js.exit_early(["Conv_1/kernel"])(deep_cnn())
    rng = np.random.default_rng(0)
    heads = tuple({**h, "kernel": rng.normal(size=h["kernel"].shape)} for h in net.heads)
    net = dataclasses.replace(net, heads=heads)
    doubts = np.sort(np.asarray(net.simulate(X).uncertainty[:, 0]))
    net = dataclasses.replace(net, threshold=np.float32(doubts[2:4].mean()))
    options = {"8": js.quantize(8, 8), "1": js.quantize(2, 2)}
    seen = []

    def evaluate(chip):
        seen.append(chip)
        return -float(np.sum((np.asarray(outputs(chip)) - y) ** 2))

    y = np.asarray(outputs(net))
    front = explore(net, CHIP, options, X, evaluate, **{**SETTING, "points": 2, "steps": 0})
    places, names = front.fit.places, front.fit.options
    rows = [8, 5, 5, 5]
    for o, name in enumerate(names):
        for i, (place, count) in enumerate(zip(places, rows, strict=True)):
            whole = apply_options(deep_cnn(), front.options, {place: name})
            alone = js.estimate(whole, CHIP, X[:count]).sites[place.name]
            assert front.spent["energy"][i, o] == pytest.approx(alone.energy)
    left = set()
    for point, chip in zip(front.tried, seen[1:], strict=True):
        layer = np.asarray(chip.simulate(X).layer)
        left.add(int((layer == 1).sum()))
        found = front.estimate(point)
        assert f"rows in each stage: 8, {(layer > 1).sum()}" in found.notes
        assert point.energy == found.energy
    assert len(left) > 1  # other formats, other rows that leave


def test_draws_of_a_traced_evaluation_are_one_sweep(tmp_path):
    """The same accuracies and deviations; the way that was faster is kept with the scores."""
    cells = js.compose(
        js.quantize(8, 8), js.slice_bits(2), js.analog(rows=128, cells=js.cells.proportional(0.2))
    )
    y = deep_cnn()(X)

    def closeness(chip):
        return 1 - jax.numpy.sum((chip(X) - y) ** 2) / jax.numpy.sum(y**2)

    setting = {**SETTING, "points": 2, "steps": 0, "key": jax.random.key(1), "draws": 2}
    calls = deep_cnn(), CHIP, {"8": js.quantize(8, 8), "cells": cells}, X
    loop = explore(*calls, jax.jit(closeness), **setting)
    log = tmp_path / "log.json"
    found = explore(*calls, closeness, traced=True, log=log, **setting)
    for mine, other in zip(found.tried, loop.tried, strict=True):
        assert mine.by_place == other.by_place
        assert mine.accuracy == pytest.approx(other.accuracy, abs=1e-5)
        assert mine.deviation == pytest.approx(other.deviation, abs=1e-5)
    assert json.loads(log.read_text())["way of draws"] in ("map", "vmap")


def test_areas_between_points():
    assert dominated_area(np.array([[0.5, 1.0], [1.0, 0.5], [0.4, 0.9]])) == 0.75
    assert dominated_area(np.array([[-1.0, 2.0]])) == 0
    assert non_dominated(np.array([[2, 1], [1, 2], [2, 2], [1, 2]])) == [1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minimize": "power"}, r"minimize='power': must be one of 'energy', 'latency', 'area'"),
        ({"limits": {"power": 1.0}}, r"limits='power': must be one of"),
        ({"limits": {"energy": 1.0}}, r"limits\['energy'\]=1: the cheapest choice spends"),
        ({"limits": {"area": 0.1}}, r"limits\['area'\]=0\.1: .* spent whatever is chosen"),
        ({"drop": -1}, r"drop=-1"),
        ({"points": 1}, r"points=1"),
        ({"steps": -1}, r"steps=-1"),
        ({"draws": 2}, r"draws=2: .*give key="),
        ({"draws": 0}, r"draws=0"),
        ({"baselines": ("best",)}, r"baselines: 'best' is none of 'greedy', 'random'"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        explore(
            deep_cnn(), CHIP, {"8": js.quantize(8, 8)}, X, closeness([]), **{**SETTING, **change}
        )


def test_bisection_finds_cheaper_choices_that_are_accurate_enough():
    """Budgets halve, by their logarithm, between a choice that is enough and one that is not."""
    options = {name: OPTIONS[name] for name in ("8", "4", "2")}
    setting, evaluate = {**SETTING, "points": 2, "drop": 0.15}, closeness([])
    before = explore(deep_cnn(), CHIP, options, X, evaluate, **{**setting, "steps": 0})
    after = explore(deep_cnn(), CHIP, options, X, evaluate, **{**setting, "steps": 6})
    assert after.within(0.15).energy < before.within(0.15).energy
    assert 0 < after.evaluations - before.evaluations <= 6
    added = [p for p in after.tried if p not in before.tried]
    enough = min(p.energy for p in before.tried if p.accuracy >= 0.85)
    assert all(p.energy <= enough * (1 + 1e-9) for p in added)
    assert after.within(0.15) in added
    for first, later in itertools.combinations(added, 2):  # never below what was not enough
        assert first.accuracy >= 0.85 or later.energy >= first.energy * (1 - 1e-9)
    rows, names = range(len(after.fit.places)), after.fit.options
    best = min(
        after.spent["energy"][rows, choice].sum()
        for choice in itertools.product(range(len(names)), repeat=len(rows))
        if after.errors[rows, choice].sum() <= 0.15
    )
    chosen = [names.index(o) for o in after.within(0.15).by_place.values()]
    assert after.spent["energy"][rows, chosen].sum() <= 1.01 * best


def test_a_table_that_is_also_a_head_may_be_multiplied_in_cells():
    """Its rows are looked up elsewhere, and what that moves is a part of what the place spends."""
    rng = np.random.default_rng(0)
    params = {"table": rng.normal(size=(40, 16)).astype(np.float32)}
    ids = rng.integers(0, 40, (3, 4))
    net = js.trace(lambda p, i: jax.numpy.tanh(p["table"][i]) @ p["table"].T, params, ids)
    named = named_options({"8": js.quantize(8, 8), "cells": OPTIONS["analog"]._replace(sites="*")})
    prepared = prepared_call(net, (), {}, None, CHIP.activations)
    costs = part_costs(net, CHIP, named, fit_options(net, named), prepared)
    assert costs.fit.table().tolist() == [[True, True]]
    (place,) = costs.fit.places
    for o, name in enumerate(named):
        made = apply_options(net, named, {place: name})
        spent = js.estimate(made, CHIP)
        assert spent.sites["table"].part == ("array", "analog")[o]
        assert spent.sites["table:lookup"].part == "simd"
        both = sum(spent.sites[site].energy for site in place.sites)
        assert costs.spent["energy"][0, o] == pytest.approx(both)


def test_greedy_exchanges_what_loses_least_for_what_it_saves(found):
    """Replayed step by step from the tables, with plain loops."""
    front, _, _ = found
    energy, errors = front.spent["energy"], front.errors
    rows = range(len(errors))
    ends = set()
    choice = [int(np.argmin(errors[i])) for i in rows]
    while True:
        ends.add(tuple(choice))
        moves = [
            ((errors[i, o] - errors[i, choice[i]]) / (energy[i, choice[i]] - energy[i, o]), i, o)
            for i in rows
            for o in range(errors.shape[1])
            if energy[i, o] < energy[i, choice[i]] and np.isfinite(errors[i, o])
        ]
        if not moves:
            break
        _, i, o = min(moves)
        choice[i] = o
    greedy = [p for p in front.tried if "greedy" in p.found_by]
    assert len(greedy) >= 2
    for point in greedy:
        assert tuple(front.fit.options.index(o) for o in point.by_place.values()) in ends


def test_devices_are_here_or_elsewhere():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("m",))
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match=r"mesh, executor: .*one"):
        explore(
            *(deep_cnn(), CHIP, {"8": OPTIONS["8"]}, X, closeness([])),
            mesh=mesh,
            executor=pool,
            **SETTING,
        )


def test_accuracies_must_be_finite():
    with pytest.raises(ValueError, match=r"evaluate: returned \[nan\]; expected finite"):
        explore(deep_cnn(), CHIP, {"8": OPTIONS["8"]}, X, lambda net: np.nan, **SETTING)


def test_an_option_that_no_part_runs_is_refused_by_name():
    digital = js.accelerators.systolic_45nm()
    options = {"analog": OPTIONS["analog"].transform}
    with pytest.raises(ValueError, match=r"options: no part runs 'analog' anywhere: array "):
        explore(deep_cnn(), digital, {**options, "8": OPTIONS["8"]}, X, closeness([]), **SETTING)
    part = js.Option(js.quantize(8, 8), part="gpu")
    with pytest.raises(ValueError, match="'gpu': must be one of array, simd"):
        explore(deep_cnn(), digital, {"8": part}, X, closeness([]), **SETTING)
    array = dataclasses.replace(digital, parts={"array": digital.parts["array"]})
    with pytest.raises(ValueError, match="no part runs 'float' anywhere: array holds floats"):
        explore(deep_cnn(), array, {"8": OPTIONS["8"], "float": None}, X, closeness([]), **SETTING)
    convolutions = js.Option(js.quantize(8, 8), sites=["Conv*"])
    with pytest.raises(ValueError, match=r"no part runs Dense_0/kernel .*no option changes it"):
        explore(deep_cnn(), array, {"8": convolutions}, X, closeness([]), **SETTING)


def test_a_cluster_serves_evaluations_though_a_worker_is_killed():
    """Two processes, one of which goes in the middle: its evaluations go to another."""
    distributed = pytest.importorskip("distributed", reason="no cluster: distributed is absent")
    y, x = np.asarray(outputs(deep_cnn())), np.asarray(X)

    def evaluate(net):
        time.sleep(0.2)  # long enough to be killed in
        return 1 - float(np.sum((np.asarray(net(x)) - y) ** 2) / np.sum(y**2))

    options = {name: OPTIONS[name] for name in ("8", "4", "2")}
    setting = {**SETTING, "steps": 0}
    here = explore(deep_cnn(), CHIP, options, X, evaluate, **setting)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as two,
        distributed.Client(two) as client,
    ):
        before = set(client.run(os.getpid).values())
        threading.Timer(1.0, os.kill, (min(before), signal.SIGKILL)).start()
        executor = client.get_executor()
        there = explore(deep_cnn(), CHIP, options, X, evaluate, executor=executor, **setting)
        after = set(client.run(os.getpid).values())
    assert after != before
    assert [p.by_place for p in there.tried] == [p.by_place for p in here.tried]
    close = [p.accuracy for p in here.tried]
    assert [p.accuracy for p in there.tried] == pytest.approx(close, abs=1e-5)
