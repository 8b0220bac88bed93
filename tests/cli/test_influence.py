import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxsim.cascades as jc
from benchmarks.common.paths import ROOT
from jaxsim.cli.influence import Influence, influence


def star(path):
    path.write_text(
        "# a star of stars\n"
        + "\n".join(f"{i} {10 * i + j}" for i in (1, 2, 3) for j in range(1, 10))
    )
    return path


def test_an_edge_list_becomes_certified_seeds_and_a_plot(tmp_path, capsys):
    args = Influence(
        star(tmp_path / "edges.txt"), k=3, plot=tmp_path / "plot.png", json=tmp_path / "out.json"
    )
    result = influence(args)
    assert result.certified
    record = json.loads(args.json.read_text())
    assert sorted(record["seeds"]) == ["1", "2", "3"]
    assert record["spread"] == 30.0
    assert args.plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    out = capsys.readouterr().out
    assert "certified" in out
    assert "30.00" in out


@pytest.mark.parametrize("p", [0.5, "trivalency", "file"])
def test_other_probabilities(tmp_path, p):
    path = tmp_path / "edges.txt"
    path.write_text("1,2,.5\n2,3,.5\n3,1,1\n")
    assert len(influence(Influence(path, k=1, p=p, simulations=64)).seeds) == 1


def test_cascades_become_seeds(tmp_path, capsys):
    g = jc.from_edges(np.zeros(8, int), np.arange(1, 9), 0.8)
    c = jc.sample_cascades(g, 0.15, jax.random.key(0), 1500, record="steps")
    lines = [
        " ".join(f"n{v},{s}" for v, s in enumerate(row) if s >= 0) for row in np.asarray(c.step)
    ]
    path = tmp_path / "cascades.txt"
    path.write_text("\n".join(line for line in lines if line))
    args = Influence(path, k=1, cascades=True, json=tmp_path / "out.json")
    influence(args)
    assert json.loads(args.json.read_text())["seeds"] == ["n0"]
    assert "learned network" in capsys.readouterr().out


def test_the_command_runs_and_reports_errors(tmp_path):
    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "jaxsim.cli", "influence", *map(str, words)],
            cwd=ROOT, env=os.environ | {"COLUMNS": "120"}, capture_output=True, text=True,
        )  # fmt: skip

    done = run(star(tmp_path / "edges.txt"), "--k", 2, "--p", 0.5)
    assert done.returncode == 0, done.stderr
    assert "2 seeds of edges.txt" in done.stdout
    done = run(tmp_path / "edges.txt", "--k", 500)
    assert done.returncode != 0
    assert "k = 500; allowed: 1 to n = 30" in done.stderr
    assert "Traceback" not in done.stderr


def test_importing_cascades_imports_nothing_slow():
    code = (
        "import sys, jaxsim.cascades; "
        "print({'matplotlib', 'tyro', 'networkx', 'numba', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
