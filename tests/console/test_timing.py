"""Times of alternatives."""

import time

import pytest

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
