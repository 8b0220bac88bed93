import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.core import Core
from tests import models


def identity(core):
    return Core(core.write, core.calibrate, core.read)


def forced(net):
    """Every site handed to a core that changes nothing: the walk does all the work."""
    wrapped = js.wrap(identity)(net)
    dynamic = any(site.kind == "dynamic" for site in net.sites)
    return js.wrap(identity, sites="dynamic/*")(wrapped) if dynamic else wrapped


def trace(case):
    return js.trace(case.model, case.variables, *case.args, **case.kwargs)


def same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(params=models.CASES, scope="module")
def case(request):
    return models.CASES[request.param]()


@pytest.fixture(scope="module")
def net(case):
    return trace(case)


def given_again(case):
    """Keyword arguments that hold arrays and so are given at every call."""
    return {k: v for k, v in case.kwargs.items() if k in ("rngs", "shift")}


@pytest.fixture(scope="module")
def truth(case, net):
    return jax.jit(case.run)(net.params, *case.args, **given_again(case))


def test_sites_are_found_and_named_by_parameter(case, net):
    assert [site.name for site in net.sites] == case.sites


def test_an_untransformed_network_is_the_model_bit_for_bit(case, net, truth):
    same_bits(
        jax.jit(lambda net, *a, **k: net(*a, **k))(net, *case.args, **given_again(case)), truth
    )


def test_a_forced_walk_is_the_model_bit_for_bit(case, net, truth):
    walk = jax.jit(lambda net, *a, **k: net(*a, **k))
    same_bits(walk(forced(net), *case.args, **given_again(case)), truth)


def test_a_deployed_walk_is_the_model_bit_for_bit(case, net, truth):
    """Written weights are found again in every scan, loop and branch."""
    chip = js.deploy(forced(net))
    same_bits(
        jax.jit(lambda net, *a, **k: net(*a, **k))(chip, *case.args, **given_again(case)), truth
    )


NO_REVERSE = ("while", "stack in while", "while in stack")


def test_gradients_of_a_forced_walk_are_those_of_the_model(request, case, net):
    if request.node.callspec.params["case"] in NO_REVERSE:
        pytest.skip("a while loop has no reverse derivative")

    def total(run):
        def loss(params):
            leaves = jax.tree.leaves(run(params))
            return sum(jnp.sum(y**2) for y in leaves if jnp.issubdtype(y.dtype, jnp.floating))

        return jax.jit(jax.grad(loss))(net.params)

    more = given_again(case)
    mine = total(lambda p: dataclasses.replace(forced(net), params=p)(*case.args, **more))
    theirs = total(lambda p: case.run(p, *case.args, **more))
    eps = 1e-5 if jax.tree.leaves(net.params)[0].dtype == jnp.float32 else 0.05
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=eps, atol=eps * np.abs(np.float32(b)).max()
        )
