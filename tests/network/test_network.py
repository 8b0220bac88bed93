import collections
import dataclasses
import functools

import jax
import jax.extend.core.primitives as prims
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.core import Core
from jaxsim.internals import inner_jaxprs
from tests.support import models


def identity(core):
    return Core(core.write, core.calibrate, core.read)


def forced(net):
    """Every site handed to a core that changes nothing: the walk does all the work."""
    wrapped = js.wrap(identity)(net)
    dynamic = any(site.kind == "dynamic" for site in net.sites)
    return js.wrap(identity, sites="dynamic/*")(wrapped) if dynamic else wrapped


@jax.jit
def run(net, *args, **kwargs):
    return net(*args, **kwargs)


def trace(case):
    return js.trace(case.model, case.variables, *case.args, **case.kwargs)


def same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@functools.cache
def built(name):
    """A case and its network."""
    case = models.CASES[name]()
    return case, trace(case)


@pytest.fixture(params=models.CASES, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name):
    return built(name)[0]


@pytest.fixture(scope="module")
def net(name):
    return built(name)[1]


def given_again(case):
    """Keyword arguments that hold arrays and so are given at every call."""
    return {k: v for k, v in case.kwargs.items() if k in ("rngs", "shift")}


@pytest.fixture(scope="module")
def said(case, net):
    """What the model and its networks answer, in one program: XLA compiles what they share once."""
    more = given_again(case)

    @jax.jit
    def answers(params, buffers, nets, args, more):
        model = case.run(params, buffers, *args, **more)
        return {"model": model, **{name: net(*args, **more) for name, net in nets.items()}}

    walked = forced(net)
    nets = {"net": net, "walked": walked, "deployed": js.deploy(walked)}
    return answers(net.params, case.buffers, nets, case.args, more)


def test_sites_are_found_and_named_by_parameter(case, net):
    assert [site.name for site in net.sites] == case.sites


def test_an_untransformed_network_is_the_model_bit_for_bit(said):
    same_bits(said["net"], said["model"])


def test_a_forced_walk_is_the_model_bit_for_bit(said):
    same_bits(said["walked"], said["model"])


def test_a_deployed_walk_is_the_model_bit_for_bit(said):
    """Written weights are found again in every scan, loop and branch."""
    same_bits(said["deployed"], said["model"])


def counted(jaxpr):
    """Contractions of a jaxpr; those of a function that is called twice, twice."""
    found = collections.Counter()
    for eqn in jaxpr.eqns:
        if eqn.primitive in (prims.dot_general_p, prims.conv_general_dilated_p):
            found[eqn.primitive.name] += 1
        for inner, _ in inner_jaxprs(eqn):
            found += counted(inner)
    return found


def test_xla_is_given_the_contractions_of_the_model_and_no_more(name, case, net):
    def contractions(f, *args):
        return counted(jax.make_jaxpr(f)(*args, *case.args, **given_again(case)).jaxpr)

    theirs = contractions(case.run, net.params, case.buffers)
    assert theirs
    assert contractions(run, net) == theirs
    # a loop's test is walked before the loop and in it; a shared jitted layer is walked in place
    if name not in ("while", "shared jit"):
        assert contractions(run, forced(net)) == theirs


X3 = jnp.ones((4, 3))
NO_REVERSE = ("while", "stack in while", "while in stack")


def test_gradients_of_a_forced_walk_are_those_of_the_model(name, case, net):
    if name in NO_REVERSE:
        pytest.skip("a while loop has no reverse derivative")

    def total(run):
        def loss(params):
            leaves = jax.tree.leaves(run(params))
            return sum(jnp.sum(y**2) for y in leaves if jnp.issubdtype(y.dtype, jnp.floating))

        return jax.grad(loss)

    more = given_again(case)
    mine = total(lambda p: dataclasses.replace(forced(net), params=p)(*case.args, **more))
    theirs = total(lambda p: case.run(p, case.buffers, *case.args, **more))
    mine, theirs = jax.jit(lambda p: (mine(p), theirs(p)))(net.params)
    eps = 1e-5 if jax.tree.leaves(net.params)[0].dtype == jnp.float32 else 0.05
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=eps, atol=eps * np.abs(np.float32(b)).max()
        )


