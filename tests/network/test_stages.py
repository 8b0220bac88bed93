"""Cuts fall between blocks, partitions are the best there are, and stages compute the network."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxsim as js
from jaxsim.network.cuts import (
    balance_blocks,
    blocks,
    candidate_cuts,
    cuts,
    equations,
    flops,
    select_cuts,
    sizes,
)
from jaxsim.network.leaves import is_array
from jaxsim.network.stages import run_stage, split, stage_params
from tests.support import models, pipelines
from tests.support.models import normal


def line_of(net):
    return equations(net, net.example)


def outputs(net, cut, arguments):
    """The outputs of a network, stage by stage."""
    given: list = []
    for stage in cut.stages:
        given.append(
            run_stage(
                stage,
                stage_params(net, cut, stage),
                [arguments[i] for i in stage.arguments],
                [given[s][i] for s, i in stage.sources],
                ranges=net.ranges,
            )
        )
    leaves = [given[s][i] for s, i in cut.outputs]
    return jax.tree.unflatten(cut.equations.out_tree, leaves)


def test_minimal_cuts_of_a_residual_network_are_its_block_boundaries():
    minimal = [c.name for c in cuts(line_of(pipelines.cnn().net)) if c.minimal]
    assert minimal == [*(f"Residual_{i}/Conv_0/kernel" for i in range(6)), "Dense_0/kernel"]


def test_minimal_cuts_of_an_encoder_are_its_residual_connections_and_the_mask_rides_along():
    found = [c for c in cuts(line_of(pipelines.encoder().net)) if c.minimal]
    heads = [f"Layer_{i}/MultiHeadDotProductAttention_0/query/kernel" for i in range(3)]
    expected = [n for i, q in enumerate(heads) for n in (q, f"Layer_{i}/Dense_0/kernel")]
    assert [c.name for c in found] == [*expected, "Embed_0/embedding"]
    assert [c.live for c in found] == [2, 2, 2, 2, 2, 1, 1]


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=10).flatmap(
        lambda w: st.tuples(st.just(w), st.integers(1, len(w)))
    )
)
def test_no_contiguous_partition_has_a_smaller_largest_stage_or_then_a_smaller_variance(case):
    weights, stages = case

    def score(begins):
        ends = [0, *begins, len(weights)]
        sums = [sum(weights[a:b]) for a, b in itertools.pairwise(ends)]
        return max(sums), sum(s * s for s in sums)

    everyone = itertools.combinations(range(1, len(weights)), stages - 1)
    assert score(balance_blocks(weights, stages)) == min(map(score, everyone))


@pytest.mark.parametrize("name", ["cnn", "encoder", "mlp"])
@pytest.mark.parametrize("measure", [flops, sizes])
def test_the_chosen_cuts_are_within_a_tenth_of_the_best_of_all_places(name, measure):
    """Of all partitions of the blocks; and the amounts of the blocks are those of the whole."""
    net = pipelines.CASES[name]().net
    line = line_of(net)
    amounts = measure(line)
    for stages in (2, 3, 4):
        places = candidate_cuts(cuts(line), stages)
        weights = blocks(places, amounts)
        assert sum(weights) == sum(amounts)
        assert len(weights) <= 12
        found = blocks([places[i - 1] for i in balance_blocks(weights, stages)], amounts)
        best = min(
            max(blocks(chosen_places, amounts))
            for chosen_places in itertools.combinations(places, stages - 1)
        )
        assert max(found) <= 1.1 * best


def test_flops_are_those_of_a_count_by_hand():
    """Of products, biases and activations; and a convolution's are its output times its kernel."""
    batch, width, layers = 8, 12, 8
    each = 2 * batch * width * width + 2 * batch * width
    assert sum(flops(line_of(pipelines.mlp().net))) == layers * each
    kernel = normal(3, 3, 4, 6)
    net = js.trace(
        lambda k, x: jax.lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        kernel,
        normal(2, 5, 5, 4),
    )
    assert sum(flops(line_of(net))) == 2 * (2 * 5 * 5 * 6) * (3 * 3 * 4)


