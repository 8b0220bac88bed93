"""The demo and the command line."""

import dataclasses
import os
import subprocess
import sys

import jax
import matplotlib.image
import numpy as np
import pytest

from jaxsim.checkpoint.log import ScoreCache
from jaxsim.cli import demo
from jaxsim.cli import main as cli
from jaxsim.cli.demo import Demo, run
from jaxsim.train import reference
from tests.support.demo_process import small
from tests.support.processes import finished, free_port, start


@pytest.mark.slow
def test_demos_that_share_a_cache_agree_though_one_is_killed_and_goes_on(tmp_path, monkeypatch):
    for module, name in ((demo, "fashion_mnist"), (reference, "ResNet")):  # small() replaces them
        monkeypatch.setattr(module, name, getattr(module, name))
    one, other, whole, cache = (tmp_path / name for name in ("one", "other", "whole", "cache"))
    killed = start("tests.support.demo_process", one, cache, 5)
    beside = start("tests.support.demo_process", other, cache)
    finished(beside)
    killed.communicate(timeout=300)
    assert killed.returncode == -9
    assert not (one / "sweep.png").exists()
    table = small(whole, tmp_path / "another")
    assert [row.name for row in table.rows] == [
        "reference",
        "int8",
        "pruned, sliced",
        "pruned, analog",
    ]
    monkeypatch.setattr(reference, "fit", None)  # what goes on trains nothing
    assert small(one, cache) == table
    for out in (one, other, whole):
        assert (out / "table.txt").read_text() == str(table)
        assert np.ndim(matplotlib.image.imread(out / "sweep.png")) == 3
    points = [ScoreCache(folder / "sweep.json").scores for folder in (cache, tmp_path / "another")]
    assert points[0] == points[1]


@pytest.mark.parametrize("name", ["epochs", "images", "programmings"])
def test_settings_out_of_range_are_named(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}=0"):
        run(dataclasses.replace(Demo(out=tmp_path, cache=tmp_path), **{name: 0}))


def test_the_command_keeps_programs_in_its_cache_and_leaves_the_setting_alone(
    tmp_path, monkeypatch
):
    before, seen = jax.config.jax_compilation_cache_dir, []
    monkeypatch.setattr(
        demo, "run", lambda chosen: seen.append(jax.config.jax_compilation_cache_dir)
    )
    cli.main(["demo", "--cache", str(tmp_path)])
    assert seen == [str(tmp_path / "compiled")]
    assert jax.config.jax_compilation_cache_dir == before


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


def test_importing_jaxsim_brings_nothing_slow(tmp_path):
    script = (
        "import jax, sys, time; start = time.process_time(); import jaxsim; "
        "print(time.process_time() - start); "
        "slow = 'flax', 'gguf', 'matplotlib', 'onnx', 'optax', 'orbax', 'scipy', 'tyro'; "
        "print([m for m in slow if m in sys.modules])"
    )
    # As installed: with bytecode, which the first run writes.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    command = [sys.executable, "-c", script]
    runs = [
        subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
        for _ in range(4)
    ]
    seconds, loaded = zip(*(ran.splitlines() for ran in runs), strict=True)
    assert min(map(float, seconds[1:])) < 1
    assert set(loaded) == {"[]"}


def test_importing_any_module_leaves_the_choice_of_processes_open():
    script = (
        "import importlib, pkgutil, sys, jaxsim\n"
        "for module in pkgutil.walk_packages(jaxsim.__path__, 'jaxsim.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "import jax\n"
        "jax.distributed.initialize(sys.argv[1], 1, 0)\n"
        "print(jax.process_count())"
    )
    command = [sys.executable, "-c", script, f"127.0.0.1:{free_port()}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout == "1\n", ran.stderr
