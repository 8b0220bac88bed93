"""How many weights each layer loses, counted by hand for layers that differ in every axis."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.sparsity.distribution import LayerScores, densities

sp = js.sparsity

KERNEL, DENSE = (3, 3, 2, 4), (8, 5)


def layers(*shapes, size=1):
    """Layers of rising scores, whose units have so many weights."""
    return [
        LayerScores(jnp.arange(1.0, 1 + np.prod(s) // size)[None] * (i + 2), s, size)
        for i, s in enumerate(shapes)
    ]


def counts(distribution, made, sparsity):
    return [c.tolist() for c in distribution.removed(made, sparsity)]


def test_er_counts_channels_and_erk_every_axis_of_a_kernel():
    """Of 72 + 40 weights 56 stay. (2 + 4) / 8 · 72 + 13 = 67, and (3 + 3 + 2 + 4) + 13 = 25.

    ER keeps 56/67 · 54 = 45.1 and 56/67 · 13 = 10.9; ERK 56/25 · 12 = 26.9 and 56/25 · 13 = 29.1.
    """
    made = layers(KERNEL, DENSE)
    assert counts(sp.er(), made, 0.5) == [[27], [29]]
    assert counts(sp.erk(), made, 0.5) == [[45], [11]]
    assert counts(sp.uniform(), made, 0.5) == [[36], [20]]


def test_er_is_erk_where_there_are_only_channels():
    made = layers((4, 6), (6, 9), (9, 2))
    assert counts(sp.er(), made, 0.7) == counts(sp.erk(), made, 0.7)
    assert counts(sp.er(), made, 0.7) != counts(sp.uniform(), made, 0.7)


def test_units_are_counted_rather_than_weights():
    """(4, 6) and (6, 10) in blocks of two: 12 and 30 units, of which 21 of 42 stay.

    84 weights, 42 stay over 10 + 16: densities 42/26 · (10/24, 16/60) = (0.673, 0.431).
    """
    made = layers((4, 6), (6, 10), size=2)
    assert counts(sp.er(), made, 0.5) == [[4], [17]]  # 3.92 and 17.08 of 12 and 30
    assert counts(sp.uniform(), made, 0.3) == [[4], [9]]


def test_layers_of_a_stack_count_one_by_one():
    """Three layers (2, 3) and one (3, 4): 15 of 30 stay over 3 · 5 + 7 = 22.

    Each of three keeps 15/22 · 5 = 3.41 and loses 2.59, the other loses 12 - 4.77 = 7.23; 15 in all
    are three wholes of 2, 7, and the two largest remainders, those of the first two layers.
    """
    made = [
        LayerScores(jnp.ones((3, 6)), (2, 3), 1),
        LayerScores(jnp.ones((1, 12)), (3, 4), 1),
    ]
    assert counts(sp.erk(), made, 0.5) == [[3, 3, 2], [7]]
    assert counts(sp.uniform(), made, 0.5) == [[3, 3, 3], [6]]


def test_global_ranks_all_layers_together_and_lamp_each_weight_by_what_is_above_it():
    """LAMP of (1, 2, 3): 1/14, 4/13, 1; of (10, 20): 100/500, 1; of (4, 4): 16/32, 1."""
    made = [
        LayerScores(jnp.asarray(s, jnp.float32)[None], (len(s),), 1)
        for s in ([2, 1, 3], [20, 10], [4, 4])
    ]
    assert counts(sp.global_(), made, 3 / 7) == [[3], [0], [0]]
    assert counts(sp.global_(), made, 5 / 7) == [[3], [0], [2]]
    # 1/14, then 100/500, then 4/13, then 16/32
    found = [counts(sp.lamp(), made, k / 7) for k in range(1, 5)]
    assert found == [
        [[1], [0], [0]],
        [[1], [1], [0]],
        [[2], [1], [0]],
        [[2], [1], [1]],
    ]


def test_lamp_loses_what_is_out_already_first_and_a_layer_of_zeros_before_others():
    made = [
        LayerScores(jnp.asarray([s], jnp.float32), (3,), 1)
        for s in ([-np.inf, 1, 5], [0, 0, 0], [1, 1, -np.inf])
    ]
    assert counts(sp.lamp(), made, 2 / 9) == [[1], [0], [1]]
    assert counts(sp.lamp(), made, 5 / 9) == [[1], [3], [1]]
    assert counts(sp.lamp(), made, 6 / 9) == [[2], [3], [1]]  # 1/26 before 1/2


@pytest.mark.parametrize(("sparsity", "expected"), [(0.3, 2), (0.5, 2), (0.7, 4), (0.9, 4)])
def test_counts_are_rounded_to_the_nearest_and_halves_to_even(sparsity, expected):
    """Of 5 units 1.5, 2.5, 3.5 and 4.5."""
    made = [LayerScores(jnp.ones((1, 5)), (5,), 1)]
    assert counts(sp.uniform(), made, sparsity) == [[expected]]
    assert counts(sp.global_(), made, sparsity) == [[expected]]


def test_a_density_of_exactly_one_is_no_more_than_one():
    """Shares 1 and 1/2 of 4 and 8 weights. At 8 that stay ε is 1; at 9, 9/8: the first is full."""
    share = {(4,): 1.0, (8,): 0.5}.get
    shapes = [(4,), (8,)]
    np.testing.assert_allclose(densities(shapes, 4 / 12, share), [1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(densities(shapes, 3 / 12, share), [1, 5 / 8], rtol=1e-6)
    np.testing.assert_allclose(densities(shapes, 6 / 12, share), [0.75, 0.375], rtol=1e-6)
    np.testing.assert_allclose(densities(shapes, 0.0, share), [1, 1], rtol=1e-6)


def test_full_layers_fill_up_one_after_another():
    """Shares 4, 2, 1 of 2 weights each, 5 of 6 stay: ε = 5/14 overfills the first only, then 1/2.

    Without it 3 are left over shares of 6: ε = 1/2 makes the second exactly full, the third half.
    """
    share = {(2,): 4.0, (2, 1): 2.0, (1, 2): 1.0}.get
    found = densities([(2,), (2, 1), (1, 2)], 1 / 6, share)
    np.testing.assert_allclose(found, [1, 1, 0.5], rtol=1e-6)
    found = densities([(2,), (2, 1), (1, 2)], 1 / 12, share)
    np.testing.assert_allclose(found, [1, 1, 0.75], rtol=1e-6)
