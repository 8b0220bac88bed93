import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsim as js
from jaxsim.cores.core import Core
from jaxsim.cores.quantized import quantized
from tests.support import models
from tests.support.networks import DEEP_SITES as SITES
from tests.support.networks import X, attention, run, stack
from tests.support.networks import deep_cnn as cnn

cells = js.cells.proportional(0.1)


def scaled(core, *, by):
    """A user's own core: it reads too much by a factor."""
    return Core(core.write, core.calibrate, lambda op, s, x, key: by * core.read(op, s, x, key))


def bits_by_site(net):
    return {name: chain[0].settings["weights"].bits for name, chain in net.cores.items()}


def test_compose_applies_in_the_written_order():
    log = []
    noted = [lambda net, i=i: log.append(i) or net for i in range(3)]
    assert js.compose(*noted)(cnn()) is cnn()
    assert log == [0, 1, 2]
    nested = js.compose(js.compose(js.quantize()), js.compose(js.slice_bits(2), js.analog()))(cnn())
    flat = js.compose(js.quantize(), js.slice_bits(2), js.analog())(cnn())
    assert jax.tree.structure(nested.cores) == jax.tree.structure(flat.cores)


def test_transforms_leave_the_network_they_are_given():
    net = cnn()
    js.compose(js.prune(0.5), js.quantize(), js.analog(adc=4))(net)
    assert not net.cores
    assert not net.masks


def test_the_first_rule_that_matches_wins():
    net = js.rules({"Dense_1*": js.quantize(8), "Dense*": js.quantize(6), "*": js.quantize(4)})(
        cnn()
    )
    assert bits_by_site(net) == dict(zip(SITES, [4, 4, 6, 8], strict=True))
    net = js.rules({"re:.*_[01]/kernel": js.quantize(3), "*": js.quantize(4)})(cnn())
    assert set(bits_by_site(net).values()) == {3}


def test_a_rule_that_others_leave_nothing_is_named():
    with pytest.raises(ValueError, match="'Dense_1/kernel': earlier rules take every site"):
        js.rules({"Dense*": js.quantize(6), "Dense_1/kernel": js.quantize(4)})(cnn())


def test_rules_focus_whole_compositions_and_nest():
    inner = js.rules({"*_0*": js.quantize(4), "*": js.quantize(5)})
    analog = js.compose(js.quantize(8), js.analog(adc=6))
    net = js.compose(js.rules({"Conv*": inner, "*": analog}), js.prune(0.5))(cnn())
    assert bits_by_site(net) == dict(zip(SITES, [4, 5, 8, 8], strict=True))
    assert [len(net.cores[name]) for name in SITES] == [1, 1, 4, 4]
    assert set(net.masks) == set(SITES)
    assert net.focus is None


def test_a_rule_for_dynamic_sites_reaches_them():
    """Its transforms need no pattern of their own."""
    net = js.rules({"dynamic/0": js.quantize(4), "q": js.quantize(8)})(attention())
    assert bits_by_site(net) == {"dynamic/0": 4, "q": 8}
    x = models.normal(2, 5, 4)
    assert not np.array_equal(run(net, x), run(attention(), x))


def test_a_transform_that_its_rule_keeps_from_every_site_is_an_error():
    with pytest.raises(ValueError, match=r"sites='Dense\*' matches no site of its rule.*Conv_0"):
        js.rules({"Conv*": js.prune(0.5, sites="Dense*")})(cnn())


def test_a_users_core_is_one_function():
    x = models.normal(5, 4)
    net = js.wrap(scaled, sites="head", by=3.0)(stack())
    np.testing.assert_allclose(run(net, x), 3 * run(stack(), x), rtol=1e-6)
    assert net.cores["head"][0].settings == {"by": 3.0}


def test_wrapping_goes_inside_what_is_there():
    net = js.compose(js.quantize(), js.wrap(scaled, by=2.0))(cnn())
    assert [w.factory for w in net.cores["Dense_0/kernel"]] == [quantized, scaled]


SMALL = models.normal(5, 4)


def traces(fn):
    """A jitted function that counts how often it is compiled."""
    jitted = jax.jit(fn)
    return jitted, jitted._cache_size


@pytest.mark.parametrize(
    "make",
    [
        lambda v: js.analog(cells=js.cells.proportional(v / 100)),
        lambda v: js.analog(cells=js.cells.independent(v / 100, on_off=v + 1)),
        lambda v: js.analog(adc=v),
        lambda v: js.analog(adc=8, percentile=90 + v),
        lambda v: js.prune(v / 10),
    ],
    ids=["sigma", "on_off", "adc", "adc percentile", "sparsity"],
)
def test_a_sweep_composed_outside_jit_compiles_once(make):
    evaluate, compiled = traces(lambda net, x, key: net(x, key=key))
    results = []
    for value in (2, 3.5, 5):
        net = js.compose(js.quantize(), make(value))(stack())
        results.append(np.asarray(evaluate(net, SMALL, jax.random.key(0))))
    assert compiled() == 1
    assert not np.array_equal(results[0], results[2])


