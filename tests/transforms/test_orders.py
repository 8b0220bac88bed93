"""What holds codes comes in any order: each transform puts its part where the physics has it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.models import normal

X = normal(5, 8, seed=1)
HARDWARE = {
    "block": js.block(2, 2, 2),
    "slice_bits": js.slice_bits(2),
    "analog": js.analog(rows=4, adc=6, mapping="offset", input_bits=2),
}


def network():
    return js.trace(lambda w, x: x @ w, jnp.asarray(normal(8, 6)), X)


@pytest.mark.parametrize(
    "array",
    [
        js.analog(rows=4),
        js.analog(rows=4, adc=6, mapping="offset", input_bits=2),
        js.analog(rows=4, adc=6, mapping="unit_column", input_bits=2, accumulate="analog"),
        js.analog(rows=4, cells=js.cells.proportional(0.02), mapping="offset"),
    ],
)
@pytest.mark.parametrize("inputs", [8, js.Grid(8, symmetric=False)])
@pytest.mark.parametrize("count", [2, 3])
def test_any_order_makes_one_chain(array, inputs, count):
    hardware = {**HARDWARE, "analog": array}
    if inputs != 8:
        del hardware["block"]  # blocks are of sign and magnitude
    store = js.quantize(8, inputs)
    for names in itertools.combinations(hardware, min(count, len(hardware))):
        made = {
            jax.tree.structure(js.compose(store, *(hardware[n] for n in order))(network()))
            for order in itertools.permutations(names)
        }
        assert len(made) == 1, names


def test_the_chain_stands_as_the_hardware_does():
    net = js.compose(js.quantize(8, 8), *reversed(HARDWARE.values()))(network())
    roles = [w.role for w in net.cores["params"]]
    assert roles == ["codes", "blocks", "serial", "mapping", "slices", "array", "adc"]


def test_every_order_computes_the_same():
    chips = [
        js.deploy(js.compose(js.quantize(8, 8), *order)(network()), calibrate=X)
        for order in itertools.permutations(HARDWARE.values())
    ]
    first, *others = [np.asarray(chip(X)) for chip in chips]
    assert all(np.array_equal(first, y) for y in others)
