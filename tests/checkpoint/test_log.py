"""What a long sweep has measured so far."""

import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.checkpoint.log import ScoreCache, program_digest, run_digest


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


def test_a_digest_is_of_every_bit_shape_type_and_fact():
    same = [np.float32([1, 2]), jnp.arange(3)]
    assert run_digest(same, "a", 1) == run_digest(
        [np.float32([1, 2]), np.arange(3, dtype="i4")], "a", 1
    )
    others = [
        run_digest([np.float32([1, 2 + 1e-6]), jnp.arange(3)], "a", 1),
        run_digest([np.float32([[1, 2]]), jnp.arange(3)], "a", 1),
        run_digest([np.float32([1, 2]).view(np.int32), jnp.arange(3)], "a", 1),
        run_digest([np.float32([1, 2])], "a", 1),
        run_digest(same[::-1], "a", 1),
        run_digest(same, "a", 2),
        run_digest(same, "a"),
        run_digest(same),
        run_digest([np.float32([0.0]), jnp.arange(3)]),
        run_digest([np.float32([-0.0]), jnp.arange(3)]),
    ]
    assert len({run_digest(same, "a", 1), *others}) == 11


def test_a_digest_of_a_key_is_of_its_data():
    first, second = (run_digest(jax.random.key(seed)) for seed in (0, 1))
    assert first == run_digest(jax.random.key(0))
    assert first != second


def digest(function, *args):
    return program_digest(jax.jit(function), *args)


def test_a_digest_of_a_program_is_of_what_it_computes_and_the_constants_it_holds():
    x, big = jnp.ones(3), np.arange(3.0)
    first = digest(lambda x: x * 2 + big, x)
    assert first == digest(lambda x: x * 2 + np.arange(3.0), x)
    others = [
        digest(lambda x: x * 3 + big, x),
        digest(lambda x: x * 2 + big[::-1], x),
        digest(lambda x: x * 2 + big, jnp.ones(3, jnp.int32)),
        digest(lambda x: jax.lax.cond(x[0] > 0, lambda: x * big, lambda: x), x),
        digest(lambda x: jax.lax.cond(x[0] > 0, lambda: x * big[::-1], lambda: x), x),
    ]
    assert len({first, *others}) == 6
    assert all(whole for _, whole in others)


@pytest.mark.parametrize("nested", [False, True])
def test_what_a_callback_does_is_not_seen(nested):
    def call(x):
        return jax.pure_callback(lambda a: a, jax.ShapeDtypeStruct((3,), x.dtype), x)

    def inside(x):
        return jax.lax.cond(x[0] > 0, call, lambda x: x, x)

    _, whole = digest(inside if nested else call, jnp.ones(3))
    assert not whole