@pytest.mark.parametrize("values", [(90.0, 99.0), (90, 99), (90, 99.5)])
def test_a_sweep_over_the_percentile_of_a_grid_compiles_once(values):
    evaluate, compiled = traces(lambda net, x: net(x))
    grids = [js.Grid(8, clip=js.clipping.percentile(p)) for p in values]
    a, b = (evaluate(js.quantize(grid, grid)(stack()), SMALL) for grid in grids)
    assert compiled() == 1
    assert not np.array_equal(a, b)


@pytest.mark.slow
def test_composing_inside_jit_compiles_once_and_vmaps():
    net = stack()

    def evaluate(sigma, bits, sparsity, x):
        noisy = js.analog(adc=bits, cells=js.cells.proportional(sigma))
        chip = js.compose(js.prune(sparsity), js.quantize(), noisy)(net)
        return js.deploy(chip, key=jax.random.key(1), calibrate=x)(x)

    inside, compiled = traces(evaluate)
    ys = [inside(s, b, p, SMALL) for s, b, p in ((0.0, 8.0, 0.1), (0.1, 6.0, 0.2), (0.2, 4.0, 0.3))]
    assert compiled() == 1
    sweep = jax.jit(jax.vmap(evaluate, (0, None, None, None)))
    swept = sweep(np.float32([0.0, 0.5]), 8.0, 0.1, SMALL)
    np.testing.assert_allclose(swept[0], ys[0], rtol=1e-4, atol=1e-5)
    assert np.abs(swept[1] - swept[0]).max() > 1e-3


def test_deployed_chips_that_differ_in_traced_settings_share_a_compilation():
    evaluate, compiled = traces(lambda chip, x: chip(x))
    for sigma, adc in ((0.01, 8), (0.05, 5.5)):
        noisy = js.analog(adc=adc, cells=js.cells.independent(sigma))
        net = js.compose(js.quantize(), noisy)(stack())
        evaluate(js.deploy(net, key=jax.random.key(0), calibrate=SMALL), SMALL)
    assert compiled() == 1


Q, A, S = js.quantize, js.analog, js.slice_bits
Dynamic = functools.partial(js.Grid, 8, dynamic=True)

