"""Weights without their zeros, laid out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.cores.compressed import Places, compressed, matrices, places, stored
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from tests.support import sites
from tests.support.compiled import core_of

GEOMETRY = Dot((1,), (), (0,), (), 2, (5, 3))
W = np.float32([[1, 0, 0], [0, 0, 2], [3, 0, 0], [0, 0, 4], [5, 0, 6]])
X = np.float32([[1, 10, 100, 1000, 10_000], [2, 3, 5, 7, 11]])


def test_rows_are_the_inputs_of_each_output_one_after_the_other():
    found = places(W != 0, "rows", (1, 1))
    np.testing.assert_array_equal(found.inputs, [0, 2, 4, 1, 3, 4])
    np.testing.assert_array_equal(found.begins, [0, 3, 3, 6])
    assert {a.dtype for a in found} == {np.dtype(np.int32)}


BLOCKS = {
    # strips of 2 outputs hold blocks of 2 inputs: the first all three, the second the last two
    (2, 2): ([[0, 1, 2], [0, 1, 2]], [3, 3]),
    (1, 2): ([[0, 2, 4], [1, 3, 4]], [3, 3]),
    (3, 1): ([[0, 1], [0, 1], [0, 1]], [2, 0, 2]),
    (5, 3): ([[0]], [1]),
    (1, 1): ([[0, 2, 4], [0, 1, 2], [1, 3, 4]], [3, 0, 3]),
    (4, 1): ([[0, 1], [0, 1], [0, 1]], [2, 0, 2]),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_that_hold_anything_come_first_in_each_strip(block):
    found = places(W != 0, "blocks", block)
    index, begins = BLOCKS[block]
    np.testing.assert_array_equal(found.inputs, index)
    np.testing.assert_array_equal(found.begins, begins)


def test_a_matrix_of_zeros_holds_one_block_a_strip_that_counts_for_nothing():
    found = places(np.zeros((4, 4), bool), "blocks", (2, 2))
    np.testing.assert_array_equal(found.inputs, [[0], [0]])
    np.testing.assert_array_equal(found.begins, [0, 0])


def test_as_many_weights_are_multiplied_as_entries_or_blocks_hold():
    where = Places(np.zeros((2, 3), np.int32), np.zeros(2, np.int32))
    assert stored(where, "rows", (7, 5)) == 6
    assert stored(where, "blocks", (7, 5)) == 6 * 35


LAYOUTS = {
    # entries held, and bits of their places: rows of 5 inputs take 3 bits, and 4 begins 32 each
    "rows": ("rows", (1, 1), 6, 6 * 3 + 4 * 32),
    # six blocks of 4 of three strips of inputs
    "blocks of 2 by 2": ("blocks", (2, 2), 24, 6 * 2),
    "blocks of 1 by 2": ("blocks", (1, 2), 12, 6 * 3),
    "blocks of 3 by 1": ("blocks", (3, 1), 18, 6 * 1),
    "one block": ("blocks", (5, 3), 15, 0),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_reads_multiply_what_is_held_and_count_it(name):
    layout, block, held, place_bits = LAYOUTS[name]
    where = places(W != 0, layout, block)
    settings = {"index": where.inputs, "begins": where.begins, "layout": layout, "block": block}
    core, meter = core_of((compressed, settings)), {}
    op = Op(GEOMETRY, meter=meter)
    state = core.write(op, jnp.asarray(W), None)
    assert meter == {"weight_bits": 32 * held + place_bits, "cells": held}
    assert sites.core_of((compressed, settings)).calibrate(op, state, X) is state
    np.testing.assert_array_equal(core.read(op, state, jnp.asarray(X), None), X @ W)
    assert meter["macs"] == 2 * held


def test_blocks_of_other_strips_count_as_zeros():
    """A strip with fewer blocks than the fullest is filled with others, which it must not read."""
    w = np.float32([[1, 7], [2, 0], [3, 0]])
    where = places(w != 0, "blocks", (1, 1))
    settings = {"index": where.inputs, "begins": where.begins, "layout": "blocks", "block": (1, 1)}
    core = core_of((compressed, settings))
    op = Op(Dot((1,), (), (0,), (), 2, (3, 2)))
    other = w + np.float32([[0, 0], [0, 50], [0, 60]])  # what is not held does not count
    state = core.write(op, jnp.asarray(other), None)
    np.testing.assert_array_equal(state[:, :, 0, 0], [[1, 2, 3], [7, 0, 0]])
    np.testing.assert_array_equal(core.read(op, state, jnp.eye(3), None), w)


def test_matrices_shows_a_weight_as_products_do():
    core = matrices(sites.core_of())
    geometry = Dot((2,), (0,), (1,), (0,), 3, (2, 5, 3))
    w = np.arange(30.0).reshape(2, 5, 3)
    np.testing.assert_array_equal(core.write(Op(geometry), w, None), w)
    flipped = Dot((1,), (), (1,), (), 2, (3, 5))
    np.testing.assert_array_equal(core.write(Op(flipped), W.T, None), W[None])
