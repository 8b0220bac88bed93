"""Files are whole or not there, one writes to a path at a time, and a failure is one line."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.checkpoint.log import ScoreCache
from jaxsim.checkpoint.resume import run_checkpoints
from jaxsim.files import atomic as files

X = np.ones((2, 4), "f")


def net(width=4):
    return js.trace(lambda p, x: x @ p["w"], {"w": np.ones((4, width), "f")}, X)


def python(script, timeout=120):
    """Runs a script that may write no file beyond 4 KB: a full disk, as far as files can tell."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    return subprocess.run(
        [sys.executable, "-c", limit + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        # what is compiled is kept in files, too
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": "", "JAX_PLATFORMS": "cpu"},
    )


def test_a_file_is_what_it_was_until_it_is_complete(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(path, "1")
    seen = []

    def broken(part):
        part.write_text("half")
        seen.append(path.read_text())
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"), files.whole(path) as part:
        broken(part)
    assert seen == ["1"]
    assert path.read_text() == "1"
    assert [*tmp_path.iterdir()] == [path]
    with pytest.raises(FileNotFoundError, match=r"nowhere/a\.json'$"):
        files.write_text(tmp_path / "nowhere" / "a.json", "1")


def test_links_and_devices_stay_what_they_are(tmp_path):
    (tmp_path / "real").write_text("1")
    (tmp_path / "link").symlink_to("real")
    files.write_text(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "2"
    files.write_text("/dev/null", "3")
    assert not os.path.isfile("/dev/null")


def test_a_full_disk_leaves_small_files_whole(tmp_path):
    path = tmp_path / "log.json"
    ScoreCache(path).get("a", lambda: 1)
    done = python(f"""
        from jaxsim.checkpoint.log import ScoreCache
        try:
            ScoreCache({str(path)!r}).get("b", lambda: "x" * 10**5)
        except OSError as error:
            print(error)
    """)
    assert "File too large" in done.stdout, done.stderr
    assert json.loads(path.read_text()) == {"a": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.json", "log.json.lock"]


@pytest.mark.parametrize("deployed", [False, True])
def test_saving_on_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, deployed):
    done = python(f"""
        import numpy as np, jaxsim as js
        w = np.random.default_rng(0).normal(size=(400, 400)).astype("f")
        net = js.trace(lambda p, x: x @ p["w"], {{"w": w}}, np.ones((2, 400), "f"))
        if {deployed}:
            net = js.deploy(js.quantize(8, None)(net))
        try:
            js.save({str(tmp_path / "chip")!r}, net)
        except OSError as error:
            print(error)
    """)
    assert done.returncode == 0
    assert done.stdout == f"'{tmp_path / 'chip'}' cannot be written: File too large\n"
    assert done.stderr.count("\n") <= 1, done.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("folder", ["file/chip", "file/further/chip", "/proc/chip"])
def test_a_failed_save_ends_the_process(tmp_path, folder):
    (tmp_path / "file").write_text("x")
    done = python(f"""
        import numpy as np, jaxsim as js
        net = js.trace(lambda p, x: x @ p["w"], {{"w": np.ones((4, 4), "f")}}, np.ones((2, 4), "f"))
        try:
            js.save({str(tmp_path / folder)!r}, net)
        except OSError as error:
            print("raised")
    """)
    assert (done.returncode, done.stdout) == (0, "raised\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_a_failure_while_the_folder_is_made_ends_the_process(tmp_path):
    """As when the disk fills after the lock: orbax's own first step fails."""
    done = python(f"""
        import contextlib, pathlib, numpy as np, jaxsim as js, orbax.checkpoint as ocp
        from jaxsim.checkpoint import save_load
        rmtree = save_load.shutil.rmtree
        def spoil(part, **options):
            if not part.exists():
                part.parent.rmdir()
                part.parent.write_text("now a file")
        save_load.shutil.rmtree = spoil
        save_load.atomic.locked = lambda *_: contextlib.nullcontext()
        pathlib.Path({str(tmp_path / "in")!r}).mkdir()
        net = js.trace(lambda p, x: x @ p["w"], {{"w": np.ones((4, 4), "f")}}, np.ones((2, 4), "f"))
        try:
            js.save({str(tmp_path / "in" / "chip")!r}, net)
        except OSError as error:
            print("raised")
    """)
    assert (done.returncode, done.stdout) == (0, "raised\n"), done.stderr


def test_what_a_killed_save_left_is_no_obstacle(tmp_path):
    part = tmp_path / "chip.orbax-checkpoint-tmp"
    part.mkdir()
    (part / "half").write_text("x")
    js.save(tmp_path / "chip", net())
    assert js.load(tmp_path / "chip", net())(X).tolist() == net()(X).tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["chip"]


@pytest.mark.parametrize("count", [2, 4])
def test_of_threads_that_save_to_one_path_one_does(tmp_path, count):
    nets, raised, gate = [net() for _ in range(count)], [], threading.Barrier(count)

    def save(n):
        gate.wait()
        try:
            js.save(tmp_path / "chip", n)
        except ValueError as error:
            raised.append(str(error))

    threads = [threading.Thread(target=save, args=(n,)) for n in nets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(raised) == count - 1
    assert all("exists" in r or "another thread or process writes to it" in r for r in raised)
    assert js.load(tmp_path / "chip", net())(X).tolist() == net()(X).tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["chip"]


def test_another_process_is_kept_out_while_one_writes(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom jaxsim.files import atomic\n"
            f"with atomic.locked('path', {str(tmp_path / 'chip')!r}):\n"
            "    print('held', flush=True)\n    sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=r"path=.*chip.*another thread or process"):
        js.save(tmp_path / "chip", net())
    with (
        pytest.raises(ValueError, match=r"checkpoints=.*another thread or process"),
        run_checkpoints(tmp_path / "chip", run={}),
    ):
        pass
    holder.kill()  # a lock ends with its holder
    holder.wait()
    js.save(tmp_path / "chip", net())


def test_one_folder_of_checkpoints_has_one_writer_and_any_readers(tmp_path):
    start = {"a": jnp.zeros(3)}
    with run_checkpoints(tmp_path / "run", run={"seed": 1}) as kept:
        kept.add(1, {"a": jnp.ones(3)})
        with (
            pytest.raises(ValueError, match="another thread or process"),
            run_checkpoints(tmp_path / "run", run={"seed": 1}),
        ):
            pass
        with run_checkpoints(tmp_path / "run", run={"seed": 1}, read_only=True) as seen:
            assert seen.newest(start)[0] == 1
        kept.add(2, {"a": jnp.ones(3)})
    with run_checkpoints(tmp_path / "run", run={"seed": 1}) as kept:
        assert kept.newest(start)[0] == 2


def test_an_empty_note_is_none_and_a_note_is_written_once(tmp_path):
    note = tmp_path / "run" / "run.txt"
    with run_checkpoints(tmp_path / "run", run={"seed": 1, "grow": (1, 2)}) as kept:
        kept.add(1, {"a": jnp.ones(3)})
    written = note.stat().st_mtime_ns, note.stat().st_ino
    time.sleep(0.01)
    with run_checkpoints(tmp_path / "run", run={"seed": 1, "grow": (1, 2)}):
        pass
    assert (note.stat().st_mtime_ns, note.stat().st_ino) == written
    note.write_text("")
    with run_checkpoints(tmp_path / "run", run={"seed": 1}) as kept:
        assert kept.newest({"a": jnp.zeros(3)})[0] == 1
    assert json.loads(note.read_text()) == {"seed": 1}
    note.write_text('{"seed": 1')
    with (
        pytest.raises(ValueError, match="of another run"),
        run_checkpoints(tmp_path / "run", run={}),
    ):
        pass


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path):
    done = python(f"""
        import jax.numpy as jnp, numpy as np
        from jaxsim.checkpoint import run_checkpoints
        with run_checkpoints({str(tmp_path / "run")!r}, run={{}}) as kept:
            kept.add(1, {{"a": jnp.ones(3)}})
            try:
                kept.add(2, {{"a": jnp.asarray(np.random.default_rng(0).normal(size=10**5))}})
            except OSError as error:
                print(error)
    """)
    assert done.stdout.endswith("cannot be written: File too large\n"), done.stderr
    assert "Traceback" not in done.stderr
    with run_checkpoints(tmp_path / "run", run={}) as kept:
        assert kept.newest({"a": jnp.zeros(3)})[0] == 1


def compiled(fn):
    """A jitted function that counts how often it is compiled."""
    count = []

    def counted(*args):
        count.append(1)
        return fn(*args)

    return jax.jit(counted), count


def test_what_was_compiled_for_a_start_serves_what_is_restored(tmp_path):
    start = {"a": jnp.zeros(3), "weak": jnp.float32(1) * 1.0, "n": 1.0 * jnp.ones(()), "np": X}
    start["weak"] = jnp.where(jnp.ones(2) > 0, 1.0, 0.0)
    assert start["weak"].weak_type
    step, count = compiled(lambda tree: jax.tree.map(lambda a: a + jnp.ones_like(a), tree))
    with run_checkpoints(tmp_path / "run", run={}) as kept:
        _, tree = kept.newest(start)
        kept_start = tree
        for i in range(3):
            tree = step(tree)
            kept.add(i + 1, tree)
    with run_checkpoints(tmp_path / "run", run={}) as kept:
        _, found = kept.newest(start)
    # of the same bytes, so that a cache on disk serves both
    assert step.lower(found).as_text() == step.lower(kept_start).as_text()
    count.clear()
    before = step._cache_size()
    again = step(found)
    assert not count
    assert step._cache_size() == before
    assert not any(a.committed for a in jax.tree.leaves(again))
    np.testing.assert_array_equal(again["a"], [4, 4, 4])


def test_a_network_that_was_loaded_compiles_nothing_anew(tmp_path):
    like = js.quantize(8, None)(net())
    chip = js.deploy(like)
    js.save(tmp_path / "chip", chip)
    run, count = compiled(lambda chip, x: chip(x))
    run(chip, X)
    run(js.load(tmp_path / "chip", like), X)
    assert len(count) == 1
