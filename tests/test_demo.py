"""The demo and the command line."""

import dataclasses
import subprocess
import sys

import jax
import matplotlib.image
import numpy as np
import pytest

from jaxsim import cli
from jaxsim.data import fashion_mnist
from jaxsim.demo import Demo, run
from jaxsim.models.resnet import ResNet


@pytest.mark.slow
def test_the_demo_writes_its_table_and_figure_and_is_faster_the_second_time(tmp_path, monkeypatch):
    few = {s: fashion_mnist(s, source="subset") for s in ("train", "test")}
    few = {s: d._replace(images=d.images[:600], labels=d.labels[:600]) for s, d in few.items()}
    monkeypatch.setattr("jaxsim.demo.fashion_mnist", few.get)
    monkeypatch.setattr("jaxsim.demo.ResNet", lambda **_: ResNet((1,), 4))
    folders = {"out": tmp_path / "out", "cache": tmp_path / "cache"}
    demo = Demo(**folders, epochs=1, images=50, programmings=2)
    first = run(demo)
    assert [row.name for row in first.rows] == [
        "reference",
        "int8",
        "pruned, sliced",
        "pruned, analog",
    ]
    assert (tmp_path / "out" / "table.txt").read_text() == str(first)
    assert np.ndim(matplotlib.image.imread(tmp_path / "out" / "sweep.png")) == 3
    monkeypatch.setattr("jaxsim.demo.fit", None)  # the second run trains nothing
    assert run(demo) == first


@pytest.fixture(autouse=True)
def uncached():
    """Later tests do not write what they compile into the demo's cache."""
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.mark.parametrize("name", ["epochs", "images", "programmings"])
def test_settings_out_of_range_are_named(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}=0"):
        run(dataclasses.replace(Demo(out=tmp_path, cache=tmp_path), **{name: 0}))


def test_the_command_says_what_is_wrong_and_exits_with_two(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--epochs", "0"])
    assert stop.value.code == 2
    assert "epochs=0: must be at least 1" in capsys.readouterr().err


def test_the_command_explains_itself():
    help_ = subprocess.run(
        [sys.executable, "-m", "jaxsim.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert "demo" in help_.stdout


def test_importing_jaxsim_brings_nothing_slow():
    script = (
        "import jax, sys, time; start = time.perf_counter(); import jaxsim; "
        "print(time.perf_counter() - start); "
        "print([m for m in ('matplotlib', 'orbax', 'scipy', 'optax', 'tyro') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, loaded = ran.stdout.splitlines()
    assert float(seconds) < 1
    assert loaded == "[]"
