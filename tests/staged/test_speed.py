"""Which setting of a network in stages is chosen, what it sets, and what a sweep says of it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.staged import exits
from jaxsim.staged.speed import Speed, at_speed, fastest, sweep
from tests.support.encoders import heads, network, present, sequences

FOUND = [
    Speed(1.0, 0.0, 0.92, 4e6, 6.0),
    Speed(1.0, 0.3, 0.91, 2e6, 3.0),
    Speed(2.0, 0.3, 0.90, 3e6, 2.0),
    Speed(2.0, 0.9, 0.70, 1e6, 1.0),
]
IDS, LENGTHS = sequences(21)
LABELS = (IDS[:, 0] > 24).astype(np.int32)
SMALL = js.Buckets(batch=4, token=12, max_batch=8)


def pyramid():
    level = js.tokens.linear_thresholds(0.05, 2)
    return js.magic_pyramid(level, js.Rule(0.0), heads(2), present=present)(network(2))


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
    net = pyramid()
    found = at_speed(net, FOUND[2])
    np.testing.assert_allclose(found.tokens.level, 2 * net.tokens.level)
    assert float(found.threshold) == pytest.approx(0.3)
    exit_alone = at_speed(dataclasses.replace(net, tokens=None), FOUND[1])
    assert float(exit_alone.threshold) == pytest.approx(0.3)


def test_a_sweep_says_what_each_setting_gives_and_compiles_once():
    """Of 21 rows in batches of 8 at two lengths, at settings that take rows out in between."""
    net, scales, thresholds = pyramid(), (0.0, 1.0, 1.5), (0.0, 0.6, 1.1)
    before = exits.exit_outputs._cache_size()
    found = sweep(net, (IDS, LENGTHS), LABELS, scales=scales, thresholds=thresholds, buckets=SMALL)
    assert exits.exit_outputs._cache_size() == before + 2  # one a length
    settings = [(scale, threshold) for scale in scales for threshold in thresholds]
    assert [(s.scale, s.threshold) for s in found] == settings
    simulated = [at_speed(net, speed).simulate(IDS, LENGTHS) for speed in found]
    for speed, out in zip(found, simulated, strict=True):
        assert speed.accuracy == np.mean(np.argmax(out.logits, -1) == LABELS)
        np.testing.assert_allclose(speed.flops, np.mean(out.flops), rtol=1e-6)
        np.testing.assert_allclose(speed.layer, np.mean(out.layer), rtol=1e-6)
    assert len({out.layer.sum().item() for out in simulated}) > 3
    flops = np.reshape([s.flops for s in found], (3, 3))
    assert np.all(np.diff(flops, axis=1) < 0)
    assert np.all(np.diff(flops[:, 0]) < 0)


def exit_net():
    params, x = {"a": 2 * jnp.eye(3), "b": jnp.eye(3)}, np.eye(3, dtype=np.float32)
    net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, x)
    head = {"kernel": jnp.eye(3)[::-1], "bias": jnp.zeros(3)}
    return dataclasses.replace(js.exit_early(["b"])(net), heads=(head,)), x


def test_exits_alone_sweep_by_hand():
    """The first classifier is right of the middle class alone; labels come with the inputs."""
    net, x = exit_net()
    found = sweep(net, [(x[:2], np.arange(2)), (x[2:], np.array([2]))], thresholds=(0.0, 1.1))
    assert found == [
        Speed(1.0, 0.0, 1.0, 2 * 9 + 2 * 9 + 2 * 9, 2.0),
        Speed(1.0, 1.1, pytest.approx(1 / 3), 2 * 9 + 2 * 9, 1.0),
    ]
    agreeing = dataclasses.replace(net, patience=1)
    assert [s.layer for s in sweep(agreeing, x, np.arange(3), thresholds=(9.0,))] == [2.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (-0.1,)}, r"scale=-0\.1: must be a number of at least 0"),
        ({"scales": (1.0, 0.5)}, r"scale=0\.5: all tokens of the network stay"),
        ({"thresholds": (-0.1,)}, r"threshold=-0\.1: must be a number of at least 0"),
        ({"labels": np.full(3, 3)}, "labels"),
        ({"labels": np.ones(2, int)}, "labels: 2 of them for 3 rows"),
        ({"inputs": np.full((3, 3), np.nan, "f")}, "inputs"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(options, message):
    net, x = exit_net()
    given = {"inputs": x, "labels": np.arange(3), **options}
    with pytest.raises(ValueError, match=message):
        sweep(net, **given)


def test_networks_that_nothing_leaves_have_no_speed():
    for call in (lambda net: sweep(net, IDS, LABELS), lambda net: at_speed(net, FOUND[0])):
        with pytest.raises(ValueError, match="has no exits"):
            call(network(2))
