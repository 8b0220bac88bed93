"""Integer networks against layers recomputed by hand, bit for bit, and what is refused."""

import functools

import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsim as js
from jaxsim.data import fashion_mnist
from jaxsim.integer.steps import Alias, Apply, Constant, Contract, Enter, Rescaled
from jaxsim.models.efficientnet_lite import InvertedResidual
from jaxsim.models.resnet import ResNet
from jaxsim.network.interpreter import Walk
from jaxsim.network.plan import contractions
from jaxsim.network.planner import trace_plan
from jaxsim.train.loop import fit
from jaxsim.train.reference import CALL
from tests.oracles import integer_graph, quantiser, requantiser
from tests.support import models
from tests.support.models import normal
from tests.support.networks import X, attention, cnn, run
from tests.support.variables import initial

GRIDS = {
    "int8": (8, 8),
    "int4, unsigned inputs": (4, js.Grid(8, symmetric=False)),
    "2 and 3 bits": (2, 3),
}


class Mlp(nn.Module):
    """Dense layers with ReLUs between them."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class Mobile(nn.Module):
    """A stem and an inverted residual with its shortcut."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu6(nn.Conv(4, (3, 3))(x))
        return InvertedResidual(4, 3, 1, 6)(x, train=False).mean((1, 2))


def spread(variables, seed=0):
    """Variables of a trained kind: biases, means and gains (some negative) away from 0 and 1."""
    leaves, treedef = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    moved = [
        jnp.asarray(np.asarray(p) + 0.3 * rng.normal(size=p.shape), p.dtype) if p.ndim == 1 else p
        for p in leaves
    ]
    variables = jax.tree.unflatten(treedef, moved)
    if "batch_stats" in variables:
        stats = jax.tree_util.tree_map_with_path(
            lambda path, p: np.abs(p) + np.float32(0.1) if path[-1].key == "var" else p,
            variables["batch_stats"],
        )
        variables = {**variables, "batch_stats": stats}
    return variables


@functools.cache
def built(name):
    model, x = {
        "mlp": (Mlp((12, 10, 5)), normal(6, 7, seed=1)),
        "resnet": (ResNet(stages=(1, 1), features=4), normal(2, 8, 8, 2, seed=1)),
        "inverted residual": (Mobile(), normal(2, 6, 6, 4, seed=1)),
    }[name]
    variables = spread(initial(model, x))
    return variables, js.trace(model, variables, x), x


def deployed(net, x, weights=8, inputs=8):
    return js.deploy(js.quantize(weights, inputs)(net), calibrate=x)


def geometries(chip):
    shapes = jax.eval_shape(lambda: (chip.params, chip.buffers))
    plan = trace_plan(chip.fn, *shapes, chip.example, chip.example).plan
    return {c.site.name: c.op.geometry for c in contractions(plan)}


ARITHMETICS = {
    "big integers": requantiser.requantised,
    "float64": requantiser.in_float64,
}


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("grids", GRIDS)
def test_an_mlp_is_its_layers_in_integers(arithmetic, grids):
    variables, net, x = built("mlp")
    chip = deployed(net, x, *GRIDS[grids])
    layers = integer_graph.Layers(chip, geometries(chip), ARITHMETICS[arithmetic])
    q, step = integer_graph.mlp(layers, variables["params"], np.asarray(x))
    y = run(js.integer_only(chip), x)
    np.testing.assert_array_equal(y, q.astype(np.float32) * np.float32(step))


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("grids", GRIDS)
def test_a_resnet_is_its_layers_in_integers(arithmetic, grids):
    """BatchNorms with gains of both signs, a projection, sums and a mean."""
    variables, net, x = built("resnet")
    chip = deployed(net, x, *GRIDS[grids])
    layers = integer_graph.Layers(chip, geometries(chip), ARITHMETICS[arithmetic])
    q, step = integer_graph.resnet(layers, variables, np.asarray(x), stages=2)
    y = run(js.integer_only(chip), x)
    np.testing.assert_array_equal(y, q.astype(np.float32) * np.float32(step))


def near(net, *args, weights=8, inputs=8):
    """The integers answer as the simulated chip does, far nearer than that is to the floats."""
    chip = deployed(net, args, weights, inputs)
    found = js.integer_only(chip)
    y, simulated, exact = (run(n, *args) for n in (found, chip, net))
    assert np.abs(y - simulated).max() <= 0.1 * np.abs(simulated - exact).max()
    return found