@pytest.fixture(scope="module")
def dense():
    """Two layers whose calibrated ranges can be computed by hand."""

    def fn(params, x):
        return jnp.maximum(x @ params["a"], 0) @ params["b"]

    params = {"a": models.normal(4, 6, seed=1), "b": models.normal(6, 3, seed=2)}
    return js.trace(fn, params, models.normal(2, 4))


def test_batch_sizes_are_free_and_vmap_maps_over_the_network(dense):
    xs = models.normal(5, 7, 4)
    chip = js.deploy(js.quantize()(dense), calibrate=xs.reshape(35, 4))
    y = run(chip, xs.reshape(35, 4)).reshape(5, 7, 3)
    np.testing.assert_allclose(jax.jit(jax.vmap(chip))(xs), y, rtol=1e-6)
    np.testing.assert_allclose(jnp.stack([run(chip, x) for x in xs]), y, rtol=1e-6)


def test_networks_map_over_stacked_parameters(dense):
    params = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), dense.params)
    x = models.normal(2, 4)
    both = jax.vmap(lambda p: run(forced(dataclasses.replace(dense, params=p)), x))(params)
    np.testing.assert_allclose(both[1], 4 * both[0], rtol=1e-6)


LOOPS = ["while", "fori", "stack in while", "while in stack", "nested scans"]


def spying(core, *, into):
    """Calls `into` with the weight and the largest magnitude of every input it reads."""

    def read(op, state, x, key):
        jax.debug.callback(into, state, jnp.abs(x).max())
        return core.read(op, state, x, key)

    return Core(core.write, core.calibrate, read)


@pytest.mark.parametrize("name", [*LOOPS, "rnn, params in consts", "transformer", "lstm"])
def test_calibration_stores_the_largest_input_of_every_site(name):
    """Whatever loop, branch or checkpoint it is in, slice by slice where weights are stacked."""
    case, net = built(name)
    seen = {}

    def seeing(site):
        def into(w, largest):
            key = (site, np.asarray(w).tobytes())
            seen[key] = max(seen.get(key, 0), float(largest))

        return into

    spies = net
    multiplied = [s for s in net.sites if s.kind in ("dot", "conv")]
    for site in multiplied:
        spies = js.wrap(spying, sites=site.name, into=seeing(site.name))(spies)
    jax.block_until_ready(run(spies, *case.args))
    jax.effects_barrier()

    chip = js.deploy(js.quantize(None, 8)(net), calibrate=case.args)
    assert set(chip.states) == {s.name for s in multiplied}
    for site in multiplied:
        state = chip.states[site.name]
        found = np.ravel(state.inputs.hi)
        # a power of two apart, so exactly the weight
        weights = np.asarray(state.inner * state.scale).reshape(found.size, -1)
        for w, hi in zip(weights, found, strict=True):
            # quantized inputs upstream move the ranges a little
            np.testing.assert_allclose(hi, seen.pop((site.name, w.tobytes())), rtol=0.1)
    assert not seen


def test_calibrated_ranges_are_those_computed_by_hand(dense):
    x = np.asarray(models.normal(50, 4))
    chip = js.deploy(js.quantize(None, 8, sites="b")(dense), calibrate=x)
    hidden = np.maximum(x @ np.asarray(dense.params["a"]), 0)
    np.testing.assert_allclose(chip.states["b"].inputs.hi, hidden.max(), rtol=1e-6)


def unrolled(params, xs):
    for x in xs:
        h = jnp.tanh(x @ params["w"])
    return h


def test_a_call_with_other_sites_than_the_trace_is_refused():
    """They would silently stay float."""
    net = js.quantize()(js.trace(unrolled, {"w": models.normal(4, 4)}, models.normal(2, 3, 4)))
    with pytest.raises(ValueError, match="w#3 runs for these arguments and did not when"):
        run(net, models.normal(3, 3, 4))


def test_a_written_weight_that_the_arguments_change_is_named():
    def queries(params, x):
        q = jnp.broadcast_to(params["q"], (len(x), 3, 6))
        return jnp.einsum("bnd,bmd->bnm", q, x)

    x = models.normal(2, 5, 6)
    net = js.quantize()(js.trace(queries, {"q": models.normal(3, 6)}, x))
    chip = js.deploy(net, calibrate=x)
    with pytest.raises(ValueError, match=r"weight of q was written as \[2, 3, 6\].*\[4, 3, 6\]"):
        run(chip, models.normal(4, 5, 6))


