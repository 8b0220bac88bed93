"""Of activations and gradients only the largest count, and nothing is lost of the latter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from tests.support.models import normal
from tests.support.networks import X, cnn, run

sp = js.sparsity


def largest(x, count):
    kept = np.zeros(x.size, bool)
    kept[np.argsort(-np.abs(x.ravel()), kind="stable")[:count]] = True
    return np.where(kept.reshape(x.shape), x, 0)


@pytest.mark.parametrize("axes", [(-1,), (1, 2), (0,)])
def test_the_largest_stay_exactly(axes):
    x = np.asarray(normal(3, 4, 6))
    moved = np.moveaxis(x, axes, range(-len(axes), 0))
    lead = moved.shape[: 3 - len(axes)]
    expected = np.array([largest(moved[i], round(0.3 * moved[i].size)) for i in np.ndindex(lead)])
    expected = np.moveaxis(expected.reshape(moved.shape), range(-len(axes), 0), axes)
    np.testing.assert_array_equal(sp.topk(x, 0.3, axes), expected)
    np.testing.assert_array_equal(jax.grad(lambda x: sp.topk(x, 0.3, axes).sum())(x), expected != 0)


def test_a_site_reads_only_the_largest_inputs_of_an_image_and_of_a_row():
    only = js.wrap(sp.topk_inputs, share=0.25, sites="Conv_0*")(cnn())
    cut = np.stack([largest(np.asarray(x), round(0.25 * x.size)) for x in X])
    found = run(only, X)
    np.testing.assert_allclose(found, run(cnn(), cut), rtol=1e-5, atol=1e-6)
    before = run._cache_size()
    ys = [run(js.wrap(sp.topk_inputs, share=share)(cnn()), X) for share in (0.25, 0.1, 0.5)]
    assert run._cache_size() == before + 1
    assert np.abs(ys[0] - found).max() > 1e-3


def test_what_is_not_sent_is_kept_and_sent_later():
    tx = sp.topk_gradient(0.2)
    params = {"w": jnp.zeros((5, 4))}
    state, sent, given = tx.init(params), np.zeros((5, 4)), np.zeros((5, 4))
    for i in range(12):
        g = np.asarray(normal(5, 4, seed=i))
        whole = np.asarray(state.error["w"]) + g
        updates, state = tx.update({"w": jnp.asarray(g)}, state, params)
        np.testing.assert_array_equal(updates["w"], largest(whole, 4))
        sent, given = sent + np.asarray(updates["w"]), given + g
        np.testing.assert_allclose(sent + np.asarray(state.error["w"]), given, atol=1e-5)


def test_error_feedback_finds_the_minimum_that_dropping_does_not():
    """A coordinate of small gradients is sent in the end; without feedback it never is."""
    scale = jnp.array([10.0, 1.0])

    def descended(tx):
        @jax.jit
        def step(w, state):
            # a gradient of the first that never fades keeps the second out
            updates, state = tx.update(scale * jnp.array([jnp.sign(w[0]), w[1]]), state, w)
            return optax.apply_updates(w, updates), state

        w = jnp.ones(2)
        state = tx.init(w)
        for _ in range(300):
            w, state = step(w, state)
        return w

    assert abs(descended(optax.chain(sp.topk_gradient(0.5), optax.sgd(0.01)))[1]) < 0.3
    drop = optax.stateless(lambda g, _: sp.topk(g, 0.5))
    assert descended(optax.chain(drop, optax.sgd(0.01)))[1] == 1


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_shares_out_of_range_are_named(share):
    with pytest.raises(ValueError, match="share="):
        sp.topk(jnp.ones(3), share)
    with pytest.raises(ValueError, match="share="):
        sp.topk_gradient(share)
