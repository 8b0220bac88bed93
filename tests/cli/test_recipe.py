"""Models by their names, and transforms from a file."""

import json
import tomllib

import jax
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cli import main as cli
from jaxsim.cli.bench import Bench, bench
from jaxsim.cli.recipe import model_of, read_recipe
from jaxsim.cli.steps import Given, compose_steps
from jaxsim.cli.trace import Trace, show
from jaxsim.cli.transform import Transform, transform
from jaxsim.data.gguf import read_gguf
from jaxsim.models.llama import from_gguf
from jaxsim.models.llama.tokenizer import from_fields
from jaxsim.models.resnet import ResNet
from jaxsim.network.leaves import path_name
from tests.models.test_bert import CONFIG as BERT
from tests.models.test_bert import MODEL as BERT_MODEL
from tests.models.test_bert import named as bert_named
from tests.models.test_bert import params as bert_params
from tests.models.test_bert import written as bert_written
from tests.support import llama_files
from tests.support.llama_files import safetensors_file

RECIPE = """
[model]
name = "jaxsim.models.resnet:ResNet"
settings = {stages = [1], features = 4, stem_stride = 2}
input = [2, 8, 8, 1]
weights = "weights.npz"

[[transform]]
name = "prune"
sparsity = 0.5

[[transform]]
name = "quantize"
weights = 8
inputs = {Grid = {bits = 8, symmetric = false}}

[[transform]]
name = "analog"
cells = {"cells.proportional" = 0.02}

[deploy]
seed = 3
data = "data.npz"
calibrate = 4
images = 6
"""


@pytest.fixture(scope="module")
def traced():
    """A network and its inputs."""
    model, rng = ResNet((1,), 4, stem_stride=2), np.random.default_rng(0)
    x = rng.normal(size=(8, 8, 8, 1)).astype(np.float32)
    return js.trace(model, jax.jit(model.init)(jax.random.key(7), x), x), x


@pytest.fixture
def folder(tmp_path, traced):
    """A recipe with its weights and its data, and the network of these weights."""
    net, x = traced
    held = jax.tree_util.tree_leaves_with_path((net.params, net.buffers))
    np.savez(tmp_path / "weights.npz", **{path_name(p[1:]): np.asarray(a) for p, a in held})
    np.savez(tmp_path / "data.npz", train=x, images=x, labels=np.arange(8) % 10)
    (tmp_path / "chip.toml").write_text(RECIPE)
    return tmp_path, net, x


def test_a_recipe_deploys_what_the_same_code_deploys(folder, capsys):
    path, net, x = folder
    chip = transform(Transform(path / "chip.toml", path / "out"))
    same = js.compose(
        js.prune(0.5),
        js.quantize(8, js.Grid(8, symmetric=False)),
        js.analog(cells=js.cells.proportional(0.02)),
    )(net)
    expected = js.deploy(same, key=jax.random.key(3), calibrate=x[:4])
    run = jax.jit(lambda chip, x: chip(x))
    np.testing.assert_array_equal(run(chip, x), run(expected, x))
    np.testing.assert_array_equal(run(js.load(path / "out" / "chip", same), x), run(chip, x))
    assert "transformed" in (path / "out" / "report.txt").read_text()
    assert "wrote" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"out=.* exists"):
        transform(Transform(path / "chip.toml", path / "out"))


def test_tracing_shows_sites_and_costs(folder, capsys):
    show(Trace(str(folder[0] / "chip.toml")))
    assert "Conv_0/kernel" in capsys.readouterr().out
    settings = '{"stages": [1], "features": 4}'
    show(Trace("jaxsim.models.resnet:ResNet", (1, 8, 8, 1), settings))
    assert "Dense_0/kernel" in capsys.readouterr().out


def test_a_recipe_is_timed_beside_its_model(folder, capsys):
    path = folder[0] / "chip.toml"
    times = bench(Bench(path, batch=3, runs=5))
    assert [*times] == ["model", "transformed"]
    assert all(0 < t.best <= t.median < t.first and t.runs == 5 for t in times.values())
    assert "a call of 3 inputs, median of 5" in capsys.readouterr().out
    for wrong, told in (({"batch": 0}, "batch=0"), ({"runs": 4}, "runs=4")):
        with pytest.raises(ValueError, match=told):
            bench(Bench(path, **wrong))


