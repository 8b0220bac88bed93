"""Masks have the counts and the shapes that were asked for, whatever the layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.sparsity.distribution import LayerScores, densities, rank
from jaxsim.sparsity.masks import contracted_axes
from tests.oracles import sparsity as oracle
from tests.support.models import normal
from tests.support.networks import cnn, stack

sp = js.sparsity


def dense(*shape, seed=0):
    """A network of one kernel [..., in, out] that is summed over all axes but the last."""
    w = normal(*shape, seed=seed)
    axes = len(shape) - 1

    def fn(params, x):
        return jnp.tensordot(x, params["w"], axes)

    return js.trace(fn, {"w": w}, normal(2, *shape[:-1]))


def random_cases(patterns):
    """Twenty sparsities, of five shapes: each shape compiles anew."""
    rng = np.random.default_rng(5)
    shapes = [[int(4 * rng.integers(1, 5)) for _ in range(2 + i % 3)] for i in range(5)]
    for i in range(20):
        yield i, shapes[i % 5], rng.uniform(0, 0.9)


@pytest.mark.parametrize("kind", ["unstructured", "block", "channel", "n_of_m", "head"])
def test_counts_are_exact_at_twenty_shapes_and_sparsities(kind):
    for i, shape, s in random_cases(kind):
        net = dense(*shape, seed=i)
        w = np.abs(np.asarray(net.params["w"]))
        s = float(np.float32(s))
        if kind == "unstructured":
            mask = js.prune(s)(net).masks["w"]
            expected = oracle.lowest_go(w, round(s * w.size))
        elif kind == "block":
            mask = js.prune(s, pattern=sp.block(2, 4), allow_collapse=True)(net).masks["w"]
            expected = oracle.blocks(w, 2, 4, round(s * w.size / 8))
        elif kind == "channel":
            mask = js.prune(s, pattern=sp.channel(-2), allow_collapse=True)(net).masks["w"]
            means = np.moveaxis(w, -2, 0).reshape(shape[-2], -1).mean(1)
            kept = oracle.lowest_go(means, round(s * shape[-2]))
            expected = np.broadcast_to(kept[:, None], w.shape)
        elif kind == "n_of_m":
            mask = js.prune(pattern=sp.n_of_m(1 + i % 3, 4))(net).masks["w"]
            expected = oracle.n_of_m(w, 1 + i % 3, 4, -2)
        else:
            shape = [3 + i % 5, 17, 9 - i % 5]
            net = dense(*shape, seed=i)
            w = np.abs(np.asarray(net.params["w"]))
            mask = js.prune(s, pattern=sp.head(17))(net).masks["w"]
            kept = oracle.lowest_go(w.mean((0, 2)), round(s * 17))
            expected = np.broadcast_to(kept[:, None], w.shape)
        np.testing.assert_array_equal(mask, expected, err_msg=f"{shape} {s}")


def test_ties_of_units_go_in_order_of_position():
    net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((8, 4))}, normal(2, 8))
    two = js.prune(pattern=sp.n_of_m(2, 4))(net).masks["w"]
    np.testing.assert_array_equal(two, np.tile([[0], [0], [1], [1]], (2, 4)))
    half = js.prune(0.5, pattern=sp.channel())(net).masks["w"]
    np.testing.assert_array_equal(half, np.tile([0, 0, 1, 1], (8, 1)))


def test_the_axis_of_n_of_m_is_one_that_the_site_sums_over():
    x = normal(2, 8)
    net = js.trace(lambda p, x: (x @ p["a"].T) @ p["b"], {"a": normal(4, 8), "b": normal(4, 4)}, x)
    assert contracted_axes(net, ["a", "b"]) == {"a": (1,), "b": (0,)}
    mask = js.prune(pattern=sp.n_of_m(1, 4))(net).masks["a"]
    np.testing.assert_array_equal(mask.reshape(4, 2, 4).sum(-1), 1)
    assert contracted_axes(cnn(), ["Conv_0/kernel"]) == {"Conv_0/kernel": (0, 1, 2)}
    assert contracted_axes(stack(), ["w"]) == {"w": (0,)}


def test_each_slice_of_a_stack_is_a_layer_of_its_own():
    net = stack(4)
    mask = js.prune(pattern=sp.n_of_m(2, 4))(net).masks["w"]
    np.testing.assert_array_equal(mask.sum(1), 2)
    mask = js.prune(0.25, pattern=sp.channel(), distribution=sp.uniform())(net).masks["w"]
    np.testing.assert_array_equal(mask.all(1).sum(1), 3)


def test_heads_are_lost_by_all_four_kernels_together():
    model = nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=8)
    x = normal(2, 5, 6)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    params = jax.tree.map(lambda p: normal(*p.shape, seed=p.size), shapes)
    net = js.trace(model, params, x)
    masks = {n: np.asarray(m) for n, m in js.prune(0.5, pattern=sp.head(4))(net).masks.items()}
    kept = {name: np.moveaxis(m, 0 if "out" in name else 1, 0) for name, m in masks.items()}
    alive = {name: m.reshape(4, -1).all(1) for name, m in kept.items()}
    assert len(alive) == 4
    total = sum(
        np.moveaxis(np.abs(p["kernel"]), 0 if n == "out" else 1, 0).reshape(4, -1).sum(1)
        for n, p in net.params.items()
    )
    for name, a in alive.items():
        np.testing.assert_array_equal(a, oracle.lowest_go(np.asarray(total), 2), err_msg=name)
        np.testing.assert_array_equal(kept[name].reshape(4, -1).any(1), a)


SHAPES = [(3, 3, 1, 8), (3, 3, 8, 16), (3, 3, 16, 16), (784, 32), (32, 10)]


@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.95])
def test_erk_keeps_the_budget_and_makes_the_same_layers_dense(sparsity):
    share = lambda shape: sum(shape) / float(np.prod(shape))  # noqa: E731
    found = densities(SHAPES, sparsity, share)
    np.testing.assert_allclose(found, oracle.kernel_densities(SHAPES, 1 - sparsity), rtol=1e-5)
    sizes = np.array([np.prod(s) for s in SHAPES])
    np.testing.assert_allclose(np.sum(found * sizes), (1 - sparsity) * sizes.sum(), rtol=1e-5)


def test_erk_of_two_layers_by_hand():
    """(2, 8) has the share 10/16, (8, 8) 16/64; a quarter of 80 weights is 20 = ε (10 + 16)."""
    found = densities([(2, 8), (8, 8)], 0.75, lambda s: sum(s) / float(np.prod(s)))
    np.testing.assert_allclose(found, [20 / 26 * 10 / 16, 20 / 26 * 16 / 64], rtol=1e-6)
    # seven eighths of the weights: ε = 70 / 26, the first would keep 1.68 of its own and is dense
    found = densities([(2, 8), (8, 8)], 0.125, lambda s: sum(s) / float(np.prod(s)))
    np.testing.assert_allclose(found, [1, 54 / 64], rtol=1e-6)


@pytest.mark.parametrize("make", [sp.global_, sp.er, sp.erk, sp.lamp])
def test_distributions_remove_exactly_the_share_of_all_weights(make):
    layers = [LayerScores(jnp.abs(normal(1, int(np.prod(s)))), s, 1) for s in SHAPES]
    total = sum(layer.scores.size for layer in layers)
    for sparsity in (0.0, 0.5, 0.9):
        counts = make().removed(layers, sparsity)
        assert sum(int(c.sum()) for c in counts) == round(sparsity * total)
        assert all(0 <= int(c[0]) <= la.scores.size for c, la in zip(counts, layers, strict=True))


def test_lamp_is_the_paper_s_score_ranked_over_all_layers():
    layers = [LayerScores(jnp.abs(normal(1, n, seed=n)), (n,), 1) for n in (20, 50, 7)]
    scores = [oracle.lamp(layer.scores) for layer in layers]
    kept = oracle.lowest_go(np.concatenate(scores), 38)
    ends = np.cumsum([20, 50])
    expected = [(~part).sum() for part in np.split(kept, ends)]
    found = [int(c[0]) for c in sp.lamp().removed(layers, 38 / 77)]
    assert found == expected


def test_ranks_are_places_in_a_stable_order():
    np.testing.assert_array_equal(
        rank(jnp.array([[2.0, 1, 1, 0], [0, 0, 5, -1]])), [[3, 1, 2, 0], [1, 2, 3, 0]]
    )