BAD_ARGUMENTS = {
    "compose at least one": lambda: js.compose(),
    "is not a function": lambda: js.compose(Q(), 3),
    "by_pattern=": lambda: js.rules({}),
    "which is no transform": lambda: js.rules({"*": 3}),
    "bits=0: must": lambda: Q(0),
    "bits=9: must": lambda: Q(8, 9),
    "weights=True": lambda: Q(True),
    "bits=3.5": lambda: Q(js.Grid(3.5)),
    "weights='8'": lambda: Q("8"),
    "inputs=8.0": lambda: Q(8, 8.0),
    "nothing to quantize": lambda: Q(None, None),
    "per='row'": lambda: Q(js.Grid(8, per="row")),
    r"percentile: share=101": lambda: Q(js.Grid(8, clip=js.clipping.percentile(101.0))),
    "percentile: share=0": lambda: Q(8, js.Grid(8, clip=js.clipping.percentile(0.0))),
    "share=nan": lambda: js.clipping.percentile(float("nan")),
    "dynamic, average and per='token' are for inputs": lambda: Q(Dynamic()),
    "weights=int8 symmetric per token": lambda: Q(js.Grid(8, per="token")),
    "inputs: per='channel'": lambda: Q(8, js.Grid(8, per="channel")),
    r"inputs=Codebook\(levels": lambda: Q(8, js.nf4()),
    "average=2": lambda: Q(8, js.Grid(8, average=2)),
    "average=0.5 has no effect": lambda: Q(8, js.Grid(8, average=0.5, dynamic=True)),
    "spacing='odd'": lambda: Q(js.Grid(4, spacing="odd")),
    "bits=5 of powers of two": lambda: Q(js.Grid(5, spacing="powers")),
    "symmetric=False with bits=1": lambda: Q(8, js.Grid(1, symmetric=False)),
    "rounding='up'": lambda: Q(js.Grid(4, rounding="up")),
    "a sign has no fraction": lambda: Q(js.Grid(1, rounding="stochastic")),
    "clip=0.9": lambda: Q(js.Grid(4, clip=0.9)),
    "rows=None with per='group'": lambda: Q(js.Grid(4, per="group")),
    "rows=32 with per='tensor'": lambda: Q(js.Grid(4, rows=32)),
    "weights: rows=0:": lambda: Q(js.Grid(4, per="group", rows=0)),
    "dtype='float4'": lambda: Q(js.Floating("float4")),
    "weights: per='group', must": lambda: Q(js.Floating(per="group")),
    "levels=": lambda: Q(js.Codebook((1.0, 0.0))),
    "only fitted tables hold vectors": lambda: Q(js.Codebook((0.0, 1.0), length=2)),
    "size=1:": lambda: Q(js.Codebook(size=1)),
    "a fitted table is one a tensor": lambda: Q(js.Codebook(per="group", rows=4)),
    "nothing to learn": lambda: js.learn_ranges(X, weights=None, activations=None),
    "bits=0:": lambda: S(0),
    "bits=8:": lambda: S(8),
    "bits=2.0:": lambda: S(2.0),
    "sparsity=1.0:": lambda: js.prune(1.0),
    "sparsity=-0.1:": lambda: js.prune(-0.1),
    "sparsity=half:": lambda: js.prune("half"),
    "sparsity=nan:": lambda: js.prune(float("nan")),
    "distribution='model'": lambda: js.prune(0.5, distribution="model"),
    "adc=1:": lambda: A(adc=1),
    "adc=0:": lambda: A(adc=0, mapping="offset"),
    "adc=17:": lambda: A(adc=17),
    "adc=eight:": lambda: A(adc="eight"),
    "mapping='both'": lambda: A(mapping="both"),
    "adc_range='free'": lambda: A(adc=8, adc_range="free"),
    "adc_range='max': has no effect": lambda: A(adc_range="max"),
    "accumulate='both'": lambda: A(accumulate="both"),
    "accumulate='analog': has no effect": lambda: A(adc=8, accumulate="analog"),
    "input_bits=0:": lambda: A(input_bits=0),
    "input_bits=9:": lambda: A(input_bits=9),
    "top='half'": lambda: S(2, top="half"),
    "rows=0:": lambda: A(rows=0),
    "rows=1.5:": lambda: A(rows=1.5),
    "rows=True:": lambda: A(rows=True),
    "percentile=0:": lambda: A(adc=8, percentile=0),
    "percentile=100.1:": lambda: A(adc=8, percentile=100.1),
    "cells=0.1:": lambda: A(cells=0.1),
    "sigma=-1:": lambda: js.cells.independent(-1),
    "sigma=inf:": lambda: js.cells.proportional(float("inf")),
    "sigma=big:": lambda: js.cells.proportional("big"),
    "noise=-1:": lambda: js.cells.inverse(0.1, noise=-1),
    "largest=3300": lambda: js.cells.sonos(3300),
    "largest=2000": lambda: js.cells.sonos(2000, days=1),
    "days=6": lambda: js.cells.sonos(days=6),
    "largest=226": lambda: js.cells.rram_milo(226),
    "largest=0": lambda: js.cells.rram_wan(0),
    "on_off=0.5": lambda: js.cells.pcm_joshi(on_off=0.5),
    "on_off=1:": lambda: js.cells.independent(0.1, on_off=1),
    "on_off=nan:": lambda: js.cells.independent(0.1, on_off=float("nan")),
}


@pytest.mark.parametrize("message", BAD_ARGUMENTS)
def test_bad_arguments_are_named_when_they_are_given(message):
    with pytest.raises(ValueError, match=message):
        BAD_ARGUMENTS[message]()


