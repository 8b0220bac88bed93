"""What a long sweep has measured so far."""

import json
import subprocess
import sys
import textwrap

import pytest

from jaxsim.checkpoint.log import ScoreCache


def scores(path):
    return {
        name: ScoreCache(path).get(name, lambda name=name: len(name)) for name in ("a", "bb", "ccc")
    }


def process(body):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(body)])


def test_what_is_known_is_not_measured_again(tmp_path):
    path = tmp_path / "new" / "log.json"
    log = ScoreCache(path)
    assert log.get("a", lambda: [1.5, "x"]) == [1.5, "x"]
    assert ScoreCache(path).get("a", None) == [1.5, "x"]
    assert ScoreCache(None).get("a", lambda: 2) == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["log.json", "log.json.lock"]


def test_a_sweep_that_was_killed_goes_on(tmp_path):
    path = tmp_path / "log.json"
    killed = process(f"""
        import os, signal
        from jaxsim.checkpoint.log import ScoreCache
        log = ScoreCache({str(path)!r})
        for name in ("a", "bb", "ccc"):
            if name == "ccc":
                log.get(name, lambda: os.kill(os.getpid(), signal.SIGKILL))
            log.get(name, lambda: len(name))
    """)
    assert killed.wait() == -9
    assert json.loads(path.read_text()) == {"a": 1, "bb": 2}
    made = []
    log = ScoreCache(path)
    found = {n: log.get(n, lambda n=n: made.append(n) or len(n)) for n in ("a", "bb", "ccc")}
    assert made == ["ccc"]
    assert found == scores(tmp_path / "whole.json")


def test_processes_that_fill_one_log_lose_nothing_and_agree(tmp_path):
    path = tmp_path / "log.json"
    body = f"""
        from jaxsim.checkpoint.log import ScoreCache
        log = ScoreCache({str(path)!r})
        for i in range(40):
            log.get(f"%d {{i}}", lambda: [%d, i] * 50)
            log.get(f"both {{i}}", lambda: %d)
        print(0)
    """
    filling = [process(body % (n, n, n)) for n in range(3)]
    assert [p.wait() for p in filling] == [0, 0, 0]
    held = json.loads(path.read_text())
    assert len(held) == 3 * 40 + 40
    assert all(held[f"{n} {i}"] == [n, i] * 50 for n in range(3) for i in range(40))


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_log_is_refused_and_stays(tmp_path, content):
    path = tmp_path / "log.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"log\.json.*no log"):
        ScoreCache(path)
    assert path.read_bytes() == content
