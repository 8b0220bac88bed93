import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.bit_sliced import bit_sliced
from jaxsim.cores.geometry import Dot
from jaxsim.cores.grouped import grouped
from jaxsim.cores.lookup import codebook_lookup
from jaxsim.cores.minifloat import minifloat
from jaxsim.cores.op import Op
from jaxsim.cores.quantized import quantized
from jaxsim.cores.tiled import tiled
from jaxsim.formats.codebook import Codebook, Floating, nf4
from jaxsim.formats.grid import Grid
from jaxsim.numerics.packed import Packed
from tests.support import sites


def test_groups_have_a_scale_of_their_own_each():
    """Of five products the groups of two are two and two and one, as large as 4, 30 and 500."""
    w = np.float32([[1], [-4], [30], [2], [-500]])
    geometry = Dot((1,), (), (0,), (), 2, (5, 1))
    grid = Grid(4, per="channel")
    core = sites.core_of((grouped, {"rows": 2}), (quantized, {"weights": grid, "inputs": None}))
    state = core.write(Op(geometry), w, None)
    np.testing.assert_allclose(np.ravel(state.scale), [4 / 7, 30 / 7, 500 / 7], rtol=1e-6)
    np.testing.assert_array_equal(np.ravel(state.inner), [2, -7, 7, 0, -7, 0])


FORMS = {
    "weights": ({"weights": Grid(4, per="channel"), "inputs": None},),
    "affine": ({"weights": Grid(3, symmetric=False, per="channel"), "inputs": Grid(8)},),
    "signs": ({"weights": Grid(1, per="channel"), "inputs": Grid(6, symmetric=False)},),
    "tokens": ({"weights": Grid(4, per="channel"), "inputs": Grid(8, per="token")},),
    "batch": ({"weights": Grid(4, per="channel"), "inputs": Grid(8, dynamic=True)},),
    "table": ({"weights": None, "inputs": Grid(8)}, nf4()),
    "one table": ({"weights": None, "inputs": Grid(8)}, Codebook(size=6)),
    "inputs": ({"weights": Grid(4, per="channel"), "inputs": None}, Floating("float8_e5m2")),
}
"""Settings of `quantized`, and what is between it and the product."""


def pieces(form):
    coded, *inside = FORMS[form]
    chain = [(quantized, coded)]
    for other in inside:
        table = isinstance(other, Codebook)
        sides = {"weights": other} if table else {"weights": None, "inputs": other}
        chain.append((codebook_lookup if table else minifloat, sides))
    return chain


@pytest.mark.parametrize(("rows", "at_once"), [(6, 4), (6, 3), (6, 1), (7, 2)])
@pytest.mark.parametrize(
    ("form", "geometry"), [*((form, sites.DENSE) for form in FORMS), ("signs", sites.CONV)]
)
def test_one_product_of_floats_is_the_sum_of_products_of_groups(
    form, geometry, rows, at_once, monkeypatch
):
    """Tiles read each group as its codes; what is stored and the derivatives are equal too.

    All groups at once, and some at a time; of 20 products, groups of 7 are filled up.
    """
    x, w = sites.operands(geometry)
    chain = pieces(form)
    monkeypatch.setattr("jaxsim.cores.grouped._AT_ONCE", at_once * rows * w.shape[-1])

    @functools.partial(jax.jit, static_argnums=0)
    def both(make, x, w):
        core = sites.core_of((make, {"rows": rows}), *chain)
        op = Op(geometry, integer=True, ranges="stored")
        state = core.calibrate(op, core.write(op, w, None), 0.7 * x)
        lean = dataclasses.replace(op, layout="lean")
        held = core.calibrate(lean, core.write(lean, w, None), 0.7 * x)
        reads = [core.read(op, s, x, None) for s in (state, held)]
        smooth = dataclasses.replace(op, integer=False)

        def loss(x, w):
            y = core.read(smooth, core.write(smooth, w, None), x, None)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape))

        smooth = dataclasses.replace(smooth, ranges="batch")
        return state, held, reads, jax.grad(loss, (0, 1))(x, w)

    state, held, (plain, lean), slopes = both(grouped, x, w)
    expected_state, _, (expected, _), expected_slopes = both(tiled, x, w)
    jax.tree.map(np.testing.assert_array_equal, state, expected_state)
    leaves = jax.tree.leaves(held, is_leaf=lambda a: isinstance(a, Packed))
    if not any(isinstance(a, Packed) for a in leaves):
        np.testing.assert_array_equal(plain, lean)  # else sums are made in another order
    for a, b in zip((plain, lean, *slopes), (expected, expected, *expected_slopes), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())
    assert sum(a.nbytes for a in jax.tree.leaves(held)) < sum(
        a.nbytes for a in jax.tree.leaves(state)
    )


