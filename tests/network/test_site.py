"""What follows of a site from its loops, and of a plan from its parts."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.network.coverage import Coverage, Covered, cover
from jaxsim.network.leaves import path_name
from jaxsim.network.plan import Plan, Provenance, Rows, Traced
from jaxsim.network.site import Site
from tests.support.models import normal


def site(kind="dot", name="w", **facts):
    facts = {"lengths": (), "stacked": (), "sources": (name,), **facts}
    return Site(name, name, kind, (7, 2), (2, 3), "float32", 42, **facts)


@pytest.mark.parametrize(
    ("kind", "runs", "multiplies", "chosen"),
    [
        ("dot", 2 * 3 * 5, True, False),
        ("conv", 2 * 3 * 5, True, False),
        # all experts make up one run
        ("ragged", 2 * 3, True, True),
        ("routed", 2 * 3, True, True),
        ("lookup", 2 * 3 * 5, False, False),
        ("dynamic", 2 * 3 * 5, False, False),
    ],
)
def test_loops_multiply_by_kind(kind, runs, multiplies, chosen):
    found = site(kind, lengths=(2, 3, 5), stacked=(True, False, True))
    assert (found.runs, found.multiplies, found.chosen) == (runs, multiplies, chosen)
    assert (found.stack, found.layers) == ((2, 5), (2, 5))


def test_devices_are_of_the_stack_and_no_layers():
    found = site(lengths=(2, 3, 5), stacked=(True, True, False), axes=("", "m", ""))
    assert (found.stack, found.layers) == ((2, 3), (2,))


def test_rows_of_a_stack_are_a_share_of_it():
    assert Rows(2, 5, 12).share == 0.25


def test_reach_is_told_of_each_parameter_by_hand():
    """Two sites of `a`, of which one is changed; one of `b`, pruned; `c` and `d` in none."""
    sites = [
        site(name="a", lengths=(3,), stacked=(False,)),
        Site("a#2", "a", "dot", (7, 2), (2, 3), "float32", 10, sources=("a", "gone")),
        site(name="b"),
        Site("dynamic/0", None, "dynamic", (7, 2), (2, 3), "float32", 11),
        Site("dynamic/1", None, "dynamic", (2, 2), (2, 3), "float32", 5, (2,), (False,)),
    ]
    sizes = {"a": 6, "b": 8, "c": 10, "d": 12}
    found = cover(sizes, sites, ["a", "dynamic/1"], ["b"], ["d"], {"c": ("add at x", "mul")})
    assert found.rows == (
        Covered("a", 6, 3 * 42 + 10, "float", False, "a#2"),
        Covered("b", 8, 42, "transformed", False, ""),
        Covered("c", 10, 0, "no site", False, "add at x, mul"),
        Covered("d", 12, 0, "no site", True, "not read"),
        Covered("dynamic/0", 0, 11, "float", False, ""),
        Covered("dynamic/1", 0, 10, "transformed", False, ""),
    )
    assert found.share("transformed") == 8 / 36
    assert found.share("transformed", of="macs") == 52 / 199
    assert found.share("no site") == 22 / 36
    assert found.line == (
        "parameters: 22.2% transformed, 16.7% float, 61.1% in no site, 33.3% frozen; "
        "transformed: 26.1% of MACs"
    )
    assert Coverage(()).share("float") == 0
    half = Coverage((Covered("a", 1, 0, "float", False, ""),))
    assert (half.share("float"), half.share("float", of="macs")) == (1, 0)


def unreached(**readers):
    plan = Plan(None, (), (), ())
    return Traced(plan, [], None, readers, {}, ()).unreached


def test_each_reader_that_is_no_site_has_its_phrase():
    assert unreached(a=("dot_general", "add")) == ("a is contracted as no site is (dot_general)",)
    assert unreached(a=("dot_general of int8", "ragged_dot")) == (
        "a has dtype int8; a weight must be a float",
    )
    assert unreached(a=("gather", "dynamic_slice", "mul")) == (
        "a is looked up as no site is (gather, dynamic_slice)",
    )
    assert unreached(a=("pallas_call (opaque)", "gather")) == (
        "a goes into pallas_call, which is opaque",
    )
    assert unreached(a=("add", "a#2"), b=()) == ()
    # of buffers only what is contracted is told
    assert unreached(**{"buffers/a": ("conv_general_dilated", "dot_general")}) == (
        "a is a buffer (conv_general_dilated, dot_general): weights=… makes it a site",
    )
    assert unreached(**{"buffers/a": ("gather", "pallas_call (opaque)")}) == ()


def test_a_value_that_nothing_is_known_of_comes_from_nowhere():
    assert Provenance() == ("", 0, frozenset(), frozenset(), frozenset(), frozenset(), None)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ((), "params"),
        (("a",), "a"),
        (("a", "value"), "a"),
        (("value",), "value"),
        (("a", "value", "b"), "a/value/b"),
        ((0, "b"), "0/b"),
    ],
)
def test_paths_are_written_with_slashes_and_without_the_box_of_a_parameter(path, name):
    assert path_name(path) == name


def looked_up(entries, tables):
    """Products with so many entries beside tables of two columns."""
    params = {"w": normal(3, entries // 3)}
    params |= {f"t{rows}": normal(rows, 2) for rows in tables}

    def fn(p, x, i):
        return x @ p["w"], [p[f"t{rows}"][i] for rows in tables]

    return js.trace(fn, params, normal(2, 3), jnp.int32(0))


def test_a_rest_of_a_tenth_is_not_worth_a_warning_and_more_is(recwarn):
    """Ten of a hundred parameters, and twelve of 102."""
    analog = js.compose(js.quantize(8, 8), js.analog())
    for tables, told in (([5], False), ([6], True)):
        analog(looked_up(90, tables))
        assert bool(recwarn) is told
        recwarn.clear()


def test_the_three_largest_that_are_left_are_named_in_rising_order():
    analog = js.compose(js.quantize(8, 8), js.analog())
    with pytest.warns(UserWarning, match="analog of every site leaves 56% of") as said:
        analog(looked_up(30, [7, 5, 4, 3]))
    assert "as they are: t4:lookup, t5:lookup, t7:lookup; net.cov" in str(said[0].message)


def test_a_warning_is_of_all_sites_alone(recwarn):
    js.compose(js.quantize(8, 8), js.analog(sites="w"))(looked_up(30, [7]))
    js.compose(js.quantize(8, 8), js.rules({"*": js.analog()}))(looked_up(30, [7]))
    assert not [w for w in recwarn if "analog of every site" in str(w.message)]


def test_density_is_of_all_the_masks_of_a_weight():
    def fn(p, x):
        return x @ jnp.concatenate([p["a"], p["b"]], 1)

    net = js.trace(fn, {"a": normal(2, 3), "b": normal(2, 5)}, normal(4, 2))
    mask = np.zeros((2, 3), bool)
    mask[0] = True
    pruned = dataclasses.replace(net, masks={"a": jnp.asarray(mask)})
    assert pruned.density(net.sites[0]) == (3 + 10) / 16
    assert net.density(net.sites[0]) == 1
