import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim.train.loop import fit
from jaxsim.train.losses import distillation, distillation_targets
from jaxsim.transforms.learn_ranges import ranges, with_ranges
from tests.support import models, twins
from tests.support.models import normal
from tests.support.networks import SITES, X, answer, attention, cnn, run

LABELS = np.arange(len(X)) % 3


def coarse(**more):
    return js.learn_ranges(X, **more)(js.quantize(3, js.Grid(4, symmetric=False))(cnn()))


def test_ranges_begin_where_the_error_is_smallest():
    net = coarse()
    grid = js.Grid(3, per="channel", clip=js.clipping.least_squares())
    chip = js.deploy(js.quantize(grid, js.Grid(4, symmetric=False))(cnn()), calibrate=X)
    for name in SITES:
        top = np.squeeze(chip.states[name].scale) * 3
        np.testing.assert_allclose(ranges(net)[f"{name} weights 1"], top, rtol=1e-5)
    assert len(ranges(net)) == 4 * len(SITES)


def test_deployed_it_reads_as_it_was_trained():
    net = coarse()
    np.testing.assert_allclose(answer(net, X), run(net, X), rtol=1e-5, atol=1e-6)


def test_derivatives_of_ranges_are_those_of_the_rule_by_hand():
    """One dense layer: the chain rule through one quantiser, written out."""
    w, x = models.normal(6, 3), models.normal(20, 6)
    net = js.trace(lambda p, x: x @ p["w"], {"w": w}, x)
    net = js.learn_ranges(x, activations=None)(js.quantize(js.Grid(3), None)(net))
    values = ranges(net)

    def loss(values):
        return jnp.sum(with_ranges(net, values)(x) ** 2)

    found = jax.grad(loss)(values)
    hi = float(values["w weights 1"])
    step = hi / 3
    codes = np.clip(np.rint(w / step), -3, 3)
    by_step = np.where(np.abs(np.rint(w / step)) <= 3, codes - w / step, codes)
    slope = np.sum(2 * (x @ (codes * step)) * (x @ by_step)) / 3 / np.sqrt(3 * w.size)
    assert float(found["w weights 1"]) == pytest.approx(float(slope), rel=1e-3)
    assert float(found["w weights 0"]) == 0


def test_training_moves_weights_and_ranges_and_is_the_same_after_an_interruption(tmp_path):
    net, key = coarse(), jax.random.key(0)
    settings = {"optimizer": optax.adam(1e-2), "key": key, "batch_size": 4, "quiet": True}
    whole = fit(net, X, LABELS, epochs=3, **settings)
    fit(net, X, LABELS, epochs=2, checkpoints=tmp_path, **settings)
    resumed = fit(net, X, LABELS, epochs=3, checkpoints=tmp_path, **settings)
    for name, value in ranges(whole).items():
        np.testing.assert_array_equal(value, ranges(resumed)[name])
    moved = [n for n, v in ranges(whole).items() if not np.array_equal(v, ranges(net)[n])]
    assert {n.rsplit(" ", 1)[0] for n in moved} == {
        f"{site} {operand}" for site in SITES for operand in ("weights", "inputs")
    }


def test_pact_keeps_zero_and_trains_the_upper_end():
    net = js.learn_ranges(X, weights=None, activations=lambda lo, hi: js.clipping.pact(hi))(
        js.quantize(8, js.Grid(4, symmetric=False))(cnn())
    )
    assert set(ranges(net)) == {f"{name} inputs 0" for name in SITES}
    found = jax.jit(jax.grad(lambda v: jnp.sum(with_ranges(net, v)(X) ** 2)))(ranges(net))
    assert any(float(g) != 0 for g in found.values())


def test_changed_ranges_share_a_compilation():
    net, seen = coarse(), []

    @jax.jit
    def call(net, x):
        seen.append(None)
        return net(x)

    for factor in (1.0, 1.5):
        call(with_ranges(net, {k: v * factor for k, v in ranges(net).items()}), X)
    assert len(seen) == 1


def test_networks_without_codes_or_of_two_inputs_are_refused():
    with pytest.raises(ValueError, match="Conv_0/kernel: it is not on a grid"):
        js.learn_ranges(X)(cnn())
    net = js.quantize(8, 8, sites="dynamic*")(attention())
    with pytest.raises(ValueError, match="dynamic/0: it contracts two inputs"):
        js.learn_ranges(normal(2, 5, 4), sites="dynamic*")(net)


LEARN = js.rules(
    {
        "*up*": js.compose(
            js.quantize(js.Grid(3, per="group", rows=2), 4),
            js.learn_ranges(twins.X, activations=lambda lo, hi: js.clipping.pact(hi)),
        ),
        "*": js.compose(
            js.quantize(js.Grid(3, per="channel"), js.Grid(4, symmetric=False)),
            js.learn_ranges(twins.X),
        ),
    }
)


@jax.jit
def trained(net):
    """Ranges, their derivatives, and with ranges moved what is written, read and answered."""

    def loss(values):
        return jnp.sum(with_ranges(net, values)(twins.X) ** 2)

    moved = with_ranges(net, {k: 0.8 * v for k, v in ranges(net).items()})
    chip = js.deploy(moved, calibrate=twins.X)
    found = (ranges(net), jax.grad(loss)(ranges(net)), chip.states)
    return found, (moved(twins.X), chip(twins.X))


def test_layers_of_a_stack_have_the_ranges_and_derivatives_that_they_have_written_out():
    pair = twins.twins("plain")
    nets = map(LEARN, pair[:2])
    (found, answers), (expected, others) = jax.tree.map(np.asarray, list(map(trained, nets)))
    for mine, theirs in zip(found, expected, strict=True):
        twins.assert_close(pair.of_slices(mine), theirs)
    assert all(np.ptp(v, axis=0).max() > 0 for n, v in found[0].items() if n.endswith("weights 1"))
    for y in (*answers, others[1]):
        twins.assert_close(y, others[0])


def test_ranges_of_a_stack_of_stacks_have_both_axes():
    case = models.CASES["nested scans"]()
    net = js.quantize(8, 8)(js.trace(case.model, case.variables, *case.args))
    learned = js.learn_ranges(case.args)(net)
    assert {k: v.shape for k, v in ranges(learned).items() if k.endswith("1")} == {
        **{"stack inputs 1": (2, 3), "stack weights 1": (2, 3, 4)},
        **{"out inputs 1": (2,), "out weights 1": (2, 4)},
    }
    np.testing.assert_allclose(
        run(learned, *case.args)[0], run(net, *case.args)[0], rtol=0.1, atol=0.05
    )


def test_distillation_is_the_divergence_at_a_temperature_and_the_cross_entropy():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 4)).astype(np.float32)
    classes = np.arange(5) % 4

    def soft(z, t):
        e = np.exp(z / t - (z / t).max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    p, q = soft(teacher, 3), soft(student, 3)
    divergence = (p * np.log(p / q)).sum(-1).mean()
    entropy = -np.log(soft(student, 1)[np.arange(5), classes]).mean()
    loss = distillation(temperature=3, weight=0.7)(student, distillation_targets(teacher, classes))
    assert float(loss) == pytest.approx(0.7 * 9 * divergence + 0.3 * entropy, rel=1e-5)


def test_a_student_that_is_its_teacher_learns_from_the_classes_alone():
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    loss = distillation(weight=1.0)
    slope = jax.grad(lambda z: loss(z, distillation_targets(logits, np.arange(5) % 4)))(logits)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    with pytest.raises(ValueError, match="a teacher's logits"):
        loss(logits, logits)
