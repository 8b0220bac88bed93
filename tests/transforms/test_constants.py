"""What meets each weight of a site, and what the constants among it add."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.core import float_core
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.transforms.constants import Reader, extremes
from jaxsim.transforms.learn_ranges import ranges, with_ranges
from jaxsim.transforms.site_masks import _corrections
from tests.support.models import normal

T, F = True, False


def reader(w, entry, lo, hi):
    return Reader(None, *map(np.array, (w, entry, lo, hi)))


ONE = reader([[[1, 2], [0, 0], [3, -4]]], [[0, 0, 1]], [[5, -1, 7]], [[5, 1, 7]])
"""Two outputs of three rows, the first two of one entry; the second row has no weight."""


@pytest.mark.parametrize(
    ("entries", "moves", "share"),
    [
        ([F, F], False, [0, 0]),
        ([T, F], False, [5, 10]),  # what meets no weight may move
        ([F, T], False, [21, -28]),
        ([T, T], False, [26, -18]),
    ],
)
def test_constants_add_their_product_with_the_weights(entries, moves, share):
    assert ONE.moves(np.array(entries)) is moves
    np.testing.assert_array_equal(ONE.share(np.array(entries)), share)


def test_a_number_that_moves_or_was_never_seen_is_no_constant():
    moved = ONE._replace(hi=np.array([[6, 1, 7]]))
    assert moved.moves(np.array([T, F]))
    assert not moved.moves(np.array([F, T]))
    unseen = ONE._replace(lo=np.full((1, 3), np.inf), hi=np.full((1, 3), -np.inf))
    assert unseen.moves(np.array([F, T]))
    one_output = ONE._replace(w=np.array([[[0, 2], [0, 0], [3, -4]]]), hi=moved.hi)
    assert one_output.moves(np.array([T, F]))


def test_groups_and_layers_have_outputs_of_their_own():
    """Two layers of two groups of one row and two outputs."""
    w = np.arange(1.0, 9).reshape(2, 2, 1, 2)
    lo = np.array([[[1.0], [10]], [[100], [1000]]])
    found = reader(w, np.zeros((2, 2, 1), int), lo, lo).share(np.array([T]))
    np.testing.assert_array_equal(found, [[1, 2, 30, 40], [500, 600, 7000, 8000]])


def test_extremes_are_of_all_that_was_seen():
    core = extremes(float_core, axis=0)
    op = Op(Dot((1,), (), (0,), (), 2, (2, 3)))
    w = jnp.arange(6.0).reshape(2, 3)
    state = core.write(op, w, None)
    np.testing.assert_array_equal(state.entry, [[0, 1]])
    np.testing.assert_array_equal(state.w[0], w)
    for x in ([[1.0, -2], [3, 4]], [[-5, 0.5]]):
        state = core.calibrate(op, state, jnp.array(x))
    np.testing.assert_array_equal([state.lo, state.hi], [[[-5, -2]], [[3, 4]]])
    np.testing.assert_array_equal(core.read(op, state, jnp.ones((1, 2)), None), [[3, 5, 7]])
    turned = extremes(float_core, axis=1).write(Op(Dot((1,), (), (1,), (), 2, (3, 2))), w.T, None)
    np.testing.assert_array_equal(turned.entry, [[0, 1]])


def chain(*roles):
    net = types.SimpleNamespace(cores={"w": [types.SimpleNamespace(role=r) for r in roles]})
    return _corrections(net, types.SimpleNamespace(name="w"))


def test_a_mask_stands_behind_the_last_correction_of_a_weight():
    assert chain() == 0
    assert chain("mask", "codes") == 0
    assert chain("correction", "codes") == 1
    assert chain("correction", "scale", "correction", "codes", "array") == 3


def test_numbers_of_ranges_are_named_and_replaced_by_site_operand_and_place():
    fixed = lambda lo, hi: js.clipping.learned(lo, hi)  # noqa: E731
    weights = js.Grid(4, per="tensor", clip=fixed(-1.0, 2.0))
    inputs = js.Grid(4, clip=js.clipping.pact(3.0))
    params = {"a": normal(4, 4), "b": normal(4, 4)}
    net = js.trace(lambda p, x: x @ p["a"] @ p["b"], params, normal(2, 4))
    net = js.quantize(weights, inputs, sites="a")(js.quantize(8, 8, sites="b")(net))
    found = ranges(net)
    expected = {"a weights 0": -1, "a weights 1": 2, "a inputs 0": 3}
    assert jax.tree.map(float, found) == expected
    moved = ranges(with_ranges(net, {n: v + 5 for n, v in found.items()}))
    assert jax.tree.map(float, moved) == {n: v + 5 for n, v in expected.items()}
    assert ranges(js.trace(lambda p, x: x @ p["a"], params, normal(2, 4))) == {}
