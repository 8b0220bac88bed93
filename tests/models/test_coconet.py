"""A collaborative head belongs to any Flax model: dictionary, guard and every transform."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
import jaxsim.collaborative as jcol
from jaxsim.models.coconet import CoCoNet, CollaborativeHead, refresh_dictionary
from tests.support import pipelines
from tests.support.models import normal
from tests.support.pipelines import furthest, plain

ONE = jax.devices()[:1]
X, LABELS = normal(12, 8, 8, 2), np.arange(12) % 3
QUERIES = normal(5, 8, 8, 2, seed=1)
SITES = ["backbone/Conv_0/kernel", "backbone/Conv_1/kernel"]


class Backbone(nn.Module):
    """Two convolutions."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.GroupNorm(2)(nn.Conv(4, (3, 3))(x)))
        return jnp.tanh(nn.Conv(6, (3, 3), (2, 2))(x))


def coconet(pool=None, **settings):
    more = {} if pool is None else {"pool": pool}
    return CoCoNet(Backbone(), CollaborativeHead(3, **settings), **more)


def filled(model, seed=0):
    """Variables with a dictionary."""
    variables = model.init(jax.random.key(seed), X)
    _, updates = model.apply(variables, X, LABELS, refresh=True, mutable=["dictionary"])
    return {**variables, **updates}


MODEL = coconet()
VARIABLES = filled(MODEL)


@pytest.fixture(scope="module")
def net():
    return js.trace(MODEL, VARIABLES, QUERIES)


@pytest.mark.parametrize("readout", ["residual", "ridge"])
@pytest.mark.parametrize("pool", [None, jcol.bilinear_pool])
def test_logits_are_those_of_explicit_codes(readout, pool):
    model = coconet(pool, readout=readout, lam_init=0.2, temp_init=5.0)
    variables = filled(model)
    known, new = (jcol.unit(model.apply(variables, x, method="features")) for x in (X, QUERIES))
    alpha = jcol.ridge_codes(known, new, 0.2)
    if readout == "residual":
        expected = -5 * jcol.class_residuals(known, LABELS, new, alpha, 3)
    else:
        expected = 5 * alpha @ jax.nn.one_hot(LABELS, 3)
    np.testing.assert_allclose(model.apply(variables, QUERIES), expected, atol=2e-5)


def test_training_logits_leave_each_sample_out():
    known = jcol.unit(MODEL.apply(VARIABLES, X, method="features"))
    found = MODEL.apply(VARIABLES, X, LABELS)
    np.testing.assert_allclose(found, jcol.batch_logits(known, LABELS, 3, 0.1, 10.0), atol=2e-5)
    inside = coconet(leave_one_out=False)
    codes = inside.apply(VARIABLES, X, LABELS)
    assert not np.allclose(found, codes, atol=0.1)


def test_training_reaches_every_parameter():
    def loss(params):
        return jcol.leave_one_out_entropy(MODEL.apply({"params": params}, X, LABELS), LABELS)

    grads = jax.jit(jax.grad(loss))(VARIABLES["params"])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(grad), path
        assert np.isfinite(grad).all(), path


def changed(path):
    """Variables of which one number is another."""

    def touch(where, leaf):
        if "/".join(str(k.key) for k in where) != path:
            return leaf
        return leaf.at[(0,) * leaf.ndim].add(1e-3)

    params = jax.tree_util.tree_map_with_path(touch, VARIABLES["params"])
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, params, VARIABLES["params"]))
    return {**VARIABLES, "params": params}


@pytest.mark.parametrize("path", ["backbone/Conv_0/kernel", "backbone/Conv_1/bias", "head/lam"])
def test_a_stale_dictionary_is_noticed(path):
    """Anywhere in the model: an error, or NaN where nothing can be raised."""
    stale = changed(path)
    with pytest.raises(ValueError, match="dictionary: stale, its parameters have changed"):
        MODEL.apply(stale, QUERIES)
    assert np.isnan(jax.jit(MODEL.apply)(stale, QUERIES)).all()
    assert np.isfinite(jax.jit(MODEL.apply)(VARIABLES, QUERIES)).all()
    _, updates = MODEL.apply(stale, X, LABELS, refresh=True, mutable=["dictionary"])
    again = {**stale, **updates}
    assert np.isfinite(jax.jit(MODEL.apply)(again, QUERIES)).all()
    assert np.isfinite(MODEL.apply(again, QUERIES)).all()


