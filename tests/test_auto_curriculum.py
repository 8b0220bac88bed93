import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks.graphs import ROOT
from jaxsim import auto_curriculum as nac


def settings(out):
    return [
        "nac", "train", "skill", "--out", str(out), "--network", "conv", "--steps", "12",
        "--batch", "2", "--dim", "6", "--every", "2", "--quiet",
    ]  # fmt: skip


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "jaxsim.cli", *map(str, words)],
        cwd=ROOT, env=os.environ | {"COLUMNS": "120", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits_and_is_measured(tmp_path):
    running = start(*settings(tmp_path / "killed"))
    folder = tmp_path / "killed" / "checkpoints"
    until = time.time() + 300
    while not any(p.name.isdigit() for p in folder.glob("*")):
        assert time.time() < until
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    done = start(*settings(tmp_path / "killed"))
    assert done.communicate(timeout=300)[1] == ""
    assert done.returncode == 0
    whole = start(*settings(tmp_path / "whole"))
    whole.communicate(timeout=300)
    found = []
    for name in ("killed", "whole"):
        solver, told = nac.trained(tmp_path / name)
        assert told["steps"] == 12
        found.append(
            [np.asarray(a).tobytes() for a in solver.args[0]["params"]["Dense_0"].values()]
        )
    assert found[0] == found[1]

    plot, numbers = tmp_path / "curves.png", tmp_path / "numbers.json"
    shown = nac.evaluate(
        nac.Evaluate(tmp_path / "whole", games=2, iterations=3, plot=plot, json=numbers)
    )
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert numbers.exists()
    assert len(shown) == 7
    for exact, seen in shown.values():
        assert exact.shape == (2, 4)
        assert (seen <= exact + 1e-4).all()
    with pytest.raises(ValueError, match="of another run"):
        nac.train(nac.Train("skill", out=tmp_path / "whole", steps=3, batch=2, dim=6, quiet=True))


def test_the_command_reports_errors(tmp_path):
    done = start("nac", "evaluate", tmp_path)
    _, error = done.communicate(timeout=120)
    assert done.returncode == 2
    assert "no settings.json" in error
    assert "Traceback" not in error


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="game='chess'"):
        nac.recipe("chess")
    with pytest.raises(ValueError, match="network='rnn'"):
        nac.meta_network("rnn")
    with pytest.raises(ValueError, match="dim=1"):
        nac.recipe("skill", dim=1)
