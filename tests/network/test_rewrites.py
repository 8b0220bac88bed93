"""Which equations are said in other words, by what is known of their operands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsim as js
from jaxsim.network import counters, lookups
from jaxsim.network.inlining import inline_slices
from jaxsim.network.lookups import row_axes, rows_as_outputs
from jaxsim.network.plan import Contraction, Provenance
from jaxsim.network.rewrites import in_other_words, is_choice, is_gathered, is_taken
from jaxsim.network.site import Site
from jaxsim.network.tracing import retrace
from tests.support.models import normal

WEIGHT, BUFFER, X = Provenance("w", 12), Provenance(sources=frozenset(["buffers/b"])), normal(2, 4)


def equation(fn, *operands):
    *_, eqn = jax.make_jaxpr(fn)(*operands).jaxpr.eqns
    return eqn


def taking(dtype=jnp.float32, shape=(3, 4)):
    numbers = lax.GatherDimensionNumbers((1,), (0,), (0,))
    sizes = (1, shape[1])
    return equation(
        lambda w, i: lax.gather(w, i, numbers, sizes, mode="clip"),
        jnp.zeros(shape, dtype),
        np.zeros((5, 1), np.int32),
    )


def parts():
    """Half rows: neither rows of a table nor a table that is folded."""
    numbers = lax.GatherDimensionNumbers((1,), (0,), (0, 1))
    return equation(
        lambda w, i: lax.gather(w, i, numbers, (1, 2), mode="clip"),
        jnp.zeros((3, 4)),
        np.zeros((5, 2), np.int32),
    )


def window():
    return equation(
        lambda w, i: lax.dynamic_slice(w, (i, 0), (2, 4), allow_negative_indices=False),
        jnp.zeros((3, 4)),
        np.int32(1),
    )


@pytest.mark.parametrize(
    ("eqn", "table", "taken", "gathered"),
    [
        (taking(), WEIGHT, True, True),
        (window(), WEIGHT, True, False),
        (parts(), WEIGHT, True, False),
        (taking(), None, False, False),
        (taking(), BUFFER, False, False),
        (taking(jnp.int32), WEIGHT, False, False),
        (equation(lambda w: -w, X), WEIGHT, False, False),
    ],
)
def test_rows_are_taken_of_weights_that_are_floats(eqn, table, taken, gathered):
    assert is_taken(eqn, [table, None]) is taken
    assert is_gathered(eqn, [table, WEIGHT]) is gathered


RAGGED = [np.zeros((6, 4), np.float32), np.zeros((3, 4, 5), np.float32), np.zeros(3, np.int32)]


@pytest.mark.parametrize(
    ("x", "w", "dtype", "said"),
    [
        (None, WEIGHT, np.float32, True),
        (WEIGHT, WEIGHT, np.float32, False),
        (None, None, np.float32, False),
        (None, BUFFER, np.float32, False),
        (None, WEIGHT, np.int8, False),
    ],
)
def test_groups_of_rows_meet_weights_of_floats(x, w, dtype, said):
    eqn = equation(lax.ragged_dot, *(a.astype(dtype) for a in RAGGED[:2]), RAGGED[2])
    found = in_other_words(eqn, [x, w, None])
    assert (None if found is None else found[0]) == ("ragged" if said else None)


def test_tables_are_folded_and_products_are_not_said_otherwise():
    assert in_other_words(window(), [WEIGHT, None, None])[0] == "lookup"
    assert in_other_words(window(), [None, None, None]) is None
    assert in_other_words(parts(), [WEIGHT, None]) is None
    assert in_other_words(equation(jnp.dot, X, X.T), [None, WEIGHT]) is None


def test_a_choice_is_of_matrices_of_floats_that_parameters_determine():
    def variable(shape, dtype=jnp.float32):
        return jax.make_jaxpr(lambda a: a)(jnp.zeros(shape, dtype)).jaxpr.invars[0]

    matrix = variable((2, 3))
    assert is_choice(matrix, [WEIGHT, WEIGHT])
    assert not is_choice(matrix, [WEIGHT, None])
    assert not is_choice(matrix, [WEIGHT, BUFFER])
    assert not is_choice(variable((3,)), [WEIGHT, WEIGHT])
    assert not is_choice(variable((2, 3), jnp.int32), [WEIGHT, WEIGHT])


def test_calls_that_take_rows_of_a_matrix_stay_calls():
    fn = lambda w, i: jnp.take(w, i, axis=0)  # noqa: E731
    for shape, inlined in (((3, 4), False), ((3, 4, 5), True)):
        closed = jax.make_jaxpr(fn)(jnp.zeros(shape), np.int32(0))
        found = inline_slices(closed.jaxpr, closed.consts)[0]
        assert (found is not closed.jaxpr) is inlined
        assert any(eqn.primitive.name == "gather" for eqn in found.eqns) is inlined


def stored(core, *, write):
    """A core that holds what a function makes of a table."""
    return core._replace(write=lambda op, w, key: write(w))


@pytest.mark.parametrize(
    ("write", "axes"),
    [
        (lambda w: w, [0]),
        (lambda w: (w.T, w.sum(0), w.sum(1, keepdims=True)), [1, None, 0]),
        (lambda w: jnp.zeros((2, 5, w.shape[0])), [2]),
    ],
)
def test_rows_lie_along_the_axis_that_grows_with_the_table(write, axes):
    chain = [js.Wrapper.of(stored, write=write)]
    op = js.Op(rows_as_outputs((3, 4), 0))
    table = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    assert row_axes(chain, op, table, "t") == axes


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w @ w.T,  # along two axes
        lambda w: jnp.zeros((w.shape[0] ** 2,)),  # by more than the rows
        lambda w: jnp.zeros((w.shape[0] + 1,)),  # by less
        lambda w: jnp.concatenate([w, w]),  # two for each row
        lambda w: w[:, : w.shape[0]],  # of another rank of rows where the table is as wide
        lambda w: w.reshape((1,) * w.shape[0] + (-1,)),  # by axes
        lambda w: w + None,
    ],
)
def test_a_table_whose_rows_cannot_be_told_apart_is_refused_with_its_chain(write):
    chain = [js.Wrapper.of(stored, write=write)]
    op = js.Op(rows_as_outputs((3, 4), 0))
    table = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    with pytest.raises(ValueError, match=r"sites: t is a lookup, and stored.* stores a table so"):
        row_axes(chain, op, table, "t")


@pytest.mark.parametrize("size", [3, 4, 7])
def test_a_table_is_read_in_as_many_blocks_as_it_is_wide(monkeypatch, size):
    """Of seven columns: three, two and one; the last of one, of three and of all."""
    monkeypatch.setattr(lookups, "IDENTITY", size)
    table, ids = jnp.arange(35.0).reshape(5, 7), np.array([4, 0, 4])

    @jax.jit
    def rows(table):
        rows, columns = (js.Op(rows_as_outputs(s, a)) for s, a in (((5, 7), 0), ((7, 5), 1)))
        one = lookups.read_rows(js.float_core, rows, table, ids, [0], None)
        return one, lookups.read_rows(js.float_core, columns, table.T, ids, [1], None)

    for found in rows(table):
        np.testing.assert_array_equal(found, table[ids])


@pytest.mark.parametrize(("shape", "axis"), [((5, 7), 0), ((7, 5), 1)])
def test_a_whole_table_is_read_as_its_parameter_is_laid_out(shape, axis):
    table = jnp.arange(35.0, dtype=jnp.bfloat16).reshape(shape)
    site = Site("t:lookup", "t", "lookup", (2,), shape, "bfloat16", 0)
    w = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    entry = Contraction(site, js.Op(rows_as_outputs(shape, axis)), w, w, 1, 0)
    found = jax.jit(lambda table: lookups.read_table([], entry, table))(table)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, table)


def test_a_lookup_has_the_shape_of_its_integers():
    def fn(p, ids):
        return p["t"][ids] @ p["w"] + lax.dynamic_slice_in_dim(p["t"], ids[0, 0], 2).sum()

    net = js.trace(fn, {"t": normal(7, 4), "w": normal(4, 5)}, jnp.zeros((2, 3), int))
    shapes = {s.name: (s.x_shape, s.w_shape) for s in net.sites}
    assert shapes["t:lookup"] == ((2, 3), (7, 4))
    assert shapes["t:lookup#2"] == ((), (7, 4))


def test_a_branch_that_a_parameter_chooses_reads_it():
    def fn(p, x):
        return lax.cond(p["gate"][0] > 0, lambda x: x @ p["w"], lambda x: x, x)

    net = js.trace(fn, {"gate": normal(2), "w": normal(4, 4)}, X)
    rows = {row.name: row.reason for row in net.coverage().rows}
    assert rows["gate"].startswith("cond at ")
    assert rows["w"] == "w"


PADDED = {
    # two axes of a kernel of 3 · 2 and whether XLA's CPU backend gets it wrong
    "adds and takes away": (((-1, 1), (0, 0)), True),
    "adds along one and takes along another": (((2, 0), (0, -1)), True),
    "adds": (((1, 2), (0, 1)), False),
    "takes away": (((-1, 0), (-1, -1)), False),
    "nothing": (((0, 0), (0, 0)), False),
}


@pytest.mark.parametrize("name", PADDED)
def test_convolutions_that_add_and_take_away_are_noted(name):
    from jaxsim.network.planner import trace_plan

    padding, wrong = PADDED[name]

    def conv(x, w):
        dims = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=dims)

    def noted(fn, params, x):
        net = js.trace(lambda p, x: x.reshape(-1)[:1] @ p["v"], {**params, "v": normal(1, 2)}, x)
        fn_of = lambda p, b, x: fn(p, x)  # noqa: E731
        return trace_plan(fn_of, net.params, {}, net.example, net.example).miscomputed

    x, w = normal(1, 5, 6, 3), normal(3, 2, 3, 4)
    assert noted(lambda p, x: conv(x, p["w"]), {"w": w}, x) == (("w",) if wrong else ())
    own = noted(lambda p, x: conv(x, w + x[0, 0, 0, 0]), {"w": w}, x)
    assert own == (("conv_general_dilated",) if wrong else ())
    whole = noted(lambda p, x: conv(x.astype(int), jnp.ones(w.shape, int)), {"w": w}, x)
    assert whole == ()


def test_another_function_of_the_same_arguments_has_its_own_sites():
    params = {"w": normal(4, 4), "v": normal(4, 3)}
    net = js.trace(lambda p, x: x @ p["w"] @ p["v"], params, X)
    other = retrace(net, lambda p, b, x: (x @ p["v"]) * p["w"].sum())
    assert [s.name for s in other.sites] == ["v"]
    assert other.params is net.params
    np.testing.assert_allclose(other(X), (X @ params["v"]) * params["w"].sum(), rtol=1e-6)


def test_bounds_of_what_is_followed_are_as_documented():
    assert (counters.LONGEST, counters.MOST_REPEATED, lookups.IDENTITY) == (65536, 64, 1024)
