import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores import cells, wires
from jaxsim.cores.bit_sliced import bit_sliced
from jaxsim.cores.conductance import conductance
from jaxsim.cores.conv import Conv
from jaxsim.cores.geometry import Dot
from jaxsim.cores.mapping import differential, offset
from jaxsim.cores.op import Op
from jaxsim.cores.quantized import quantized
from jaxsim.cores.tiled import tiled
from jaxsim.cores.wires import parasitic_resistance
from jaxsim.formats.grid import Grid
from tests.oracles import resistors
from tests.support import sites
from tests.support.models import normal
from tests.support.networks import run

KEY = jax.random.key(5)
# Arrays of 7 rows and 3 columns, and two of 6 and 2: few blocks for `transfer` to join.
DENSE = Dot((1,), (), (0,), (), 2, (7, 3))
CONV = Conv((2, 1), ((1, 2), (0, 1)), (1, 2), (2, 1), 2, *sites.PLAIN, w_shape=(4, 1, 3, 2))
SHAPES = {DENSE: (5, 7), CONV: (2, 2, 7, 5)}
DEVICE = (conductance, {"device": cells.proportional(0.05, on_off=20.0)})
CODES = (quantized, {"weights": Grid(8), "inputs": None})
R = {"row": 2**-8, "column": 2**-7, "row_terminal": 2**-6, "column_terminal": 2**-5}


def pieces(K, N, r):
    """The wires of resistances `r` for an array of K rows and N columns."""
    row = resistors.segments(N, r["row"], r["row_terminal"])
    return row, resistors.segments(K, r["column"], r["column_terminal"])[::-1]


def by_the_circuit(g, v, settings, r=R):
    """Currents [*planes, B, M, N] of arrays [*planes, B, K, N] for inputs [B, M, K]."""
    row, column = pieces(*g.shape[-2:], r)
    out = np.zeros((*g.shape[:-2], v.shape[1], g.shape[-1]))
    if settings.topology == "gated":
        for at in np.ndindex(g.shape[1:-2]):
            pair, nothing = g[(slice(None), *at)], np.zeros(g.shape[-2:])
            alone = [(pair[0], nothing), (pair[1], nothing)]
            for i, cells_on in enumerate([pair] if settings.interleaved else alone):
                for m, x in enumerate(v[at[-1]]):
                    out[(i, *at, m)] = resistors.gated(*cells_on, np.maximum(x, 0), column)
                    out[(i, *at, m)] -= resistors.gated(*cells_on, np.maximum(-x, 0), column)
        return out
    if settings.interleaved:
        for at in np.ndindex(g.shape[1:-2]):
            pair = g[(slice(None), *at)]
            out[(0, *at)] = resistors.interleaved(pair, v[at[-1]], row, column)
        return out
    for at in np.ndindex(g.shape[:-2]):
        out[at] = resistors.input_source(g[at], v[at[-1]], row, column)[0]
    return out


def chain(mapping, settings, *, rows=None, **wiring):
    """The wrappers of an analog site, the wires innermost; `settings` None for perfect ones."""
    tiling = [] if rows is None else [(tiled, {"rows": rows})]
    innermost = [] if settings is None else [(parasitic_resistance, {"wires": settings, **wiring})]
    if mapping is offset:
        return [CODES, offset, (bit_sliced, {"bits": 3}), *tiling, DEVICE, *innermost]
    return [CODES, (bit_sliced, {"bits": 4}), *tiling, differential, DEVICE, *innermost]


