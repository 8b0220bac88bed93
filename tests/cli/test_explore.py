"""Recipes on accelerators: what they spend, and what their sites should become."""

import json

import jax
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cli import main as cli
from jaxsim.cli.estimate import Estimate, estimate
from jaxsim.cli.explore import Explore, explore
from jaxsim.cli.transform import Transform, transform
from jaxsim.models.resnet import ResNet
from jaxsim.network.leaves import path_name

MODEL = """
[model]
name = "jaxsim.models.resnet:ResNet"
settings = {stages = [1], features = 4, stem_stride = 2}
input = [2, 8, 8, 1]
weights = "weights.npz"

[deploy]
seed = 3
data = "data.npz"
calibrate = 8
"""

OPTIONS = """
[[option]]
name = "8"
transform = [{name = "quantize", weights = 8, inputs = 8}]

[[option]]
name = "2"
transform = [{name = "quantize", weights = 2, inputs = {Grid = {bits = 8, symmetric = false}}}]

[[option]]
name = "cells"
transform = [
  {name = "quantize", weights = 8, inputs = 8},
  {name = "slice_bits", bits = 2},
  {name = "analog", rows = 128, adc = 8, cells = {"cells.proportional" = 0.02}},
]
sites = ["Block*"]
part = "analog"

[explore]
points = 3
steps = 1
drop = 0.05
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with its weights, and images with the labels that it says."""
    path = tmp_path_factory.mktemp("explore")
    model, rng = ResNet((1,), 4, stem_stride=2), np.random.default_rng(0)
    x = rng.normal(size=(48, 8, 8, 1)).astype(np.float32)
    net = js.trace(model, jax.jit(model.init)(jax.random.key(7), x), x)
    held = jax.tree_util.tree_leaves_with_path((net.params, net.buffers))
    np.savez(path / "weights.npz", **{path_name(p[1:]): np.asarray(a) for p, a in held})
    np.savez(path / "data.npz", train=x, images=x, labels=np.argmax(net(x), -1))
    (path / "chip.toml").write_text(MODEL + OPTIONS)
    (path / "eight.toml").write_text(
        MODEL + '[[transform]]\nname = "quantize"\nweights = 8\ninputs = 8\n'
    )
    return path, net, x


@pytest.fixture(scope="module")
def found(folder):
    path, _, _ = folder
    return explore(Explore(path / "chip.toml", out=path / "found", json=path / "n.json"))


def test_a_recipe_is_estimated_as_its_network_is(folder, capsys):
    path, net, _ = folder
    estimate(Estimate(path / "eight.toml", "mixed", json=path / "e.json"))
    expected = js.estimate(js.quantize(8, 8)(net), js.accelerators.mixed())
    numbers = json.loads((path / "e.json").read_text())
    # the recipe's example has 2 images, that of the fixture 48
    assert 0 < numbers["energy_pj"] < expected.energy
    assert {"Conv_0/kernel", "Dense_0/kernel"} <= numbers["rows"].keys()
    assert "Conv_0/kernel" in capsys.readouterr().out
    js.accelerators.save(js.accelerators.systolic_45nm(16, 16), path / "hw.toml")
    small = estimate(Estimate(path / "eight.toml", str(path / "hw.toml"), quiet=True))
    assert small.latency > numbers["latency_s"]
    assert capsys.readouterr().out == ""


def test_points_are_recipes_that_make_their_networks(folder, found):
    """Written, read again and deployed: the accuracy that is told of the images that report."""
    path, net, x = folder
    numbers = json.loads((path / "n.json").read_text())["points"]
    labels = np.argmax(net(x), -1)
    assert len(numbers) == len(found.points) > 1
    for i, point in enumerate(found.points):
        chip = transform(Transform(path / "found" / f"point_{i}.toml", path / f"chip{i}"))
        same = js.deploy(found.network(i), calibrate=x[:8], key=jax.random.key(3))
        run = jax.jit(lambda chip, x: chip(x))
        np.testing.assert_array_equal(run(chip, x), run(same, x))
        right = js.classify(chip, x[24:], key=jax.random.fold_in(jax.random.key(3), 1))
        assert numbers[i]["reported"] == pytest.approx(float(np.mean(right == labels[24:])))
        assert numbers[i]["energy"] == point.energy
    assert (path / "found" / "report.html").exists()


def test_a_run_goes_on_from_its_folder(folder, found, monkeypatch):
    """Every score is known: nothing is measured again, and the front is the same."""
    path, _, _ = folder
    monkeypatch.setattr("jaxsim.search.explore.accuracies", None)
    again = explore(Explore(path / "chip.toml", out=path / "found", quiet=True))
    assert again.points == found.points


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"data.npz"', '"data.npz"\nimages = 0', r"\[deploy\] images=0"),
        ('data = "data.npz"\ncalibrate = 8', "", r"\[deploy\]: data is missing"),
        ("[explore]", "[explore]\nspeed = 1", r"\[explore\]: 'speed' is unknown"),
        ('name = "2"', 'name = "8"', "option 2: '8' is there already"),
        ('name = "2"', 'title = "2"', "option 2: 'title' is unknown; it may have"),
        ('part = "analog"', 'part = "gpu"', "'gpu': must be one of analog, array, simd"),
        ("quantize", "quantise", "transform 1: name='quantise'"),
        (OPTIONS, "", r"recipe: has no \[\[option\]\]"),
        ("drop = 0.05", "drop = -1", "drop=-1"),
    ],
)
def test_recipes_that_cannot_be_explored_say_why(folder, tmp_path, old, new, message):
    path, _, _ = folder
    assert old in MODEL + OPTIONS
    (path / "bad.toml").write_text((MODEL + OPTIONS).replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        explore(Explore(path / "bad.toml", out=tmp_path / "found", quiet=True))


def test_the_commands_are_known(folder, capsys):
    path, _, _ = folder
    cli.main(["estimate", str(path / "eight.toml"), "--accelerator", "systolic_45nm"])
    assert "Conv_0/kernel" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(["explore", str(path / "chip.toml"), "--accelerator", "tpu"])
    assert ended.value.code == 2
    assert "accelerator='tpu': is no file, and none of 'systolic_45nm'" in capsys.readouterr().err
