"""Levels, weights, students and speeds that are learned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

import jaxsim as js
from jaxsim.adaptive import tokens
from jaxsim.adaptive.rule import Buckets, Rule
from jaxsim.adaptive.speed import Speed, at_speed, fastest, sweep
from jaxsim.adaptive.students import distill_students, pass_all
from jaxsim.checkpoint.resume import RunCheckpointer
from jaxsim.train.losses import distillation, distillation_targets
from jaxsim.train.pyramid import Soft, train_pyramid
from tests.support.encoders import heads, pieces, sequences

SMALL = Buckets(batch=4, token=24, max_batch=8)
IDS, LENGTHS = sequences(32)
LABELS = (IDS[:, 0] > 24).astype(np.int32)
ADAM = optax.adam(3e-3)


outputs_of = jax.jit(lambda net, ids, lengths: net.exit_outputs(ids, lengths))
simulate = jax.jit(lambda net, ids, lengths: net.simulate(ids, lengths))


def made(level=0.0, threshold=0.0):
    levels = tokens.linear_thresholds(level, 2)
    return js.magic_pyramid(levels, Rule(threshold), heads(2))(pieces(2))


def trained(net, steps=6, soft=None, labels=LABELS, optimizer=ADAM, **options):
    return train_pyramid(
        net,
        IDS,
        LENGTHS,
        labels,
        steps=steps,
        optimizer=optimizer,
        key=jax.random.key(0),
        soft=soft,
        buckets=SMALL,
        quiet=True,
        **options,
    )


def loss(net):
    logits = pass_all(net, IDS, LENGTHS, buckets=SMALL).logits[:, -1]
    return float(optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean())


def test_weights_learn_with_tokens_left_out_and_nothing_else_moves():
    net = made(0.04)
    after = trained(net, 16)
    assert loss(after) < 0.8 * loss(net)
    assert np.array_equal(after.level, net.level)
    assert jax.tree.all(jax.tree.map(np.array_equal, after.heads, net.heads))
    again = trained(net, 16)
    assert jax.tree.all(jax.tree.map(np.array_equal, after, again))


def test_a_teacher_draws_what_is_trained_as_much_as_its_weight_says():
    """One that is wrong everywhere draws away from the classes, and without weight does nothing."""
    labels = distillation_targets(5.0 * np.asarray(jax.nn.one_hot(1 - LABELS, 3)), LABELS)
    wrong, without = (
        {"labels": labels, "loss": distillation(weight=w, temperature=1.0)} for w in (1.0, 0.0)
    )
    # not by Adam: it makes steps of what is nothing but rounding, as the gradient of a key's bias
    drawn, ignored, plain = (
        trained(made(0.04), 72, optimizer=optax.sgd(0.1), **more) for more in (wrong, without, {})
    )
    assert loss(plain) < 0.9 * loss(made(0.04))
    assert loss(drawn) > 1.5 * loss(plain)
    for ours, theirs in zip(jax.tree.leaves(ignored), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_levels_rise_when_tokens_are_dear_and_never_fall_below_zero():
    net = made(0.02)
    dear = trained(net, soft=Soft(50.0, (0.1, 0.05)))
    assert np.all(dear.level > net.level)
    cheap = trained(dataclasses.replace(net, level=jnp.zeros(2)), 3, soft=Soft(0.0, (0.1, 0.1)))
    assert np.all(cheap.level >= 0)
    assert not np.array_equal(cheap.encoder.head["bias"], net.encoder.head["bias"])


@pytest.mark.parametrize("soft", [None, Soft(1.0, (0.1, 0.05))])
def test_a_run_that_was_stopped_ends_where_the_whole_one_does(tmp_path, monkeypatch, soft):
    net, folder = made(0.04), tmp_path / "run"
    whole, add = trained(net, soft=soft), RunCheckpointer.add

    def add_and_stop(self, step, tree):
        add(self, step, tree)
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpointer, "add", add_and_stop)
        with pytest.raises(KeyboardInterrupt):
            trained(net, soft=soft, checkpoints=folder, every=2)
    resumed = trained(net, soft=soft, checkpoints=folder, every=2)
    assert jax.tree.all(jax.tree.map(np.array_equal, resumed, whole))
    with pytest.raises(ValueError, match="of another run"):
        trained(net, 7, soft=soft, checkpoints=folder)


def test_rows_pass_in_their_order_however_they_are_batched():
    net = made(0.04)
    whole = outputs_of(net, IDS[:13], LENGTHS[:13])
    parts = pass_all(net, IDS[:13], LENGTHS[:13], buckets=SMALL)
    assert np.array_equal(whole.kept, parts.kept)
    np.testing.assert_allclose(whole.logits, parts.logits, atol=1e-4)
    np.testing.assert_allclose(whole.features, parts.features, atol=1e-4)


def test_students_say_what_the_teacher_says_and_leave_it_alone():
    net = made(0.04)
    taught = distill_students(net, IDS, LENGTHS, jax.random.key(0), steps=200)
    assert taught.encoder is net.encoder
    passed = pass_all(taught, IDS, LENGTHS)
    teacher, after = log_softmax(passed.logits[:, -1], -1), log_softmax(passed.logits[:, 0], -1)
    before = log_softmax(outputs_of(net, IDS, LENGTHS).logits[:, 0], -1)
    divergence = [np.mean(np.exp(teacher) * (teacher - s)) for s in (before, after)]
    assert divergence[1] < 0.5 * divergence[0]


def test_a_sweep_says_what_each_setting_gives():
    net = made(0.04)
    found = sweep(net, IDS, LENGTHS, LABELS, scales=(0.0, 1.0), thresholds=(0.0, 0.6, 1.1))
    assert [(s.scale, s.threshold) for s in found] == [
        (scale, threshold) for scale in (0.0, 1.0) for threshold in (0.0, 0.6, 1.1)
    ]
    for speed in found:
        out = simulate(at_speed(net, speed), IDS, LENGTHS)
        right = np.mean(np.argmax(out.logits, -1) == LABELS)
        np.testing.assert_allclose(speed.accuracy, right)
        np.testing.assert_allclose(speed.flops, np.mean(out.flops), rtol=1e-6)
        np.testing.assert_allclose(speed.layer, np.mean(out.layer), rtol=1e-6)
    flops = np.reshape([s.flops for s in found], (2, 3))
    assert np.all(np.diff(flops, axis=1) < 0)
    assert np.all(np.diff(flops, axis=0) <= 0)


def test_the_fastest_of_those_that_are_good_enough_is_chosen():
    speeds = [Speed(1, d, a, f, 1) for d, a, f in ((0.0, 0.9, 3), (0.5, 0.89, 2), (0.9, 0.8, 1))]
    assert fastest(speeds, 0.85).threshold == 0.5
    assert fastest(speeds, 0.9).threshold == 0.0
    with pytest.raises(ValueError, match=r"accuracy=0\.95"):
        fastest(speeds, 0.95)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"soft": Soft(-1.0)}, "weight"),
        ({"soft": Soft(0.1, (0.0, 1.0))}, "temperature"),
    ],
)
def test_arguments_out_of_range_are_named(changes, named):
    with pytest.raises(ValueError, match=named):
        trained(made(), **changes)


def test_rows_have_to_fit():
    with pytest.raises(ValueError, match="31 rows"):
        train_pyramid(
            made(),
            IDS,
            LENGTHS,
            LABELS[:31],
            steps=1,
            optimizer=optax.sgd(1),
            key=jax.random.key(0),
        )
    with pytest.raises(ValueError, match="a batch"):
        train_pyramid(
            made(),
            IDS[:9],
            LENGTHS[:9],
            LABELS[:9],
            steps=1,
            optimizer=optax.sgd(1),
            key=jax.random.key(0),
        )
    with pytest.raises(ValueError, match="scale"):
        sweep(made(), IDS, LENGTHS, LABELS, scales=(-1.0,))
