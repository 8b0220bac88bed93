"""Quantized networks in ONNX: the same codes at every site, outputs within rounding of floats."""

import functools
import re
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.models.bert import Bert
from jaxsim.models.transformer import Transformer
from jaxsim.models.vision import Vision

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from tests.support.onnx_runs import constants, run  # noqa: E402

ROWS = 4


class Cnn(nn.Module):
    """Strides, groups, a projected shortcut, both kinds of pooling and BatchNorm."""

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(8, (3, 3), use_bias=False)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        y = nn.relu6(norm()(nn.Conv(8, (3, 3), 2, feature_group_count=8)(x)))
        x = nn.relu(norm()(nn.Conv(8, (1, 1), 2, name="short")(x)) + y)
        x = nn.avg_pool(x, (2, 2), (1, 1))
        return nn.Dense(5)(x.mean((1, 2)))


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="out")(nn.gelu(nn.Dense(12, name="hidden")(x)))


def moved(variables):
    """Statistics of a network that was trained."""
    rng = np.random.default_rng(3)

    def of(path, a):
        name = path[-1].key
        if name == "var":
            return jnp.asarray(rng.uniform(0.5, 2, a.shape), a.dtype)
        return a + jnp.asarray(0.1 * rng.normal(size=a.shape), a.dtype)

    return jax.tree_util.tree_map_with_path(of, variables)


def images(side):
    return (jax.random.normal(jax.random.key(1), (ROWS, side, side, 2)),)


def texts():
    ids = jax.random.randint(jax.random.key(2), (ROWS, 6), 0, 20)
    return ids, jnp.array([6, 3, 1, 5])


MODELS = {
    "cnn": (Cnn(), images(9)),
    "mlp": (Mlp(), (jax.random.normal(jax.random.key(3), (ROWS, 6)),)),
    "bert": (
        Bert(vocabulary=20, positions=8, width=16, heads=2, layers=1, hidden=24, classes=3),
        texts(),
    ),
    "vit": (Vision(Transformer(1, 2, 2), (3,), 2, 12), images(4)),
}
CHANNEL = js.Grid(8, per="channel")
AFFINE = js.Grid(8, symmetric=False)
FORMATS = {
    "channel_affine": (CHANNEL, AFFINE),
    "tensor_symmetric": (js.Grid(8), js.Grid(8)),
    "affine_weights": (js.Grid(8, symmetric=False, per="channel"), js.Grid(8)),
    "tensor_affine_weights": (js.Grid(6, symmetric=False), AFFINE),
    "few_bits": (js.Grid(3, per="channel"), js.Grid(4, symmetric=False)),
    "few_symmetric_bits": (js.Grid(2), js.Grid(5)),
    "one_bit": (js.Grid(1, per="channel"), AFFINE),
    "powers": (js.Grid(4, spacing="powers"), AFFINE),
    "clipped": (CHANNEL, js.Grid(8, symmetric=False, clip=js.clipping.percentile(90.0))),
}
SEEN = {}


@js.role("observer")
def recorded(core, *, name):
    """Hands codes that reach a site to `SEEN`."""

    def read(op, state, x, key):
        jax.debug.callback(lambda codes: SEEN.__setitem__(name, np.asarray(codes)), x)
        return core.read(op, state, x, key)

    return core._replace(read=read)


@functools.cache
def traced(model):
    made, args = MODELS[model]
    return js.trace(made, moved(jax.jit(made.init)(jax.random.key(0), *args)), *args)


@functools.cache
def deployed(model, form):
    net = js.quantize(*FORMATS[form])(traced(model))
    return js.deploy(net, calibrate=MODELS[model][1])