@pytest.mark.parametrize("name", list(models.CASES))
def test_stages_of_any_model_compute_what_the_model_does(name):
    """Every model of the foundation, cut at every place there is."""
    case = models.CASES[name]()
    net = js.trace(case.model, case.variables, *case.args, **case.kwargs)
    line = line_of(net)
    cut = split(line, cuts(line))
    assert len(cut.stages) == len(cuts(line)) + 1
    arrays = [a for a in jax.tree.leaves((case.args, case.kwargs)) if is_array(a)]

    @jax.jit
    def both(net, arrays):
        return outputs(net, cut, arrays), net(*case.args, **case.kwargs)

    found, expected = both(net, arrays)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_calls_at_top_level_are_opened_and_the_same_layer_may_be_called_twice():
    case = models.shared_jit()
    whole = jax.jit(case.model)
    net = js.trace(lambda params, x: whole(params, x), case.variables, *case.args)
    assert [c.name for c in cuts(line_of(net))] == ["b", "a#2"]


def test_a_rematerialized_model_is_opened_and_a_rematerialized_layer_is_not():
    def model(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    def layered(params, x):
        for w in params:
            x = jax.checkpoint(lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w))(w, x)
        return x

    params = [normal(4, 4, seed=i) for i in range(3)]
    whole = js.trace(jax.checkpoint(model), params, normal(2, 4))
    layers = js.trace(layered, params, normal(2, 4))
    assert [c.name for c in cuts(line_of(whole))] == ["1", "2"]
    assert [c.name for c in cuts(line_of(layers))] == ["1", "2"]


def test_weights_and_their_casts_belong_to_the_stage_that_reads_them():
    def model(params, x):
        low = [w.astype(jnp.bfloat16) for w in params]
        for w in low:
            x = jnp.tanh(x @ w.astype(jnp.float32))
        return x

    params = [normal(4, 4, seed=i) for i in range(3)]
    net = js.trace(model, params, normal(2, 4))
    cut = split(line_of(net), cuts(line_of(net)))
    assert [stage.params for stage in cut.stages] == [(0,), (1,), (2,)]
    assert [len(stage.live) for stage in cut.stages] == [0, 1, 1]


def test_a_skip_over_stages_goes_straight_to_where_it_is_read():
    def model(params, x):
        first = jnp.tanh(x @ params[0])
        x = jnp.tanh(jnp.tanh(first @ params[1]) @ params[2])
        return (x + first) @ params[3]

    net = js.trace(model, [normal(4, 4, seed=i) for i in range(4)], normal(2, 4))
    cut = split(line_of(net), cuts(line_of(net)))
    assert [len(stage.sources) for stage in cut.stages] == [0, 1, 2, 1]
    assert {s for s, _ in cut.stages[2].sources} == {0, 1}


def test_too_few_minimal_cuts_are_filled_up_from_all():
    """In a U-Net the skips are live everywhere between."""

    class Unet(nn.Module):
        @nn.compact
        def __call__(self, x):
            downs = []
            for _ in range(3):
                downs.append(x := nn.relu(nn.Dense(4)(x)))
            for down in reversed(downs):
                x = nn.relu(nn.Dense(4)(jnp.concatenate([x, down], -1)))
            return x

    x = normal(2, 4)
    places = cuts(line_of(js.trace(Unet(), Unet().init(jax.random.key(0), x), x)))
    assert sum(c.minimal for c in places) < 4
    assert candidate_cuts(places, 5) == places
    with pytest.raises(ValueError, match=r"stages=7: the network has 5 cuts, for at most 6"):
        candidate_cuts(places, 7)


def test_names_of_cuts_are_checked():
    places = cuts(line_of(pipelines.mlp().net))
    with pytest.raises(ValueError, match="no cut at layers/9/kernel; a stage can begin at: layers"):
        select_cuts(places, ["layers/9/kernel"])
    with pytest.raises(ValueError, match="names a cut twice"):
        select_cuts(places, ["layers/1/kernel", "layers/1/kernel"])
