"""Levels at which tokens leave, learned beside weights, and weights learned without the tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

import jaxsim as js
from jaxsim.checkpoint.resume import RunCheckpointer
from jaxsim.network.network import base_network
from jaxsim.staged.exits import exit_outputs
from jaxsim.train import Soft, distillation, distillation_targets, fit, over_exits
from tests.support import transformers
from tests.support.transformers import TOKENS, network, present

rng = np.random.default_rng(0)
IDS = rng.integers(0, 5, (32, TOKENS)).astype(np.int32)
LENGTHS = rng.integers(1, TOKENS + 1, 32).astype(np.int32)
LABELS = (IDS[:, 0] > 2).astype(np.int32)
ADAM = optax.adam(1e-2)


def made(level=0.05, **options):
    levels = js.tokens.linear_thresholds(level, 3)
    return js.prune_tokens(levels, present=present, **options)(network("bert"))


def trained(net, epochs=2, labels=LABELS, optimizer=ADAM, **options):
    return fit(
        net,
        (IDS, LENGTHS),
        labels,
        epochs=epochs,
        batch_size=8,
        optimizer=optimizer,
        key=jax.random.key(0),
        quiet=True,
        **options,
    )


logits_of = jax.jit(lambda net: net(IDS, LENGTHS))


def loss(net):
    found = optax.softmax_cross_entropy_with_integer_labels(logits_of(net), LABELS)
    return float(found.mean())


def equal(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_weights_learn_with_tokens_left_out_and_levels_stay():
    net = made()
    after = trained(net, 4)
    assert loss(after) < 0.8 * loss(net)
    assert np.array_equal(after.tokens.level, net.tokens.level)
    assert equal(after, trained(net, 4))


def test_rows_of_like_lengths_learn_as_well_at_their_length():
    net = made()
    short = trained(net, 4, pad_to=3)
    assert loss(short) < 0.8 * loss(net)
    assert not equal(short.params, trained(net, 4).params)
    # at the full length the same rows in the same order are the same steps
    whole, cut = (trained(net, 1, pad_to=n) for n in (TOKENS, 10**6))
    assert equal(whole, cut)


def test_rows_are_counted_from_all_arguments_of_a_call():
    """Those that are the same in each call among them."""

    def scaled(p, ids, lengths, by):
        return by * transformers.apply(transformers.KINDS["bert"], p, ids, lengths)

    def told(ids, lengths, by):
        assert np.shape(by) == ()
        return present(ids, lengths)

    few = (IDS[:2], LENGTHS[:2])
    whole = js.trace(scaled, network("bert").params, *few, by=np.float32(1))
    net = js.prune_tokens(0.05, present=told)(whole)
    once, twice = (trained(net, 1, pad_to=3, call={"by": np.float32(n)}) for n in (1, 2))
    assert not equal(once.params, net.params)
    assert not equal(once.params, twice.params)


def test_a_teacher_draws_what_is_trained_as_much_as_its_weight_says():
    """One that is wrong everywhere draws away from the classes, and without weight does nothing."""
    labels = distillation_targets(5.0 * np.asarray(jax.nn.one_hot(1 - LABELS, 3)), LABELS)
    wrong, without = (
        {"labels": labels, "loss": distillation(weight=w, temperature=1.0)} for w in (1.0, 0.0)
    )
    # not by Adam: it makes steps of what is nothing but rounding
    sgd = optax.sgd(1e-3)
    drawn, plain = (trained(made(), 18, optimizer=sgd, **more) for more in (wrong, {}))
    assert loss(plain) < 0.9 * loss(made())
    assert loss(drawn) > 1.5 * loss(plain)
    # few steps: rounding lets a token leave or stay
    ignored, plain = (trained(made(), 1, optimizer=sgd, **more) for more in (without, {}))
    for ours, theirs in zip(jax.tree.leaves(ignored), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_levels_rise_when_tokens_are_dear_and_never_fall_below_zero():
    net = made(0.02)
    dear = trained(net, soft=Soft(50.0, (0.1, 0.05)))
    assert np.all(dear.tokens.level > net.tokens.level)
    assert not equal(dear.params, net.params)
    zero = dataclasses.replace(net, tokens=dataclasses.replace(net.tokens, level=jnp.zeros(3)))
    cheap = trained(zero, soft=Soft(0.0, (0.1, 0.1)))
    assert np.all(cheap.tokens.level >= 0)
    assert not equal(cheap.params, net.params)


def test_levels_of_a_network_with_exits_are_learned_on_the_loss_of_those_that_count():
    """Weighed by 0, a classifier learns nothing, and all is as without exits."""
    pruned = made()
    net = js.magic_pyramid(pruned.tokens.level, js.Rule(), present=present)(network("bert"))
    soft = Soft(30.0, (0.1, 0.05))
    both, last = (
        trained(net, soft=soft, loss=over_exits(weights=weights), optimizer=optax.sgd(1e-3))
        for weights in ((1.0, 1.0, 1.0), (0.0, 0.0, 1.0))
    )
    alone = trained(pruned, soft=soft, optimizer=optax.sgd(1e-3))
    assert equal(last.heads, net.heads)
    assert not equal(both.heads, net.heads)
    np.testing.assert_allclose(last.tokens.level, alone.tokens.level, rtol=1e-5)
    assert not np.allclose(both.tokens.level, alone.tokens.level, rtol=1e-3)


@pytest.mark.parametrize("soft", [None, Soft(1.0, (0.1, 0.05))])
def test_a_run_that_was_stopped_ends_where_the_whole_one_does(tmp_path, monkeypatch, soft):
    net, options = made(), {"soft": soft, "pad_to": 3, "epochs": 3}
    whole, add = trained(net, **options), RunCheckpointer.add
    folder = tmp_path / "run"

    def add_and_stop(self, step, tree):
        add(self, step, tree)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpointer, "add", add_and_stop)
        with pytest.raises(KeyboardInterrupt):
            trained(net, **options, checkpoints=folder)
    resumed = trained(net, **options, checkpoints=folder)
    assert equal(resumed, whole)
    others = [{**options, "pad_to": 4}, {**options, "soft": Soft(2.0)}, {**options, "pad_to": None}]
    for other in others:
        with pytest.raises(ValueError, match="of another run"):
            trained(net, **other, checkpoints=folder)


def test_classifiers_say_what_the_end_says_of_the_tokens_that_are_left():
    pruned = trained(made(), 2)
    whole = dataclasses.replace(network("bert"), params=pruned.params)
    net = js.magic_pyramid(pruned.tokens.level, js.Rule(), present=present)(whole)
    taught = js.distill_exits(net, (IDS, LENGTHS), key=jax.random.key(0), steps=200)
    assert equal(base_network(taught), base_network(net))
    arguments = net.arguments((IDS, LENGTHS), {}, None)
    end, said = (exit_outputs(n, arguments, None).logits for n in (net, taught))
    teacher = log_softmax(end[-1], -1)
    assert equal(end[-1], said[-1])
    for before, after in zip(end[:-1], said[:-1], strict=True):
        divergence = [
            np.mean(np.exp(teacher) * (teacher - log_softmax(y, -1))) for y in (before, after)
        ]
        assert divergence[1] < 0.5 * divergence[0]


@pytest.mark.parametrize(
    ("net", "options", "named"),
    [
        (made, {"soft": Soft(-1.0)}, "weight=-1.0"),
        (made, {"soft": Soft(0.1, (0.0, 1.0))}, "temperature=0.0"),
        (lambda: network("bert"), {"soft": Soft()}, "soft: all tokens of the network stay"),
        (lambda: js.exit_early(2)(network("bert")), {"soft": Soft()}, "all its tokens stay"),
        (lambda: made(keeps=js.tokens.top), {"soft": Soft()}, "soft masks are of thresholds"),
        (made, {"pad_to": 0}, "pad_to=0"),
        (lambda: network("bert"), {"pad_to": 4}, "pad_to=4: all tokens of the network stay"),
        (
            lambda: js.prune_tokens(0.1)(network("bert")),
            {"pad_to": 4},
            "pad_to=4: no rule says which tokens there are",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused_by_name(net, options, named):
    with pytest.raises(ValueError, match=named):
        trained(net(), **options)