class Pooled(nn.Module):
    """Maxima, padded means, concatenation, padding, slices and transposes of integers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        a = nn.max_pool(x, (2, 2), (2, 2))
        b = nn.avg_pool(nn.Conv(5, (1, 1))(x), (3, 3), (2, 2), "SAME")
        x = jnp.concatenate([a, jnp.minimum(b, 0.3), -a * 2 + 1], -1)
        x = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 2)))[:, ::-1, 1:]
        x = nn.Conv(4, (3, 3), (2, 1))(x).transpose(0, 3, 1, 2)
        y = jnp.maximum(x, x.mean((2, 3), keepdims=True)).max(2) - x.sum(2)
        return nn.Dense(3)(y.reshape(len(y), -1)) * jnp.array([1.0, -2.0, 0.0])


@pytest.mark.slow
def test_pooling_and_layout_stay_close_to_the_simulated_chip():
    x = normal(4, 8, 8, 3, seed=2)
    variables = spread(initial(Pooled(), x))
    found = near(js.trace(Pooled(), variables, x), x)
    assert {type(s) for s in found.steps} >= {Alias, Apply, Contract, Enter}


@pytest.mark.slow
def test_mobile_blocks_with_relu6_and_depthwise_filters():
    _, net, x = built("inverted residual")
    near(net, x, inputs=js.Grid(8, symmetric=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnx cnn", "resnet", "weight first", "experts"])
def test_other_kinds_of_model(name):
    case = models.CASES[name]()
    net = js.trace(case.model, case.variables, *case.args)
    near(net, *case.args)


def test_blocked_and_sliced_codes_are_integers_too():
    net = js.compose(js.quantize(8, 8), js.block(3, 2, 2), js.slice_bits(2))(cnn())
    chip = js.deploy(net, calibrate=X)
    y, simulated = run(js.integer_only(chip), X), run(chip, X)
    np.testing.assert_allclose(y, simulated, atol=2e-3 * np.abs(simulated).max())


def equations(jaxpr):
    """Every equation of a jaxpr, those of inner jaxprs in their places."""
    for eqn in jaxpr.eqns:
        inner = [p for p in eqn.params.values() if hasattr(p, "jaxpr")]
        if inner and eqn.primitive.name in ("jit", "custom_jvp_call", "closed_call"):
            yield from equations(inner[0].jaxpr)
        else:
            yield eqn


def floats(atoms):
    return any(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in atoms)


@pytest.mark.parametrize("name", ["mlp", "resnet", "inverted residual"])
def test_no_float_lies_between_the_quantized_input_and_the_logits(name):
    _, net, x = built(name)
    found = js.integer_only(deployed(net, x, 8, js.Grid(8, symmetric=False)))
    steps = list(equations(jax.make_jaxpr(found)(x).jaxpr))
    kinds = [(floats(e.invars), floats(e.outvars)) for e in steps]
    inwards = [i for i, kind in enumerate(kinds) if kind == (True, False)]
    outwards = [i for i, kind in enumerate(kinds) if kind == (False, True)]
    (last_in,), (first_out,) = inwards[-1:], outwards[:1]
    assert len(outwards) == 1
    assert all(kinds[i] == (False, False) for i in range(last_in + 1, first_out))
    assert [e.primitive.name for e in steps[first_out:]] == ["convert_element_type", "mul"]
    contracted = [e for e in steps if e.primitive.name in ("dot_general", "conv_general_dilated")]
    assert contracted
    assert all(v.aval.dtype == jnp.int8 for e in contracted for v in e.invars)
    assert all(e.outvars[0].aval.dtype == jnp.int32 for e in contracted)


@pytest.mark.slow
def test_a_trained_network_answers_as_its_simulation_does():
    net, data = fashion_net()
    chip = deployed(net, data.images[:128], 8, js.Grid(8, symmetric=False))
    simulated = js.classify(chip, data.images)
    found = js.classify(js.integer_only(chip), data.images)
    assert np.mean(js.classify(net, data.images) == data.labels) > 0.7
    assert np.mean(found == simulated) >= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_codes_first_differ_from_those_simulated_where_the_middle_of_two_is_near(bits, monkeypatch):
    """Where nothing before it differs, a code is one off at most, and only next to a tie."""
    net, data = fashion_net()
    chip = deployed(net, data.images[:128], bits, js.Grid(bits, symmetric=False))
    x = data.images[:200]

    def simulated(self, eqn, entry, ins, *rest, site=Walk.site):
        read[entry.site.name] = ins[entry.x_at]
        return site(self, eqn, entry, ins, *rest)

    def contracted(self, at, run=Contract.run):
        read[at.entry.site.name] = self.operand.read(at.net, at.ins[at.entry.x_at])
        return run(self, at)

    monkeypatch.setattr(Walk, "site", simulated)
    monkeypatch.setattr(Contract, "run", contracted)
    read = {}
    expected, numbers = at_once(lambda x: (chip(x), read), x)
    with jax.disable_jit():  # steps are those of the equations without calls
        integers = js.integer_only(chip)
    found, codes = at_once(lambda x: (integers(x), read), x)
    for name, inputs in numbers.items():
        grid = grid_of_inputs(chip, name), *map(np.asarray, chip.states[name].inputs)
        step, zero = quantiser.grid_of(*grid)
        numbers[name] = np.float64(inputs) / float(step) + float(zero)
    # b has 15 bits, and what is added cancels against a product a few times as large
    near = 2.0**bits * 2.0**-13
    equal, seen = np.ones(len(x), bool), 0
    for name, number in numbers.items():
        lo, hi = quantiser.code_range(grid_of_inputs(chip, name))
        off = codes[name] - np.clip(np.rint(number), lo, hi)
        first = (off != 0) & equal.reshape(-1, *[1] * (off.ndim - 1))
        assert np.all(np.abs(off[first]) == 1)
        middle = np.abs(number[first] - np.floor(number[first]) - 0.5)
        assert np.all(middle < near)
        seen += first.sum()
        equal &= ~first.reshape(len(x), -1).any(1)
    assert seen
    assert equal.any() or bits == 8
    apart = np.abs(found[equal] - expected[equal])
    assert np.all(apart <= 2.0**-13 * np.abs(expected).max())


def at_once(fn, x):
    """What a function returns, as arrays, by one program without calls inside."""
    with jax.disable_jit():
        traced, shapes = jax.make_jaxpr(fn, return_shape=True)(x)
    found = jax.jit(jax.extend.core.jaxpr_as_fun(traced))(x)
    return jax.tree.unflatten(jax.tree.structure(shapes), map(np.asarray, found))


def grid_of_inputs(chip, name):
    """The grid of a site's input codes."""
    return chip.cores[name][0].settings["inputs"]


