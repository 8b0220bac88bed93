import jax
import jax.numpy as jnp
import pytest

import jaxsim as js
from jaxsim.accelerators import SimdUnit, Work, primitives
from jaxsim.accelerators.equations import equation_work
from tests.support.twins import twins


def asked(fn, *args, params=None, activations=None):
    """What the equations of a function ask, `{primitive: (operations, read, written)}` in bits."""
    params = {"site": jnp.ones((2, 2)), **(params or {})}

    def model(p, y, *xs):  # a network has at least one site, here one that stands apart
        return fn(p, *xs), y @ p["site"]

    net = js.trace(model, params, jnp.ones((1, 2)), *args)
    found = equation_work(net.portions()[0], activations)
    table = {}
    for work, times in found.work:
        operations, read, written = table.get(work.name, ({}, 0, 0))
        operations = {
            k: operations.get(k, 0) + times * work.operations.get(k, 0)
            for k in {*operations, *work.operations}
        }
        read, written = read + times * work.sizes[0], written + times * work.sizes[2]
        table[work.name] = (operations, read, written)
    return table, found


X = jnp.ones((3, 5))


def test_a_softmax_is_counted_by_hand():
    """Three rows of five: what is handed from one equation to the next does not move."""

    def softmax(p, x):
        e = jnp.exp(x - jnp.max(x, -1, keepdims=True))
        return e / jnp.sum(e, -1, keepdims=True)

    table, _ = asked(softmax, X)
    assert table == {
        "reduce_max": ({"add": 15}, 15 * 32, 0),  # x comes from memory, twice
        "sub": ({"add": 15}, 15 * 32, 0),
        "exp": ({"function": 15}, 0, 15 * 32),  # two read it, so it is stored
        "reduce_sum": ({"add": 15}, 15 * 32, 0),
        "div": ({"divide": 15}, 15 * 32, 15 * 32),
    }


def test_activations_may_lie_in_fewer_bits():
    table, _ = asked(lambda p, x: jnp.tanh(x), X, activations=6)
    assert table == {"tanh": ({"function": 15}, 15 * 6, 15 * 6)}


def test_what_no_input_reaches_is_not_counted():
    table, _ = asked(lambda p, x: x * jnp.exp(p["s"]), X, params={"s": jnp.ones(5)})
    assert table == {"mul": ({"multiply": 15}, (15 + 5) * 32, 15 * 32)}


def test_a_site_reads_and_writes_memory_by_itself():
    """What stands before and behind it goes through memory; the site is its part's affair."""
    table, _ = asked(lambda p, x: -(jnp.tanh(x) @ p["w"]), X, params={"w": jnp.ones((5, 2))})
    assert table == {
        "tanh": ({"function": 15}, 15 * 32, 15 * 32),
        "neg": ({"add": 6}, 6 * 32, 6 * 32),
    }


def test_a_scan_counts_its_turns():
    def turns(p, x):
        return jax.lax.scan(lambda c, w: (c * w, None), x, p["w"])[0]

    table, _ = asked(turns, X, params={"w": jnp.ones((7, 3, 5))})
    assert table == {"mul": ({"multiply": 7 * 15}, 7 * 30 * 32, 7 * 15 * 32)}


def test_what_a_scan_carries_is_known_in_its_first_turn_alone():
    def turns(p, x):
        return jax.lax.scan(lambda c, row: (jnp.tanh(c) + row, None), jnp.zeros(5), x)[0]

    table, _ = asked(turns, X)
    assert table["tanh"] == ({"function": 3 * 5}, 3 * 5 * 32, 0)


def test_what_a_site_and_another_equation_read_is_stored():
    def both(p, x):
        hidden = jnp.tanh(x)
        return hidden @ p["w"], -hidden

    table, _ = asked(both, X, params={"w": jnp.ones((5, 2))})
    assert table["tanh"] == ({"function": 15}, 15 * 32, 15 * 32)
    assert table["neg"] == ({"add": 15}, 15 * 32, 15 * 32)


def test_calls_are_looked_into():
    table, _ = asked(lambda p, x: jax.nn.relu(jax.jit(jnp.sin)(x)), X)
    assert table == {"sin": ({"function": 15}, 480, 0), "max": ({"add": 15}, 0, 480)}


