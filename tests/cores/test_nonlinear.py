"""Cells that obey no Ohm's law, in wires: beside Kirchhoff's law at every node."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxsim as js
from tests.oracles import resistors

KEY = jax.random.key(0)
M, N = 5, 4
RNG = np.random.default_rng(0)
G = RNG.uniform(0.05, 1, (M, N))
V = RNG.uniform(-1, 1, (3, M))
R = {"row": 0.05, "column": 0.08, "row_terminal": 0.1, "column_terminal": 0.2}
SINH = {s: (js.wires.sinh(s), lambda e, s=s: np.sinh(s * e) / s) for s in (1.5, 3.0)}


def cubic(e):
    return e + 2 * e**3


LAWS = {**SINH, "cubic": (cubic, cubic)}


def pieces():
    row = resistors.segments(N, R["row"], R["row_terminal"])
    return row, resistors.segments(M, R["column"], R["column_terminal"])[::-1]


def solved(law, g=G, v=V, **settings):
    wires = js.wires.input_source(**R | settings, law=law)
    return js.wires.solve(jnp.asarray(g), jnp.asarray(v), wires)


@pytest.mark.parametrize("name", LAWS)
def test_currents_are_those_of_kirchhoffs_law(name):
    law, exact = LAWS[name]
    expected = resistors.nonlinear(G, V, *pieces(), exact)
    found = solved(law)
    assert found.converged.all()
    np.testing.assert_allclose(found.current, expected, atol=1e-5 * np.abs(expected).max())
    linear = solved(None).current
    assert np.abs(linear - expected).max() > 0.01 * np.abs(expected).max()
    # the cells' voltages are those whose currents add up
    each = np.einsum("mn,bmn->bn", G, exact(np.asarray(found.cell_voltage)))
    np.testing.assert_allclose(each, expected, atol=1e-5 * np.abs(expected).max())


def test_a_law_that_is_ohms_is_the_linear_array():
    np.testing.assert_allclose(solved(lambda e: e).current, solved(None).current, rtol=1e-5)
    weak = solved(js.wires.sinh(1e-2)).current
    np.testing.assert_allclose(weak, solved(None).current, rtol=1e-4)


def test_without_resistance_cells_add_what_their_law_says():
    found = solved(js.wires.sinh(2.0), row=0, column=0, row_terminal=0, column_terminal=0)
    np.testing.assert_allclose(found.current, np.sinh(2 * V) / 2 @ G, rtol=1e-5)


def test_one_cell_by_bisection():
    lo, hi = 0.0, 1.0
    for _ in range(60):
        e = (lo + hi) / 2
        lo, hi = (e, hi) if e + 0.43 * 0.7 * np.sinh(3 * e) / 3 < 1 else (lo, e)
    found = solved(SINH[3.0][0], np.full((1, 1), 0.7), np.ones((1, 1)))
    assert float(found.cell_voltage[0, 0, 0]) == pytest.approx(e, rel=1e-5)


def test_derivatives_are_those_of_the_solution():
    law = js.wires.sinh(2.0)

    def total(g, v, strength, r):
        wires = js.wires.input_source(r, 0.08, law=law.__class__(law.func, strength=strength))
        return jnp.sum(jnp.sin(jnp.arange(3 * N).reshape(3, N)) * js.wires.currents(g, v, wires))

    at = (G, V, 2.0, 0.05)
    with jax.enable_x64(True):
        at = tuple(jnp.asarray(a, jnp.float64) for a in at)
        slopes = jax.grad(total, (0, 1, 2, 3))(*at)
        for i, slope in enumerate(slopes):
            step = np.zeros(np.shape(at[i]))
            step[(1,) * step.ndim] = 1e-5
            ends = [total(*at[:i], at[i] + s * step, *at[i + 1 :]) for s in (1, -1)]
            found = np.asarray(slope)[(1,) * step.ndim]
            assert float(found) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=2e-3)


def test_many_arrays_are_solved_as_each_alone():
    g = RNG.uniform(0.05, 1, (2, M, N))
    both = solved(SINH[3.0][0], g)
    for i in range(2):
        np.testing.assert_allclose(both.current[i], solved(SINH[3.0][0], g[i]).current, rtol=1e-4)


def test_a_pair_on_one_wire_draws_what_its_two_cells_do():
    """Without resistance of wires: each cell by its law, the negative one from the other source."""
    pair = RNG.uniform(0.05, 1, (2, M, N))
    wires = js.wires.input_source(0.0, interleaved=True, law=js.wires.sinh(2.0))
    net, zero = js.wires.currents(jnp.asarray(pair), jnp.asarray(V), wires)
    np.testing.assert_allclose(net, np.sinh(2 * V) / 2 @ (pair[0] - pair[1]), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(zero, 0)


def chip_of(law, r=0.0, **array):
    x = jax.random.normal(jax.random.key(3), (8, 12))
    w = jax.random.normal(jax.random.key(4), (12, 5))
    net = js.trace(lambda params, x: x @ params["w"], {"w": w}, x)
    wires = js.wires.input_source(r, law=law)
    steps = js.quantize(8, 8), js.analog(cells=js.cells.proportional(0.0), wires=wires, **array)
    return js.compose(*steps)(net), x, w


def test_an_array_reads_by_the_law_of_its_cells_at_codes_as_voltages():
    """The largest code is a voltage of one, whatever part of it is applied at a time."""
    net, x, w = chip_of(js.wires.sinh(1.5))
    chip = js.deploy(net, key=KEY, calibrate=x)
    step = float(chip.states["w"].inputs.hi / 127)
    codes = np.round(np.asarray(x) / step)
    qw = np.round(np.asarray(w) / np.asarray(chip.states["w"].scale))
    expected = 127 * (np.sinh(1.5 * codes / 127) / 1.5) @ qw * np.asarray(chip.states["w"].scale)
    np.testing.assert_allclose(chip(x), expected * step, rtol=1e-4, atol=1e-4)
    bits = chip_of(js.wires.sinh(1.5), input_bits=1)[0]
    # switched on and off, a cell's law is a factor
    exact = codes @ qw * np.sinh(1.5) / 1.5 * np.asarray(chip.states["w"].scale) * step
    found = js.deploy(bits, key=KEY, calibrate=x)(x)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)


def test_a_sweep_over_strength_and_resistance_compiles_once():
    @jax.jit
    def outputs(net, x, key):
        return net(x, key=key)

    for size in (0.5, 1.5):
        net, x, _ = chip_of(js.wires.sinh(size), 1e-3 * size)
        outputs(net, x, KEY)
    assert outputs._cache_size() == 1


def test_what_has_no_meaning_is_refused():
    law = js.wires.sinh(1.0)
    with pytest.raises(ValueError, match="solver='geff': cells with a law"):
        js.wires.input_source(0.1, solver="geff", law=law)
    with pytest.raises(ValueError, match="are no linear map"):
        js.wires.effective_conductance(jnp.ones((2, 2)), js.wires.input_source(0.1, law=law))
    with pytest.raises(ValueError, match=r"law=wires\.sinh: is what makes one"):
        js.wires.input_source(0.1, law=js.wires.sinh)
    for strength in (0.0, 10.1):
        with pytest.raises(ValueError, match="strength="):
            js.wires.sinh(strength)
    net = js.trace(lambda p, x: x @ p, jnp.ones((4, 2)), jnp.ones((1, 4)))
    array = js.analog(cells=js.cells.proportional(0.0), wires=js.wires.input_source(0.1, law=law))
    with pytest.raises(ValueError, match=r"analog\(wires=.*sinh cells\).*its inputs are floats"):
        js.compose(js.quantize(8, None), array)(net)
    assert isinstance(js.wires.input_source(0.1, law=cubic).law, Partial)