BAD_ORDERS = {
    r"sites=\[\]": lambda net: Q(sites=[])(net),
    "sites='Convolution' matches no site; the sites are: Conv_0/kernel, Conv_1": (
        lambda net: Q(sites="Convolution")(net)
    ),
    "sites='nothing'": lambda net: js.rules({"nothing": Q()})(net),
    r"sites='re:\(' is not a regular expression": lambda net: Q(sites="re:(")(net),
    "slice_bits at Conv_0/kernel: its weights are floats": lambda net: S(2)(net),
    "analog at Conv_0/kernel: its weights are floats": lambda net: A()(net),
    "analog at Conv_0/kernel.*put quantize": lambda net: js.compose(Q(None, 8), A())(net),
    "quantize cannot follow quantized at Conv_0": lambda net: js.compose(Q(), Q())(net),
    "quantize cannot follow scaled": lambda net: js.compose(js.wrap(scaled, by=1.0), Q())(net),
    "slice_bits cannot follow bit_sliced": lambda net: js.compose(Q(), S(2), S(2))(net),
    r"analog.input_bits=1. at Conv_0/kernel: its inputs are floats": (
        lambda net: js.compose(Q(8, None), A(input_bits=1))(net)
    ),
    r"analog.adc_range='max'. at Conv_0/kernel": (
        lambda net: js.compose(Q(8, None), A(adc=8, adc_range="max"))(net)
    ),
    "analog cannot follow analog": lambda net: js.compose(Q(), A(), A())(net),
    "no transformed sites to deploy": lambda net: js.deploy(net),
    "key=None": lambda net: js.deploy(js.compose(Q(), A(cells=cells))(net), calibrate=X),
    "key=None:": lambda net: js.compose(Q(), A(cells=cells))(net)(X),
    "args=.*float32.2, 5.*traced with": lambda net: Q()(net)(X[0, :2, :5, 0]),
    "args=.*traced with.*raised": lambda net: net(X[..., :2]),
    "calibrate|args=": lambda net: js.deploy(Q()(net), calibrate=X[..., :2]),
}


@pytest.mark.parametrize("message", BAD_ORDERS)
def test_impossible_compositions_are_named_when_they_are_composed(message):
    with pytest.raises(ValueError, match=message):
        BAD_ORDERS[message](cnn())


@pytest.mark.parametrize(
    "transform", [Q(), S(2), A(), js.prune(0.5), js.wrap(scaled, by=2.0), js.rules({"*": Q()})]
)
def test_nothing_can_follow_deploy(transform):
    chip = js.deploy(Q(8, Dynamic())(cnn()))
    with pytest.raises(ValueError, match="cannot follow deploy"):
        transform(chip)
    with pytest.raises(ValueError, match="deployed already"):
        js.deploy(chip)


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (A(sites="dynamic*"), "what a call writes for a token must not depend on tokens that"),
        (S(2, sites="dynamic*"), "it contracts two inputs"),
    ],
)
def test_contractions_of_two_activations_store_nothing(transform, said):
    """Where a call writes, scales may not come from a batch: tests/transforms/test_operands.py."""
    net = Q(sites="dynamic*")(attention())
    with pytest.raises(ValueError, match=f"dynamic/0.*: {said}"):
        transform(net)
    with pytest.raises(ValueError, match="contracts two inputs, it has no weight"):
        js.prune(0.5, sites="dynamic*")(attention())


def _trace(fn, params):
    return js.trace(fn, params, models.normal(2, 4))


def _spoiled(value):
    return models.normal(4, 4).at[1, 2].set(value)


class Siteless(nn.Module):
    """It multiplies nothing."""

    @nn.compact
    def __call__(self, x):
        return nn.relu(x)


def product(params, x):
    return x @ params["w"].astype(x.dtype)


BAD_MODELS = {
    "variables: w holds NaN": lambda: _trace(product, {"w": _spoiled(jnp.nan)}),
    "variables: w holds NaN or infinite": lambda: _trace(product, {"w": _spoiled(jnp.inf)}),
    "w has dtype int32; a weight must be a float": lambda: js.trace(
        lambda p, x: x @ p["w"], {"w": jnp.ones((4, 4), int)}, jnp.ones((2, 4), int)
    ),
    "variables: w='no' is not an array": lambda: _trace(product, {"w": "no"}),
    "model=.* has no sites": lambda: _trace(lambda params, x: x + params["w"], {"w": jnp.ones(4)}),
    "model=Siteless.* has no sites": lambda: js.trace(Siteless(), {"params": {}}, jnp.ones(3)),
    "neither a Flax module nor a function": lambda: js.trace(3, {}, X),
    "needs the dict that model.init": lambda: js.trace(Siteless(), {"weights": {}}, X),
    "variables=NoneType": lambda: js.trace(Siteless(), None, X),
    "an NNX module holds its own": lambda: js.trace(models.NnxCnn(nnx.Rngs(0)), {"params": {}}, X),
    "args=.*the model raised": lambda: _trace(lambda p, x: x @ p["w"], {"w": jnp.ones((5, 4))}),
}


@pytest.mark.parametrize("message", BAD_MODELS)
def test_models_that_cannot_be_traced_say_why(message):
    with pytest.raises(ValueError, match=message):
        BAD_MODELS[message]()


def test_integer_parameters_that_are_no_weight_are_welcome():
    def fn(params, x):
        return x @ params["w"] + params["steps"]

    net = _trace(fn, {"w": models.normal(4, 4), "steps": jnp.array(3)})
    assert dataclasses.replace(net).params["steps"] == 3
