"""Networks that mix are those that are described, agent by agent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim.solvers as js
from jaxsim.solvers.networks import masked_softmax
from tests.oracles import meta_networks as oracle

A = np.array([[0, 3, -1, 0.5], [-3, 0, 2, -0.25], [1, -2, 0, 4], [-0.5, 0.25, -4, 0]])


def built(network, seed=1):
    """Parameters of unlike numbers, none of them zero."""
    params = network.init(jax.random.key(0), jnp.zeros((4, 4)), jnp.int32(2))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32) for leaf in leaves]
    )


KINDS = {
    "conv": (js.ConvMixing((3, 2)), oracle.convolution_mixing),
    "gru": (js.GRUMixing(3), oracle.recurrent_mixing),
    "equivariant": (
        js.EquivariantMixing(2, 5, start=0),
        lambda params, a: oracle.equivariant_mixing(params, a, 2),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_those_of_the_equations(name):
    network, by_hand = KINDS[name]
    params = built(network)
    room = jnp.pad(jnp.asarray(A, jnp.float32), ((0, 2), (0, 2)), constant_values=5.0)
    found = jax.jit(network.apply)(params, room, jnp.int32(4))
    expected = by_hand(params, A)
    np.testing.assert_allclose(found[:4], expected, atol=2e-5)
    assert not np.any(found[4:])
    assert np.ptp(expected) > 0.01
    # payoffs among three are another mixture
    assert np.abs(by_hand(params, A[:3, :3]) - expected[:3]).max() > 1e-3


def test_rounds_start_from_the_nash_mixture_where_it_is_asked_for():
    """Without rounds the answer is the start, no less than a thousandth of an even share."""
    network = js.EquivariantMixing(0, 4, start=300)
    params = network.init(jax.random.key(0), jnp.zeros((4, 4)), jnp.int32(2))
    beaten = jnp.array([[0.0, -1, -2], [1, 0, -1], [2, 1, 0]])
    found = network.apply(params, beaten, jnp.int32(3))
    base = np.maximum(np.asarray(js.nash(300)(beaten, jnp.int32(3))), 1e-3 / 3)
    np.testing.assert_allclose(found, base / base.sum(), rtol=1e-4)
    assert 0 < float(found[0]) < 1e-3


def test_ages_say_who_is_there():
    network = KINDS["equivariant"][0]
    params = built(network)
    a = jnp.asarray(A, jnp.float32)
    plain = network.apply(params, a[:3, :3], jnp.int32(3))
    order = jnp.array([2, 0, 3, 1])
    room = jnp.pad(a[:3, :3], ((0, 1), (0, 1)), constant_values=9.0)[order][:, order]
    found = network.apply(params, room, jnp.int32(3), jnp.array([2, 1, 0, -1])[order])
    np.testing.assert_allclose(found, jnp.append(plain, 0)[order], atol=1e-6)


def test_softmax_is_over_those_who_are_there():
    found = masked_softmax(jnp.log(jnp.array([1.0, 3, 8])), jnp.array([True, True, False]))
    np.testing.assert_allclose(found, [0.25, 0.75, 0], rtol=1e-6)