def test_a_float_weight_may_change_with_the_arguments_of_a_chip():
    """That of a site which is written has one shape, that of another is made at each call."""

    def fn(params, x):
        return (x @ params["a"]).T @ params["b"][: len(x)]

    params, x = {"a": models.normal(4, 3), "b": models.normal(6, 2)}, models.normal(5, 4)
    net = js.trace(fn, params, x)
    chip = js.deploy(js.quantize(8, None, sites="a")(net))
    assert chip(models.normal(2, 4)).shape == (3, 2)
    with pytest.raises(ValueError, match=r"weight of b was written as \[5, 2\].*\[2, 2\]"):
        js.deploy(js.quantize(8, None, sites="b")(net))(models.normal(2, 4))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_calibration_refuses_what_is_not_finite(dense, bad):
    x = models.normal(3, 4).at[0, 0].set(bad)
    with pytest.raises(ValueError, match="calibrate: NaN or infinite values reach a"):
        js.deploy(js.quantize()(dense), calibrate=x)
    broken = dataclasses.replace(dense, params={**dense.params, "b": bad * dense.params["b"]})
    with pytest.raises(ValueError, match="variables: b holds NaN or infinite"):
        js.deploy(js.quantize(8, None)(broken))


def test_ranges_widen_with_more_inputs(dense):
    x = models.normal(3, 4)
    chip = js.widen_ranges(js.deploy(js.quantize()(dense), calibrate=x), 2 * x)
    both = js.deploy(js.quantize()(dense), calibrate=jnp.concatenate([x, 2 * x]))
    np.testing.assert_allclose(chip.states["a"].inputs.hi, both.states["a"].inputs.hi, rtol=1e-6)
    with pytest.raises(ValueError, match="chip is not deployed"):
        js.widen_ranges(dense, x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: net(X3, key=0), "key=0: must come from jax.random.key"),
        (lambda net: js.deploy(js.quantize(8, None)(net), key=0), "key=0"),
        (lambda net: js.deploy("model"), "net: a str is no Network"),
        (lambda net: js.quantize()("model"), "quantize takes a Network, not str"),
        (lambda net: net.wrap(["nope"], None), r"names=\['nope'\]: no such sites"),
        (lambda net: net.select(3), "sites=3"),
        (lambda net: js.wrap(identity, share=1.0), "make=.*share"),
        (lambda net: js.wrap(3), "make=3"),
        (lambda net: js.trace(lambda p, x, key: x @ p, jnp.ones((3, 2)), X3, key=X3), "key: "),
        (lambda net: js.trace(lambda p, x: p, jnp.ones((3, 2)), [1.0]), "args: no array"),
        (lambda net: js.trace(models.ResNet, None, X3), "neither a Flax module nor"),
        (lambda net: js.prune(jnp.array([0.1, 0.2])), "sparsity="),
        (lambda net: js.rules([js.quantize()]), "by_pattern="),
    ],
)
def test_slips_are_named(dense, call, message):
    with pytest.raises(ValueError, match=message):
        call(dense)


def test_a_branch_that_calibration_did_not_take_is_named():
    case, net = built("cond")
    x, _ = case.args
    with pytest.raises(ValueError, match="calibrate: b did not run on it"):
        js.deploy(js.quantize()(net), calibrate=(x, jnp.array(True)))


def test_calibration_takes_keyword_arguments():
    net = js.trace(lambda p, x, *, shift: (x + shift) @ p, jnp.ones((3, 2)), X3, shift=X3)
    chip = js.deploy(js.quantize()(net), calibrate=X3, shift=9 * X3)
    np.testing.assert_allclose(chip.states["params"].inputs.hi, 10, rtol=1e-6)


def test_calibration_takes_every_positional_argument():
    net = js.trace(lambda p, x, shift: (x + shift) @ p, jnp.ones((3, 2)), X3, X3)
    chip = js.deploy(js.quantize()(net), calibrate=(X3, 9 * X3))
    np.testing.assert_allclose(chip.states["params"].inputs.hi, 10, rtol=1e-6)
    assert run(chip, X3, X3).shape == (4, 2)


