"""A backward in two halves is the whole, and nothing in it is computed twice."""

import collections

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.pipeline.halves import halves
from tests.support.models import normal

A, B, X, Y = normal(3, 4, seed=1), normal(4, 2, seed=2), normal(5, 3, seed=3), normal(5, 2, seed=4)


def layers(weights, x):
    a, b = weights
    return jnp.tanh(x @ a) @ b


def backward(weights, x, y):
    return jax.vjp(layers, weights, x)[1](y)


def products(eqns):
    return collections.Counter(eqn.primitive.name for eqn in eqns)["dot_general"]


def test_two_layers_are_divided_as_by_hand():
    """Inputs need the forward's first product and two of the chain, weights one each more."""
    found = halves(backward, (A, B), X, Y)
    assert products(found.first) == 3
    assert products(found.second) == 2
    assert not set(map(id, found.first)) & set(map(id, found.second))
    given = [*map(jnp.asarray, (A, B, X, Y))]
    (of_x,), crossing = found.inputs(given)
    of_a, of_b = found.gradients(given, crossing)
    h = np.tanh(X @ A)
    through = (Y @ B.T) * (1 - h**2)
    np.testing.assert_allclose(of_x, through @ A.T, atol=1e-5)
    np.testing.assert_allclose(of_a, X.T @ through, atol=1e-5)
    np.testing.assert_allclose(of_b, h.T @ Y, atol=1e-5)
    assert sorted(a.shape for a in crossing) == [(5, 4), (5, 4)]


def test_calls_are_taken_apart():
    found = halves(lambda *given: jax.jit(backward)(*given), (A, B), X, Y)
    assert (products(found.first), products(found.second)) == (3, 2)


def test_a_stage_that_no_gradient_leaves_has_all_of_it_in_the_second_half():
    def first_stage(weights, x, y):
        return jax.vjp(lambda w: layers(w, x), weights)[1](y)[0], []

    found = halves(first_stage, (A, B), X, Y)
    assert (products(found.first), products(found.second)) == (0, 4)
    assert found.inputs([*map(jnp.asarray, (A, B, X, Y))]) == ([], [])


def test_a_scan_over_layers_belongs_to_the_first_half():
    stack = jnp.stack([jnp.asarray(normal(3, 3, seed=i)) for i in range(3)])

    def scanned(stack, x, y):
        def run(w, x):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

        return jax.vjp(run, stack, x)[1](y)

    x, y = jnp.asarray(normal(5, 3)), jnp.asarray(normal(5, 3, seed=9))
    found = halves(scanned, stack, x, y)
    assert "scan" in {eqn.primitive.name for eqn in found.first}
    assert "scan" not in {eqn.primitive.name for eqn in found.second}
    (of_x,), crossing = found.inputs([stack, x, y])
    (of_stack,) = found.gradients([stack, x, y], crossing)
    expected = scanned(stack, x, y)
    np.testing.assert_allclose(of_stack, expected[0], atol=1e-6)
    np.testing.assert_allclose(of_x, expected[1], atol=1e-6)