def test_a_cache_is_written_where_it_changes_and_read_where_it_is_taken_from():
    def step(p, cache, new, place):
        cache = jax.lax.dynamic_update_slice(cache, new, (place, 0))
        return cache, jax.lax.dynamic_slice(cache, (place, 0), (2, 4))

    table, _ = asked(step, jnp.ones((9, 4)), jnp.ones((2, 4)), jnp.int32(1))
    operations, read, written = table["dynamic_update_slice"]
    assert (operations, written) == ({}, 8 * 32)
    assert 8 * 32 <= read <= 8 * 32 + 2 * 32  # and the place
    operations, read, written = table["dynamic_slice"]
    assert (operations, written) == ({}, 8 * 32)
    assert 8 * 32 <= read <= 8 * 32 + 2 * 32


def test_branches_are_all_counted_and_while_loops_once():
    def fn(p, x):
        y = jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.exp, x)
        return jax.lax.while_loop(lambda v: v[0, 0] < 3, lambda v: v * v, y)

    table, found = asked(fn, X)
    assert (table["sin"][0], table["exp"][0]) == ({"function": 15}, {"function": 15})
    assert table["mul"][0] == {"multiply": 15}
    assert found.loops == 1


def test_what_chooses_a_branch_is_in_memory_though_one_other_equation_reads_it():
    def fn(p, x):
        positive = x[0, 0] > 0
        y = jax.lax.cond(positive, jnp.sin, jnp.exp, x)
        return y + jnp.where(positive, 1.0, 2.0)

    table, _ = asked(fn, X)
    assert table["gt"][2] == 8  # one truth


def test_figures_of_the_unit_are_those_of_their_sources():
    unit = SimdUnit()
    assert (unit.add, unit.multiply, unit.divide, unit.lane_area) == (0.9, 3.7, 26.3, 11884)
    assert unit.function == pytest.approx(8 * 4.6)
    assert (unit.divide_cycles, unit.function_cycles, unit.lanes, unit.clock) == (8, 8, 32, 5e8)


@pytest.mark.parametrize(
    ("fn", "name", "operations"),
    [
        (lambda p, x: x**5, "integer_pow", {"multiply": 3 * 15}),  # x², x⁴, x⁴ · x
        (lambda p, x: x**-2, "integer_pow", {"multiply": 15}),
        (lambda p, x: jnp.sort(x, -1), "sort", {"add": 15 * 3}),
        (lambda p, x: jnp.prod(x), "reduce_prod", {"multiply": 15}),
        (lambda p, x: jnp.argmax(x, -1), "argmax", {"add": 15}),
        (lambda p, x: jnp.cumsum(x, -1), "cumsum", {"add": 15}),
        (lambda p, x: x.T, "transpose", {}),
        (lambda p, x: jnp.tile(x, (1, 2)), "tile", {}),
        (lambda p, x: jnp.stack([x, x]), "stack", {}),
        (lambda p, x: jnp.unstack(x, axis=1), "unstack", {}),
        (
            lambda p, x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 3), (1, 2), "VALID"),
            "reduce_window_max",
            {"add": 2 * 2 * 6},
        ),
    ],
)
def test_operations_of_a_primitive(fn, name, operations):
    table, _ = asked(fn, X)
    assert table[name][0] == operations


def test_a_contraction_that_is_no_site_is_multiplied_and_added():
    """Weights that are integers are no site."""
    x, w = jnp.ones((3, 5), jnp.int32), jnp.ones((5, 2), jnp.int32)
    table, _ = asked(lambda p, x: x @ p["w"], x, params={"w": w})
    assert table["dot_general"] == ({"multiply": 30, "add": 30}, (15 + 10) * 32, 6 * 32)


def test_what_is_not_known_is_named():
    table, found = asked(lambda p, x: jnp.linalg.cholesky(x @ x.T).sum(), X)
    assert "cholesky" in found.uncounted
    assert "cholesky" not in table


