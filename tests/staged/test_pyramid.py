"""A BERT whose tokens and rows leave: one decision, two executions, and a third in float64."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import jaxsim as js
from jaxsim.adaptive import tokens
from jaxsim.adaptive.rule import Buckets, Rule
from jaxsim.staged import exit_queue
from jaxsim.staged.exits import ExitOutputs, take_exits
from tests.oracles.pyramid import climb
from tests.support.encoders import MODEL, heads, network, params, present, sequences

SMALL = Buckets(batch=6, token=12, max_batch=6)
simulate = jax.jit(lambda net, ids, lengths: net.simulate(ids, lengths))
LEVELS, THRESHOLD = np.float32([0.03, 0.05, 0.06]), 0.7


def made(level=LEVELS, threshold=THRESHOLD, **options):
    rule = Rule(threshold, options.pop("patience", 0), options.pop("first", 1))
    return js.magic_pyramid(level, rule, heads(), present=present, **options)(network())


def oracle(ids, lengths, levels, threshold):
    classifiers = [*heads(), params()["head"]]
    return [
        climb(params(), 2, row[:n], classifiers, levels, threshold)
        for row, n in zip(ids, lengths, strict=True)
    ]


def test_both_executions_do_what_deleting_tokens_and_stopping_does():
    ids, lengths = sequences(12)
    net = made()
    a, b = simulate(net, ids, lengths), net.run(ids, lengths, buckets=SMALL)
    checked = set()
    for r, row in enumerate(oracle(ids, lengths, LEVELS, THRESHOLD)):
        logits, layer, kept, doubts, margin, flops = row
        if margin < 1e-6 or min(abs(np.array(doubts) - THRESHOLD)) < 1e-4:
            continue
        checked.add((layer, kept[-1] < lengths[r]))
        # each layer's classifier multiplies 16 by 3, the network's own reads a mean that it makes
        flops += 2 * 16 * 3 * layer + (2 * 16 * kept[-1] if layer == 3 else 0)
        for out in (a, b):
            np.testing.assert_allclose(out.logits[r], logits, atol=5e-4)
            assert out.layer[r] == layer
            assert out.kept[r].tolist() == kept + [0] * (3 - layer)
            np.testing.assert_allclose(out.uncertainty[r, :layer], doubts, atol=1e-4)
            assert np.isnan(out.uncertainty[r, layer:]).all()
            np.testing.assert_allclose(out.flops[r], flops, rtol=1e-5)
    assert len({layer for layer, _ in checked}) == 3
    assert {cut for _, cut in checked} == {True, False}


def at(net, level, threshold):
    rule = dataclasses.replace(net.tokens, level=jnp.float32(level))
    return dataclasses.replace(net, tokens=rule, threshold=jnp.float32(threshold))


@settings(max_examples=5)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.02, 0.05, 2.0]),
    st.sampled_from([0.0, 0.5, 0.8, 1.1]),
)
def test_simulate_and_run_agree_on_every_row(seed, level, threshold):
    ids, lengths = sequences(12, seed)
    levels = np.asarray(tokens.linear_thresholds(level, 3))
    for *_, doubts, margin, _ in oracle(ids, lengths, levels, threshold):
        # scores and doubts within rounding of a limit may fall on either side of it
        assume(margin > 1e-6 and min(abs(np.array(doubts) - threshold)) > 1e-4)
    net = at(made(), levels, threshold)
    a, b = simulate(net, ids, lengths), net.run(ids, lengths, buckets=SMALL)
    np.testing.assert_array_equal(a.layer, b.layer)
    np.testing.assert_array_equal(a.kept, b.kept)
    np.testing.assert_allclose(a.logits, b.logits, atol=2e-4)
    np.testing.assert_allclose(a.uncertainty, b.uncertainty, atol=1e-4)
    np.testing.assert_allclose(a.flops, b.flops, rtol=1e-6)


def test_nothing_left_out_is_the_model_itself():
    ids, lengths = sequences(12, 1)
    expected = jax.jit(MODEL.apply)({"params": params()}, ids, lengths)
    net = at(made(), np.zeros(3), 0.0)
    np.testing.assert_allclose(simulate(net, ids, lengths).logits, expected, atol=1e-5)
    np.testing.assert_allclose(net.run(ids, lengths, buckets=SMALL).logits, expected, atol=1e-5)


def test_limits_leave_the_first_token_and_the_first_exit():
    ids, lengths = sequences(12, 2)
    out = at(made(), np.full(3, 1.01), 1.01).run(ids, lengths, buckets=SMALL)
    assert np.all(out.kept[:, 0] == 1)
    assert np.all(out.layer == 1)
    assert np.all(out.kept[:, 1:] == 0)


def test_padding_and_the_order_of_rows_change_nothing():
    ids, lengths = sequences(12, 3)
    out = simulate(made(), ids, lengths)
    wide = simulate(made(), np.pad(ids, ((0, 0), (0, 8)), constant_values=7), lengths)
    order = np.random.default_rng(0).permutation(12)
    moved = made().run(ids[order], lengths[order], buckets=SMALL)
    np.testing.assert_array_equal(out.kept, wide.kept)
    np.testing.assert_array_equal(out.layer[order], moved.layer)
    np.testing.assert_allclose(out.logits, wide.logits, atol=1e-4)
    np.testing.assert_allclose(out.logits[order], moved.logits, atol=1e-4)


def test_levels_sweep_under_vmap():
    ids, lengths = sequences(4)
    levels = jnp.stack([tokens.linear_thresholds(level, 3) for level in (0.0, 0.03, 2.0)])
    net = js.prune_tokens(0.0, present=present)(network())
    kept = jax.jit(jax.vmap(lambda level: at(net, level, 0).simulate(ids, lengths).kept))(levels)
    np.testing.assert_array_equal(kept[0], np.repeat(lengths[:, None], 3, 1))
    assert np.all(kept[1] <= kept[0])
    assert np.all(kept[2] == 1)


def test_flops_are_those_that_xla_counts_but_for_what_is_no_product():
    n, model = 64, MODEL.clone(width=256, heads=4, hidden=1024, positions=64, layers=1)
    ids, lengths = jax.ShapeDtypeStruct((1, n), np.int32), jax.ShapeDtypeStruct((1,), np.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), ids, lengths)
    cost = jax.jit(model.apply).lower(variables, ids, lengths).compile().cost_analysis()
    counted = (cost[0] if isinstance(cost, list) else cost)["flops"]
    given = np.zeros((1, n), np.int32), np.full(1, n, np.int32)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), variables)
    net = js.prune_tokens(0.0)(js.trace(model, zeros, *given))
    assert 1 <= counted / float(net.simulate(*given).flops[0]) < 1.06


def test_layers_of_level_zero_are_no_stage_of_their_own(monkeypatch):
    """Tokens leave behind the second attention alone, and the host looks there alone."""
    stages, make = [], exit_queue.stepper

    def stepper(*given):
        step = make(*given)

        def recorded(at, *more):
            stages.append(at)
            return step(at, *more)

        return recorded

    monkeypatch.setattr(exit_queue, "stepper", stepper)
    net = js.prune_tokens([0.0, 0.05, 0.0], present=present)(network())
    net.run(*sequences(4), buckets=Buckets(batch=4, token=24, max_batch=4))
    assert stages == [0, 1]


def test_exits_are_taken_from_the_outputs_of_every_layer_by_hand():
    """Rows that leave at layer 2, at layer 1 and never; of 9, 8 and 7 tokens, in a call of 10.

    A row of 10 tokens costs 3 beside 50 that go with their number and 200 with its square in a
    layer, and 4 in a classifier. What a layer that did not run would have kept is 0.
    """
    even, sure = [0.0, 0.0], [9.0, 0.0]
    logits = [jnp.array(y) for y in ([even, sure, even], [sure, even, even], [even, even, sure])]
    kept = [jnp.array(k) for k in ([6, 5, 6], [5, 4, 3], [4, 3, 1])]
    held = types.SimpleNamespace(
        spent=((3.0, 50.0, 200.0),) * 3, read=(4.0, 4.0, 0.0), layers=(0, 1, 2), length=10
    )
    layout = types.SimpleNamespace(tokens=held, exits=(0, 1), widths=(1, 1), flops=())
    found = take_exits(Rule(0.5), layout, ExitOutputs(logits, jnp.array([9, 8, 7]), kept))
    assert found.layer.tolist() == [2, 1, 3]
    assert found.logits.tolist() == [sure, sure, sure]
    assert found.kept.tolist() == [[6, 5, 0], [5, 0, 0], [6, 3, 1]]
    assert np.isnan(found.uncertainty).tolist() == [[0, 0, 1], [0, 1, 1], [0, 0, 0]]

    def layer(n, classifies=True):
        return 3 + 50 * n / 10 + 200 * (n / 10) ** 2 + 4 * classifies

    expected = [layer(9) + layer(6), layer(8), layer(7) + layer(6) + layer(3, classifies=False)]
    np.testing.assert_allclose(found.flops, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"threshold": -0.1}, "threshold"),
        ({"first": 4}, "first"),
        ({"level": np.array([0, np.nan, 0], np.float32)}, "level"),
        ({"level": np.array([0, -1, 0], np.float32)}, "level"),
        ({"level": np.zeros(2, np.float32)}, "level"),
    ],
)
def test_what_does_not_fit_is_named(changes, named):
    net, given = made(), sequences(3)
    if "level" in changes:
        changes = {"tokens": dataclasses.replace(net.tokens, level=changes["level"])}
    net = dataclasses.replace(net, **changes)
    for call in (net.simulate, net.run):
        with pytest.raises(ValueError, match=named):
            call(*given)