@functools.cache
def fashion_net():
    """A trained network, and images of a third of the size it is tested on."""
    sets = [fashion_mnist(split, source="subset") for split in ("train", "test")]
    train, test = (d._replace(images=d.images[:, 1::3, 1::3]) for d in sets)
    model = ResNet(stages=(1, 1), features=8)
    init = jax.jit(model.init)(jax.random.key(0), train.images[:1])
    net = fit(
        js.trace(model, init, train.images[:1]),
        train.images,
        train.labels,
        epochs=2,
        batch_size=64,
        optimizer=optax.adam(1e-2),
        key=jax.random.key(1),
        call=CALL,
        quiet=True,
    )
    return net, test


def test_weights_are_held_as_int8_and_the_floats_are_left_behind():
    _, net, x = built("resnet")
    found = js.integer_only(deployed(net, x))
    sizes = {s.name: int(np.prod(s.w_shape)) for s in net.sites}
    assert {name: w.size for name, w in found.states.items()} == sizes
    assert all(w.dtype == jnp.int8 for w in found.states.values())
    rest = jax.tree.leaves((found.cores, found.constants))
    assert sum(a.size for a in rest) < sum(sizes.values()) / 2


def test_other_batches_are_called_and_other_sums_are_refused():
    _, net, x = built("resnet")
    found = js.integer_only(deployed(net, x))
    both = run(found, x)
    one = [run(found, x[i : i + 1])[0] for i in range(2)]
    np.testing.assert_array_equal(both, np.stack(one))
    with pytest.raises(ValueError, match=r"args: reduce_sum at .*resnet.py.* sums 36 numbers"):
        run(found, normal(2, 12, 12, 2))


