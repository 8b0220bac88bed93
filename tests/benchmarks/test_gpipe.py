"""Parameters of GPipe's Transformers, from the definition of a layer."""

import jax
import numpy as np
import pytest

from benchmarks.topics.gpipe import REPORTED_PARAMS, decoder


@pytest.mark.parametrize("layers", REPORTED_PARAMS)
def test_parameters_are_those_of_the_layers_and_of_two_tables(layers):
    """Four square matrices and two wide ones with biases, two norms; words in and words out."""
    d, h, words = 2048, 8192, 32_000
    layer = 4 * (d * d + d) + (d * h + h) + (h * d + d) + 4 * d
    expected = layers * layer + words * d + (d * words + words) + 2 * d
    _, params = decoder(layers, d)
    assert sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params)) == expected
    assert expected == pytest.approx(REPORTED_PARAMS[layers], rel=5e-3)