def reads(mapping, settings, geometry, x, w, *, rows=None, **wiring):
    """What a site reads through wires, what the circuit of its cells says, and perfect wires."""

    def write(op, w, key):
        return w

    def read(op, g, x, key):
        matmul = op.geometry.as_matmul()
        arrays, inputs = matmul.w(g), matmul.x(x)
        shape = (*arrays.shape[:-2], inputs.shape[-2], arrays.shape[-1])

        def solved(*args):
            return by_the_circuit(*(np.asarray(a, float) for a in args), settings).astype("f")

        planes = jax.pure_callback(solved, jax.ShapeDtypeStruct(shape, "f"), arrays, inputs)
        return matmul.y(planes, x.shape)

    def circuit(core):
        return js.Core(write, lambda op, state, x: state, read)

    wired = chain(mapping, settings, rows=rows, **wiring)
    perfect = chain(mapping, None, rows=rows)
    op = Op(geometry, integer=True, ranges="stored")

    @jax.jit
    def answers(x, w):
        """In one program: XLA compiles once what the three have in common."""
        cores = [sites.core_of(*pieces) for pieces in (wired, [*perfect, circuit], perfect)]
        states = [core.calibrate(op, core.write(op, w, KEY), x) for core in cores]
        return [core.read(op, s, x, KEY) for core, s in zip(cores, states, strict=True)]

    return [np.asarray(y) for y in answers(x, w)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("geometry", "interleaved", "wiring"),
    [
        (DENSE, False, {"redrawn": True}),
        (DENSE, True, {}),
        (CONV, False, {}),
        (CONV, True, {"redrawn": True}),
    ],
)
def test_a_site_reads_what_the_circuit_of_its_cells_delivers(geometry, interleaved, wiring):
    x, w = sites.operands(geometry, x_shape=SHAPES[geometry])
    settings = wires.input_source(**R, interleaved=interleaved)
    y, exact, ideal = reads(differential, settings, geometry, x, w, **wiring)
    largest = np.abs(exact).max()
    assert np.abs(y - exact).max() < 2e-5 * largest
    assert np.abs(ideal - exact).max() > 0.02 * largest


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["geff", "cg"])
def test_tiles_and_shifted_codes_are_arrays_of_their_own(solver):
    x, w = sites.operands(DENSE, x_shape=SHAPES[DENSE])
    settings = wires.input_source(**R, solver=solver)
    for mapping, rows in ((differential, 3), (offset, None)):
        y, exact, _ = reads(mapping, settings, DENSE, x, w, rows=rows)
        assert np.abs(y - exact).max() < 2e-5 * np.abs(exact).max()


def test_gated_pairs_on_one_wire_and_on_two_differ_only_in_second_order():
    """To first order both lose r (g+ g+ - g- g-), summed over the wire that two cells share."""
    codes = np.random.default_rng(0).normal(0, 0.3, (64, 8))
    g, on = np.stack([np.maximum(codes, 0), np.maximum(-codes, 0)]), np.ones((1, 64))

    @jax.jit
    def both(g, on, r):
        kinds = (wires.gated(r), wires.gated(r, interleaved=True))
        return [wires.currents(g, on, settings) for settings in kinds]

    def differences(r):
        with jax.enable_x64(True):
            (plus, minus), (net, zero) = (map(np.asarray, y) for y in both(g, on, r))
        two = plus - minus
        assert not zero.any()
        return np.abs(net - two).mean() / np.abs(two - on @ (g[0] - g[1])).mean()

    assert differences(1e-6) == pytest.approx(differences(1e-5) / 10, rel=0.1)
    assert differences(1e-5) < 0.05


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("geometry", [DENSE, CONV])
def test_gated_cells_take_signed_digits_in_two_passes(geometry, interleaved):
    x, w = sites.operands(geometry, x_shape=SHAPES[geometry])
    settings = wires.gated(
        R["column"], column_terminal=R["column_terminal"], interleaved=interleaved
    )
    y, exact, _ = reads(differential, settings, geometry, np.sign(np.round(x)), w)
    assert np.abs(y - exact).max() < 2e-5 * np.abs(exact).max()


X = normal(8, 5, seed=3)


@functools.cache
def layers():
    """Two dense layers; only the last one's arrays, of up to 5 of its 7 rows, have wires."""
    params = {"first": normal(5, 7, seed=1), "last": normal(7, 3, seed=2)}
    return js.trace(lambda p, x: jnp.tanh(x @ p["first"]) @ p["last"], params, X)


def composed(r, *, solver="auto"):
    return js.compose(
        js.quantize(),
        js.analog(cells=js.cells.independent(0.02, on_off=50.0), rows=5),
        js.wrap(parasitic_resistance, wires=wires.input_source(r, solver=solver), sites="last"),
    )(layers())