def test_cells_that_read_noisily_have_a_key(folder):
    path = folder[0] / "chip.toml"
    noisy = RECIPE.replace(
        '"cells.proportional" = 0.02', '"cells.independent" = {sigma = 0.0, noise = 0.02}'
    )
    path.write_text(noisy)
    assert transform(Transform(path, folder[0] / "out")).deployed


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[model]", "[model", "not TOML"),
        ("[model]", "[models]", "'models' is unknown"),
        ("weights =", "weighs =", r"\[model\]: 'weighs' is unknown .did you mean weights"),
        ("calibrate =", "calibration =", r"\[deploy\]: 'calibration' is unknown"),
        ('name = "prune"', 'named = "prune"', "a table with a name"),
        ('name = "prune"', 'name = "prone"', "transform 1: name='prone'.* .did you mean prune"),
        ('name = "prune"', 'name = "os.system"', "transform 1: name='os.system'"),
        ("sparsity = 0.5", "sparsity = 1.5", "transform 1, prune: .*1.5"),
        (
            "sparsity = 0.5",
            "share = 0.5",
            "transform 1, prune: 'share' is unknown; it may have spar",
        ),
        ("sparsity = 0.5", "sparsty = 0.5", "'sparsty' is unknown .did you mean sparsity"),
        ("bits = 8", "bits = 80", "transform 2, quantize: inputs: bits=80"),
        ("bits = 8", "bit = 8", "quantize: inputs: Grid: 'bit' is unknown .did you mean bits"),
        ("Grid = {bits = 8, symmetric = false}", "Wrapper = {}", "Wrapper: factory is missing"),
        ("Grid = {bits = 8, symmetric = false}", "nf4 = [1, 2, 3]", "inputs: nf4: 3 values; at m"),
        ('name = "quantize"', 'name = "slice_bits"', "transform 2, slice_bits"),
        ("jaxsim.models.resnet:ResNet", "jaxsim.models.resnet", "must be module:name"),
        ("jaxsim.models.resnet:ResNet", "jaxsim.models.nothing:ResNet", "must be module:name"),
        ("features = 4", "feature = 4", "feature"),
        ("features = 4", "features = 8", "has shape"),
        ("[2, 8, 8, 1]", "[2, 0, 8, 1]", "input=.* sizes"),
        ('"weights.npz"', '"chip.toml.npz"', "no such file"),
        ('"data.npz"', '"weights.npz"', "no array 'train'"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(folder, old, new, told):
    path = folder[0] / "chip.toml"
    assert RECIPE.count(old) >= 1
    path.write_text(RECIPE.replace(old, new, 1))
    with pytest.raises(ValueError, match=told):
        transform(Transform(path, folder[0] / "out"))
    assert not (folder[0] / "out").exists()


def test_a_network_that_was_saved_is_where_a_recipe_starts(folder):
    path, net, x = folder
    js.save(path / "saved", net)
    table = read_recipe(path / "chip.toml")["model"] | {"weights": "saved"}
    assert np.array_equal(model_of(table, path)(x), net(x))
    assert compose_steps([])(net) is net


def test_matrices_are_written_with_their_picture(tmp_path, capsys):
    file, picture = tmp_path / "new" / "matrices.npz", tmp_path / "some.png"
    given = ["--count", "5", "--configuration", "grid_2", "--picture", str(picture)]
    cli.main(["rpm", *given, "--out", str(file)])
    with np.load(file) as held:
        assert held["panels"].shape[:2] == (5, 16)
        assert held["answers"].shape == (5,)
    assert picture.stat().st_size > 1000
    with pytest.raises(SystemExit) as stop:
        cli.main(["rpm", "--configuration", "ring", "--out", str(file)])
    assert stop.value.code == 2
    assert "ring" in capsys.readouterr().err


def test_a_key_that_is_an_argument_is_no_name(traced):
    net, x = traced
    with pytest.raises(ValueError, match="run_sparse at Conv_0/kernel: no mask"):
        compose_steps([{"name": "run_sparse", "block": [2, 2]}])(net)
    chip = compose_steps([{"name": "rules", "by_pattern": {"*": {"quantize": {"weights": 4}}}}])(
        net
    )
    np.testing.assert_array_equal(chip(x), js.quantize(4)(net)(x))


def test_transforms_and_criteria_that_ask_for_inputs_have_those_of_the_ranges(folder):
    path, net, x = folder
    asking = """
[[transform]]
name = "correct_bias"

[deploy]"""
    scored = "\n".join(
        (
            "sparsity = 0.5",
            'criterion = {"sparsity.activation_variance" = {}}',
            'distribution = {"sparsity.uniform" = {}}',
        )
    )
    recipe = RECIPE.replace("\n[deploy]", asking).replace("sparsity = 0.5", scored)
    recipe = recipe.replace('cells = {"cells.proportional" = 0.02}', "adc = 8")
    (path / "chip.toml").write_text(recipe)
    chip = transform(Transform(path / "chip.toml", path / "out"))
    same = js.compose(
        js.prune(
            0.5,
            criterion=js.sparsity.activation_variance(x[:4]),
            distribution=js.sparsity.uniform(),
        ),
        js.quantize(8, js.Grid(8, symmetric=False)),
        js.analog(adc=8),
        js.correct_bias(x[:4]),
    )(net)
    expected = js.deploy(same, key=jax.random.key(3), calibrate=x[:4])
    run = jax.jit(lambda chip, x: chip(x))
    np.testing.assert_array_equal(run(chip, x), run(expected, x))
    unsaid = recipe.replace('data = "data.npz"\ncalibrate = 4\nimages = 6\n', "")
    (path / "chip.toml").write_text(unsaid)
    with pytest.raises(ValueError, match=r"activation_variance: takes inputs, and there is no"):
        transform(Transform(path / "chip.toml", path / "other"))


def test_what_asks_for_a_key_has_one_of_its_own(folder):
    net = folder[1]
    drawn = """
[[transform]]
name = "prune"
sparsity = 0.5
criterion = {"sparsity.random" = {}}
distribution = {"sparsity.uniform" = {}}
"""
    steps = tomllib.loads(drawn)["transform"]
    masks = [
        compose_steps(steps * count, Given(key=jax.random.key(seed)))(net).masks["Conv_0/kernel"]
        for count, seed in ((1, 0), (1, 0), (1, 1), (2, 0))
    ]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])
    # Of the second pruning nothing is left to do but where its key is another.
    key = jax.random.fold_in(jax.random.key(0), 2)
    uniform = js.sparsity.uniform()
    one, two = (
        js.prune(0.5, criterion=js.sparsity.random(k), distribution=uniform)
        for k in (jax.random.fold_in(jax.random.key(0), 1), key)
    )
    assert np.array_equal(masks[0], one(net).masks["Conv_0/kernel"])
    assert np.array_equal(masks[3], js.compose(one, two)(net).masks["Conv_0/kernel"])
    with pytest.raises(ValueError, match=r"sparsity\.random: takes a random key"):
        compose_steps(steps)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('data = "data.npz"\n', "", r"\[deploy\]: calibrate is of data, and data is missing"),
        (
            'data = "data.npz"\ncalibrate = 4\nimages = 6\n',
            "",
            r"\[deploy\]: data is missing; ranges of inputs are set by it",
        ),
        ("seed = 3", "seed = -1", r"\[deploy\] seed=-1"),
        ("seed = 3", f"seed = {2**32}", r"\[deploy\] seed="),
        ("calibrate = 4", 'calibrate = "x"', r"\[deploy\] calibrate='x'"),
        ("images = 6", "images = -6", r"\[deploy\] images=-6"),
        ("sparsity = 0.5", "criterion = 3", "transform 1, prune"),
        ("{Grid = {bits = 8, symmetric = false}}", "[" * 3000 + "]" * 3000, "not TOML"),
    ],
)
def test_keys_of_deploy_are_named(folder, old, new, told):
    path = folder[0] / "chip.toml"
    recipe = RECIPE.replace('cells = {"cells.proportional" = 0.02}', "adc = 8")
    assert old in recipe
    path.write_text(recipe.replace(old, new, 1))
    with pytest.raises(ValueError, match=told):
        transform(Transform(path, folder[0] / "out"))


