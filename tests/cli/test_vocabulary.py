"""A recipe from anywhere names public values of jaxsim's, a Flax model, and nothing else."""

import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import jaxsim as js
from jaxsim.cli.recipe import model_of
from jaxsim.cli.steps import compose_steps
from jaxsim.cli.vocabulary import model_maker, public
from jaxsim.files.npz import read_npz
from jaxsim.models.resnet import ResNet
from jaxsim.numerics import memory

ATTACKS = [
    # through modules that jaxsim's import
    "storage.np.f2py.os.system",
    "cells.dataclasses.builtins.exec",
    "cells.math.sqrt",
    "cells.np.load",
    "cells.np.save",
    "cells.jax.numpy.load",
    "clipping.partial",
    "clipping.Partial",
    "rounding.jax.jit",
    "sparsity.dependencies.dependencies",
    "tokens.checked_int",
    # through attributes of classes, functions and instances
    "Grid.__init__.__globals__",
    "Grid.__class__",
    "Grid.__subclasses__",
    "Network.fn",
    "Network.cost",
    "prune.__globals__",
    "prune.__wrapped__",
    "float_core.write",
    "cells.Device._make",
    "cells.Device.__new__",
    "compose.__code__.replace",
    # names of the language and of the packages
    "os.system",
    "builtins.exec",
    "jaxsim.checkpoint.save",
    "checkpoint.save",
    "network.trace",
    "recipe.transform",
    "cli.main",
    "__builtins__",
    "__all__",
    "js",
    "",
    ".",
    "cells.",
    ".cells",
    "cells..normal",
    # modules and values
    "cells",
    "float_core",
    # public, but of files
    "save",
    "load",
    "search_blocked",
]


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_not_public_cannot_be_named(name):
    with pytest.raises(ValueError, match=r"jaxsim's that a recipe can name|reads or writes files"):
        public(name)
    with pytest.raises(ValueError, match="transform 1"):
        compose_steps([{"name": name, "path": "x"}])
    if name.split(".")[0] in js.__all__:
        nested = {"name": "prune", "criterion": {name: "x"}}
        listed = {"name": "compose", "transforms": [[{"prune": [0.5, {name: ["x"]}]}]]}
        for step in (nested, listed):
            with pytest.raises(ValueError, match=r"can name|reads or writes"):
                compose_steps([step])


def test_what_can_be_named_is_jaxsims_own_and_touches_no_file():
    spaces = {n: getattr(js, n).__all__ for n in js.__all__ if hasattr(getattr(js, n), "__path__")}
    kinds = ("adc", "dac", "cells", "designs", "wires", "tokens", "clipping", "rounding", "storage")
    spaces |= {n: getattr(js, n).__all__ for n in kinds}
    names = [*js.__all__, *(f"{s}.{n}" for s, held in spaces.items() for n in held)]
    found = {}
    for name in names:
        try:
            found[name] = public(name)
        except ValueError:
            continue
    assert {"prune", "Grid", "cells.proportional", "sparsity.n_of_m"} <= found.keys()
    assert all(value.__module__.split(".")[0] == "jaxsim" for value in found.values())
    assert set(js.__all__) - found.keys() == {
        *("save", "load", "search_blocked", "explore", "report", "rotate"),  # of files
        *("adc", "dac", "cells", "designs", "wires", "tokens", "storage", "clipping"),
        *("rounding", "sparsity"),
        "accelerators",
        "export",
        "language",
        "float_core",
    }


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "subprocess:run",
        "builtins:exec",
        "importlib:import_module",
        "jaxsim.cli.recipe:importlib",
        "jaxsim.checkpoint:save",
        "jaxsim.models.resnet:nn",
        "jaxsim.models.bert:from_hugging_face",
        "jaxsim.models.resnet:__loader__",
        "jaxsim.models.resnet:ResNet.__init__",
        "jaxsim.models.functions:NamedTuple",
        "jaxsim.models.coconet:Network",
        "jaxsim.models..resnet:ResNet",
        "numpy:load",
        "numpy.f2py:run_main",
        "tests.vocabulary_victim:model",
        "tests.vocabulary_victim:Model",
        ".resnet:ResNet",
        ":ResNet",
        "ResNet",
        "",
    ],
)
@pytest.mark.parametrize(
    "settings", ["touch canary", ["touch canary"], {"command": "touch canary"}]
)
def test_no_command_is_run_and_nothing_imported_without_trust(
    name, settings, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r"\[model\]"):
        model_of({"name": name, "settings": settings, "input": [1, 8, 8, 1]}, tmp_path)
    assert not (tmp_path / "canary").exists()
    new = {module.split(".")[0] for module in set(sys.modules) - before}
    assert "tests" not in new
    assert "vocabulary_victim" not in new