@pytest.mark.slow
def test_a_sweep_over_resistance_compiles_once_and_loses_more_and_more():
    @jax.jit
    def outputs(net, x):
        return net(x, key=KEY)

    ideal = outputs(composed(0.0), X)
    losses = [np.abs(outputs(composed(r), X) - ideal).max() for r in (1e-4, 1e-3, 1e-2)]
    assert outputs._cache_size() == 1
    assert 0 < losses[0] < losses[1] < losses[2]
    swept = jax.jit(jax.vmap(lambda r: composed(r)(X, key=KEY)))(jnp.array([0.0, 1e-3]))
    np.testing.assert_allclose(swept[0], ideal, atol=1e-4)
    assert np.abs(swept[1] - ideal).max() == pytest.approx(losses[1], rel=0.05)


@pytest.mark.slow
def test_a_deployed_network_reads_through_its_wires_and_trains_through_them_before():
    net = composed(5e-3)
    chip = js.deploy(net, key=KEY, calibrate=X)
    np.testing.assert_allclose(run(chip, X), run(net, X, key=KEY), rtol=1e-4, atol=1e-5)
    assert net.cost().total("cells") == composed(5e-3, solver="cg").cost().total("cells")
    assert net.cost().total("macs") == composed(5e-3, solver="cg").cost().total("macs")

    @jax.jit
    @jax.grad
    def slope(params):
        return (dataclasses.replace(net, params=params)(X[:2], key=KEY) ** 2).sum()

    for gradient, weight in zip(
        *map(jax.tree.leaves, (slope(net.params), net.params)), strict=True
    ):
        assert np.isfinite(np.asarray(gradient)).all()
        if weight.ndim > 1:
            assert np.mean(np.asarray(gradient) != 0) > 0.3


@pytest.mark.parametrize("interleaved", [False, True])
def test_few_vectors_are_solved_and_many_multiplied_with_the_same_result(interleaved):
    rng = np.random.default_rng(0)
    g, v = rng.uniform(0, 1, (2, 5, 3)), rng.uniform(-1, 1, (40, 5))
    auto, cg, geff = (
        wires.input_source(0.02, 0.01, interleaved=interleaved, solver=solver)
        for solver in ("auto", "cg", "geff")
    )

    @jax.jit
    def delivered(g, v):
        asked = ((geff, 40), (auto, 3), (cg, 3), (auto, 40))
        return [wires.currents(g, v[:count], settings) for settings, count in asked]

    many, *others = map(np.asarray, delivered(g, v))
    assert many.shape == (2, 40, 3)
    for y in others:
        np.testing.assert_allclose(y, many[:, : y.shape[1]], rtol=1e-4, atol=1e-5)


def test_auto_does_not_return_what_has_not_converged():
    rng = np.random.default_rng(0)
    g, v = rng.uniform(0.1, 1, (16, 16)), rng.uniform(-1, 1, (3, 16))
    settings = wires.input_source(1e4)

    @jax.jit
    def delivered(g, v):
        return wires.solve(g, v, settings, iterations=200), wires.currents(g, v, settings)

    tried, y = delivered(g, v)
    assert not np.asarray(tried.converged).all()
    exact = resistors.input_source(g, v, np.full(16, 1e4), np.full(16, 1e4))[0]
    assert np.abs(np.asarray(y) - exact).max() < 1e-4 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: wires.input_source(-1e-3), "row=-0.001"),
        (lambda: wires.input_source(0.0, np.nan), "column=nan"),
        (lambda: wires.input_source(0.0, row_terminal=-1), "row_terminal=-1"),
        (lambda: wires.gated(0.0, column_terminal=np.inf), "column_terminal=inf"),
        (lambda: wires.input_source(0.0, solver="lu"), "solver='lu'"),
    ],
)
def test_wires_out_of_range_are_refused(build, told):
    with pytest.raises(ValueError, match=told):
        build()


def test_gated_wires_have_no_matrix():
    g = np.ones((2, 2), np.float32)
    for f in (wires.effective_conductance, lambda g, w: wires.solve(g, g, w)):
        with pytest.raises(ValueError, match="gated"):
            f(g, wires.gated(0.1))


def test_wires_take_conductances_and_interleaved_ones_take_pairs():
    settings = wires.input_source(0.1, interleaved=True)
    core = sites.core_of((parasitic_resistance, {"wires": settings}))
    w = np.ones((2, 20, 6), np.float32)
    with pytest.raises(ValueError, match="int8 codes"):
        core.write(Op(sites.DENSE), w.astype(np.int8), KEY)
    for op in (Op(sites.DENSE), Op(sites.DENSE).codes([0, 0], [127, 128])):
        with pytest.raises(ValueError, match="interleaved pairs"):
            core.write(op, w, KEY)


