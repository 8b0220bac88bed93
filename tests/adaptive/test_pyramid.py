"""One decision, two executions, and a third in float64."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import jaxsim as js
from jaxsim import adaptive
from jaxsim.adaptive import pyramid_step, students, tokens
from jaxsim.adaptive.encoder import deploy_layers, first_token, flops_layer, over_layers
from jaxsim.adaptive.pyramid import ExitOutputs, take_exits
from jaxsim.adaptive.rule import AdaptiveModel, Buckets, Rule, normalized_entropy
from jaxsim.models.bert import Attention, FeedForward, encoder
from tests.oracles.pyramid import climb
from tests.support.encoders import MODEL, heads, params, pieces, sequences

SQUARES = {"a": np.eye(3), "b": np.eye(3)}
SMALL = Buckets(batch=4, token=8, max_batch=8)
ONE = Buckets(batch=16, token=24, max_batch=16)  # one shape, of layers that few tests have
simulate = jax.jit(lambda net, ids, lengths: net.simulate(ids, lengths))
outputs_of = jax.jit(lambda net, ids, lengths: net.exit_outputs(ids, lengths))
soften = jax.jit(lambda net, ids, lengths, temperature: net.soften(ids, lengths, temperature))


plain = jax.jit(lambda net, ids, lengths: net(ids, lengths))


def made(level=0.0, threshold=0.0, **options):
    levels = tokens.linear_thresholds(level, 3) if np.ndim(level) == 0 else level
    rule = Rule(threshold, options.pop("patience", 0), options.pop("first", 1))
    return js.magic_pyramid(levels, rule, heads(), **options)(pieces())


def test_both_executions_do_what_deleting_tokens_and_stopping_does():
    levels, threshold = np.array([0.03, 0.05, 0.06]), 0.7
    ids, lengths = sequences(12)
    net = made(levels, threshold)
    a, b = simulate(net, ids, lengths), net.run(ids, lengths, buckets=SMALL)
    classifiers = [*heads(), params()["head"]]
    checked = set()
    for r, n in enumerate(lengths):
        logits, layer, kept, doubts, margin, flops = climb(
            params(), 2, ids[r, :n], classifiers, np.float32(levels), threshold
        )
        if margin < 1e-6 or min(abs(np.array(doubts) - threshold)) < 1e-4:
            continue
        checked.add((layer, kept[-1] < n))
        for out in (a, b):
            np.testing.assert_allclose(out.logits[r], logits, atol=5e-4)
            assert out.layer[r] == layer
            assert out.kept[r].tolist() == kept + [0] * (3 - layer)
            np.testing.assert_allclose(out.uncertainty[r, :layer], doubts, atol=1e-4)
            assert np.isnan(out.uncertainty[r, layer:]).all()
            np.testing.assert_allclose(out.flops[r], flops, rtol=1e-5)
    assert len({layer for layer, _ in checked}) == 3
    assert {cut for _, cut in checked} == {True, False}


def agree(net, ids, lengths, buckets=SMALL):
    a, b = simulate(net, ids, lengths), net.run(ids, lengths, buckets=buckets)
    assert np.array_equal(a.layer, b.layer)
    assert np.array_equal(a.kept, b.kept)
    np.testing.assert_allclose(a.logits, b.logits, atol=2e-4)
    np.testing.assert_allclose(a.uncertainty, b.uncertainty, atol=1e-4)
    np.testing.assert_allclose(a.flops, b.flops)
    return a


@jax.jit
def least_distances(net, ids, lengths):
    """Of any score to its level and of any uncertainty to the threshold."""
    valid, x, least = tokens.prefix_mask(lengths, ids.shape[1]), net.encoder.embed(ids), jnp.inf
    for i in range(3):
        y, received = net.encoder.attention[i](x, valid)
        gap = jnp.where(valid, jnp.abs(received - net.level[i]), 1)
        least = jnp.minimum(least, jnp.min(gap))
        valid = tokens.keep_tokens(net.keeps, net.level[i], received, valid, net.protect)
        x = net.encoder.feed_forward[i](y)
    doubts = normalized_entropy(net.exit_outputs(ids, lengths).logits)
    return least, jnp.min(jnp.abs(doubts - net.threshold))


@settings(max_examples=8)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.02, 0.05, 2.0]),
    st.sampled_from([0.0, 0.5, 0.8, 1.1]),
)
def test_simulate_and_run_agree_on_every_row(seed, level, threshold):
    ids, lengths = sequences(13, seed)
    net = made(level, threshold)
    scores, doubts = least_distances(net, ids, lengths)
    # Scores and doubts within rounding of a limit may fall on either side of it.
    assume(scores > 1e-6 or not level)
    assume(doubts > 1e-4)
    agree(net, ids, lengths)


def test_rules_by_rank_and_by_patience_agree_too():
    ids, lengths = sequences(13, 5)
    out = agree(made(np.array([0.0, 0.5, 0.5]), keeps=tokens.top, protect=2), ids, lengths)
    halves = np.ceil(lengths / 2)
    assert np.all((out.kept[:, 1] >= halves) & (out.kept[:, 1] <= halves + 2))
    varied = dataclasses.replace(pieces(), pool=first_token)
    net = dataclasses.replace(made(0.02, patience=1), encoder=varied)
    means = np.asarray(outputs_of(net, ids, lengths).logits).mean(0)
    centred = [{**head, "bias": -mean} for head, mean in zip(net.heads, means, strict=False)]
    net = dataclasses.replace(net, heads=tuple(centred))
    labels = np.argmax(outputs_of(net, ids, lengths).logits, -1)
    expected = np.where(labels[:, 0] == labels[:, 1], 2, 3)
    assert set(expected) == {2, 3}
    assert np.array_equal(agree(net, ids, lengths, ONE).layer, expected)
    assert set(agree(made(0.0, 1.1, first=2), ids, lengths).layer.tolist()) == {2}


def test_nothing_left_out_is_the_model_itself():
    ids, lengths = sequences(9)
    expected = jax.jit(MODEL.apply)({"params": params()}, ids, lengths)
    net = made()
    np.testing.assert_allclose(simulate(net, ids, lengths).logits, expected, atol=1e-5)
    np.testing.assert_allclose(net.run(ids, lengths, buckets=SMALL).logits, expected, atol=1e-5)
    np.testing.assert_allclose(plain(pieces(), ids, lengths), expected, atol=1e-6)


def test_limits_leave_the_first_token_and_the_first_exit():
    ids, lengths = sequences(9)
    out = made(np.full(3, 1.01), 1.01).run(ids, lengths, buckets=SMALL)
    assert np.all(out.kept[:, 0] == 1)
    assert np.all(out.layer == 1)
    assert np.all(out.kept[:, 1:] == 0)


def test_padding_and_the_order_of_rows_change_nothing():
    ids, lengths = sequences(8)
    net = made(0.04, 0.6)
    out = simulate(net, ids, lengths)
    wide = simulate(net, np.pad(ids, ((0, 0), (0, 9)), constant_values=7), lengths)
    order = np.random.default_rng(0).permutation(8)
    moved = net.run(ids[order], lengths[order], buckets=SMALL)
    assert np.array_equal(out.kept, wide.kept)
    assert np.array_equal(out.layer[order], moved.layer)
    np.testing.assert_allclose(out.logits, wide.logits, atol=1e-4)
    np.testing.assert_allclose(out.logits[order], moved.logits, atol=1e-4)


def test_speed_changes_without_compiling_and_warm_up_leaves_nothing_to_compile():
    ids, lengths = sequences(13, 2)
    net = made(0.03, 0.5)
    net.warm_up(24, buckets=SMALL)
    assert net.warm_up(24, buckets=SMALL) == 0
    before = pyramid_step.count_programs()
    for level, threshold in ((0.0, 0.0), (0.03, 0.0), (0.05, 0.7)):
        faster = dataclasses.replace(
            net, level=tokens.linear_thresholds(level, 3), threshold=jnp.float32(threshold)
        )
        faster.run(ids, lengths, buckets=SMALL)
    assert pyramid_step.count_programs() == before
    compiled = jax.jit(lambda net: net.simulate(ids, lengths).layer)
    for threshold in (0.0, 0.5):
        compiled(dataclasses.replace(net, threshold=jnp.float32(threshold)))
    assert compiled._cache_size() == 1


def test_levels_sweep_under_vmap():
    ids, lengths = sequences(4)
    net = made()
    levels = jnp.stack([tokens.linear_thresholds(level, 3) for level in (0.0, 0.03, 2.0)])
    kept = jax.jit(
        jax.vmap(lambda v: dataclasses.replace(net, level=v).simulate(ids, lengths).kept)
    )(levels)
    assert np.array_equal(kept[0], np.repeat(lengths[:, None], 3, 1))
    assert np.all(kept[1] <= kept[0])
    assert np.all(kept[2] == 1)


def test_the_gradient_of_soft_levels_is_that_of_differences():
    ids, lengths = sequences(6, longest=8)
    net = made(0.1)

    @jax.jit
    @jax.value_and_grad
    def loss(level):
        out = dataclasses.replace(net, level=level).soften(ids, lengths, 0.1)
        return jnp.mean(out.logits[:, 0]) + jnp.sum(out.shares)

    level = np.asarray(net.level)
    _, grad = loss(level)
    for i, step in enumerate(5e-3 * np.eye(3, dtype=np.float32)):
        difference = (loss(level + step)[0] - loss(level - step)[0]) / 1e-2
        np.testing.assert_allclose(grad[i], difference, rtol=2e-2)

    @jax.jit
    @jax.grad
    def hard(level):
        return jnp.sum(dataclasses.replace(net, level=level)(ids, lengths))

    assert not np.any(hard(net.level))


def test_a_cold_soft_mask_of_low_levels_is_the_model():
    ids, lengths = sequences(6)
    soft = soften(made(np.full(3, 1e-9)), ids, lengths, 1e-6)
    np.testing.assert_allclose(soft.logits, plain(pieces(), ids, lengths), atol=1e-4)
    np.testing.assert_allclose(soft.shares, 1, atol=1e-5)


def test_weights_have_gradients_through_the_tokens_and_rows_that_stay():
    ids, lengths = sequences(6)
    net = made(0.04, 0.6)

    def loss(encoder):
        return jnp.sum(dataclasses.replace(net, encoder=encoder).simulate(ids, lengths).logits)

    grads = jax.jit(jax.grad(loss))(net.encoder)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert np.any(grads.feed_forward[0].params["hidden"]["kernel"])


def test_the_formula_counts_what_xla_counts():
    n, d, hidden = 64, 256, 1024
    x, valid = jnp.zeros((1, n, d)), jnp.ones((1, n), bool)
    halves = ((Attention(4, 1e-12), (x, valid)), (FeedForward(hidden, 1e-12), (x,)))
    counted = 0.0
    for half, inputs in halves:
        variables = jax.eval_shape(half.init, jax.random.key(0), *inputs)
        cost = jax.jit(half.apply).lower(variables, *inputs).compile().cost_analysis()
        counted += (cost[0] if isinstance(cost, list) else cost)["flops"]
    assert 1 <= counted / flops_layer(n, n, d, hidden) < 1.05


def test_quantized_layers_climb_as_their_simulation_says():
    ids, lengths = sequences(13, 3)
    quantized = over_layers(js.quantize(8, 8))(pieces())
    net = dataclasses.replace(made(0.04, 0.6), encoder=quantized)
    with pytest.raises(ValueError, match="deploy_layers"):
        net.run(ids, lengths)
    chip = dataclasses.replace(net, encoder=deploy_layers(quantized, ids, lengths))
    out, whole = agree(chip, ids, lengths, ONE), simulate(made(0.04, 0.6), ids, lengths)
    assert np.mean(out.kept == whole.kept) > 0.8
    assert np.any(out.logits != whole.logits)


IDS, LENGTHS = sequences(3)


@pytest.mark.parametrize(
    ("changes", "ids", "lengths", "named"),
    [
        ({"level": np.zeros(2)}, IDS, LENGTHS, "level"),
        ({"level": np.array([0, np.nan, 0])}, IDS, LENGTHS, "level"),
        ({"level": np.array([0, -1, 0])}, IDS, LENGTHS, "level"),
        ({"threshold": -0.1}, IDS, LENGTHS, "threshold"),
        ({"first": 4}, IDS, LENGTHS, "first"),
        ({"protect": 0}, IDS, LENGTHS, "protect"),
        ({"heads": heads()[:1]}, IDS, LENGTHS, "heads"),
        ({}, IDS, np.array([1, 0, 2]), "lengths"),
        ({}, IDS, np.array([1, 25, 2]), "lengths"),
        ({}, IDS, np.array([1, 2]), "lengths"),
        ({}, IDS.astype(float), LENGTHS, "ids"),
        ({}, IDS + 50, LENGTHS, "ids"),
        ({}, np.zeros((3, 41), int), LENGTHS, "ids"),
    ],
)
def test_what_does_not_fit_is_named(changes, ids, lengths, named):
    net = dataclasses.replace(made(), **changes)
    for call in (net.simulate, net.run):
        with pytest.raises(ValueError, match=named):
            call(ids, lengths)


def test_arguments_out_of_range_are_named():
    with pytest.raises(ValueError, match="level"):
        js.prune_tokens([0.1, 0.2])(pieces())
    with pytest.raises(ValueError, match="protect"):
        js.prune_tokens(0.1, protect=0)
    with pytest.raises(ValueError, match="heads"):
        js.magic_pyramid(0.1, Rule(), heads()[:1])(pieces())
    with pytest.raises(ValueError, match="temperature"):
        made().soften(IDS, LENGTHS, 0.0)
    with pytest.raises(ValueError, match="keeps"):
        made(keeps=tokens.top).soften(IDS, LENGTHS, 1.0)
    with pytest.raises(ValueError, match="under jit"):
        jax.jit(lambda n: made().run(IDS, n))(LENGTHS)
    with pytest.raises(ValueError, match="longest"):
        made().warm_up(41)


def test_pyramids_answer_in_the_floats_of_the_encoder():
    short = jax.tree.map(lambda a: np.asarray(a).astype(jnp.bfloat16), params())
    net, given = js.prune_tokens(0.02)(encoder(MODEL, short)), sequences(3)
    ran = net.run(*given, buckets=Buckets(batch=3, token=24, max_batch=3)).logits
    whole = jax.eval_shape(
        lambda: (net(*given), net.simulate(*given).logits, net.soften(*given, 1e-3).logits)
    )
    assert {a.dtype for a in (ran, *whole)} == {jnp.dtype("bfloat16")}


def test_pyramids_and_early_exits_are_adaptive_models():
    net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], SQUARES, np.ones((2, 3)))
    assert isinstance(made(), AdaptiveModel)
    assert isinstance(js.exit_early(["b"])(net), AdaptiveModel)
    assert not isinstance(net, AdaptiveModel)


def test_old_names_warn_and_give_the_new_ones():
    ids, lengths = sequences(2)
    with pytest.warns(DeprecationWarning, match="exit_outputs"):
        found = jax.jit(lambda net: net.passed(ids, lengths))(made())
    assert np.array_equal(found.kept, outputs_of(made(), ids, lengths).kept)
    with pytest.warns(DeprecationWarning, match="distill_students"):
        assert adaptive.distil_students is adaptive.distill_students
    with pytest.warns(DeprecationWarning, match="distill_students"):
        assert students.distil_students is students.distill_students


def test_exits_are_taken_from_the_outputs_of_every_layer_by_hand():
    """Rows that leave at layer 2, at layer 1 and never; 9, 8 and 7 tokens of width 2, hidden 3."""
    even, sure = [0.0, 0.0], [9.0, 0.0]
    logits = jnp.array([[even, sure, even], [sure, even, sure], [even, even, sure]])
    kept = jnp.array([[6, 5, 4], [5, 4, 3], [6, 3, 1]])
    outputs = ExitOutputs(features=jnp.zeros((3, 3, 2)), logits=logits, kept=kept)
    sizes = types.SimpleNamespace(width=2, hidden=3, head={"bias": np.zeros(2, np.float32)})
    net = types.SimpleNamespace(rule=Rule(0.5), encoder=sizes)
    found = take_exits(net, outputs, np.array([9, 8, 7]))
    assert found.layer.tolist() == [2, 1, 3]
    assert found.logits.tolist() == [sure, sure, sure]
    assert found.kept.tolist() == [[6, 5, 0], [5, 0, 0], [6, 3, 1]]
    assert np.isnan(found.uncertainty).tolist() == [[0, 0, 1], [0, 1, 1], [0, 0, 0]]

    def layer(n_in, n_out):
        return 2 * (4 * n_in * 4 + 2 * n_in * n_in * 2 + 2 * n_out * 2 * 3)

    assert found.flops.tolist() == [
        layer(9, 6) + layer(6, 5),
        layer(8, 5),
        layer(7, 6) + layer(6, 3) + layer(3, 1),
    ]


@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_soft_masks_scale_tokens_and_share_by_the_definition(temperature):
    """Of one layer: what it leaves of the tokens present, the protected ones whole."""
    ids, lengths = sequences(3, longest=6)
    net = made(np.full(3, 0.15), protect=2)
    present = np.arange(6) < lengths[:, None]
    first = jax.jit(lambda e: e.attention[0](e.embed(ids), present)[1])
    received = np.asarray(first(net.encoder), np.float64)
    mask = 1 / (1 + np.exp(-(received - 0.15) / temperature))
    mask[:, :2] = 1
    shares = soften(net, ids, lengths, temperature).shares
    assert float(shares[0]) == pytest.approx(mask[present].mean(), rel=1e-4)
