"""Which setting of a pyramid is chosen, and what it sets."""

import dataclasses
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.adaptive import speed
from jaxsim.adaptive.rule import Exits
from jaxsim.adaptive.speed import Speed, at_speed, fastest, sweep


@dataclasses.dataclass
class Stub:
    """What a sweep reads of a pyramid."""

    level: Any = 2.0
    threshold: Any = 0.0
    encoder: Any = None


FOUND = [
    Speed(1.0, 0.0, 0.92, 4e6, 6.0),
    Speed(1.0, 0.3, 0.91, 2e6, 3.0),
    Speed(2.0, 0.3, 0.90, 3e6, 2.0),
    Speed(2.0, 0.9, 0.70, 1e6, 1.0),
]


@pytest.mark.parametrize(
    ("accuracy", "place"), [(0.92, 0), (0.915, 0), (0.91, 1), (0.9, 1), (0.7, 3), (0.0, 3)]
)
def test_the_fastest_is_of_fewest_operations_among_those_at_least_as_accurate(accuracy, place):
    assert fastest(FOUND, accuracy) is FOUND[place]
    assert fastest(FOUND[::-1], accuracy) is FOUND[place]


def test_an_accuracy_that_none_reaches_is_refused_with_the_best():
    with pytest.raises(ValueError, match=r"accuracy=0\.93: the best of the settings reaches 0\.92"):
        fastest(FOUND, 0.93)
    with pytest.raises(ValueError, match=r"the best of the settings reaches 0\.0"):
        fastest([], 0.1)


def test_a_setting_scales_the_levels_and_sets_the_threshold():
    found = at_speed(Stub(level=jnp.array([2.0, 3.0])), FOUND[2])
    assert found.level.tolist() == [4.0, 6.0]
    assert float(found.threshold) == pytest.approx(0.3)


def swept(monkeypatch, **options):
    """A sweep whose rows answer right as often as they are let run."""
    encoder = types.SimpleNamespace(head={"bias": np.zeros(4)})

    def exits(net, passed, lengths):
        right = np.arange(4) < 4 * net.threshold
        logits = jnp.where(jnp.asarray(right)[:, None], jnp.eye(4)[1], jnp.eye(4)[2])
        flops = jnp.array([1, 2, 3, 10.0]) * net.level
        return Exits(logits, jnp.array([1, 2, 3, 4]) * 2, logits, flops)

    monkeypatch.setattr(speed, "_take_exits", exits)
    monkeypatch.setattr(speed, "pass_all", lambda net, ids, lengths: None)
    given = {"ids": np.zeros((4, 2)), "lengths": np.ones(4), "labels": np.ones(4, int), **options}
    return sweep(Stub(encoder=encoder), **given)


def test_a_sweep_means_over_rows_at_each_scale_and_threshold(monkeypatch):
    found = swept(monkeypatch, scales=(0.0, 1.5), thresholds=(0.0, 0.5))
    assert found == [
        Speed(0.0, 0.0, 0.0, 0.0, 5.0),
        Speed(0.0, 0.5, 0.5, 0.0, 5.0),
        Speed(1.5, 0.0, 0.0, 12.0, 5.0),
        Speed(1.5, 0.5, 0.5, 12.0, 5.0),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (-0.1,)}, r"scale=-0\.1: must be a number of at least 0"),
        ({"thresholds": (-0.1,)}, r"threshold=-0\.1: must be a number of at least 0"),
        ({"labels": np.full(4, 4)}, "labels"),
        ({"labels": np.ones(3, int)}, "4, 4, 3 rows"),
        ({"lengths": np.ones(5)}, "4, 5, 4 rows"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(monkeypatch, options, message):
    with pytest.raises(ValueError, match=message):
        swept(monkeypatch, **options)
