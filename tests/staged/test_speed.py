"""Which setting of a network in stages is chosen, what it sets, and what a sweep says of it."""

import dataclasses
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.network.arguments import call_arguments
from jaxsim.staged import exit_queue, exits
from jaxsim.staged.seconds import StageSeconds, row_seconds, stage_seconds
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


TABLE = StageSeconds(
    ("layers/0/up", "layers/1/query", "layers/1/up"),
    4,
    (12, 24),
    np.array([[1.0, 7.0], [2.0, 13.0], [3.0, 17.0], [5.0, 29.0]]),
)
"""Seconds of attention and perceptron of two layers."""


def test_seconds_of_a_setting_are_the_shares_that_its_rows_have_of_full_batches():
    """Row by row from what `run` says was kept, where times are such that each stage tells."""
    net, settings = pyramid(), {"scales": (0.0, 1.0, 1.5), "thresholds": (0.0, 0.6)}
    places = exit_queue.run_layout(net, call_arguments((IDS, LENGTHS), {})).places
    table = TABLE._replace(places=places)
    found = sweep(net, (IDS, LENGTHS), LABELS, buckets=SMALL, seconds=table, **settings)
    assert [s[:5] for s in found] == [
        s[:5] for s in sweep(net, (IDS, LENGTHS), LABELS, buckets=SMALL, **settings)
    ]
    for speed in found:
        out, total = at_speed(net, speed).run(IDS, LENGTHS, buckets=SMALL), 0.0
        for length, layer, kept in zip(LENGTHS, out.layer, out.kept, strict=True):
            held = [length, kept[0], kept[0], kept[1]][: 2 * int(layer)]
            wide = [int(tokens > 12) for tokens in held]
            total += sum(TABLE.seconds[at][i] for at, i in enumerate(wide)) / 4
        np.testing.assert_allclose(speed.seconds, total / len(LENGTHS), rtol=1e-6)
    assert len({speed.seconds for speed in found}) == len(found)


def test_the_fastest_by_seconds_may_be_another():
    timed = [s._replace(seconds=t) for s, t in zip(FOUND, (3.0, 4.0, 2.0, 1.0), strict=True)]
    assert fastest(timed, 0.9, by="seconds") is timed[2]
    assert fastest(timed, 0.9) is timed[1]
    with pytest.raises(ValueError, match="by='seconds': settings have none"):
        fastest([*timed, FOUND[0]], 0.9, by="seconds")
    with pytest.raises(ValueError, match="by='time': must be 'flops' or 'seconds'"):
        fastest(timed, 0.9, by="time")


def test_measured_seconds_are_about_those_of_a_run():
    """Within a factor of four, of full batches on a machine that others use too."""
    net = pyramid()
    table = stage_seconds(net, (IDS, LENGTHS), buckets=SMALL)
    assert (table.rows, table.tokens, table.seconds.shape) == (8, (12, 24), (4, 2))
    rows = np.arange(640) % 16  # so many that what a call costs by itself is little
    args, labels = (IDS[rows], LENGTHS[rows]), LABELS[rows]
    (speed,) = sweep(net, args, labels, buckets=SMALL, seconds=table)
    net.run(*args, buckets=SMALL)
    took = []
    for _ in range(3):
        begin = time.perf_counter()
        net.run(*args, buckets=SMALL)
        took.append(time.perf_counter() - begin)
    assert 0.25 < 640 * speed.seconds / np.median(took) < 4


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE._replace(places=("a",)), "seconds: of stages that begin at .'a'.; the network's"),
        (TABLE._replace(seconds=np.ones((4, 3))), r"seconds\[4, 3\]: must be of each .*\[4, 2\]"),
        (TABLE._replace(tokens=(6, 12)), "seconds: of 12 tokens at most; rows have 24"),
    ],
)
def test_seconds_of_other_stages_are_refused(table, message):
    net = pyramid()
    places = exit_queue.run_layout(net, call_arguments((IDS, LENGTHS), {})).places
    table = table._replace(places=places if len(table.places) > 1 else table.places)
    with pytest.raises(ValueError, match=message):
        sweep(net, (IDS, LENGTHS), LABELS, seconds=table)


def test_stages_that_overlap_have_no_seconds():
    pipe = js.pipeline_shard(1, 1, devices=jax.devices()[:1])(exit_net()[0])
    with pytest.raises(ValueError, match="stages of a pipeline overlap in time"):
        stage_seconds(pipe, exit_net()[1])


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
    for call in (
        lambda net: sweep(net, IDS, LABELS),
        lambda net: at_speed(net, FOUND[0]),
        lambda net: stage_seconds(net, IDS),
    ):
        with pytest.raises(ValueError, match="has no exits"):
            call(network(2))


@pytest.mark.parametrize(
    ("present", "arguments", "before"),
    [
        (None, (True,), (8, 8)),  # nothing is known before the first attention
        (len, (), (8, 4)),  # at first all are computed, as no argument can be cut short
        (len, (True,), (4, 4)),
    ],
)
def test_seconds_of_a_row_are_those_of_the_tokens_that_a_stage_computes(present, arguments, before):
    """Two stages before the first attention and one behind it, of one row of 4 tokens out of 8."""
    seconds = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 128.0, 256.0]])
    table = StageSeconds(("a", "b"), 2, (2, 4, 8), seconds)
    tokens = SimpleNamespace(layers=(0, 0, 1), length=8, arguments=arguments)
    found = SimpleNamespace(exits=(0, None), widths=(3,), tokens=tokens)
    net = SimpleNamespace(tokens=SimpleNamespace(present=present))
    there, kept = jnp.array([4, 4]), [jnp.array([2, 2])]
    spent = row_seconds(net, found, table, jnp.array([1, 2]), there, kept)
    at = {2: 0, 4: 1, 8: 2}
    first = seconds[0, at[before[0]]]
    rest = seconds[1, at[before[1]]] + seconds[2, 0]
    np.testing.assert_array_equal(spent, np.array([first, first + rest]) / 2)
