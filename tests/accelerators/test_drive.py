import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.accelerators import AnalogArray, SimdUnit, measure_drive
from tests.oracles import cell_power

RNG = np.random.default_rng(0)
X, W = RNG.integers(-127, 128, (3, 5)), RNG.integers(-127, 128, (5, 4))
X[0, 0] = W[0, 0] = 127  # so that a step of either grid is one
CHIP = js.Accelerator({"cells": AnalogArray(), "simd": SimdUnit()})


def network():
    params = {"w": jnp.asarray(W, jnp.float32)}
    return js.trace(lambda p, x: x @ p["w"], params, jnp.asarray(X, jnp.float32))


@pytest.mark.parametrize(
    ("cut", "array", "how"),
    [
        ((), {}, {}),
        ((), {"rows": 2}, {"padded": True}),
        ((), {"input_bits": 3}, {"input_bits": 3}),
        ((), {"input_bits": 3, "accumulate": "analog"}, {"input_bits": 3}),
        ((js.slice_bits(2),), {"input_bits": 1}, {"slice_bits": 2, "input_bits": 1}),
        ((), {"mapping": "offset"}, {"pair": False}),
        ((js.slice_bits(3),), {"mapping": "offset"}, {"pair": False, "slice_bits": 3}),
        ((), {"cells": js.cells.independent(0.0, on_off=5.0)}, {"empty": 0.2}),
        ((js.slice_bits(2),), {"cells": js.cells.independent(0.0)}, {"slice_bits": 2}),
    ],
)
def test_the_drive_is_that_of_going_through_the_cells(cut, array, how):
    net = js.compose(js.quantize(js.Grid(8, per="tensor"), 8), *cut, js.analog(**array))(network())
    found = measure_drive(net, jnp.asarray(X, jnp.float32), key=jax.random.key(0))
    how = dict(how)
    tail = int(how.pop("padded", False))  # tiles of two rows, the last one filled up
    x, w = np.pad(X, ((0, 0), (0, tail))), np.pad(W, ((0, tail), (0, 0)))
    expected = cell_power.mean(x, w, **how)
    assert found == {"w": pytest.approx(expected, rel=1e-5)}
    assert cell_power.mean(x, w, **{**how, "pair": not how.get("pair", True)}) != pytest.approx(
        expected
    )


def test_cells_draw_what_they_are_driven_with_and_nothing_else_changes():
    net = js.compose(js.quantize(8, 8), js.analog(adc=8))(network())
    fixed, follows = js.estimate(net, CHIP), js.estimate(net, CHIP, drive={"w": 0.25})
    assert follows.components == {**fixed.components, "cells": 0.25 * fixed.components["cells"]}
    assert follows.latency == fixed.latency
    assert js.estimate(net, CHIP, drive={}) == fixed


def test_inputs_that_are_zero_draw_nothing():
    net = js.compose(js.quantize(8, 8), js.analog())(network())
    assert measure_drive(net, jnp.zeros((3, 5))) == {"w": 0}


def test_batches_are_averaged():
    net = js.compose(
        js.quantize(8, js.Grid(8, clip=js.clipping.fixed(-127.0, 127.0))), js.analog()
    )(network())
    x = jnp.asarray(X, jnp.float32)
    one, two = (measure_drive(net, b)["w"] for b in (x[:1], x[1:]))
    both = measure_drive(net, [x[:1], x[1:]])["w"]
    assert both == pytest.approx((one + 2 * two) / 3, rel=1e-5)


def test_layers_of_a_scan_are_averaged():
    def fn(p, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, p["w"])[0]

    net = js.trace(fn, {"w": jnp.stack([jnp.eye(4), jnp.zeros((4, 4))])}, jnp.ones((2, 4)))
    net = js.compose(js.quantize(8, 8), js.analog())(net)
    assert measure_drive(net, jnp.ones((2, 4)))["w"] == pytest.approx(1 / 16)


def test_digital_sites_are_left_out():
    params = {"a": jnp.eye(4), "b": jnp.eye(4)}
    net = js.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((2, 4)))
    net = js.rules({"a": js.compose(js.quantize(8, 8), js.analog()), "b": js.quantize(8, 8)})(net)
    assert set(measure_drive(net, jnp.ones((2, 4)))) == {"a"}


def test_what_cannot_be_measured_is_refused():
    net, x = js.quantize(8, 8)(network()), jnp.asarray(X, jnp.float32)
    with pytest.raises(ValueError, match="none of its sites is analog"):
        measure_drive(net, x)
    analog = js.analog()(net)
    with pytest.raises(ValueError, match="net is deployed"):
        measure_drive(js.deploy(analog, calibrate=x), x)
    with pytest.raises(ValueError, match=r"drive\['v'\]=1: net has no analog site"):
        js.estimate(analog, CHIP, drive={"v": 1})
    with pytest.raises(ValueError, match=r"drive\['w'\]=1: net has no analog site"):
        js.estimate(net, js.accelerators.mixed(), drive={"w": 1})
    with pytest.raises(ValueError, match=r"drive\['w'\]=-1"):
        js.estimate(analog, CHIP, drive={"w": -1})


def test_more_reads_than_an_int32_counts():
    """600 · 2048 · 1024 pairs of cells, of which one is full."""
    x = jnp.ones((600, 2048))
    net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((2048, 1024))}, x)
    chip = js.compose(js.quantize(8, 8), js.analog(rows=2048))(net)
    assert measure_drive(chip, x)["w"] == pytest.approx(0.5, rel=1e-5)
