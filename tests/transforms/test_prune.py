import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support import models
from tests.support.networks import SITES, X, cnn, run, stack


def smallest(flat, sparsity):
    """Which entries remain, by a stable sort."""
    keep = np.ones(flat.size, bool)
    keep[np.argsort(np.abs(flat), kind="stable")[: round(sparsity * flat.size)]] = False
    return keep


def weights(net):
    """The weight of each site of the CNN, by name."""
    return {name: net.params[name.split("/")[0]]["kernel"] for name in SITES}


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.75, 0.999])
def test_global_pruning_ranks_all_weights_together(sparsity):
    net = js.prune(sparsity, allow_collapse=True)(cnn())
    kept = weights(cnn())
    expected = smallest(np.concatenate([np.ravel(w) for w in kept.values()]), sparsity)
    found = np.concatenate([np.ravel(net.masks[name]) for name in kept])
    np.testing.assert_array_equal(found, expected)
    pruned = weights(dataclasses.replace(net, params=net.masked_params()))
    flat = np.concatenate([np.ravel(w) for w in pruned.values()])
    assert np.count_nonzero(flat) == expected.sum()


@pytest.mark.parametrize("sparsity", [0.25, 0.8])
def test_layer_pruning_ranks_each_layer_and_each_slice_of_a_stack(sparsity):
    masks = js.prune(sparsity, distribution=js.sparsity.uniform())(cnn()).masks
    for name, w in weights(cnn()).items():
        np.testing.assert_array_equal(np.ravel(masks[name]), smallest(np.ravel(w), sparsity))
    net = js.prune(sparsity, distribution=js.sparsity.uniform())(stack())
    for layer, mask in zip(stack().params["w"], net.masks["w"], strict=True):
        np.testing.assert_array_equal(np.ravel(mask), smallest(np.ravel(layer), sparsity))


def test_ties_go_in_order_of_position():
    net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((4, 2))}, models.normal(2, 4))
    mask = js.prune(0.5)(net).masks["w"]
    np.testing.assert_array_equal(np.ravel(mask), [0, 0, 0, 0, 1, 1, 1, 1])


def test_pruned_weights_stay_out_when_pruned_again():
    once = js.prune(0.75)(cnn())
    twice = js.prune(0.5)(once)
    for name in SITES:
        np.testing.assert_array_equal(twice.masks[name], once.masks[name])
    more = js.prune(0.9)(once)
    assert all(np.all(more.masks[name] <= once.masks[name]) for name in SITES)
    assert sum(m.sum() for m in more.masks.values()) == round(
        0.1 * sum(m.size for m in more.masks.values())
    )


def test_a_pruned_network_is_the_model_with_zeros():
    net = js.prune(0.6)(cnn())
    zeroed = dataclasses.replace(cnn(), params=net.masked_params())
    np.testing.assert_array_equal(run(net, X[:2]), run(zeroed, X[:2]))


def test_pruned_weights_have_no_gradient_and_the_others_theirs():
    net = js.compose(js.prune(0.6), js.quantize(4, 8))(cnn())

    @jax.jit
    @jax.grad
    def slope(params):
        return (dataclasses.replace(net, params=params)(X[:2]) ** 2).sum()

    gradient = slope(net.params)
    for name in SITES:
        g, mask = gradient[name.split("/")[0]]["kernel"], net.masks[name]
        assert not np.any(np.where(mask, 0, g))
        assert np.count_nonzero(np.where(mask, g, 0)) > 0.3 * mask.sum()


def test_only_the_chosen_sites_are_pruned_and_only_weights():
    net = js.prune(0.5, sites="Dense*")(cnn())
    assert set(net.masks) == {"Dense_0/kernel"}


def test_a_weight_used_twice_is_pruned_once():
    net = js.trace(
        lambda p, x: (x @ p["w"]) @ p["w"], {"w": models.normal(4, 4)}, models.normal(2, 4)
    )
    masks = js.prune(0.5)(net).masks
    assert list(masks) == ["w"]
    assert masks["w"].sum() == 8


def test_a_layer_that_would_lose_everything_is_refused():
    with pytest.raises(ValueError, match="nothing is left of Conv_0/kernel"):
        js.prune(0.999)(cnn())


def test_rounds_score_anew_and_end_at_the_sparsity():
    net = cnn()
    seen = []

    def score(net, memory):
        seen.append(sum(int(m.sum()) for m in net.masks.values()))
        return jax.tree.map(jnp.abs, net.masked_params())

    masks = js.prune(0.9, criterion=js.sparsity.Criterion(score), rounds=3)(net).masks
    total = sum(m.size for m in masks.values())
    assert seen == [0, round(0.1 ** (1 / 3) * total), round(0.1 ** (2 / 3) * total)]
    assert sum(int(m.sum()) for m in masks.values()) == total - round(0.9 * total)


def test_a_sweep_over_sparsity_compiles_once_and_runs_in_a_batch():
    net = cnn()

    @jax.jit
    def left(sparsity):
        masks = js.prune(sparsity, distribution=js.sparsity.erk())(net).masks
        return sum(jnp.sum(m) for m in masks.values())

    found = [int(left(s)) for s in (0.2, 0.5, 0.9)]
    assert left._cache_size() == 1
    total = sum(m.size for m in js.prune(0.5)(net).masks.values())
    assert found == [total - round(s * total) for s in (0.2, 0.5, 0.9)]
    np.testing.assert_array_equal(jax.vmap(left)(jnp.array([0.2, 0.5, 0.9])), found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: js.prune(), "sparsity=None"),
        (lambda: js.prune(0.5, pattern=js.sparsity.n_of_m(2, 4)), "the pattern fixes it at 0.5"),
        (lambda: js.prune(0.5, criterion="magnitude"), "criterion='magnitude'"),
        (lambda: js.prune(0.5, pattern=(2, 4)), "pattern="),
        (lambda: js.prune(0.5, rounds=0), "rounds=0"),
        (lambda: js.sparsity.n_of_m(4, 4), "n=4: must be an int from 1 to 3"),
        (lambda: js.sparsity.head(1), "heads=1"),
        (lambda: js.sparsity.block(0, 1), "rows=0"),
        (
            lambda: js.prune(pattern=js.sparsity.n_of_m(1, 3), sites="Dense*")(cnn()),
            "m=3: does not",
        ),
        (lambda: js.prune(0.5, pattern=js.sparsity.block(3, 1))(cnn()), "rows=3, columns=1"),
        (lambda: js.prune(0.5, pattern=js.sparsity.channel(4))(cnn()), "axis=4"),
        (lambda: js.prune(0.5, pattern=js.sparsity.head(5))(cnn()), "has no axis of that length"),
        (lambda: js.prune(0.5, criterion=js.sparsity.movement())(cnn()), "give it to a schedule"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nan_scores_are_refused():
    scores = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), cnn().params)
    with pytest.raises(ValueError, match="scores of Conv_0/kernel: some are NaN"):
        js.prune(0.5, criterion=js.sparsity.given(scores))(cnn())
