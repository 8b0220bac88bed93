"""Batches without a row: what comes back has none, as from the float network."""

import jax
import numpy as np
import pytest

import jaxsim as js
import jaxsim.quantum as jq
from jaxsim.formats import clipping
from tests.support.networks import X, cnn

NONE = np.zeros((0, *X.shape[1:]), np.float32)
INPUTS = {
    "int8": js.Grid(8),
    "affine": js.Grid(8, symmetric=False),
    "signs": js.Grid(1),
    "a token": js.Grid(8, per="token"),
    "affine a token": js.Grid(4, per="token", symmetric=False, clip=clipping.entropy()),
    "short floats": js.Floating(),
    "squares": js.Grid(4, clip=clipping.least_squares()),
    "squares a token": js.Grid(4, per="token", clip=clipping.least_squares()),
    "percentile": js.Grid(8, clip=clipping.percentile(99.0)),
    "rms": js.Grid(4, symmetric=False, clip=clipping.rms(2.0)),
}
COMPOSED = {
    "table": js.quantize(js.nf4(), 8),
    "groups": js.quantize(js.Grid(4, per="group", rows=5), 8),
    "array": js.compose(
        js.quantize(8, 8),
        js.analog(adc=8, cells=js.cells.proportional(0.01, noise=0.01), rows=16, input_bits=2),
    ),
    "wires": js.compose(
        js.quantize(8, 8),
        js.analog(
            cells=js.cells.proportional(0.0),
            rows=16,
            wires=js.wires.input_source(1e-3, solver="cg"),
        ),
    ),
    "blocks": js.compose(js.quantize(8, 8), js.block(2, 1, 1, "dynamic")),
    "pruned": js.prune(0.5),
}


def shapes(make):
    """The shape of an output for no row, of the network as composed and deployed."""
    net, key = make(cnn()), jax.random.key(0)
    yield jax.eval_shape(lambda x: net(x, key=key), NONE).shape
    if net.cores:
        chip = jax.eval_shape(lambda: js.deploy(net, key=key, calibrate=X))
        yield jax.eval_shape(lambda c, x: c(x, key=key), chip, NONE).shape


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_every_format_may_be_none(name):
    assert set(shapes(js.quantize(8, INPUTS[name]))) == {(0, 3)}


@pytest.mark.parametrize("name", COMPOSED)
def test_hardware_reads_nothing_of_nothing(name):
    assert set(shapes(COMPOSED[name])) == {(0, 3)}


def test_numbers_of_nothing_are_computed_and_ranges_are_not():
    q = js.quantize(8, 8)(cnn())
    chip = js.deploy(q, calibrate=X)
    assert q(NONE).shape == chip(NONE).shape == (0, 3)
    for refused in (
        lambda: js.deploy(q, calibrate=NONE),
        lambda: js.smooth(NONE)(q),
        lambda: js.round_weights(js.rounding.gptq(), NONE)(q),
        lambda: js.exit_early(2)(cnn())(NONE),
    ):
        with pytest.raises(ValueError, match=r"did not run|must have a row|at least one row"):
            refused()


def test_images_of_a_quantum_layer_may_be_none():
    kernel = jq.compile_circuit(jq.strongly_entangling(np.ones((1, 4, 3))))
    assert jq.quanv2d(np.zeros((0, 4, 4), "f"), kernel, jq.QuanvSpec()).shape[0] == 0
    assert jq.expval(kernel, np.zeros((0, 4))).shape == (0, 4)
    assert jq.probabilities(kernel, np.zeros((0, 4))).shape == (0, 16)