def test_a_byte_order_mark_is_no_part_of_a_recipe(folder):
    path = folder[0] / "chip.toml"
    path.write_bytes(b"\xef\xbb\xbf" + RECIPE.encode())
    assert read_recipe(path)["model"]["name"] == "jaxsim.models.resnet:ResNet"


FOLDER = """
[model]
folder = "tiny"
input = [2, 6]
settings = {classes = 3}

[[transform]]
name = "quantize"
weights = 8
inputs = 8
sites = "*mix*"

[deploy]
data = "data.npz"
export = ["stablehlo"]
"""


def test_weights_of_a_safetensors_file(folder):
    path, net, _ = folder
    held = jax.tree_util.tree_leaves_with_path((net.params, net.buffers))
    table = read_recipe(path / "chip.toml")["model"] | {"weights": "weights.safetensors"}
    for sign in "/.":  # as paths are written here, and as others write them
        arrays = {path_name(p[1:]).replace("/", sign): np.asarray(a) for p, a in held}
        (path / "weights.safetensors").write_bytes(safetensors_file(arrays))
        found = model_of(table, path)
        jax.tree.map(np.testing.assert_array_equal, found.params, net.params)
        jax.tree.map(np.testing.assert_array_equal, found.buffers, net.buffers)
        (path / "weights.safetensors").write_bytes(safetensors_file(dict([*arrays.items()][1:])))
        with pytest.raises(ValueError, match=r"\[model\] weights=.*is missing"):
            model_of(table, path)
    for name in ("none.safetensors", "none"):
        with pytest.raises(ValueError, match=rf"\[model\] weights=.*{name}': no such file"):
            model_of(table | {"weights": name}, path)