def test_static_ranges_need_calibration_and_dynamic_ones_do_not(dense):
    with pytest.raises(ValueError, match="calibrate=None"):
        js.deploy(js.quantize()(dense))
    with pytest.raises(ValueError, match="calibrate=None"):
        js.deploy(js.compose(js.quantize(8, None), js.analog(adc=8))(dense))
    x = models.normal(3, 4)
    chip = js.deploy(js.quantize(8, js.Grid(8, dynamic=True))(dense))
    same_bits(run(chip, x), run(js.quantize()(dense), x))


@pytest.fixture(scope="module")
def layer():
    return js.trace(lambda p, x: jnp.tanh(x @ p), models.normal(4, 6, seed=1), models.normal(2, 4))


def test_gradients_with_respect_to_inputs_pass_a_deployed_chip(layer):
    x = models.normal(8, 4)
    net = js.compose(js.quantize(), js.slice_bits(2), js.analog(adc=6, percentile=100.0))(layer)
    chip = js.deploy(net, calibrate=x)
    slope = jax.jit(jax.grad(lambda net, x: (net(x) ** 2).sum(), 1))
    loose, fixed = (slope(n, x) for n in (net, chip))
    np.testing.assert_allclose(fixed, loose, rtol=1e-5, atol=1e-6)
    assert np.all(np.abs(fixed).sum(1) > 0)


def test_deployed_chips_no_longer_read_their_parameters(dense):
    x = models.normal(2, 4)
    chip = js.deploy(js.quantize()(dense), calibrate=x)
    blank = dataclasses.replace(chip, params=jax.tree.map(jnp.zeros_like, chip.params))
    same_bits(run(blank, x), run(chip, x))


def test_deploy_and_evaluate_run_inside_one_jit(layer):
    net = js.compose(js.quantize(), js.analog(adc=8, cells=js.cells.proportional(0.1)))(layer)
    x, key = models.normal(2, 4), jax.random.key(3)

    @jax.jit
    def whole(net, x, key):
        return js.deploy(net, key=key, calibrate=x)(x)

    np.testing.assert_allclose(
        whole(net, x, key), run(js.deploy(net, key=key, calibrate=x), x), rtol=1e-5, atol=1e-6
    )


def test_tied_weights_are_one_parameter_and_two_sites():
    def fn(params, x):
        return (x @ params["w"]) @ params["w"]

    net = js.trace(fn, {"w": models.normal(4, 4)}, models.normal(2, 4))
    assert [(s.name, s.param) for s in net.sites] == [("w", "w"), ("w#2", "w")]
    assert net.select("w") == net.sites
    assert net.select("*#2") == net.sites[1:]
    chip = js.quantize(2, None, sites="*#2")(net)
    assert list(chip.cores) == ["w#2"]


def test_sites_are_selected_by_glob_or_regex():
    net = built("resnet")[1]
    names = lambda pattern: [s.name for s in net.select(pattern)]  # noqa: E731
    assert names("Conv_[12]/*") == ["Conv_1/kernel", "Conv_2/kernel"]
    assert names("re:(Conv_0|Dense_.)/kernel") == ["Conv_0/kernel", "Dense_0/kernel"]
    assert names(["Dense*", "Conv_0*"]) == ["Conv_0/kernel", "Dense_0/kernel"]
    attention = built("transformer")[1]
    assert {s.kind for s in attention.select("*")} == {"dot"}
    assert [s.name for s in attention.select("dynamic/*")] == ["dynamic/0", "dynamic/1"]


def test_a_network_prints_its_sites():
    net = js.quantize(4, 8)(built("nested scans")[1])
    text = str(net)
    assert "stack" in text
    assert "2×3 · 4×4" in text
    assert "int4" in text
    assert f" {6 * net.sites[0].macs} " in text  # of all its runs


@pytest.mark.skipif(jax.__version_info__ >= (0, 12), reason="mended in XLA")
@pytest.mark.parametrize("padding", [(-1, 1), (2, -1)])
def test_a_convolution_that_xla_gets_wrong_is_told_by_name(padding):
    """With padding (-1, 1), a kernel of 2 and 8 places it read beyond the input."""

    def model(p, x):
        y = jax.lax.conv_general_dilated(
            x, p["w"], (1,), [padding], dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y @ p["v"]

    params = {"w": jnp.ones((2, 3, 4)), "v": jnp.ones((4, 2))}
    with pytest.warns(UserWarning, match=r"computes wrong numbers on the CPU .*: w; pad with"):
        js.trace(model, params, jnp.ones((2, 8, 3)))
