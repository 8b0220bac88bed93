import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsim.cores import nodal
from jaxsim.cores.nodal import conjugate, joined, one_pass
from tests.oracles import relaxation, resistors

SHAPES = [(1, 1), (1, 6), (5, 1), (3, 4), (7, 5)]
resistance = st.one_of(st.just(0.0), st.floats(1e-6, 1.0))


def array(m, n, seed=0, lowest=0.01):
    """Conductances, and a few vectors of inputs."""
    rng = np.random.default_rng([seed, m, n])
    return rng.uniform(lowest, 1, (m, n)), rng.uniform(-1, 1, (6, m))


def differential(n, seed=0):
    """A pair of arrays that holds normal weights, on/off 100."""
    w = np.random.default_rng(seed).normal(0, 0.25, (n, n))
    w = w / np.abs(w).max()
    return (0.01 + 0.99 * np.stack([np.maximum(w, 0), np.maximum(-w, 0)])).astype(np.float32)


def wires(m, n, r_row, r_column):
    return np.full(n, r_row), np.full(m, r_column)


def relative(a, b):
    return np.abs(np.asarray(a) - b).max() / np.abs(b).max()


def in_double(f, *args):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, f(*(jnp.asarray(a, jnp.float64) for a in args)))


@pytest.mark.parametrize("shape", [(32, 48), (48, 32)])
def test_both_solvers_and_the_oracle_agree_with_badcrossbar(shape):
    compute = resistors.badcrossbar()
    if compute is None:
        pytest.skip(
            "badcrossbar is not installed: pip install --no-deps badcrossbar==1.1.0 pathvalidate"
        )
    g, v = array(*shape)
    r_row, r_column = (3e-4, 1e-3) if shape[0] < shape[1] else (1e-3, 3e-4)
    theirs = compute(v.T, 1 / g, r_i_word_line=r_row, r_i_bit_line=r_column).currents.output
    row, column = wires(*shape, r_row, r_column)
    assert relative(resistors.input_source(g, v, row, column)[0], theirs) < 1e-9
    assert relative(v @ in_double(nodal.transfer, g, row, column), theirs) < 1e-9
    found = in_double(lambda *a: nodal.solve(*a, tolerance=1e-12), g, v, row, column)
    assert relative(found.current, theirs) < 1e-9
    # rows and columns are told apart
    swapped = in_double(nodal.transfer, g, *wires(*shape, r_column, r_row))
    assert relative(v @ swapped, theirs) > 1e-4


@settings(max_examples=30)
@given(st.sampled_from(SHAPES), st.integers(0, 99), resistance, resistance, resistance, resistance)
def test_any_array_multiplies_by_the_matrix_of_its_circuit(shape, seed, rr, rc, rt, ct):
    g, _ = array(*shape, seed, lowest=-0.05)
    row, column = resistors.segments(shape[1], rr, rt), resistors.segments(shape[0], rc, ct)[::-1]
    G = in_double(nodal.transfer, g, row, column)
    np.testing.assert_allclose(G, resistors.dense(g, row, column), rtol=1e-8, atol=1e-11)


def test_the_solution_holds_the_voltage_of_every_cell_and_every_pair_of_axes():
    g, v = array(7, 5)
    row, column = resistors.segments(5, 0.02, 0.1), resistors.segments(7, 0.03, 0.2)[::-1]
    current, across = resistors.input_source(g, v, row, column)
    found = in_double(lambda *a: nodal.solve(*a, tolerance=1e-10), g, v, row, column)
    np.testing.assert_allclose(found.current, current, rtol=1e-8)
    np.testing.assert_allclose(found.cell_voltage, across, rtol=1e-7, atol=1e-9)
    both = nodal.solve(np.stack([g, g / 2]), v[:3], row, column)
    assert both.current.shape == (2, 3, 5)
    np.testing.assert_allclose(both.current[0], current[:3], rtol=1e-4)


def test_many_arrays_are_solved_as_each_alone():
    """More than are held at a time, in blocks that do not fill the array."""
    g = np.stack([array(70, 40, seed)[0] for seed in range(5)]).astype(np.float32)
    v = np.random.default_rng(0).uniform(0, 1, (5, 40, 70)).astype(np.float32)
    assert 1 < conjugate.CELLS // v[0].size // 40 < 5
    row, column = map(np.float32, wires(70, 40, 1e-3, 2e-3))
    both = nodal.solve(g, v, row, column)
    assert both.converged.all()
    assert both.cell_voltage.shape == (5, 40, 70, 40)
    for i in range(5):
        exact, across = resistors.input_source(*map(np.float64, (g[i], v[i], row, column)))
        assert relative(both.current[i], exact) < 1e-5
        np.testing.assert_allclose(both.cell_voltage[i], across, atol=1e-5)


