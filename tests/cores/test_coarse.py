"""The preconditioner of conjugate gradients: what it solves exactly, and what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.cores import nodal
from jaxsim.cores.nodal import blocks
from jaxsim.cores.nodal.blocks import Wires, into_blocks
from jaxsim.cores.nodal.coarse import coarse
from tests.cores.test_nodal import differential


def equations(m, n, r_row, r_column, *, vectors=2):
    """Conductances and right-hand sides in blocks, and the wires, in double precision."""
    rng = np.random.default_rng([m, n])
    g, r = rng.uniform(0.01, 1, (3, m, n)), rng.normal(size=(3, vectors, m, n))
    wires = Wires.of(jnp.full(n, r_row), jnp.full(m, r_column))
    return into_blocks(jnp.asarray(g)[:, None]), into_blocks(jnp.asarray(r)), wires


@pytest.mark.parametrize(("r_row", "r_column"), [(0.3, 0.0), (0.0, 0.3)])
def test_blocks_of_one_cell_on_wires_of_one_kind_leave_nothing(monkeypatch, r_row, r_column):
    monkeypatch.setattr(blocks, "BLOCK", 1)
    with jax.enable_x64(True):
        g, r, wires = equations(5, 7, r_row, r_column)
        e = coarse(g, wires)(r)
        np.testing.assert_allclose(e + wires.drops()(g * e), r, atol=1e-12)


def test_a_block_alone_loses_what_its_cells_share_on_average():
    g, r, to = (
        np.array([0.2, 0.5, 0.1, 0.9]),
        np.array([1.0, -2.0, 3.0, 0.5]),
        0.3 * np.arange(1, 5),
    )
    shared = np.minimum.outer(to, to).mean()
    with jax.enable_x64(True):
        cells, right = (into_blocks(jnp.asarray(a)[None, None, None]) for a in (g, r))
        e = coarse(cells, Wires.of(jnp.full(4, 0.3), jnp.zeros(1)))(right)
        expected = r - shared * (g @ r) / (1 + shared * g.sum())
        np.testing.assert_allclose(np.ravel(e), expected, rtol=1e-12)


@pytest.mark.parametrize("own", [False, True])
def test_it_is_symmetric_and_positive_in_the_product_weighted_by_conductance(monkeypatch, own):
    """As conjugate gradients want; with conductances of each array, and of each vector."""
    monkeypatch.setattr(blocks, "BLOCK", 3)
    with jax.enable_x64(True):
        g, r, wires = equations(8, 5, 0.05, 0.2)
        if own:
            g = g * into_blocks(jnp.asarray(np.random.default_rng(1).uniform(1, 2, (3, 2, 8, 5))))
        nearly = coarse(g, wires)
        a, b = r[..., :1, :], r[..., 1:, :]
        a, b = (jnp.broadcast_to(x, r.shape) for x in (a, b))
        left, right = (g * a * nearly(b)).sum((0, 1, 2, 5)), (g * nearly(a) * b).sum((0, 1, 2, 5))
        np.testing.assert_allclose(left, right, rtol=1e-12)
        assert ((g * a * nearly(a)).sum((0, 1, 2, 5)) > 0).all()


def test_it_sees_cells_of_each_vector_where_they_differ():
    with jax.enable_x64(True):
        g, r, wires = equations(6, 4, 0.1, 0.1)
        twice = jnp.broadcast_to(g, r.shape) * jnp.array([1.0, 2.0])[:, None]
        both = coarse(twice, wires)(r)
        for i in (0, 1):
            alone = coarse(twice[..., i : i + 1, :], wires)(r[..., i : i + 1, :])
            np.testing.assert_allclose(both[..., i : i + 1, :], alone, rtol=1e-12)


def test_large_arrays_have_longer_blocks_instead_of_more(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 2)
    monkeypatch.setattr(blocks, "MOST", 3)
    with jax.enable_x64(True):
        g, r, wires = equations(13, 11, 0.02, 0.05)
        assert g.shape == (3, 3, 5, 3, 1, 4)
        rows, columns = 0.02 * np.arange(1, 12), 0.05 * np.arange(13, 0, -1)
        current = np.asarray(blocks.out_of_blocks(r))[..., :13, :11]
        lost = current @ np.minimum.outer(rows, rows) + np.minimum.outer(columns, columns) @ current
        found = blocks.out_of_blocks(wires.drops()(r))[..., :13, :11]
        np.testing.assert_allclose(found, lost, rtol=1e-12)


@pytest.mark.parametrize(("r", "most"), [(1e-4, 3), (1e-3, 5)])
def test_few_iterations_are_enough_for_a_large_array(r, most):
    """Without it, 4 and 9 are needed."""
    n = 160
    g, v = differential(n), np.random.default_rng(1).uniform(-1, 1, (2, n)).astype(np.float32)
    wire = jnp.full(n, r, jnp.float32)
    found = nodal.solve(jnp.asarray(g), jnp.asarray(v), wire, wire, tolerance=1e-5)
    assert found.converged.all()
    assert found.iterations <= most