@functools.cache
def graph(model, form, folder):
    return js.export.onnx(deployed(model, form), f"{folder}/{model}_{form}.onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("onnx"))


CASES = [
    *(("mlp", form) for form in FORMATS),
    *(("cnn", form) for form in ("channel_affine", "few_symmetric_bits")),
    *(("bert", form) for form in ("channel_affine", "tensor_symmetric")),
    ("vit", "channel_affine"),
]


def near(y, z):
    """Numbers that differ by the rounding of a few sums of floats."""
    np.testing.assert_allclose(y, z, rtol=0, atol=4e-6 * float(np.abs(z).max()))


@pytest.mark.parametrize(("model", "form"), CASES)
def test_onnxruntime_computes_what_the_network_computes(model, form, folder):
    args = MODELS[model][1]
    expected = np.asarray(deployed(model, form)(*args))
    for optimized in (False, True):
        for rows in (ROWS, 1):
            few = [a[:rows] for a in args]
            given = run(graph(model, form, folder), *few, optimized=optimized)
            near(given["output_0"], expected[:rows])


@pytest.mark.parametrize("form", ["few_bits", "few_symmetric_bits", "tensor_symmetric", "clipped"])
def test_inputs_beyond_the_range_get_the_last_code(form, folder):
    (x,), chip = MODELS["mlp"][1], deployed("mlp", form)
    near(run(graph("mlp", form, folder), 3 * x)["output_0"], chip(3 * x))


@pytest.mark.parametrize(("model", "form"), CASES)
def test_codes_of_weights_are_those_of_the_network(model, form, folder):
    held = constants(graph(model, form, folder))
    for site in traced(model).sites:
        if site.kind == "dynamic" or site.kind == "lookup":
            continue
        codes = np.asarray(deployed(model, form).states[site.name].inner)
        arranged = codes.transpose(3, 2, 0, 1) if site.kind == "conv" else codes
        np.testing.assert_array_equal(held[f"{site.name}:weight"], arranged)
        assert held[f"{site.name}:weight"].dtype == np.int8


@pytest.mark.parametrize(
    ("model", "form"),
    [
        ("cnn", "channel_affine"),
        ("bert", "channel_affine"),
        ("mlp", "few_bits"),
        ("mlp", "few_symmetric_bits"),
    ],
)
def test_codes_that_reach_each_site_are_those_of_the_network(model, form, folder):
    args, net = MODELS[model][1], js.quantize(*FORMATS[form])(traced(model))
    names = [name for name in net.cores if ":lookup" not in name]
    watch = {name: js.wrap(recorded, name=name) for name in names}
    chip = js.deploy(js.rules(watch)(net), calibrate=args)
    SEEN.clear()
    jax.block_until_ready(chip(*args))
    jax.effects_barrier()
    made = graph(model, form, folder)
    codes = {node.output[0] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    given = run(made, *args, extra=sorted(codes))
    matched = 0
    for site in traced(model).sites:
        if site.name not in SEEN:
            continue
        name = f"{site.name}:codes"
        if name not in given:  # its inputs are those of another site, and so are its codes
            others = [a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for a in given.values()]
            assert any(np.array_equal(SEEN[site.name], codes) for codes in others)
            continue
        found = given[name]
        if site.kind == "conv":  # what stands for zero lies around them, where it has a code
            found = found.transpose(0, 2, 3, 1)
            if found.shape != SEEN[site.name].shape:
                found = pad(found, *padded(made, name))
        np.testing.assert_array_equal(found, SEEN[site.name])
        matched += 1
    assert matched >= len(SEEN) / 2


def pad(codes, ends, zero):
    return np.pad(codes, ends, constant_values=zero)


def padded(model, codes):
    """How a convolution pads its codes, and with which."""
    readers = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    (node,) = (n for n in readers if n.input[0] == codes)
    conv = next(n for n in model.graph.node if n.op_type == "Conv" and n.input[0] == node.output[0])
    (pads,) = (a.ints for a in conv.attribute if a.name == "pads")
    zero = constants(model)[node.input[2]]
    ends = [(0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0)]
    return [(int(lo), int(hi)) for lo, hi in ends], zero


def test_a_layer_is_what_its_numbers_say(folder):
    """Multiplied again in NumPy and whole numbers, from what the file holds."""
    x = np.asarray(MODELS["mlp"][1][0])
    model = graph("mlp", "channel_affine", folder)
    held = constants(model)
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    scale, zero = (held[name] for name in first.input[1:])
    codes = np.clip(np.rint(x / scale) + zero, -128, 127)
    weight, steps = held["hidden/kernel:weight"], held["hidden/kernel:weight_scale"]
    sums = (codes.astype(np.int64) - int(zero)) @ weight.astype(np.int64)
    product = next(node for node in model.graph.node if node.op_type == "MatMul")
    given = run(model, x, extra=[product.output[0]])[product.output[0]]
    near(given, sums * (np.float64(scale) * steps.astype(np.float64)))


def altered(model, name, change):
    """The graph with one constant changed."""
    other = onnx.ModelProto.FromString(model.SerializeToString())
    (at,) = (i for i, c in enumerate(other.graph.initializer) if c.name == name)
    array = change(onnx.numpy_helper.to_array(other.graph.initializer[at]).copy())
    other.graph.initializer[at].CopyFrom(onnx.numpy_helper.from_array(array, name))
    return other


def test_a_code_or_a_scale_that_is_off_is_noticed(folder):
    args = MODELS["cnn"][1]
    model = graph("cnn", "channel_affine", folder)
    expected = run(model, *args)["output_0"]

    def one_more(codes):
        codes[:, 0, 0, 0] = np.where(codes[:, 0, 0, 0] < 127, codes[:, 0, 0, 0] + 1, 126)
        return codes

    names = {
        "Conv_0/kernel:weight": one_more,
        "Conv_0/kernel:weight_scale": lambda s: s * np.float32(1.01),
        "Conv_0/kernel:scale": lambda s: s * np.float32(1.01),
    }
    for name, change in names.items():
        with pytest.raises(AssertionError):
            near(run(altered(model, name, change), *args)["output_0"], expected)


def test_floats_and_weights_alone(folder):
    args, net = MODELS["mlp"][1], traced("mlp")
    for made in (
        net,
        js.prune(0.5)(net),
        js.deploy(js.quantize(CHANNEL, None)(net), calibrate=args),
        js.deploy(js.quantize(None, AFFINE)(net), calibrate=args),
        js.deploy(js.quantize(4, 8, sites="out*")(net), calibrate=args),
    ):
        model = js.export.onnx(made, f"{folder}/part.onnx")
        near(run(model, *args)["output_0"], jax.jit(lambda net, *a: net(*a))(made, *args))


def test_a_bert_in_floats(folder):
    args, net = MODELS["bert"][1], traced("bert")
    model = js.export.onnx(net, f"{folder}/floats.onnx")
    near(run(model, *args)["output_0"], jax.jit(lambda net, *a: net(*a))(net, *args))


def test_a_table_that_is_looked_up_is_held_as_codes(folder):
    args = MODELS["bert"][1]
    net = js.quantize(CHANNEL, None, sites=["*:lookup"])(traced("bert"))
    chip = js.deploy(net, calibrate=args)
    model = js.export.onnx(chip, f"{folder}/table.onnx")
    (name,) = (n for n in chip.states if n.startswith("params/embedding/word") or "word" in n)
    codes = constants(model)[f"{name}:weight"]
    np.testing.assert_array_equal(codes, np.asarray(chip.states[name].inner))
    near(run(model, *args)["output_0"], chip(*args))


def test_what_is_computed_around_a_site_is_floats(folder):
    args = MODELS["mlp"][1]
    net = js.compose(js.quantize(CHANNEL, AFFINE), js.smooth(args), js.correct_bias(args))(
        traced("mlp")
    )
    net = js.lora(2, key=jax.random.key(4), sites="out*")(net)
    chip = js.deploy(net, calibrate=args)
    model = js.export.onnx(chip, f"{folder}/around.onnx")
    near(run(model, *args)["output_0"], chip(*args))


def test_masks_and_learned_ranges(folder):
    args = MODELS["mlp"][1]
    net = js.compose(js.prune(0.5), js.quantize(CHANNEL, AFFINE), js.learn_ranges(args))(
        traced("mlp")
    )
    chip = js.deploy(net, calibrate=args)
    model = js.export.onnx(chip, f"{folder}/masked.onnx")
    near(run(model, *args)["output_0"], chip(*args))
    gone = np.asarray(net.masks["hidden/kernel"]) == 0
    assert gone.any()
    assert not constants(model)["hidden/kernel:weight"][gone].any()


def test_more_free_sizes_and_outputs_by_name(folder):
    def model(p, x, *, shift):
        y = jnp.tanh(x @ p["w"])
        flat, heads = x.reshape(-1, 6), x.reshape(*x.shape[:2], 2, 3)
        return {"y": y + shift, "mean": y.mean((0, 1)), "flat": flat, "heads": heads}

    x, shift = jax.random.normal(jax.random.key(5), (3, 4, 6)), jnp.ones(2)
    net = js.trace(model, {"w": jnp.linspace(-1, 1, 12).reshape(6, 2)}, x, shift=shift)
    chip = js.deploy(js.quantize(8, 8)(net), calibrate={"x": x, "shift": shift})
    b, n = jax.export.symbolic_shape("b, n")
    shapes = jax.ShapeDtypeStruct((b, n, 6), x.dtype)
    made = js.export.onnx(chip, f"{folder}/named.onnx", shapes, shift=shift)
    sizes = [d.dim_param or d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["b", "n", 6]
    assert [i.name for i in made.graph.input] == ["input_0", "shift"]
    given = run(made, x[:2, :3], shift)
    expected = chip(x[:2, :3], shift=shift)
    for name, value in expected.items():
        near(given[f"output_{name}"], value)


def test_sizes_of_images_that_are_free(folder):
    x = images(7)[0]
    w = jax.random.normal(jax.random.key(11), (3, 3, 2, 4))

    def model(w, x):
        y = jax.lax.conv_general_dilated(
            x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.mean(jax.nn.relu(y), (1, 2))

    chip = js.deploy(js.quantize(CHANNEL, AFFINE)(js.trace(model, w, x)), calibrate=x)
    b, m, n = jax.export.symbolic_shape("b, m, n", constraints=["m >= 3", "n >= 3"])
    made = js.export.onnx(chip, f"{folder}/sizes.onnx", jax.ShapeDtypeStruct((b, m, n, 2), x.dtype))
    for cut in (x, x[:3, :5, :6]):
        near(run(made, cut)["output_0"], chip(cut))

    def counted(w, x):
        return model(w, x) * jax.core.max_dim(x.shape[1], 5)

    net = js.trace(counted, w, x)
    with pytest.raises(ValueError, match=r"the size max\(m, 5\) is reckoned as no graph"):
        js.export.onnx(net, f"{folder}/sizes.onnx", jax.ShapeDtypeStruct((b, m, n, 2), x.dtype))


def test_a_known_value_is_held_once_where_it_is_the_same(folder):
    x = jnp.ones((50, 6))
    net = js.trace(lambda p, x: (x + jnp.broadcast_to(p[0], x.shape)) @ p, jnp.eye(6), x)
    made = js.export.onnx(net, f"{folder}/fixed.onnx", x)
    assert max(c.size for c in constants(made).values()) == 36
    near(run(made, x)["output_0"], net(x))


def test_a_call_that_reads_what_is_not_held_or_runs_other_sites_is_refused(folder):
    def model(p, x, *, more=False, again=False):
        y = x @ p["w"] + (p["w"].sum() if more else 0)
        return y @ p["w"] if again else y

    x = jnp.ones((2, 3))
    net = js.quantize(8, 8)(js.trace(model, {"w": jnp.eye(3)}, x))
    chip = js.deploy(net, calibrate=x, keep_floats=False)
    with pytest.raises(ValueError, match="this call reads w"):
        js.export.onnx(chip, f"{folder}/no.onnx", x, more=True)
    with pytest.raises(ValueError, match="args: w#2 runs for these arguments"):
        js.export.onnx(chip, f"{folder}/no.onnx", x, again=True)


def test_two_calls_write_the_same_bytes(folder):
    chip = deployed("mlp", "channel_affine")
    files = [f"{folder}/{i}.onnx" for i in range(2)]
    for file in files:
        js.export.onnx(chip, file)
    assert Path(files[0]).read_bytes() == Path(files[1]).read_bytes()


def hardware(*more, weights=8, inputs=8):
    return js.compose(js.quantize(weights, inputs), *more)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (hardware(js.analog()), "tiled(rows=1152), which is split over arrays"),
        (hardware(js.slice_bits(2)), "bit_sliced(bits=2, top=full_range), which spreads its codes"),
        (hardware(js.block(4, 2)), "blocks of 4 bits), which multiplies blocks of bits"),
        (hardware(weights=js.nf4(), inputs=None), "which holds numbers that are no whole codes"),
        (hardware(inputs=js.Grid(8, per="token")), "takes the range of its inputs from each batch"),
        (hardware(inputs=js.Grid(8, dynamic=True)), "takes the range of its inputs from each"),
        (hardware(inputs=js.Grid(4, spacing="powers")), "to the nearest of even codes"),
        (hardware(inputs=js.Grid(1)), "to the nearest of even codes"),
    ],
)
def test_sites_that_onnx_cannot_say_are_refused_by_name(make, why, tmp_path):
    chip = js.deploy(make(traced("mlp")), calibrate=MODELS["mlp"][1], key=jax.random.key(1))
    with pytest.raises(ValueError, match=rf"export\.onnx: hidden/kernel .*{re.escape(why)}"):
        js.export.onnx(chip, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_networks_that_onnx_cannot_say_are_refused_by_name(tmp_path):
    net, x = traced("mlp"), MODELS["mlp"][1][0]
    target = tmp_path / "net.onnx"
    with pytest.raises(ValueError, match=r"net: give what js\.deploy\(net, calibrate=inputs\)"):
        js.export.onnx(js.quantize(8, 8)(net), target)
    exits = js.exit_early(["out/kernel"], js.Rule(0.5))(net)
    with pytest.raises(ValueError, match=r"export\.onnx cannot follow exit_early: rows that leave"):
        js.export.onnx(exits, target)
    pipeline = js.pipeline_shard(2, 2, devices=jax.devices()[:1] * 2)(net)
    with pytest.raises(ValueError, match=r"export\.onnx cannot follow pipeline_shard"):
        js.export.onnx(pipeline, target)
    with pytest.raises(ValueError, match="net: a dict is no Network"):
        js.export.onnx({}, target)
    with pytest.raises(ValueError, match="no folder"):
        js.export.onnx(net, tmp_path / "none" / "net.onnx")

    def noisy(p, x, key):
        return x @ p + jax.random.normal(key, (4,))

    keyed = js.trace(noisy, jnp.ones((6, 4)), x, jax.random.key(0))
    with pytest.raises(ValueError, match="a random key, and ONNX has none"):
        js.export.onnx(keyed, target)

    def looped(p, x):
        return jax.lax.while_loop(lambda x: (x**2).sum() > 1, lambda x: jnp.tanh(x @ p), x)

    again = js.trace(looped, jnp.eye(6) / 2, x)
    chip = js.deploy(js.quantize(8, 8)(again), calibrate=x)
    with pytest.raises(ValueError, match=r"export\.onnx: params is in a while, which is a loop"):
        js.export.onnx(chip, target)

    def chosen(w, x, sizes):
        return jax.lax.ragged_dot(x, w, sizes)

    experts = js.trace(chosen, jnp.ones((2, 6, 3)), x, jnp.array([1, 3]))
    with pytest.raises(ValueError, match=r"export\.onnx: params is one of several experts"):
        js.export.onnx(js.deploy(js.quantize(8, None)(experts)), target)


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "jaxsim\[export\]"'):
        js.export.onnx(traced("mlp"), tmp_path / "net.onnx")


def test_scales_of_a_batch_of_weights(folder):
    """A weight of each head: one scale for all is said, scales along two axes are refused."""
    x = jax.random.normal(jax.random.key(6), (ROWS, 2, 3))
    w = jax.random.normal(jax.random.key(7), (2, 3, 4))
    net = js.trace(lambda w, x: jnp.einsum("bhk,hkd->bhd", x, w), w, x)
    chip = js.deploy(js.quantize(js.Grid(8), 8)(net), calibrate=x)
    near(run(js.export.onnx(chip, f"{folder}/heads.onnx"), x)["output_0"], chip(x))
    chip = js.deploy(js.quantize(CHANNEL, 8)(net), calibrate=x)
    with pytest.raises(ValueError, match=r"export\.onnx: params has scales along two axes"):
        js.export.onnx(chip, f"{folder}/heads.onnx")


def layers(reverse=False):
    """A stack of layers, a weight that all of them read, what each has made, and its number."""

    def model(p, x):
        def layer(x, slices):
            w, i = slices
            y = jnp.tanh(x @ w) + (i + 1) * 0.1 * (x @ p["all"])
            return y, y.sum(-1)

        return jax.lax.scan(layer, x, (p["stack"], jnp.arange(3)), reverse=reverse)

    draws = jax.random.normal(jax.random.key(4), (4, 6, 6)) / 3
    return model, {"stack": draws[:3] * jnp.array([1, 2, 4])[:, None, None], "all": draws[3]}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", [None, (CHANNEL, AFFINE), (js.Grid(4, per="group", rows=4), None)])
def test_the_rounds_of_a_scan_stand_one_behind_the_other(form, reverse, folder):
    model, params = layers(reverse)
    (x,) = MODELS["mlp"][1]
    chip = js.trace(model, params, x)
    if form is not None:
        chip = js.deploy(js.quantize(*form)(chip), calibrate=x)
    made = js.export.onnx(chip, f"{folder}/scan.onnx")
    last, sums = chip(x)
    given = run(made, x)
    near(given["output_0"], last)
    near(given["output_1"], sums)
    assert sum(node.op_type == "MatMul" for node in made.graph.node) == 6
    near(run(made, x[:1])["output_1"], sums[:, :1])  # the batch stays free


def test_scans_in_scans_and_what_is_around_a_site(folder):
    """Scales of `smooth` belong to a round; the inner loop's weight to rounds of both."""
    (x,) = MODELS["mlp"][1]
    w = jax.random.normal(jax.random.key(5), (2, 3, 6, 6)) / 3

    def model(w, x):
        inner = lambda x, w: (jnp.tanh(x @ w), None)  # noqa: E731
        return jax.lax.scan(lambda x, w: (jax.lax.scan(inner, x, w)[0], None), x, w)[0]

    net = js.smooth(x)(js.quantize(CHANNEL, AFFINE)(js.trace(model, w, x)))
    chip = js.deploy(net, calibrate=x)
    near(run(js.export.onnx(chip, f"{folder}/nested.onnx"), x)["output_0"], chip(x))


FOUR = js.Grid(4, per="group", rows=4)
AFFINE_FOUR = js.Grid(4, symmetric=False, per="group", rows=4)


@pytest.mark.parametrize("inputs", [AFFINE, None])
@pytest.mark.parametrize("weights", [FOUR, AFFINE_FOUR, js.Grid(8, per="group", rows=8)])
def test_groups_are_blocks_of_one_scale(weights, inputs, folder):
    """Of 6 and 12 products: two groups of 3, three of 4; of 8 rows one of 6 and two of 6."""
    (x,), chip = MODELS["mlp"][1], js.quantize(weights, inputs)(traced("mlp"))
    chip = js.deploy(chip, calibrate=x)
    made = js.export.onnx(chip, f"{folder}/groups.onnx")
    for optimized in (False, True):
        near(run(made, x, optimized=optimized)["output_0"], chip(x))
    held = constants(made)
    for site, count in (("hidden/kernel", 6), ("out/kernel", 12)):
        scale, codes = held[f"{site}:weight_scale"], held[f"{site}:weight"]
        assert codes.shape == traced("mlp").params[site.split("/")[0]]["kernel"].shape
        groups = -(-count // weights.rows)
        assert scale.shape == ((groups, codes.shape[1]) if groups > 1 else codes.shape[1:])
    readers = [n for n in made.graph.node if n.op_type == "DequantizeLinear"]
    blocks = [a.i for n in readers for a in n.attribute if a.name == "block_size"]
    assert sorted(blocks) == ([6] if weights.rows == 8 else [3, 4])


def test_groups_that_do_not_divide_the_sum_and_weights_on_the_left(folder):
    x = jax.random.normal(jax.random.key(8), (ROWS, 7))
    w = jax.random.normal(jax.random.key(9), (7, 2, 3))

    def model(w, x):
        heads = jnp.einsum("bd,dhk->bhk", x, w["split"])
        return jnp.einsum("dhk,bhk->db", w["join"], jnp.tanh(heads))

    net = js.trace(model, {"split": w, "join": 2 * w}, x)
    chip = js.deploy(js.quantize(AFFINE_FOUR, AFFINE)(net), calibrate=x)
    near(run(js.export.onnx(chip, f"{folder}/left_groups.onnx"), x)["output_0"], chip(x))


def test_tables_in_groups(folder):
    ids = jnp.arange(12).reshape(3, 4)
    table, w = (jax.random.normal(jax.random.key(i), s) for i, s in ((1, (20, 10)), (2, (10, 5))))
    net = js.trace(lambda p, ids: p["table"][ids] @ p["w"], {"table": table, "w": w}, ids)
    chip = js.deploy(js.quantize(FOUR, None)(net))
    made = js.export.onnx(chip, f"{folder}/table.onnx")
    near(run(made, np.asarray(ids))["output_0"], chip(ids))
    assert constants(made)["table:lookup:weight_scale"].shape == (20, 3)


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (
            lambda w, x: jax.lax.conv(x, w, (1, 1), "VALID"),
            [(ROWS, 3, 4, 4), (5, 3, 2, 2)],
        ),
        (lambda w, x: jnp.einsum("bhk,hkd->bhd", x, w), [(ROWS, 2, 6), (2, 6, 4)]),
    ],
    ids=["convolution", "batch"],
)
def test_groups_along_several_axes_are_refused_by_name(model, shapes, folder):
    x, w = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes))
    chip = js.deploy(js.quantize(FOUR, None)(js.trace(model, w, x)))
    with pytest.raises(ValueError, match=r"export\.onnx: params has groups along several axes"):
        js.export.onnx(chip, f"{folder}/axes.onnx")


def test_weights_on_the_left_and_kernels_of_more_axes(folder):
    x = jax.random.normal(jax.random.key(8), (ROWS, 6))
    w = jax.random.normal(jax.random.key(9), (6, 2, 3))

    def model(w, x):
        heads = jnp.einsum("bd,dhk->bhk", x, w["split"])
        return jnp.einsum("dhk,bhk->db", w["join"], jnp.tanh(heads))

    net = js.trace(model, {"split": w, "join": 2 * w}, x)
    chip = js.deploy(js.quantize(CHANNEL, AFFINE)(net), calibrate=x)
    near(run(js.export.onnx(chip, f"{folder}/left.onnx"), x)["output_0"], chip(x))


def test_other_floats_keep_their_type(folder):
    x = jnp.linspace(-1, 1, 12).reshape(4, 3)

    def model(w, x):
        return (x.astype(jnp.float16) @ w).astype(jnp.float32)

    net = js.trace(model, jnp.eye(3, dtype=jnp.float16), x)
    chip = js.deploy(js.quantize(8, 8)(net), calibrate=x)
    near(run(js.export.onnx(chip, f"{folder}/half.onnx"), x)["output_0"], chip(x))
