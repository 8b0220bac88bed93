"""What is made for a value is kept by it, its copies and its equals, and goes with them."""

import copy
import dataclasses
import gc
import pickle
import subprocess
import sys
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import pytest

import jaxsim as js
from jaxsim.network.arguments import call_arguments
from jaxsim.staged.exit_step import prepared as prepared_exits
from jaxsim.staged.plan import pipeline_plan
from jaxsim.staged.rows import find_rows
from jaxsim.values.memo import Memo, Memoizing, memoized
from tests.support import pipelines
from tests.support.models import normal


@partial(jax.tree_util.register_dataclass, data_fields=["x"], meta_fields=["memo"])
@dataclasses.dataclass(frozen=True, eq=False)
class Owner(Memoizing):
    """A value with a memo."""

    x: float = 0.0
    memo: Memo = dataclasses.field(default_factory=Memo)


class Made:
    """A result that can be referred to weakly."""


@pytest.fixture(autouse=True)
def collected_quickly():
    """Has the collector pass over what thousands of tests before have left: seconds of it."""
    gc.freeze()
    yield
    gc.unfreeze()


calls = []


def make(name):
    calls.append(name)
    return Made()


@pytest.mark.parametrize(
    "copied",
    [
        lambda owner: dataclasses.replace(owner, x=1.0),
        lambda owner: jax.tree.map(lambda x: x + 1, owner),
        lambda owner: jax.jit(lambda o: o)(owner),
        copy.copy,
    ],
    ids=["replaced", "mapped", "compiled", "copied"],
)
def test_a_copy_holds_what_was_made_when_the_original_is_gone(copied):
    owner = Owner()
    made = weakref.ref(memoized(owner, make, "copies"))
    other = copied(owner)
    del owner
    gc.collect()
    assert made() is not None
    assert memoized(other, make, "copies") is made()
    del other
    gc.collect()
    assert made() is None


def test_equals_share_what_one_of_them_holds():
    first, second = Owner(), Owner()
    made = memoized(first, make, "shared")
    assert memoized(second, make, "shared") is made
    assert memoized(second, make, "another") is not made
    del first
    gc.collect()
    assert memoized(second, make, "shared") is made
    found = weakref.ref(made)
    del made, second
    gc.collect()
    assert found() is None


@pytest.mark.parametrize("copied", [lambda o: pickle.loads(pickle.dumps(o)), copy.deepcopy])
def test_a_deep_copy_begins_anew_and_then_holds(copied):
    owner = Owner()
    memoized(owner, make, "deep")
    other = copied(owner)
    del owner
    gc.collect()
    made = memoized(other, make, "deep")
    assert memoized(dataclasses.replace(other), make, "deep") is made


def test_the_results_that_were_not_used_for_longest_go_first():
    owner = Owner()
    first = weakref.ref(memoized(owner, make, 0))
    second = weakref.ref(memoized(owner, make, 1))
    for i in range(2, 256):
        memoized(owner, make, i)
    memoized(owner, make, 0)
    memoized(owner, make, 256)
    assert first() is not None
    assert second() is None


def test_a_pipeline_that_is_dropped_frees_its_stages_and_programs():
    case = pipelines.mlp()
    made = js.pipeline_shard(2, 2, devices=jax.devices()[:1] * 2)(case.net)
    x = normal(4, 12)
    made(x)
    found = js.pipeline_value_and_grad(made, case.loss)
    jax.block_until_ready(found(made.params, (x, jnp.ones((4, *case.net(x).shape[1:])))))
    plan = pipeline_plan(made, call_arguments((x,), {}))
    held = [weakref.ref(p.forward) for p in plan.programs]
    del plan
    gc.collect()
    again = dataclasses.replace(made, params=jax.tree.map(lambda p: 2 * p, made.params))
    del made, found
    gc.collect()
    assert all(ref() is not None for ref in held)
    del again
    gc.collect()
    assert not any(ref() is not None for ref in held)


def test_a_network_with_exits_that_is_dropped_frees_its_stages_and_programs():
    x = normal(4, 12)
    net = js.exit_early(2)(pipelines.mlp().net)
    net.simulate(x)
    net.run(x, buckets=js.Buckets(batch=2, max_batch=4))
    arguments = call_arguments((x,), {})
    plan = prepared_exits(net, arguments, find_rows(arguments)[1])
    held = [weakref.ref(plan), weakref.ref(plan.step), weakref.ref(net)]
    del plan
    again = dataclasses.replace(net, threshold=0.5)
    del net
    gc.collect()
    assert [ref() is not None for ref in held] == [True, True, False]
    del again
    gc.collect()
    assert not any(ref() is not None for ref in held)


def test_a_program_that_still_holds_networks_ends_in_silence():
    """A network that lives until the interpreter goes down, in a cache, as scripts have them."""
    script = """
import functools, jax.numpy as jnp, jaxsim as js
@functools.cache
def network():
    p = {"a": jnp.eye(3), "b": jnp.eye(3)}
    net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], p, jnp.ones((2, 3)))
    return js.exit_early(["b"])(net)
net = network()
net.simulate(jnp.ones((2, 3)))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stderr == ""
