"""Scores are the derivatives and the curvatures that they are said to be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxsim as js
from jaxsim.network.params import by_name
from jaxsim.sparsity.criterion import gradients, hessian_product
from jaxsim.sparsity.second_order import example_gradients, inverse_fisher
from jaxsim.train.losses import cross_entropy
from tests.oracles import sparsity as oracle
from tests.support.models import normal
from tests.support.networks import X, cnn

sp = js.sparsity
LABELS = np.arange(8) % 3
SMALL_X = normal(8, 4, seed=2)


def small():
    """A smooth network of 35 weights."""
    params = {"a": normal(4, 5, seed=1), "b": normal(5, 3, seed=2)}
    return js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, SMALL_X)


def loss(net):
    return cross_entropy(net(SMALL_X), LABELS)


def flat_loss(net):
    w, back = ravel_pytree(net.params)
    return w, lambda w: loss(dataclasses.replace(net, params=back(w)))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def scored(criterion, net):
    """The scores of a criterion, by one program."""
    return jax.jit(lambda net: criterion.score(net, ()))(net)


def test_first_order_scores_are_gradients_times_weights():
    w, f = flat_loss(small())
    expected = np.abs(w * np.asarray(jax.jit(jax.grad(f))(w)))
    np.testing.assert_allclose(flat(scored(sp.taylor(loss), small())), expected, rtol=1e-5)
    snip = flat(scored(sp.snip(loss), small()))
    np.testing.assert_allclose(snip, expected / expected.sum(), rtol=1e-5)


def test_hessian_products_and_grasp_are_those_of_the_dense_hessian():
    w, f = flat_loss(small())
    hessian, g = map(np.asarray, jax.jit(lambda w: (jax.hessian(f)(w), jax.grad(f)(w)))(w))
    v = jax.tree.map(lambda p: normal(*p.shape, seed=9), small().params)
    product = jax.jit(lambda net, v: hessian_product(net, loss, v))
    found = flat(product(small(), v))
    np.testing.assert_allclose(found, hessian @ flat(v), rtol=1e-4, atol=1e-6)
    found = flat(scored(sp.grasp(loss), small()))
    np.testing.assert_allclose(found, w * (hessian @ g), rtol=1e-4, atol=1e-7)


def test_synaptic_flow_is_conserved_by_each_hidden_neuron_and_each_layer():
    """Without biases, what flows into a neuron flows out of it."""
    params = {
        n: normal(*s, seed=i)
        for i, (n, s) in enumerate({"a": (6, 9), "b": (9, 7), "c": (7, 4)}.items())
    }

    def fn(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]

    net = js.trace(fn, params, normal(2, 6))
    s = jax.tree.map(np.asarray, scored(sp.synflow(normal(1, 6)), net))
    np.testing.assert_allclose(s["a"].sum(0), s["b"].sum(1), rtol=1e-5)
    np.testing.assert_allclose(s["b"].sum(0), s["c"].sum(1), rtol=1e-5)
    total = np.ones(6) @ np.abs(params["a"]) @ np.abs(params["b"]) @ np.abs(params["c"])
    for scores in s.values():
        np.testing.assert_allclose(scores.sum(), total.sum(), rtol=1e-5)


def test_many_rounds_of_synflow_keep_every_layer_where_one_loses_it():
    params = {"a": normal(4, 40), "b": normal(40, 40), "c": normal(40, 3)}
    net = js.trace(lambda p, x: x @ p["a"] @ p["b"] @ p["c"], params, normal(1, 4))
    synflow = sp.synflow(normal(1, 4))
    with pytest.raises(ValueError, match="nothing is left of b"):
        js.prune(0.97, criterion=synflow)(net)
    masks = js.prune(0.97, criterion=synflow, rounds=20)(net).masks
    assert all(m.any() for m in masks.values())
    total = sum(m.size for m in masks.values())
    assert sum(int(m.sum()) for m in masks.values()) == total - round(0.97 * total)


def test_fisher_is_the_mean_square_of_single_gradients():
    net = small()

    @jax.jit
    @jax.grad
    def slope(params, x, labels):
        return cross_entropy(dataclasses.replace(net, params=params)(x), labels)

    x = np.asarray(SMALL_X)
    each = [flat(slope(net.params, x[i : i + 1], LABELS[i : i + 1])) for i in range(8)]
    data, one = (SMALL_X, jnp.asarray(LABELS)), lambda net, e: cross_entropy(net(e[0]), e[1])
    found = np.concatenate(
        [
            np.stack(
                [
                    flat(jax.tree.map(lambda g, i=i: np.asarray(g)[i], grads))
                    for i in range(len(jax.tree.leaves(grads)[0]))
                ]
            )
            for grads in example_gradients(net, one, data, 3)
        ]
    )
    np.testing.assert_allclose(found, each, rtol=1e-5, atol=1e-8)
    expected = np.square(each).mean(0) * flat(net.params) ** 2 / 2
    score = flat(sp.fisher(one, data, batch=3).score(net, ()))
    np.testing.assert_allclose(score, expected, rtol=1e-5, atol=1e-10)
    # one block holds a layer: the inverse is that of its own Fisher matrix
    score = sp.wood_fisher(one, data, block=64, damping=0.01, batch=3).score(net, ())
    ends = {"a": slice(0, 20), "b": slice(20, 35)}
    for name, rows in ends.items():
        g = np.asarray(each, np.float64)[:, rows]
        inverse = np.linalg.inv(0.01 * np.eye(g.shape[1]) + g.T @ g / 8)
        w = np.ravel(net.params[name])
        np.testing.assert_allclose(np.ravel(score[name]), w**2 / (2 * np.diag(inverse)), rtol=1e-3)


@pytest.mark.parametrize("n", [3, 40])
def test_the_inverse_by_woodbury_is_the_inverse(n):
    g = np.asarray(normal(n, 12, seed=4))
    expected = np.linalg.inv(0.1 * np.eye(12) + g.T @ g / n)
    np.testing.assert_allclose(inverse_fisher(g, 0.1, n), expected, rtol=2e-3, atol=1e-3)


def test_optimal_brain_damage_has_the_diagonal_of_the_hessian():
    """Exact where it is diagonal; elsewhere its mean over signs."""
    x, net = jnp.eye(4), js.trace(lambda p, x: x @ p["w"], {"w": normal(4, 2)}, jnp.eye(4))
    curve = jnp.arange(1.0, 9).reshape(4, 2)

    def quadratic(net):
        return jnp.sum(curve * net(x) ** 2) / 2

    score = sp.obd(quadratic, key=jax.random.key(0), samples=1).score(net, ())["w"]
    np.testing.assert_allclose(score, curve * net.params["w"] ** 2 / 2, rtol=1e-5)
    w, f = flat_loss(small())
    diagonal = np.diag(jax.jit(jax.hessian(f))(w))
    score = flat(scored(sp.obd(loss, key=jax.random.key(0), samples=2000), small()))
    expected = diagonal * w**2 / 2
    assert np.linalg.norm(score - expected) < 0.1 * np.linalg.norm(expected)


def test_scores_of_a_pruned_network_are_of_what_is_left():
    net = js.prune(0.5)(cnn())
    of = lambda net: cross_entropy(net(X), LABELS)  # noqa: E731
    for criterion in (sp.magnitude(), sp.taylor(of), sp.synflow(X[:1])):
        scores = by_name(scored(criterion, net))
        for name, mask in net.masks.items():
            assert not np.any(np.asarray(scores[name])[~np.asarray(mask)])


def pair():
    """Two weights, 3 and a pruned 5, of which the output reads the first once, the second twice."""
    net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[3.0], [5.0]])}, jnp.ones((1, 2)))
    return dataclasses.replace(net, masks={"w": jnp.array([[True], [False]])})


ONE_TWO = jnp.array([[1.0, 2.0]])


def test_criteria_see_the_gradients_of_what_is_pruned():
    """Of y² with y = w₁ + 2 w₂ = 3 the gradient is 2y (1, 2), and the Hessian 2 (1, 2) (1, 2)ᵀ."""
    net, square = pair(), lambda net: jnp.sum(net(ONE_TWO) ** 2)
    w, g = gradients(net, square)
    np.testing.assert_array_equal(w["w"], [[3], [0]])
    np.testing.assert_array_equal(g["w"], [[6], [12]])
    np.testing.assert_array_equal(hessian_product(net, square, g)["w"], [[60], [120]])
    np.testing.assert_array_equal(sp.grasp(square).score(net, ())["w"], [[180], [0]])
    np.testing.assert_array_equal(sp.taylor(square).score(net, ())["w"], [[18], [0]])
    # signs z that agree give z₁ (Hz)₁ = 2 + 4, others 2 - 4; without the pruned weight it is 2
    curve = sp.obd(square, key=jax.random.key(0), samples=1).score(net, ())["w"]
    assert curve.tolist() in ([[27.0], [0.0]], [[-9.0], [0.0]])


def test_single_examples_see_the_gradients_of_what_is_pruned():
    """F = 1 + (1, 2) (1, 2)ᵀ has the inverse (5, -2; -2, 2) / 6; of the first alone it is 1/2."""
    net, total = pair(), lambda net, x: net(x).sum()
    (found,) = example_gradients(net, total, ONE_TWO, 1)
    np.testing.assert_array_equal(found["w"], [[[1], [2]]])
    score = sp.wood_fisher(total, ONE_TWO, block=2, damping=1.0).score(net, ())["w"]
    np.testing.assert_allclose(score, [[9 / (2 * 5 / 6)], [0]], rtol=1e-6)


def test_scores_by_hand_of_three_weights():
    """x = (1, 2, 4), w = (3, -5, 2): y = 1. Each criterion of a dense network, number by number."""
    x, w = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[3.0], [-5.0], [2.0]])
    net = js.trace(lambda p, x: x @ p["w"], {"w": w}, x)

    def of(criterion):
        return criterion.score(net, ())["w"].ravel().tolist()

    assert of(sp.magnitude()) == [3, 5, 2]
    assert of(sp.squared()) == [9, 25, 4]
    square = lambda net: jnp.sum(net(x) ** 2)  # noqa: E731
    assert of(sp.taylor(square)) == [6, 20, 16]  # g = 2 y x = (2, 4, 8)
    np.testing.assert_allclose(of(sp.snip(square)), [6 / 42, 20 / 42, 16 / 42], rtol=1e-6)
    assert of(sp.grasp(square)) == [252, -840, 672]  # Hg = 2 x (x · g) = 84 x
    assert of(sp.synflow(x)) == [3, 5, 2]
    assert of(sp.given({"w": w})) == [3, -5, 2]
    flat = js.trace(lambda p, x: x @ p["w"], {"w": jnp.zeros((3, 1))}, x)
    assert sp.snip(square).score(flat, ())["w"].ravel().tolist() == [0, 0, 0]


def test_random_scores_differ_from_layer_to_layer_and_are_uncorrelated():
    params = {"a": jnp.ones((64, 64)), "b": jnp.ones((64, 64))}
    net = js.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 64)))
    one, same, other = (sp.random(jax.random.key(k)).score(net, ()) for k in (0, 0, 1))
    np.testing.assert_array_equal(one["a"], same["a"])
    a, b, c = (np.ravel(s) for s in (one["a"], one["b"], other["a"]))
    assert abs(np.corrcoef([a, b, c])[np.triu_indices(3, 1)]).max() < 4 / 64
    assert (a.min(), a.max()) == pytest.approx((0, 1), abs=0.01)


def test_signs_of_obd_are_drawn_for_each_layer_and_each_sample():
    """Of a · b the diagonal is zero: one sample is the product of both signs over two."""
    net = js.trace(
        lambda p, x: x @ p["a"] @ p["b"],
        {"a": jnp.ones((1, 1)), "b": jnp.ones((1, 1))},
        jnp.ones((1, 1)),
    )

    def of(key, samples):
        loss = lambda net: net.params["a"].sum() * net.params["b"].sum()  # noqa: E731
        criterion = sp.obd(loss, key=jax.random.key(key), samples=samples)
        return float(criterion.score(net, ())["a"][0, 0])

    assert {of(key, 1) for key in range(8)} == {0.5, -0.5}
    assert abs(of(0, 16)) < 0.5


def gram_of(K, seed=0):
    x = np.random.default_rng(seed).normal(size=(60, K))
    x = x @ np.random.default_rng(seed + 1).normal(size=(K, K))
    return x.T @ x / 60


def test_the_surgeon_s_single_removal_is_the_constrained_minimum():
    from jaxsim.sparsity.obs import saliency

    gram, w = gram_of(7), np.asarray(normal(7, 3, seed=3), np.float64)
    scaled = gram / np.mean(np.diag(gram))
    cost, change = saliency(jnp.asarray(w, jnp.float32), jnp.asarray(gram, jnp.float32), 1e-3)
    scaled = scaled + 1e-3 * np.eye(7)
    for q in range(7):
        for n in range(3):
            best, least = oracle.constrained(w[:, n], scaled, {q})
            np.testing.assert_allclose(cost[q, n], least, rtol=5e-3)
            moved = w[:, n] + np.asarray(change)[:, q] * w[q, n]
            np.testing.assert_allclose(moved, best, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize(("K", "block"), [(8, 8), (12, 4), (10, 4)])
@pytest.mark.parametrize("keep", [None, (2, 4)])
def test_a_layer_is_pruned_as_by_eliminating_inputs_one_by_one(K, block, keep):
    if keep and K % 4:
        K += 2
    gram, w = gram_of(K, 5), np.asarray(normal(K, 5, seed=K), np.float64)
    scaled = gram / np.mean(np.diag(gram)) + 0.05 * np.eye(K)
    expected, stays = oracle.surgeon(w, scaled, 0.5, block, keep)
    q, mask = sp.prune_layer(
        jnp.asarray(w, jnp.float32),
        jnp.asarray(gram, jnp.float32),
        0.5,
        damping=0.05,
        block=block,
        keep=keep,
    )
    np.testing.assert_array_equal(mask, stays)
    np.testing.assert_allclose(q, expected, rtol=1e-3, atol=1e-3)
    assert not np.any(np.asarray(q)[~stays])
    assert stays.sum() == K * 5 - round(0.5 * K * 5)


def test_the_surgeon_errs_less_than_magnitude_and_no_less_than_its_mask_allows():
    """Forty inputs of six causes, so that those which stay can make up for the others."""
    K, rng = 40, np.random.default_rng(2)
    x = rng.normal(size=(200, 6)) @ rng.normal(size=(6, K)) + 0.3 * rng.normal(size=(200, K))
    gram, w = x.T @ x / 200, np.asarray(normal(K, 20, seed=8), np.float64)
    q, mask = sp.prune_layer(jnp.asarray(w, jnp.float32), jnp.asarray(gram, jnp.float32), 0.5)
    plain = np.where(oracle.lowest_go(np.abs(w), K * 10), w, 0)

    def cost(q):
        return np.einsum("kn,kl,ln->", w - q, gram, w - q)

    gone = [set(np.flatnonzero(~column)) for column in np.asarray(mask).T]
    least = sum(oracle.constrained(w[:, n], gram, gone[n])[1] for n in range(20))
    assert least <= cost(np.asarray(q, np.float64)) < 0.2 * cost(plain)
