"""Wrappers as data: what they show, what they are called at rest, and where roles stand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.bit_serial import bit_serial
from jaxsim.cores.core import float_core
from jaxsim.cores.geometry import Dot
from jaxsim.cores.partition import Partitioned
from jaxsim.cores.tiled import tiled
from jaxsim.cores.wrapper import Wrapper, build, first_of, place_of


@js.role("adc", at_rest="once")
def scaled(core, *, by, name="a", table=None, hook=None):
    del name, table, hook
    return core._replace(read=lambda *args: by * core.read(*args))


def plain(core):
    return core


WHOLE = Wrapper.of(scaled, by=2.0, name="b", table=np.ones((2, 3)), hook=max)


def test_a_wrapper_prints_its_numbers_short_and_its_arrays_by_shape():
    assert repr(WHOLE) == "scaled(by=2, hook=max, name=b, table=array[2, 3])"
    assert repr(Wrapper.of(scaled, by=1 / 3, table=None)) == "scaled(by=0.3333)"
    shown = []
    jax.eval_shape(lambda by: shown.append(repr(Wrapper.of(scaled, by=by))) or by, 1.0)
    assert shown == ["scaled(by=traced)"]


def test_a_signature_hides_numbers_and_names_the_module_of_others():
    one, two = (Wrapper.of(scaled, by=by, name="b") for by in (1.0, 2.0))
    assert one.signature() == two.signature() == f"{__name__}.once(by=nan, name=b)"
    assert Wrapper.of(tiled, rows=3).signature() == "tiled(rows=3)"
    assert Wrapper.of(bit_serial, bits=4).signature() == "serial(bits=4)"


def test_numbers_are_leaves_and_everything_else_is_static():
    leaves = jax.tree.leaves(WHOLE)
    assert [np.shape(leaf) for leaf in leaves] == [(), (2, 3)]
    for value, traced in ((1.0, True), (np.float32(1), True), (jnp.ones(2), True), (1, False)):
        assert len(jax.tree.leaves(Wrapper.of(scaled, by=value))) == traced
    doubled = jax.tree.map(lambda a: 2 * a, WHOLE)
    assert doubled.settings["by"] == 4
    assert doubled.settings["hook"] is max


def test_partitioned_trees_come_together_again():
    tree = {"a": [1.5, "x"], "b": (None, 2.5), "c": np.array([1.0], ">f4")}
    parts = Partitioned.of(tree, lambda leaf: not isinstance(leaf, str))
    assert parts.arrays[:2] == (1.5, 2.5)
    assert parts.arrays[2].dtype.isnative
    assert parts.combine() == {"a": [1.5, "x"], "b": (None, 2.5), "c": np.array([1.0])}


def test_chains_are_built_from_the_outside_in():
    op, order = js.Op(Dot((1,), (), (0,), (), 2, (2, 1))), []

    def noted(core, *, name):
        order.append(name)
        return core._replace(read=lambda *args: [name, *_list(core.read(*args))])

    core = build([Wrapper.of(noted, name="outer"), Wrapper.of(noted, name="inner")])
    assert order == ["inner", "outer"]
    assert core.read(op, jnp.ones((2, 1)), jnp.ones((1, 2)), None) == ["outer", "inner", 2.0]
    assert build([]) is float_core


def _list(y):
    return y if isinstance(y, list) else [float(y.item())]


def test_roles_are_found_from_the_outside():
    chain = [Wrapper.of(plain), Wrapper.of(scaled, by=1.0), Wrapper.of(scaled, by=2.0)]
    assert first_of(chain, "adc") is chain[1]
    assert place_of(chain, "adc") == 1
    assert first_of(chain, "cells") is None
    assert place_of(chain, "cells") == 3
    assert [wrapper.role for wrapper in chain] == ["", "adc", "adc"]
    assert [wrapper.name for wrapper in chain] == ["plain", "scaled", "scaled"]


def test_formats_are_those_of_both_operands():
    grid = js.Grid(4)
    wrapper = Wrapper.of(scaled, by=1.0)
    assert wrapper.formats == (None, None)

    def both(core, *, weights, inputs):
        del weights, inputs
        return core

    assert Wrapper.of(both, weights=grid, inputs=js.Grid(5)).formats == (grid, js.Grid(5))


def test_settings_that_a_function_does_not_take_fail_when_it_is_built():
    with pytest.raises(TypeError, match="unexpected"):
        Wrapper.of(plain, by=1.0)(float_core)
