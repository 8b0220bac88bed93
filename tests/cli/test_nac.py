import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim import solvers as js
from jaxsim.cli import nac
from tests.support.processes import start


def settings(out):
    return nac.Train("skill", out, network="conv", steps=6, batch=2, dim=6, every=2, quiet=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits_and_is_measured(tmp_path, monkeypatch):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    words = "--network conv --steps 6 --batch 2 --dim 6 --every 2 --quiet"
    running = start("jaxsim.cli", "nac", "train", "skill", "--out", killed, *words.split())
    until = time.time() + 300
    while not any(p.name.isdigit() for p in (killed / "checkpoints").glob("*")):
        assert time.time() < until
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.02)
    running.kill()
    running.communicate()
    found = [nac.train(settings(out)) for out in (killed, whole)]
    parameters = [jax.tree.map(lambda a: np.asarray(a).tobytes(), s.args) for s, _ in found]
    assert parameters[0] == parameters[1]
    assert found[0][1].tobytes() == found[1][1].tobytes()
    solver, told = nac.load_solver(whole)
    assert told["steps"] == 6
    assert jax.tree.map(lambda a: np.asarray(a).tobytes(), solver.args) == parameters[1]

    monkeypatch.setattr(nac, "baselines", lambda: {"uniform": (js.uniform(), None)})
    plot, numbers = tmp_path / "curves.png", tmp_path / "numbers.json"
    shown = nac.evaluate(nac.Evaluate(whole, games=2, iterations=3, plot=plot, json=numbers))
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert numbers.exists()
    assert list(shown) == ["NAC, conv", "uniform"]
    for exact, seen in shown.values():
        assert exact.shape == (2, 4)
        assert (seen <= exact + 1e-4).all()
    with pytest.raises(ValueError, match="of another run"):
        nac.train(nac.Train("skill", out=whole, steps=3, batch=2, dim=6, quiet=True))


def test_training_goes_from_small_games_to_large_ones(tmp_path, monkeypatch):
    def counted(network, objective, sample, optimizer, **_):
        dim = len(sample(jax.random.key(0)).init(jax.random.key(1)))
        return lambda state, key: (state, jnp.float32(dim))

    monkeypatch.setattr(js, "meta_step", counted)
    args = nac.Train("skill", tmp_path, network="conv", steps=7, dim=4, grow=(2, 3), quiet=True)
    assert nac.train(args)[1].tolist() == [2, 2, 2, 3, 3, 4, 4]


def test_the_command_reports_errors(tmp_path):
    done = start("jaxsim.cli", "nac", "evaluate", tmp_path)
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
    with pytest.raises(ValueError, match="'rps' have one size"):
        nac.train(nac.Train("rps", grow=(3,)))