@pytest.mark.parametrize("name", ["os:system", "subprocess:run", "numpy:load", "numpy:sum"])
def test_trust_is_in_models_only(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = {"name": name, "settings": ["touch canary"], "input": [1]}
    with pytest.raises(ValueError, match=r"\[model\]"):
        model_of(table, tmp_path, trust=True)
    assert not (tmp_path / "canary").exists()


VICTIM = """
from pathlib import Path
from flax import linen as nn, nnx
Path("canary").write_text("")

class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)

class Held(nnx.Module):
    def __init__(self, width, *, rngs):
        self.dense = nnx.Linear(2, width, rngs=rngs)
    def __call__(self, x):
        return self.dense(x)

def make(width):
    return nn.Dense(width)

def other():
    return 3
"""


def test_a_users_model_needs_a_word(tmp_path, monkeypatch):
    (tmp_path / "vocabulary_victim.py").write_text(VICTIM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vocabulary_victim", raising=False)
    table = {"name": "vocabulary_victim:Model", "input": [1, 2]}
    with pytest.raises(ValueError, match=r"runs its code; .*--trust-model"):
        model_of(table, tmp_path)
    assert not (tmp_path / "canary").exists()
    assert model_of(table, tmp_path, trust=True)(np.ones((1, 2), "f")).shape == (1, 3)
    assert (tmp_path / "canary").exists()
    for name, settings in (("make", [4]), ("Held", {"width": 4})):
        table = {"name": f"vocabulary_victim:{name}", "settings": settings, "input": [1, 2]}
        assert model_of(table, tmp_path, trust=True)(np.ones((1, 2), "f")).shape == (1, 4)
    with pytest.raises(ValueError, match="makes a int, no Flax module"):
        model_of({"name": "vocabulary_victim:other", "input": [1]}, tmp_path, trust=True)
    assert model_maker("jaxsim.models.resnet:ResNet", trust=False) is ResNet


def test_the_command_refuses_in_one_line(tmp_path):
    (tmp_path / "evil.toml").write_text(
        '[model]\nname = "os:system"\nsettings = "touch canary"\ninput = [1]\n'
    )
    for args in (["trace", "evil.toml"], ["trace", "os:system", "--settings", '"touch canary"']):
        run = subprocess.run(
            [sys.executable, "-m", "jaxsim.cli", *args],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert run.returncode == 2
        assert run.stderr.count("\n") == 1, run.stderr
    assert not (tmp_path / "canary").exists()


def zipped(path, content, compress=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("x.npy", content)


def npy(array, pickled=False):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=pickled)
    return file.getvalue()


def test_arrays_come_back(tmp_path):
    arrays = {
        "a/b": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.eye(3, dtype="f")),
        "n": np.zeros((0, 2), np.int8),
        "zero": np.float32(3),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        found = read_npz(tmp_path / "x.npz")
        assert found.keys() == arrays.keys()
        for name, value in arrays.items():
            np.testing.assert_array_equal(found[name], value, strict=True)


def test_files_that_lie_about_their_size_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    zipped(path, npy(np.zeros(100 << 20, np.uint8)))  # 100 KB that unpack to 100 MiB
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=r"unpack to .* at most 100 times"):
        read_npz(path)
    monkeypatch.setattr(memory, "LIMIT", 100)
    zipped(path, npy(np.zeros(200, np.uint8)), zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match="allowed: 100"):
        read_npz(path)
    monkeypatch.undo()
    content = npy(np.zeros(8, np.uint8))
    zipped(path, content.replace(b"(8,), }        ", b"(80000000000,)}"))
    with pytest.raises(ValueError, match="has shape"):
        read_npz(path)
    zipped(path, npy(np.array([{}], object), pickled=True))
    with pytest.raises(ValueError, match="Python objects"):
        read_npz(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", npy(np.zeros(3)), b"PK" + bytes(100)])
def test_what_is_no_npz_is_named(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz.*not an npz"):
        read_npz(path)
    zipped(path, content[:-1])
    with pytest.raises(ValueError, match=r"x\.npz.*not an npz"):
        read_npz(path)