def test_wires_print_what_they_are():
    assert str(wires.input_source(1e-3)) == "input source, row 0.001, column 0.001"
    shown = str(wires.gated(0.01, column_terminal=0.1, interleaved=True))
    assert shown == "gated, interleaved, column 0.01, column end 0.1"

    def inside(r):
        assert "row traced" in str(wires.input_source(r))
        return r

    jax.eval_shape(inside, jax.ShapeDtypeStruct((), jnp.float32))


# None is a float32: rounded to it they cost 1e-8.
DOUBLE = {
    "row": 0.0123456789,
    "column": 0.00376543211,
    "row_terminal": 0.0211111111,
    "column_terminal": 0.0577777777,
}


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("topology", ["input_source", "gated"])
def test_in_double_precision_wires_are_exact_to_1e_9(topology, interleaved):
    rng = np.random.default_rng(7)
    g, v = rng.uniform(0.01, 1, (2, 1, 3, 2)), rng.uniform(-1, 1, (1, 3, 3))
    if topology == "gated":
        v = np.round(1.5 * v).clip(-1, 1)
        ends = {"column_terminal": DOUBLE["column_terminal"]}

    def of(r):
        if topology == "gated":
            return wires.gated(r["column"], **ends, interleaved=interleaved)
        return wires.input_source(**r, interleaved=interleaved, solver="geff")

    @jax.jit
    def delivered(g, v):
        settings = of(DOUBLE)
        if topology == "gated":
            return {"one pass": wires.currents(g, v, settings)}
        solved = wires.solve(g, v, settings, tolerance=1e-13)
        net = [solved.current, jnp.zeros_like(solved.current)]
        return {
            "matrix": wires.currents(g, v, settings),
            "gradients": jnp.stack(net) if interleaved else solved.current,
        }

    with jax.enable_x64(True):
        settings, found = of(DOUBLE), delivered(g, v)
        single = jax.eval_shape(
            lambda g, v: wires.currents(g, v, settings), np.float32(g), np.float32(v)
        )
    assert single.dtype == jnp.float32
    exact = by_the_circuit(g, v, settings, DOUBLE)
    for name, y in found.items():
        assert y.dtype == np.float64
        np.testing.assert_allclose(y, exact, rtol=0, atol=1e-9 * np.abs(exact).max(), err_msg=name)


def test_auto_solves_up_to_eight_vectors_and_multiplies_more(monkeypatch):
    def told(*args, **kwargs):
        raise RuntimeError("solved")

    monkeypatch.setattr(wires, "solve", told)
    g, auto = jnp.ones((3, 2)), wires.input_source(0.1)
    wires.currents(g, jnp.ones((9, 3)), auto)
    wires.currents(g, jnp.ones((1, 3)), wires.input_source(0.1, solver="geff"))
    for v, settings in ((8, auto), (9, wires.input_source(0.1, solver="cg"))):
        with pytest.raises(RuntimeError, match="solved"):
            wires.currents(g, jnp.ones((v, 3)), settings)


def test_a_column_has_the_resistance_of_a_row_unless_it_is_told():
    one, two = wires.input_source(0.1), wires.input_source(0.1, 0.2)
    assert [float(r) for r in one[:4]] == pytest.approx([0.1, 0.1, 0, 0])
    assert [float(r) for r in two[:4]] == pytest.approx([0.1, 0.2, 0, 0])
    assert (one.interleaved, one.solver) == (False, "auto")
    assert [float(r) for r in wires.gated(0.3)[:4]] == pytest.approx([0, 0.3, 0, 0])


def test_terminals_stand_at_the_driver_and_at_the_foot():
    """Three rows and two columns: the driver is left of the first, the foot below the last."""
    settings = wires.input_source(1.0, 2.0, row_terminal=10.0, column_terminal=20.0)
    row, column = wires._segments(settings, jnp.ones((3, 2)))
    np.testing.assert_array_equal(row, [11, 1])
    np.testing.assert_array_equal(column, [2, 2, 22])
