"""What digital logic does beside the hardware of sites, counted by hand.

5 rows of 14 numbers through x[5, 14] @ w[14, 20], on a unit that takes 2 pJ to add and 7 to
multiply, before a memory that takes 3 pJ a bit read.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxsim as js
from jaxsim.accelerators import AnalogArray, DigitalArray, Memory, SimdUnit
from jaxsim.accelerators.calls import prepared_call
from jaxsim.cores.role import role
from jaxsim.search.options import fit_options, named_options
from jaxsim.search.part_costs import part_costs
from tests.support.models import normal

ROWS, K, N = 5, 14, 20
X = normal(ROWS, K, seed=1)
CHIP = js.Accelerator(
    {
        "cells": AnalogArray(16, 32),
        "array": DigitalArray(4, 5),
        "simd": SimdUnit(lanes=2, add=2.0, multiply=7.0, clock=20.0),
    },
    {"only": Memory(read=3.0, write=5.0)},
)


def product():
    return js.trace(lambda p, x: x @ p["w"], {"w": normal(K, N, seed=2)}, X)


def adapted():
    return js.lora(3, jax.random.key(0))(js.quantize(8, 8)(product()))


def smoothed():
    return js.smooth(X)(js.quantize(8, 8)(product()))


def corrected():
    return js.correct_bias(X)(js.quantize(4, 8)(product()))


def turned():
    return js.quantize(8, 8)(js.rotate(X, jax.random.key(0), groups=(), online="w")(product()))


# Additions, multiplications, and numbers of 32 bits that are read beside inputs and outputs.
COUNTED = {
    adapted: (ROWS * 3 * (K + N) + ROWS * N, ROWS * 3 * (K + N), 3 * (K + N)),
    smoothed: (0, ROWS * K, K),
    corrected: (ROWS * N, 0, N),
}


@pytest.mark.parametrize("made", COUNTED, ids=lambda made: made.__name__)
def test_work_beside_a_site_is_counted_and_spent(made):
    adds, multiplies, numbers = COUNTED[made]
    net = made()
    (site,) = net.cost().sites
    found = {n: a for n, a in site.spent.items() if n.startswith("digital_")}
    expected = {
        "digital_adds": adds,
        "digital_multiplies": multiplies,
        "digital_bits": 32 * numbers,
    }
    assert found == {name: amount for name, amount in expected.items() if amount}
    asked, level = js.estimate(net, CHIP).sites["w"], {"only": 3.0 * 32 * numbers}
    stripped = dataclasses.replace(net, cores={"w": (net.cores["w"][-1],)})
    plain = js.estimate(stripped, CHIP).sites["w"]
    assert asked.components.pop("digital") == pytest.approx(2 * adds + 7 * multiplies)
    assert asked.components == plain.components
    assert asked.memory["only"] - plain.memory["only"] == pytest.approx(level["only"])
    assert asked.bits["only"] - plain.bits["only"] == 32 * numbers
    # all of it at once with the site's own part: the slower counts
    slots = -(-(adds + multiplies) // 2) / 20.0
    assert asked.latency == pytest.approx(max(plain.latency, slots))


def test_a_turned_input_takes_the_products_of_its_two_matrices():
    net = turned()
    (wrapper,) = (w for w in net.cores["w"] if w.name == "rotated_inputs")
    outer, inner = (wrapper.settings[name].shape[0] for name in ("outer", "inner"))
    assert outer * inner == K
    assert min(outer, inner) > 1
    (site,) = net.cost().sites
    assert site.spent["digital_multiplies"] == ROWS * K * (outer + inner)
    assert site.spent["digital_adds"] == ROWS * K * (outer + inner) + ROWS * K  # and the signs


def test_drift_is_compensated_digitally():
    made = js.analog(cells=js.cells.pcm_hermes(), compensation="column")(
        js.quantize(8, 8)(product())
    )
    (site,) = made.cost().sites
    assert site.spent["digital_multiplies"] == ROWS * N
    assert site.spent["digital_bits"] == 32 * N


def test_layers_of_a_scan_each_do_their_own():
    def model(p, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]

    net = js.trace(model, {"w": normal(7, K, K, seed=3)}, X)
    (site,) = js.lora(3, jax.random.key(0))(net).cost().sites
    assert site.spent["digital_multiplies"] == 7 * ROWS * 3 * (K + K)
    assert site.spent["digital_bits"] == 7 * 32 * 3 * (K + K)


def test_a_core_of_ones_own_says_what_it_does():
    @role("digital")
    def squared(core):
        def read(op, state, x, key):
            op.count_digital(multiplies=x.size)
            return core.read(op, state, x * x, key)

        return core._replace(read=read)

    net = js.wrap(squared)(js.quantize(8, 8)(product()))
    assert js.estimate(net, CHIP).sites["w"].components["digital"] == 7 * ROWS * K


def test_what_no_part_does_is_said():
    cells = js.Accelerator({"array": DigitalArray(4, 5)}, {"only": Memory(read=3.0)})
    said = [f"no part for {what!r}: not counted" for what in ("convert", "digital")]
    assert js.estimate(adapted(), cells).notes[1:] == tuple(said)
    assert js.estimate(js.quantize(8, 8)(product()), cells).notes[1:] == (said[0],)
    assert js.estimate(adapted(), CHIP).notes[1:] == ()


def test_options_of_an_exploration_pay_for_what_they_do_beside_a_site():
    net = product()
    plain = js.quantize(8, 8)
    options = named_options(
        {"adapted": js.compose(plain, js.lora(3, jax.random.key(0))), "plain": plain}
    )
    prepared = prepared_call(net, (), {}, None, CHIP.activations)
    costs = part_costs(net, CHIP, options, fit_options(net, options), prepared)
    more = costs.spent["energy"][0, 0] - costs.spent["energy"][0, 1]
    adds, multiplies, numbers = COUNTED[adapted]
    assert more == pytest.approx(2 * adds + 7 * multiplies + 3 * 32 * numbers)
    assert costs.fixed["energy"] == 0
