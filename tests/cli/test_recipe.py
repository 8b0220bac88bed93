"""Models by their names, and transforms from a file."""

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
from jaxsim.models.resnet import ResNet
from jaxsim.network.leaves import path_name

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
        ('"weights.npz"', '"chip.toml.npz"', "not an npz"),
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
