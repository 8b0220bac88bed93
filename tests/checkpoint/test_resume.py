"""Whose a folder of checkpoints is, and which of them are kept."""

import json

import jax.numpy as jnp
import pytest

from jaxsim.checkpoint.resume import run_checkpoints

START = {"a": jnp.zeros(3)}


def opened(folder, run=None, **options):
    return run_checkpoints(folder, run={"seed": 1} if run is None else run, **options)


def numbers(folder):
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def test_only_the_newest_is_kept_and_a_reader_leaves_them_all(tmp_path):
    folder = tmp_path / "run"
    with opened(folder) as kept:
        for i in (3, 7):
            kept.add(i, {"a": jnp.full(3, float(i))})
    assert numbers(folder) == [7]
    with opened(folder) as writing, opened(folder, read_only=True) as reading:
        number, tree = reading.newest(START)
        assert (number, tree["a"].tolist()) == (7, [7, 7, 7])
        writing.add(8, START)
    assert numbers(folder) == [8]


def test_a_reader_makes_nothing(tmp_path):
    with opened(tmp_path / "nowhere", read_only=True) as kept:
        assert kept.newest(START) == (0, START)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("run", "named"),
    [
        ({"seed": 2, "rate": [1, 2]}, "other seed"),
        ({"seed": 1}, "other rate"),
        ({"seed": 1, "rate": [1, 2], "new": 0}, "other new"),
        ({"seed": 1, "rate": [1, 3]}, "other rate"),
        ({"seed": 2, "rate": (1, 3)}, "other seed, rate"),
    ],
)
def test_another_run_is_refused_by_what_differs(tmp_path, run, named):
    folder = tmp_path / "run"
    with opened(folder, {"seed": 1, "rate": (1, 2)}):
        pass
    with opened(folder, {"rate": [1, 2], "seed": 1}):
        pass
    said = rf"are of another run \({named}\); choose a new folder"
    with pytest.raises(ValueError, match=said), opened(folder, run):
        pass


@pytest.mark.parametrize("note", ["{broken", "[1]"])
def test_a_note_of_something_else_is_another_run(tmp_path, note):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.txt").write_text(note)
    with pytest.raises(ValueError, match="are of another run; choose"), opened(folder):
        pass


def test_a_note_cut_to_nothing_is_written_again_but_not_by_a_reader(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.txt").write_text("")
    with opened(folder, read_only=True):
        pass
    assert (folder / "run.txt").read_text() == ""
    with opened(folder):
        pass
    assert json.loads((folder / "run.txt").read_text()) == {"seed": 1}


def test_what_a_run_begins_with_has_no_weak_types(tmp_path):
    start = {"weak": jnp.asarray(2.0), "other": jnp.ones(2)}
    assert start["weak"].weak_type
    with opened(tmp_path / "run") as kept:
        number, tree = kept.newest(start)
    assert number == 0
    assert float(tree["weak"]) == 2
    assert not tree["weak"].weak_type
    assert tree["other"] is start["other"]


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    with opened(tmp_path / "run") as kept:
        with (
            pytest.raises(ValueError, match="another thread or process writes to it"),
            opened(tmp_path / "run"),
        ):
            pass
        kept.add(1, START)
    with opened(tmp_path / "run") as kept:
        assert kept.newest(START)[0] == 1