def test_two_networks_of_one_model_share_a_compilation():
    _, net, x = built("mlp")
    compiled = jax.jit(lambda net, x: net(x))
    for scale in (1.0, 2.0):
        compiled(js.integer_only(deployed(net, scale * x)), x)
    assert compiled._cache_size() == 1


def test_floats_before_the_first_site_are_computed_as_the_model_does():
    def fn(params, x, table):
        return jnp.sin(x)[:, None] * table @ params["w"]

    params, args = {"w": normal(5, 3)}, (normal(4), normal(5))
    near(js.trace(fn, params, *args), *args)


def _layer_norm(params, x):
    return nn.LayerNorm().apply({"params": params["norm"]}, x @ params["w"])


NORM = {"w": normal(4, 4), "norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}
PLAIN = {"w": normal(4, 4)}
REFUSED = {
    "gelu": (lambda p, x: nn.gelu(x @ p["w"]) @ p["w"], PLAIN, "(integer_pow|tanh|mul)"),
    "softmax": (lambda p, x: nn.softmax(x @ p["w"]), PLAIN, "exp"),
    "layer norm": (_layer_norm, NORM, "(square|mul|integer_pow)"),
    "division": (lambda p, x: x / (1 + (x @ p["w"]) @ p["w"]), PLAIN, "div"),
    "loop": (
        lambda p, x: jax.lax.fori_loop(0, 2, lambda i, x: x @ p["w"], x @ p["w"]),
        PLAIN,
        "(scan|while)",
    ),
    "raw input": (lambda p, x: x + x @ p["w"], PLAIN, "add"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_integer_form_is_refused_by_primitive_and_line(name):
    fn, params, primitive = REFUSED[name]
    x = normal(3, 4)
    chip = deployed(js.trace(fn, params, x), x)
    with pytest.raises(ValueError, match=rf"integer_only: {primitive} at .*\.py:\d+ "):
        js.integer_only(chip)


def test_chips_that_are_not_whole_integers_are_refused():
    net, unsigned = cnn(), js.Grid(8, symmetric=False, per="channel")
    with pytest.raises(ValueError, match=r"give what js\.deploy"):
        js.integer_only(js.quantize(8, 8)(net))
    with pytest.raises(ValueError, match=r"give what js\.deploy"):
        js.integer_only(js.deploy(js.quantize(8, None)(net)))
    with pytest.raises(ValueError, match="is no Network"):
        js.integer_only(net.params)  # pyright: ignore[reportArgumentType]
    cases = {
        r"\(Conv_0/kernel\) is not quantized": js.quantize(8, 8, sites="Dense*"),
        "has float inputs": js.rules({"Dense_0*": js.quantize(8, None), "*": js.quantize(8, 8)}),
        "has weights with a zero point": js.quantize(unsigned, 8),
        "takes its input range from each batch": js.quantize(8, js.Grid(8, dynamic=True)),
        "takes its input range from each ": js.quantize(8, js.Grid(8, per="token")),
        "rounds inputs to int8 symmetric": js.quantize(8, js.Grid(8, rounding="stochastic")),
        r"reads tiled": js.compose(js.quantize(8, 8), js.analog()),
    }
    for message, transform in cases.items():
        with pytest.raises(ValueError, match=message):
            js.integer_only(js.deploy(transform(net), key=jax.random.key(0), calibrate=X))
    x = normal(2, 5, 4)
    both = js.compose(js.quantize(), js.quantize(8, 8, sites="dynamic/*"))(attention())
    with pytest.raises(ValueError, match="contracts two activations"):
        js.integer_only(js.deploy(both, calibrate=x))


def written_out(chip, params):
    """A model whose own equations divide inputs and add corrections, as wrappers of a chip do."""

    def beside(name, factory, key):
        found = (w.settings[key] for w in chip.cores[name] if w.name == factory)
        return next(found, None)

    scales = {n: beside(n, "smooth_scaling", "channels") for n in ("w", "v")}
    biases = {n: beside(n, "bias_correction", "bias") for n in ("w", "v")}
    weights = {
        n: p if n == "b" or scales[n] is None else p * scales[n][0][:, None]
        for n, p in params.items()
    }

    def product(p, name, x):
        x = x if scales[name] is None else x / scales[name][0]
        y = x @ p[name]
        return y if biases[name] is None else y + biases[name]

    def fn(p, x):
        return product(p, "v", jax.nn.relu(product(p, "w", x) + p["b"]))

    return fn, weights


@pytest.mark.parametrize("inputs", [8, js.Grid(8, symmetric=False)], ids=["symmetric", "affine"])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: js.smooth(x),
        lambda x: js.correct_bias(x),
        lambda x: js.compose(js.smooth(x), js.correct_bias(x)),
    ],
    ids=["smoothed", "corrected", "both"],
)
def test_what_smooths_and_corrects_goes_into_multipliers(make, inputs):
    """The integers are those of a model that has it in its own equations."""
    params = {"w": normal(6, 10, seed=1), "b": normal(10, seed=2), "v": normal(10, 4, seed=3)}
    x = normal(32, 6, seed=4) * jnp.array([1, 30, 1, 0.1, 5, 1])
    net = js.trace(lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"], params, x)
    chip = js.deploy(js.compose(js.quantize(4, inputs), make(x))(net), calibrate=x)
    fn, weights = written_out(chip, params)
    same = js.deploy(js.quantize(4, inputs)(js.trace(fn, weights, x)), calibrate=x)
    found, expected = run(js.integer_only(chip), x), run(js.integer_only(same), x)
    most = np.abs(expected).max()
    # floats of the input are rounded once more where they are divided first
    assert np.mean(np.abs(found - expected) > 1e-6 * most) < 0.02
    plain = js.deploy(js.quantize(4, inputs)(net), calibrate=x)
    assert np.abs(run(js.integer_only(plain), x) - found).max() > 1e-2 * most


def test_convolutions_are_smoothed_and_corrected_in_integers():
    net, steps = cnn(), (js.quantize(8, 8), js.smooth(X), js.correct_bias(X))
    chip = js.deploy(js.compose(*steps)(net), calibrate=X)
    simulated, integers = run(chip, X), run(js.integer_only(chip), X)
    plain = js.deploy(js.quantize(8, 8)(net), calibrate=X)
    most = np.abs(simulated).max()
    assert np.abs(integers - simulated).max() < 5e-3 * most
    assert np.abs(run(plain, X) - simulated).max() > 1e-3 * most


def test_what_computes_with_floats_beside_a_site_is_refused_by_its_name():
    x = normal(8, 4)
    net = js.trace(lambda p, x: x @ p["w"], {"w": normal(4, 3)}, x)
    adapted = js.lora(2, jax.random.key(0))(js.quantize(8, 8)(net))
    turned = js.quantize(8, 8)(js.rotate(x, jax.random.key(0), groups=(), online="w")(net))
    for made, name in ((adapted, "adapted"), (turned, "rotated_inputs")):
        chip = js.deploy(made, calibrate=x)
        with pytest.raises(ValueError, match=rf"\(w\) reads {name}.* computes with floats"):
            js.integer_only(chip)


def test_an_nnx_model_leaves_no_parameters_behind():
    case = models.CASES["nnx cnn"]()
    assert isinstance(case.model, nnx.Module)
    chip = deployed(js.trace(case.model, None, *case.args), *case.args)
    found = js.integer_only(chip)
    assert not any(isinstance(a, jax.Array) for a in found.held.static)


def test_steps_of_different_kinds_are_never_equal():
    """They are static: equal ones would share a compiled program."""
    assert Constant(3) != Rescaled(3)
    assert len({Constant(3), Rescaled(3), Enter("jit"), Contract("jit", Constant(3))}) == 4


def test_rows_of_a_table_of_codes_are_floats_until_the_first_site():
    """The embedding decodes its codes; what multiplies its rows does so in integers."""
    params = {"table": normal(12, 16), "w": normal(16, 8), "v": normal(8, 3)}
    ids = jnp.array([[3, 0, 11], [7, 7, 5]])

    def fn(p, ids):
        return jax.nn.relu(p["table"][ids] @ p["w"]) @ p["v"]

    chip = js.deploy(js.quantize(8, 8)(js.trace(fn, params, ids)), calibrate=ids)
    assert "table:lookup" in chip.states
    whole = js.integer_only(chip)
    np.testing.assert_allclose(run(whole, ids), run(chip, ids), atol=0.05)
    (decoded,) = [c for c in jax.tree.leaves(whole.constants) if c.shape == (12, 16)]
    codes = chip.states["table:lookup"]
    np.testing.assert_allclose(decoded, codes.inner * codes.scale, rtol=1e-6)