def test_every_primitive_is_of_one_kind():
    names = [*primitives.KINDS.values(), primitives.FREE, primitives.MOVES, primitives.REDUCES]
    names += [primitives.WINDOWS, set(primitives.UPDATES)]
    assert sum(map(len, names)) == len(set().union(*names))


UNIT = SimdUnit(
    lanes=4,
    add=2.0,
    multiply=3.0,
    divide=5.0,
    function=7.0,
    divide_cycles=6,
    function_cycles=9,
    clock=8.0,
    lane_area=11.0,
)


def test_the_unit_is_counted_by_hand():
    operations = {"add": 13, "multiply": 17, "divide": 19, "function": 23}
    work = Work("exp", "elements", runs=3, bits=(1, 1, 1), sizes=(29, 0, 31), operations=operations)
    spent = UNIT.spend(work)
    assert spent.energy == {"add": 78, "multiply": 153, "divide": 285, "function": 483}
    slots = 3 * (13 + 17 + 19 * 6 + 23 * 9)
    assert spent.cycles == -(-slots // 4)
    assert spent.seconds == spent.cycles / 8
    assert (spent.inputs, spent.results) == (87, 93)
    assert spent.utilization == slots / (4 * spent.cycles)
    assert UNIT.area == pytest.approx(44e-6)


def test_products_of_floats_on_the_unit_are_counted_by_hand():
    work = Work("w", "floats", (2, 3, 5, 9), 7, bits=(32, 6, 16), sizes=(30, 90, 54), groups=2)
    spent, macs = UNIT.spend(work), 7 * 2 * 3 * 5 * 9
    assert spent.energy == {"add": 2 * macs, "multiply": 3 * (macs + 7 * 2 * 3 * 9 * 2)}
    assert spent.inputs == 7 * 2 * 3 * 5 * 3 * 32  # nine columns on four lanes
    assert spent.weights == 7 * 2 * 5 * 9 * 3 * 6
    assert spent.results == 7 * 54 * 16


def test_the_unit_takes_products_where_it_is_told_to():
    assert UNIT.accepts(Work("w", "floats")) == ""
    assert "contracts nothing" in SimdUnit(contracts=False).accepts(Work("w", "floats"))
    assert "analog" in UNIT.accepts(Work("w", "analog"))


@pytest.mark.parametrize(
    "changes",
    [
        *({name: 0} for name in ("lanes", "divide_cycles", "function_cycles", "clock")),
        *({name: -1} for name in ("add", "multiply", "divide", "function", "lane_area")),
    ],
)
def test_settings_of_the_unit_out_of_range_are_named(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=name):
        SimdUnit(**changes)
    assert name in SimdUnit.__doc__


def test_weights_that_integers_choose_are_the_sites_affair():
    """What takes them out of a stack is no equation of its own."""

    def fn(p, x, which):
        return jnp.einsum("bi,bio->bo", x, p["w"][which])

    table, _ = asked(fn, X, jnp.array([1, 0, 1]), params={"w": jnp.ones((4, 5, 2))})
    assert "gather" not in table
    table, _ = asked(lambda p, i: -p["w"][i], jnp.array([1, 0]), params={"w": jnp.ones((4, 5))})
    assert "neg" in table


@pytest.mark.parametrize("kind", ["linen", "plain"])
@pytest.mark.parametrize(
    ("hardware", "chip"),
    [
        (js.quantize(8, 8), js.accelerators.systolic_45nm()),
        (
            js.compose(js.quantize(8, 8), js.slice_bits(2), js.analog(rows=128, adc=8)),
            js.accelerators.isaac_like(),
        ),
    ],
)
def test_a_stack_that_a_scan_runs_spends_what_its_layers_do_written_out(kind, hardware, chip):
    pair = twins(kind)
    scanned, unrolled = (js.estimate(hardware(net), chip) for net in pair[:2])
    assert len(unrolled.sites) == pair.layers * len(scanned.sites)
    for what in ("energy", "latency", "area", "cycles"):
        stack, layers = (
            sum(getattr(site, what) for site in found.sites.values())
            for found in (scanned, unrolled)
        )
        assert stack == pytest.approx(layers, rel=1e-12)
    assert scanned.energy == pytest.approx(unrolled.energy, rel=1e-12)