def products(core, op, x, w):
    jaxpr = jax.make_jaxpr(lambda x, w: core.read(op, core.write(op, w, None), x, None))(x, w)
    return [
        eqn.params["dimension_numbers"][1]
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "dot_general"
    ]


def test_groups_are_multiplied_at_once_where_the_core_says_what_it_multiplies():
    """A control: a read of somebody's own is called for each group, whatever stands behind it."""
    x, w = sites.operands(sites.DENSE)
    coded = (quantized, {"weights": Grid(4, per="channel"), "inputs": Grid(8)})

    def doubled(core):
        return core._replace(read=lambda *args: 2 * core.read(*args))

    op = Op(sites.DENSE, integer=True)
    own, plain = (sites.core_of((grouped, {"rows": 6}), *c) for c in ((doubled, coded), (coded,)))
    assert products(plain, op, x, w) == [((0,), (0,))]
    assert products(own, op, x, w) == [((0, 1), (0, 1))]
    y, doubled_y = (core.read(op, core.write(op, w, None), x, None) for core in (plain, own))
    np.testing.assert_allclose(doubled_y, 2 * y, rtol=0, atol=4e-6 * np.abs(y).max())


BLOCKS = {
    "affine": js.Grid(4, per="group", rows=32, symmetric=False),
    "normal floats": js.nf4(per="group", rows=32),
    "blocks of a file": js.BlockGrid("Q4_1"),
    "pruned blocks": js.BlockGrid("Q4_1"),
    "floats of four bits": js.mx("e2m1"),
    "two scales": js.nvfp4(),
}


@pytest.mark.parametrize(("name", "form"), BLOCKS.items())
def test_weights_are_multiplied_in_pieces(name, form, monkeypatch):
    """Numbers of one place in their bytes together; of few rows three groups at a time.

    The products of 256 unit vectors are the weights. On other devices they are made at once.
    """
    rng = np.random.default_rng(3)
    w = jnp.asarray(rng.normal(size=(2, 256, 6)), jnp.float32)
    net = js.trace(lambda w, x: x @ w, w, jnp.zeros((2, 5, 256)))
    if name == "pruned blocks":
        net = js.prune(0.5)(net)
    chip = js.deploy(js.quantize(form, None)(net), keep_floats=False)
    groups = 16 if name == "two scales" else 8
    monkeypatch.setattr("jaxsim.cores.grouped._AT_ONCE", 3 * 2 * 256 // groups * 6)

    def called(x):
        jaxpr = jax.make_jaxpr(lambda chip, x: chip(x))(chip, x)
        return str(jaxpr).count("dot_general["), np.asarray(chip(x))

    unit = np.broadcast_to(np.eye(256, dtype=np.float32), (2, 256, 256))
    halves = 4 if name == "affine" else 2
    many, dense = called(unit)
    x = rng.normal(size=(2, 5, 256)).astype(np.float32)
    few, y = called(x)
    assert (many, few) == (halves, 2 * -(-groups // 3) if halves == 2 else 8)
    x, dense = x.astype(np.float64), dense.astype(np.float64)
    assert (np.abs(y - x @ dense) <= 2.0**-21 * (np.abs(x) @ np.abs(dense))).all()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert called(x.astype(np.float32)[:, :4])[0] == 1


def test_planes_behind_groups_are_read_group_by_group():
    """Slices are whole digits whose reads add up to that of the codes."""
    x, w = sites.operands(sites.DENSE)
    coded = (quantized, {"weights": Grid(4, per="channel"), "inputs": Grid(8)})
    groups = (grouped, {"rows": 6})
    whole = sites.read([groups, coded], sites.DENSE, x, w)
    cut = sites.read([groups, coded, (bit_sliced, {"bits": 2})], sites.DENSE, x, w)
    np.testing.assert_allclose(cut, whole, rtol=0, atol=2e-6 * np.abs(whole).max())