def test_a_folder_of_hugging_face_is_a_model(tmp_path):
    params = bert_params()
    bert_written(tmp_path, bert_named(params), BERT | {"model_type": "bert", "pad_token_id": 0})
    table = {"folder": ".", "input": [2, 6], "settings": {"classes": 3}}
    net = model_of(table, tmp_path)
    ids, lengths = np.array([[4, 7, 2, 9, 1, 3], [5, 8, 6, 0, 0, 0]]), np.array([6, 3])
    inner = net.params["bert"]
    expected = BERT_MODEL.apply({"params": inner}, ids, lengths)
    np.testing.assert_allclose(net(ids), expected, rtol=0, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, inner["attention_1"], params["attention_1"])
    show(Trace(str(tmp_path), input=(2, 6), json=tmp_path / "sites.json", quiet=True))
    sites = json.loads((tmp_path / "sites.json").read_text())["model"]["sites"]
    assert "bert/attention_0/query/kernel" in [site["name"] for site in sites]


@pytest.fixture
def decoder(tmp_path):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    arrays = llama_files.hugging_face_arrays()
    (tmp_path / "model.safetensors").write_bytes(safetensors_file(arrays))
    (tmp_path / "config.json").write_text(json.dumps(llama_files.CONFIG))
    (tmp_path / "tokenizer.json").write_text(from_fields(llama_files.fields(), 96).to_str())
    return tmp_path


def test_a_decoder_becomes_a_file_that_others_read(decoder):
    """Weights alone are quantized: `false` stands for None, which TOML does not have."""
    pytest.importorskip("gguf", reason="gguf is not installed")
    recipe = """
    [model]
    folder = "."
    input = [1, 4]
    [[transform]]
    name = "quantize"
    weights = {BlockGrid = "Q8_0"}
    inputs = false
    sites = "layers/*"
    [deploy]
    export = ["gguf"]
    """
    (decoder / "chip.toml").write_text(recipe)
    chip = transform(Transform(decoder / "chip.toml", out=decoder / "chip", quiet=True))
    found = read_gguf(decoder / "chip" / "chip.gguf")
    assert found.tensors["blk.0.ffn_up.weight"].kind == "Q8_0"
    assert found.fields["tokenizer.ggml.tokens"] == llama_files.fields()["tokenizer.ggml.tokens"]
    again = from_gguf(decoder / "chip" / "chip.gguf")
    ids = np.array([[3, 1, 4, 1]], np.int32)
    told = again.model.apply({"params": again.params}, ids)
    np.testing.assert_allclose(told, chip(ids), rtol=0, atol=1e-4)


def test_false_stands_for_none_and_for_itself():
    def steps(text):
        return compose_steps(tomllib.loads(text)["transform"], Given())(net)

    net = js.trace(lambda params, x: x @ params["w"], {"w": np.eye(4, dtype="f")}, np.eye(4))
    said = '[[transform]]\nname = "quantize"\nweights = {Grid = {bits = 4, symmetric = false}}\n'
    grid = js.Grid(4, symmetric=False)
    assert steps(said + "inputs = false\n").cores == js.quantize(grid, None)(net).cores
    assert steps(said).cores == js.quantize(grid)(net).cores != js.quantize(grid, None)(net).cores
    with pytest.raises(ValueError, match=r"transform 1, quantize: .*sites"):
        steps(said + "sites = false\n")


