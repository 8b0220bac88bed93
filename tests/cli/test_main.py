"""The command: one line for what cannot be done, any output, and the same options everywhere."""

import json
import os
import subprocess
import sys

import jax
import pytest

import jaxsim as js
from jaxsim.cli import influence as command
from jaxsim.cli import main as cli


def run(*words, cwd=None, **env):
    return subprocess.run(
        [sys.executable, "-m", "jaxsim.cli", *map(str, words)],
        capture_output=True,
        cwd=cwd,
        env={**os.environ, **env},
        check=False,
        timeout=300,
    )


@pytest.fixture
def edges(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_text("\n".join(f"{i} {10 * i + j}" for i in (1, 2, 3) for j in range(1, 10)))
    return path


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(w) for w in words])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.err.count("\n") == 1, said.err
    return said


@pytest.mark.parametrize("words", [(), ("trace",), ("nac",), ("nac", "train")])
def test_versions(capsys, words):
    cli.main([*words, "--version"])
    assert capsys.readouterr().out == f"jaxsim {js.__version__}, jax {jax.__version__}\n"
    assert js.__version__[0].isdigit()


@pytest.mark.parametrize(
    "words",
    [
        ("influence", "EDGES", "--seed", 99999999999999999999),
        ("influence", "EDGES", "--seed", -1),
        ("nac", "train", "skill", "--seed", 2**32),
        ("nac", "evaluate", "DIR", "--seed", -1),
        ("rpm", "--seed", -1),
        ("demo", "--seed", 2**32),
        ("demo", "--json", "nodir/x.json"),
        ("influence", "EDGES", "--plot", "nodir/x.png"),
        ("influence", "EDGES", "--plot", "DIR/x.badext"),
        ("influence", "EDGES", "--plot", "DIR"),
        ("influence", "EDGES", "--json", "nodir/x.json"),
        ("nac", "train", "skill", "--plot", "nodir/x.png"),
        ("nac", "evaluate", "DIR", "--plot", "x.badext"),
        ("rpm", "--picture", "x.badext"),
        ("trace", "jaxsim.models.resnet:ResNet", "--json", "nodir/x"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_computed(
    edges, tmp_path, capsys, monkeypatch, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "load_edgelist", None, raising=False)
    monkeypatch.setattr(command, "_read_graph", None)
    known = {"EDGES": edges, "DIR": tmp_path}
    said = refused(capsys, *(known.get(w, w) for w in words))
    option = next(w for w in words if str(w).startswith("--"))[2:]
    assert f"{option}=" in said.err
    assert not said.out


def test_a_file_that_is_not_there_is_named(capsys, tmp_path):
    for words in (("trace", "none.toml"), ("rpm", "--config", "none.toml")):
        assert refused(capsys, *words).err == "jaxsim: none.toml: No such file or directory\n"
    (tmp_path / "folder.toml").mkdir()
    said = refused(capsys, "trace", tmp_path / "folder.toml").err
    assert said == f"jaxsim: {tmp_path / 'folder.toml'}: Is a directory\n"


def test_every_table_can_be_had_as_json_and_in_silence(edges, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = {
        "influence": [str(edges), "--k", "2", "--simulations", "64"],
        "rpm": ["--count", "3"],
        "trace": ["jaxsim.models.resnet:ResNet", "--input", "1", "8", "8", "1"],
    }
    calls["trace"] += ["--settings", '{"stages": [1], "features": 4}']
    for name, words in calls.items():
        cli.main([name, *words, "--json", f"{name}.json", "--quiet"])
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", "")
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in calls}
    assert len(set(found["influence"]["seeds"]) & {"1", "2", "3"}) == 2
    assert sum(found["rpm"]["answers"]) == found["rpm"]["count"] == 3
    cost = found["trace"]["model"]
    assert sum(site["params"] for site in cost["sites"]) <= cost["params"]
    assert cost["sites"][0]["macs"] > 0


def test_ascii_and_closed_pipes_are_outputs_like_others(edges):
    words = ["influence", edges, "--k", "1", "--simulations", "64"]
    done = run(*words, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"+- s.e." in done.stdout
    ends, closed = os.pipe()
    os.close(ends)
    piped = subprocess.run(
        [sys.executable, "-m", "jaxsim.cli", *map(str, words)],
        stdout=closed,
        stderr=subprocess.PIPE,
        check=False,
        timeout=300,
    )
    os.close(closed)
    assert piped.stderr == b""
    assert piped.returncode == 1


def test_an_interrupt_ends_with_its_own_code(capsys, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "rpm", cli.COMMANDS["rpm"]._replace(run=interrupted))
    with pytest.raises(SystemExit) as stop:
        cli.main(["rpm"])
    assert stop.value.code == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "words", [(), ("prone", "--version"), ("prone",), ("rpm", "--cuont", "3"), ("estimate",)]
)
def test_a_line_that_is_no_command_ends_with_two(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    assert stop.value.code == 2
    assert not capsys.readouterr().out


def test_a_device_without_memory_is_one_line(capsys, monkeypatch):
    def full(args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 bytes")

    monkeypatch.setitem(cli.COMMANDS, "rpm", cli.COMMANDS["rpm"]._replace(run=full))
    assert "out of memory" in refused(capsys, "rpm").err

    def broken(args):
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")

    monkeypatch.setitem(cli.COMMANDS, "rpm", cli.COMMANDS["rpm"]._replace(run=broken))
    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
        cli.main(["rpm"])
