"""The five designs: what they hold and read, counted by hand; and that they compute the codes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.twins import X as STACKED
from tests.support.twins import twins

M, K, N = 3, 300, 5
KEYS = jax.random.split(jax.random.key(0))
X = np.asarray(jax.random.uniform(KEYS[0], (M, K)))
NET = js.trace(lambda p, x: x @ p["w"], {"w": jax.random.normal(KEYS[1], (K, N))}, X)
CODES = js.quantize(8, js.Grid(8, symmetric=False))

# cells a weight, columns a weight that are converted, rows, times an input is converted
BY_HAND = {
    "A": (2, 1, 1152, 1),
    "B": (14, 7, 1152, 1),
    "C": (2, 1, 144, 1),
    "D": (14, 7, 144, 1),
    "E": (4, 4, 72, 8),
}


def design(name, **options):
    return js.compose(CODES, js.designs.xiao(name, **options))(NET)


@pytest.mark.parametrize("name", BY_HAND)
def test_what_a_design_holds_and_converts(name):
    cells, columns, rows, times = BY_HAND[name]
    cost = design(name).cost()
    assert cost.total("cells") == K * N * cells
    assert cost.total("conversions") == M * N * columns * math.ceil(K / rows) * times
    assert cost.total("macs") == M * K * N * cells * 8


@pytest.mark.parametrize("name", BY_HAND)
def test_a_design_fits_the_hardware_of_its_name(name):
    found = js.estimate(design(name), js.accelerators.paper_design(name))
    assert found.sites["w"].components["adc"] > 0


@pytest.mark.parametrize(("name", "hardware"), [("A", "C"), ("C", "D"), ("A", "E"), ("C", "E")])
def test_and_not_a_smaller_one(name, hardware):
    with pytest.raises(ValueError, match=r"js\.analog|js\.slice_bits"):
        js.estimate(design(name), js.accelerators.paper_design(hardware))


@pytest.mark.parametrize("name", BY_HAND)
def test_ideal_cells_and_converters_compute_the_codes(name):
    exact = js.deploy(CODES(NET), calibrate=X)(X)
    for bits in (1, None):
        chip = js.deploy(design(name, adc=None, input_bits=bits), calibrate=X)
        np.testing.assert_allclose(chip(X), exact, rtol=1e-5, atol=1e-4)
    coarse = js.deploy(design(name, adc=4), calibrate=X)(X)
    assert float(jnp.abs(coarse - exact).max()) > 1e-2


def test_proportional_errors_cost_a_pair_less_than_an_offset():
    """The paper's thesis, on one matrix."""
    device = js.cells.proportional(0.05)
    exact = js.deploy(CODES(NET), calibrate=X)(X)

    def error(name):
        chip = design(name, adc=None, cells=device, input_bits=None)
        keys = [jax.random.key(i) for i in range(4)]
        written = [js.deploy(chip, key=key, calibrate=X) for key in keys]
        return float(np.mean([jnp.square(c(X) - exact).mean() for c in written]))

    found = {name: error(name) for name in "ABE"}
    assert found["E"] > 4 * max(found["A"], found["B"])
    assert found["B"] < found["A"]  # full-range slices average their errors


def test_layers_that_a_scan_stacks_are_as_layers_written_out():
    pair = twins("linen")
    made = js.compose(js.quantize(8, 8), js.designs.xiao("E", adc=6))
    found = [js.deploy(made(net), calibrate=STACKED)(STACKED) for net in pair[:2]]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


def test_some_sites_alone():
    net = js.trace(lambda p, x: x @ p["a"] @ p["b"], {"a": jnp.eye(4), "b": jnp.eye(4)}, jnp.eye(4))
    chip = js.compose(js.quantize(8, 8), js.designs.xiao("B", sites="b"))(net)
    held = {name: [w.role for w in chain] for name, chain in chip.cores.items()}
    assert "array" not in held["a"]
    assert "array" in held["b"]


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="name='F': must be one of A, B, C, D, E"):
        js.designs.xiao("F")