def test_what_is_no_decoder_has_no_such_file(folder, tmp_path):
    path, _, _ = folder
    (path / "no.toml").write_text(RECIPE + 'export = ["gguf"]\n')
    with pytest.raises(ValueError, match=r"net: calls a .*must be a .*Llama"):
        transform(Transform(path / "no.toml", out=tmp_path / "no", quiet=True))
    assert (tmp_path / "no" / "report.txt").exists()


def test_a_decoder_of_hugging_face_is_a_model(decoder):
    tmp_path = decoder
    net = model_of({"folder": str(tmp_path), "input": [1, 4]}, tmp_path)
    ids = np.array([[3, 1, 4, 1]], np.int32)
    expected = llama_files.MODEL.apply({"params": llama_files.params()}, ids)
    np.testing.assert_allclose(net(ids), expected, rtol=0, atol=1e-5)


def test_a_folder_goes_through_a_recipe(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    bert_written(folder, bert_named(bert_params()), BERT | {"model_type": "bert"})
    ids = np.random.default_rng(0).integers(1, 50, (4, 6)).astype(np.int32)
    np.savez(tmp_path / "data.npz", train=ids, images=ids, labels=np.arange(4) % 3)
    (tmp_path / "chip.toml").write_text(FOLDER)
    chip = transform(Transform(tmp_path / "chip.toml", out=tmp_path / "chip", quiet=True))
    assert {p.name for p in (tmp_path / "chip").iterdir()} == {"chip", "chip.npz", "report.txt"}
    arrays = dict(np.load(tmp_path / "chip" / "chip.npz"))
    program = jax.export.deserialize(bytearray(arrays.pop("program")))
    np.testing.assert_array_equal(program.call(arrays, ids), chip(ids))
    pruned = '[[transform]]\nname = "prune"\nsparsity = 0.2\n'
    (tmp_path / "bench.toml").write_text(FOLDER.partition("[[transform]]")[0] + pruned)
    times = bench(Bench(tmp_path / "bench.toml", runs=5, batch=2, quiet=True))
    assert times.keys() == {"model", "transformed"}


@pytest.mark.parametrize(
    ("table", "config", "told"),
    [
        ({"name": "jaxsim.models.resnet:ResNet"}, {}, "both are there; must have a name, or a"),
        ({"input": [2, 6, 1]}, {}, r"input=\[2, 6, 1\]: must be rows and tokens"),
        ({"weights": "a.npz"}, {}, "weights: a folder has weights"),
        ({"settings": {"layers": 2}}, {}, "'layers' is unknown"),
        ({}, {"model_type": "gpt2"}, "holds a model of type 'gpt2'; must be 'llama' or 'bert'"),
        ({"settings": {"classes": 2}}, {"model_type": "llama"}, "'classes' is none of a folder"),
        ({}, [1], "config.json.*must hold an object"),
    ],
)
def test_folders_that_are_no_model(table, config, told, tmp_path):
    whole = config if isinstance(config, list) else BERT | {"model_type": "bert"} | config
    bert_written(tmp_path, {}, whole)
    with pytest.raises(ValueError, match=told):
        model_of({"folder": ".", "input": [2, 6]} | table, tmp_path)


def test_formats_to_write_beside_the_checkpoint(folder):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    path, _, x = folder
    cells = '[[transform]]\nname = "analog"\ncells = {"cells.proportional" = 0.02}\n'
    (path / "digital.toml").write_text(RECIPE.replace(cells, "") + 'export = ["onnx"]\n')
    chip = transform(Transform(path / "digital.toml", out=path / "digital", quiet=True))
    session = onnxruntime.InferenceSession(path / "digital" / "chip.onnx")
    (found,) = session.run(None, {"input_0": x})
    np.testing.assert_allclose(found, chip(x), rtol=0, atol=1e-5)
    (path / "analog.toml").write_text(RECIPE + 'export = ["onnx"]\n')
    with pytest.raises(ValueError, match=r"export\.onnx: .*reads"):
        transform(Transform(path / "analog.toml", out=path / "analog", quiet=True))
    assert (path / "analog" / "report.txt").exists()
    (path / "none.toml").write_text(RECIPE + 'export = ["tflite"]\n')
    with pytest.raises(ValueError, match=r"export=\['tflite'\]: must be a list of some of 'sta"):
        transform(Transform(path / "none.toml", out=path / "none", quiet=True))
    assert not (path / "none").exists()