def test_currents_are_conserved():
    """What the drivers supply is what the columns deliver."""
    g, v = array(7, 5)
    row, column = wires(7, 5, 0.02, 0.03)
    found = in_double(lambda *a: nodal.solve(*a, tolerance=1e-12), g, v, row, column)
    first_node = v - row[0] * np.sum(g * found.cell_voltage, -1)
    supplied = ((v - first_node) / row[0]).sum(1)
    np.testing.assert_allclose(supplied, found.current.sum(1), rtol=1e-9, atol=1e-12)
    reached = np.einsum("ij,bij->bi", g, found.cell_voltage)
    np.testing.assert_allclose(
        reached.sum(1), (v @ in_double(nodal.transfer, g, row, column)).sum(1)
    )


def test_closed_forms():
    g, _ = array(5, 3)
    np.testing.assert_allclose(
        in_double(nodal.transfer, g, *wires(5, 3, 0, 0)), g, rtol=1e-14
    )  # no resistance: the cells themselves
    one = in_double(nodal.transfer, [[0.7]], [0.3], [0.4])
    np.testing.assert_allclose(one, [[1 / (1 / 0.7 + 0.3 + 0.4)]], rtol=1e-14)

    @jax.jit
    def both(cells, on, column):
        total = nodal.transfer(cells, jnp.zeros(1), column).sum()
        return total, nodal.norton(cells, None, on, column)

    for m in (2, 9, 64):
        found = in_double(both, np.full((m, 1), 0.6), np.ones((1, m)), np.full(m, 0.01))
        expected = resistors.ladder(0.6, 0.01, m)
        for y in found:
            np.testing.assert_allclose(np.ravel(y), [expected], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("r", [1e-4, 1e-3])
def test_single_precision_is_enough_for_the_small_difference_of_a_pair(r):
    """256 × 256; the bounds are those that a sweep in double precision was asked to keep."""
    n = 256
    g, v = differential(n), np.random.default_rng(1).uniform(-1, 1, (6, n)).astype(np.float32)
    row, column = wires(n, n, r, r)
    exact = np.stack([resistors.input_source(a, v, row, column)[0] for a in g])
    segments = jnp.float32(row), jnp.float32(column)
    found = nodal.solve(jnp.asarray(g), jnp.asarray(v), *segments)
    assert found.converged.all()
    for y in (v @ np.asarray(nodal.transfer(jnp.asarray(g), *segments)), found.current):
        assert relative(y, exact) < 5e-5
        assert relative(y[0] - y[1], exact[0] - exact[1]) < 2e-4


def test_where_the_fixed_point_diverges_conjugate_gradients_do_not():
    n = 128
    g, v = differential(n)[0], np.random.default_rng(1).uniform(-1, 1, (4, n)).astype(np.float32)
    row, column = wires(n, n, 1e-3, 1e-3)
    assert not relaxation.attempt(g, v, row, column).converged
    exact = resistors.input_source(g, v, row, column)[0]
    slow = relaxation.solve(g, v, row, column, gamma=0.3, tolerance=1e-6, iterations=500)
    assert slow.converged
    assert relative(slow.current, exact) < 1e-4
    found = nodal.solve(g, v, jnp.float32(row), jnp.float32(column))
    assert found.converged.all()
    assert found.iterations < 20
    assert relative(found.current, exact) < 5e-5


def test_too_few_iterations_are_admitted_and_finite():
    g, v = array(7, 5)
    v[2] = 0
    for r in (0.5, 1e4):
        row, column = map(jnp.float32, wires(7, 5, r, r))
        found = nodal.solve(jnp.float32(g), jnp.float32(v), row, column, iterations=2)
        np.testing.assert_array_equal(found.converged, [False, False, True, False, False, False])
        assert (np.asarray(found.residual)[[0, 1, 3, 4, 5]] > 1e-3).all()
        assert np.isfinite(found.current).all()
        assert not found.current[2].any()


def test_conductances_below_zero_do_not_stop_the_solver():
    """Errors that a device model does not clip."""
    rng = np.random.default_rng(0)
    g, v = np.maximum(rng.normal(0, 0.3, (24, 24)), 0), rng.uniform(-1, 1, (4, 24))
    g = g + rng.normal(0, 0.03, g.shape)
    row, column = wires(24, 24, 0.01, 0.01)
    found = nodal.solve(*map(jnp.float32, (g, v, row, column)), tolerance=1e-5)
    assert found.converged.all()
    assert relative(found.current, v @ resistors.dense(g, row, column)) < 1e-4


@pytest.mark.parametrize("solver", ["transfer", "solve"])
def test_derivatives_are_those_of_the_exact_solution(solver):
    """By conductances, also where they are zero, inputs and resistances."""
    g, v = array(5, 3)
    g[1, 2] = g[4, 0] = 0
    row, column = wires(5, 3, 0.05, 0.08)
    pull = np.random.default_rng(3).normal(size=(6, 3))

    def ours(g, v, row, column):
        if solver == "transfer":
            return (pull * (v @ nodal.transfer(g, row, column))).sum()
        return (pull * nodal.solve(g, v, row, column, tolerance=1e-13).current).sum()

    def exact(g, v, row, column):
        return (pull * resistors.input_source(g, v, row, column)[0]).sum()

    point = (g, v, row, column)
    slopes = in_double(jax.jit(jax.grad(ours, argnums=(0, 1, 2, 3))), *point)
    rng = np.random.default_rng(4)
    for i, slope in enumerate(slopes):
        places = [tuple(rng.integers(0, k) for k in point[i].shape), *([(1, 2)] if i == 0 else [])]
        for at in places:
            ends = []
            for h in (1e-5, -1e-5):
                moved = [np.array(p) for p in point]
                moved[i][at] += h
                ends.append(exact(*moved))
            assert slope[at] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_the_transpose_of_the_solver_is_solved_too():
    """Forwards along a way it is what central differences say, backwards its transpose."""
    g, v = array(3, 4)
    row, column = wires(3, 4, 0.05, 0.08)
    rng = np.random.default_rng(5)
    point, way = (g, v), (rng.normal(size=g.shape), rng.normal(size=v.shape))
    pull = rng.normal(size=(len(v), g.shape[1]))

    def run(g, v):
        return nodal.solve(g, v, row, column, tolerance=1e-13).current

    @jax.jit
    def both(point, way, pull):
        y, back = jax.vjp(run, *point)
        return y, jax.jvp(run, point, way)[1], back(pull)

    with jax.enable_x64(True):
        _, forward, backward = jax.tree.map(np.asarray, both(point, way, pull))
        ahead, behind = (
            np.asarray(
                both(tuple(p + h * w for p, w in zip(point, way, strict=True)), way, pull)[0]
            )
            for h in (1e-5, -1e-5)
        )
    np.testing.assert_allclose(forward, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)
    along = sum(np.vdot(b, w) for b, w in zip(backward, way, strict=True))
    np.testing.assert_allclose(along, np.vdot(pull, forward), rtol=1e-9)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("r", [1e-3, 0.1])
def test_gated_columns_match_a_nodal_solve_of_each_vector(paired, r):
    (positive, _), (negative, _) = array(12, 4), array(12, 4, seed=1)
    negative = negative if paired else 0 * negative
    on = np.random.default_rng(2).integers(0, 2, (5, 12))
    column = resistors.segments(12, r, 0.02)[::-1]
    drive, load = jnp.float32(positive - negative), jnp.float32(positive + negative)
    y = nodal.norton(drive, load if paired else None, jnp.float32(on), jnp.float32(column))
    exact = np.stack([resistors.gated(positive, negative, x, column) for x in on])
    assert relative(y, exact) < 1e-5


def test_many_arrays_are_taken_in_turn_and_many_vectors_in_chunks(monkeypatch):
    g = np.random.default_rng(0).uniform(0, 1, (5, 3, 4)).astype(np.float32)
    x = np.random.default_rng(1).integers(0, 2, (5, 40, 3)).astype(np.float32)
    row, column = map(np.float32, wires(3, 4, 0.1, 0.2))

    def computed():
        """By the functions within their `jit`, which would remember how it was before."""

        @jax.jit
        def both(g, row, x, column):
            transfer, norton = (
                getattr(f, "__wrapped__", f) for f in (nodal.transfer, nodal.norton)
            )
            return transfer(g, row, column), norton(g, None, x, column)

        return both(g, row, x, column)

    whole = computed()
    monkeypatch.setattr(joined, "CHUNK", 24)
    monkeypatch.setattr(one_pass, "LANES", 5 * 4 * 17)
    parts = computed()
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(("lanes", "chunks"), [(1, 3), (20 * 17, 3), (20 * 20, 2), (20 * 40, 1)])
def test_no_chunk_has_fewer_than_sixteen_vectors_however_large_the_arrays(
    monkeypatch, lanes, chunks
):
    """Forty vectors for five arrays of four columns: so many fit into each lane, or sixteen."""
    monkeypatch.setattr(one_pass, "LANES", lanes)
    norton = getattr(nodal.norton, "__wrapped__", nodal.norton)
    jaxpr = jax.make_jaxpr(lambda g, x, c: norton(g, None, x, c))(
        np.ones((5, 3, 4), np.float32), np.ones((5, 40, 3), np.float32), np.ones(3, np.float32)
    )
    (loop,) = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
    assert loop.params["length"] == chunks
    assert jaxpr.out_avals[0].shape == (5, 40, 4)