def test_two_numbers_that_change_places_are_noticed():
    kernel = VARIABLES["params"]["backbone"]["Conv_0"]["kernel"]
    flipped = kernel[::-1]
    params = {**VARIABLES["params"]}
    backbone = {**params["backbone"], "Conv_0": {**params["backbone"]["Conv_0"], "kernel": flipped}}
    with pytest.raises(ValueError, match="stale"):
        MODEL.apply({**VARIABLES, "params": {**params, "backbone": backbone}}, QUERIES)


def test_a_head_without_a_guard_reads_what_it_has():
    loose = coconet(guard=False)
    assert np.isfinite(loose.apply(changed("head/temp"), QUERIES)).all()


def test_sites_are_those_of_the_backbone(net):
    assert [s.name for s in net.sites if s.kind != "dynamic"] == SITES
    np.testing.assert_allclose(net(QUERIES), MODEL.apply(VARIABLES, QUERIES), atol=1e-5)


TRANSFORMS = {
    "quantize": js.quantize(8, 8),
    "prune": js.prune(0.3),
    "analog": js.compose(js.quantize(8, 8), js.analog(adc=8, cells=js.cells.proportional(0.01))),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_apply(net, name):
    """And samples go through the same hardware as queries."""
    composed = TRANSFORMS[name](net)
    if composed.cores:
        assert set(composed.cores) == set(SITES)
        composed = js.deploy(composed, key=jax.random.key(1), calibrate=X)
    else:
        assert set(composed.masks) == set(SITES)
        assert np.isnan(jax.jit(composed)(QUERIES)).all()  # pruned weights make it stale
    composed = refresh_dictionary(composed, X, LABELS)
    y = jax.jit(composed)(QUERIES)
    assert np.isfinite(y).all()
    assert 1e-6 < np.abs(y - net(QUERIES)).max() < 3
    old, new = (n.buffers["dictionary"]["head"]["samples"] for n in (net, composed))
    np.testing.assert_array_equal(new["onehot"], old["onehot"])
    assert np.abs(new["atoms"] - old["atoms"]).max() > 1e-4


def test_a_network_refreshes_to_what_its_model_does(net):
    params = jax.tree.map(lambda p: p * 1.1, net.params)
    moved = dataclasses.replace(net, params=params)
    with pytest.raises(ValueError, match="stale"):
        moved(QUERIES)
    fresh = refresh_dictionary(moved, X, LABELS)
    _, updates = MODEL.apply({"params": params}, X, LABELS, refresh=True, mutable=["dictionary"])
    expected = MODEL.apply({"params": params, **updates}, QUERIES)
    np.testing.assert_allclose(fresh(QUERIES), expected, atol=1e-5)


def test_a_pipeline_has_its_outputs_and_gradients(net):
    pipe = js.pipeline_shard(2, 3, devices=ONE * 2)(net)
    np.testing.assert_allclose(pipe(X), net(X), atol=1e-5)
    case = pipelines.Case(net, (X, jnp.asarray(LABELS)), pipelines.entropy)
    found = js.pipeline_value_and_grad(pipe, case.loss)(net.params, case.batch)
    assert furthest(found, plain(case)) < 2e-5


BAD = {
    "dictionary: there is none": lambda: MODEL.apply({"params": VARIABLES["params"]}, QUERIES),
    "labels=None: a dictionary needs": lambda: MODEL.apply(
        VARIABLES, X, refresh=True, mutable=["dictionary"]
    ),
    "lam_init=0: must": lambda: coconet(lam_init=0).init(jax.random.key(0), X),
    "temp_init=-1: must": lambda: coconet(temp_init=-1).init(jax.random.key(0), X),
    "readout='both'": lambda: coconet(readout="both").init(jax.random.key(0), X),
    "num_classes=0: must": lambda: CollaborativeHead(0).init(jax.random.key(0), jnp.ones((2, 3))),
    r"x\[2, 3, 4\]: must be \[B, d\]": lambda: CollaborativeHead(2).init(
        jax.random.key(0), jnp.ones((2, 3, 4))
    ),
    r"labels\[2\]=3: must be a class from 0 to 2": lambda: MODEL.apply(VARIABLES, X, LABELS + 1),
    "labels: 11 of them for 12": lambda: refresh_dictionary(
        js.trace(MODEL, VARIABLES, QUERIES), X, LABELS[:11]
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
