"""Weights changed at one site alone, and what is stored beside them."""

import jax.numpy as jnp
import numpy as np

from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.quantized import quantized
from jaxsim.cores.scale_shift import bias_correction, smooth_scaling
from jaxsim.cores.site_weight import captured, masked, shifted
from jaxsim.formats.grid import Grid
from tests.support import sites

GEOMETRY = Dot((1,), (), (0,), (), 2, (2, 3))
W = np.float32([[1, -2, 3], [4, 5, -6]])
LAYER = Op(GEOMETRY, scan_index=(1,))
"""The second layer of a stack of two."""


def test_a_mask_zeroes_its_slice_and_says_so():
    mask = np.array([[[1, 1, 1], [1, 1, 1]], [[1, 0, 1], [0, 0, 1]]], bool)
    seen = []

    def spy(core):
        return core._replace(write=lambda op, w, key: seen.append(op) or core.write(op, w, key))

    core = sites.core_of((masked, {"mask": mask}), spy)
    np.testing.assert_array_equal(core.write(LAYER, W, None), [[1, 0, 3], [0, 0, -6]])
    assert [op.masked for op in seen] == [True]
    assert core.write(LAYER, jnp.asarray(W, jnp.bfloat16), None).dtype == jnp.bfloat16


def test_one_bit_weights_keep_the_zeros_of_their_mask_alone():
    mask = np.array([[[1, 0, 1], [1, 1, 1]]], bool)
    chain = [(masked, {"mask": mask}), (quantized, {"weights": Grid(1), "inputs": None})]
    state = sites.core_of(*chain).write(Op(GEOMETRY, scan_index=(0,)), W, None)
    np.testing.assert_array_equal(state.inner, [[1, 0, 1], [1, 1, -1]])
    np.testing.assert_allclose(state.scale, np.full((1, 3), 19 / 5))


def test_a_correction_is_added_from_its_slice():
    shift = np.stack([0 * W, 10 * W])
    core = sites.core_of((shifted, {"shift": shift}))
    np.testing.assert_array_equal(core.write(LAYER, W, None), 11 * W)
    assert core.write(LAYER, jnp.asarray(W, jnp.bfloat16), None).dtype == jnp.bfloat16


def test_a_captured_weight_is_what_arrives():
    core = sites.core_of((shifted, {"shift": np.stack([W, W])}), captured)
    np.testing.assert_array_equal(core.write(LAYER, W, None), 2 * W)
    np.testing.assert_array_equal(core.read(LAYER, jnp.asarray(W), jnp.eye(2), None), W)


def test_digital_scales_and_biases_are_those_of_their_layer():
    channels = np.float32([[[1, 1]], [[2, 4]]])
    core = sites.core_of((smooth_scaling, {"channels": channels}))
    np.testing.assert_array_equal(core.write(LAYER, W, None), W * [[2], [4]])
    state = core.write(LAYER, W, None)
    np.testing.assert_array_equal(core.read(LAYER, state, jnp.eye(2), None), W)
    bias = np.float32([[[0, 0, 0]], [[7, 8, 9]]])
    core = sites.core_of((bias_correction, {"bias": bias}))
    np.testing.assert_array_equal(core.read(LAYER, W, jnp.eye(2), None), np.float32([7, 8, 9]) + W)
