"""Times of alternatives."""

import inspect
import time
import types

import pytest

from jaxsim.console import timing
from jaxsim.console.timing import alternate


def test_alternatives_take_turns_and_the_first_call_is_apart():
    called = []

    def one():
        called.append("one")
        time.sleep(0.02 if len(called) <= 2 else 0.002)

    def other():
        called.append("other")
        time.sleep(0.004)

    times = alternate({"one": one, "other": other}, runs=5, inner=2)
    assert called[:2] == ["one", "other"]
    rounds = [called[i : i + 4] for i in range(2, len(called), 4)]
    there = ["one", "one", "other", "other"]
    assert rounds == [there, there[::-1], there, there[::-1], there]
    assert times["one"].first >= 0.02 > times["one"].best >= 0.002
    assert times["other"].best >= 0.004
    assert times["one"].best <= times["one"].median
    assert times["one"].runs == 5


@pytest.mark.parametrize("wrong", [{"runs": 4}, {"inner": 0}])
def test_too_few_calls_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        alternate({"one": int}, **wrong)


def test_a_measurement_of_several_calls_is_of_one_by_hand(monkeypatch):
    """By a clock that a call moves: 7 seconds at first, then 1, 2, 3, … and three a measurement."""
    now = [100.0]
    lasts = iter([7.0, *(float(s) for s in range(1, 16))])

    def call():
        now[0] += next(lasts)

    clock = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(timing, "time", clock)
    # (1 + 2 + 3) / 3 and on, up to (13 + 14 + 15) / 3
    assert alternate({"one": call}, runs=5, inner=3) == {"one": timing.Timing(7, 8, 2, 5)}


def test_results_are_waited_for_once_a_measurement(monkeypatch):
    """A second a call, and ten until what the last of three gives is there."""
    now = [0.0]

    class Result:
        def block_until_ready(self):
            now[0] += 10

    def call():
        now[0] += 1
        return Result()

    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    (found,) = alternate({"one": call}, runs=5, inner=3).values()
    assert found == timing.Timing(11, 13 / 3, 13 / 3, 5)


def test_rounds_are_twenty_one_unless_said():
    defaults = {n: p.default for n, p in inspect.signature(alternate).parameters.items()}
    assert (defaults["runs"], defaults["inner"]) == (21, 1)
