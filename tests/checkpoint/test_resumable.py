"""A loop that is stopped and started again ends where the whole one does."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from jaxsim.checkpoint.resumable import resumable
from jaxsim.checkpoint.resume import RunCheckpointer


@jax.jit
def step(state, batch):
    """What it gives depends on the order of all batches before it."""
    return state * 1.5 + batch, state


def loop(folder=None, *, steps=7, stop=None, taken=None, **options):
    def stepped(state, batch):
        if taken is not None:
            taken.append(batch)
        if batch == stop:
            raise KeyboardInterrupt
        return step(state, batch)

    return resumable(
        stepped,
        jnp.ones(()),
        lambda done: range(done, steps),
        steps=steps,
        folder=folder,
        run={"seed": 1},
        label="steps",
        quiet=True,
        **options,
    )


def numbers(folder):
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


@pytest.mark.parametrize("stop", range(7))
@pytest.mark.parametrize("every", [1, 3, 10])
def test_a_loop_that_was_stopped_ends_as_the_whole_one(tmp_path, stop, every):
    folder, taken = tmp_path / "run", []
    with pytest.raises(KeyboardInterrupt):
        loop(folder, stop=stop, every=every)
    assert float(loop(folder, every=every, taken=taken)) == float(loop())
    assert taken == list(range(stop // every * every, 7))
    assert numbers(folder) == [7]
    assert float(loop(folder, every=every, taken=taken[:0])) == float(loop())


def test_checkpoints_are_numbered_by_epochs_where_steps_are_counted_so(tmp_path):
    epochs = {"every": 2, "steps_per_number": 2, "steps": 6}
    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path / "run", stop=5, **epochs)
    assert numbers(tmp_path / "run") == [2]
    taken = []
    assert float(loop(tmp_path / "run", taken=taken, **epochs)) == float(loop(steps=6))
    assert taken == [4, 5]
    assert numbers(tmp_path / "run") == [3]


def test_a_part_of_the_state_may_be_kept(tmp_path):
    """What is not kept comes from the state that the loop is given."""
    part = {"content": lambda s: s["w"], "with_content": lambda s, w: {**s, "w": w}}
    options = {"steps": 4, "folder": tmp_path / "run", "run": {}, "label": "", "quiet": True}
    for stop in (2, 4):

        def steps(done, stop=stop):
            return itertools.takewhile(lambda i: i < stop, range(done, 4))

        found = resumable(
            lambda s, i: ({**s, "w": s["w"] + i * s["scale"]}, s["w"]),
            {"w": jnp.zeros(()), "scale": 2.0},
            steps,
            **options,
            **part,
        )
    assert float(found["w"]) == 12
    assert found["scale"] == 2.0


def test_it_is_told_when_the_folder_is_its_own(tmp_path):
    opened = []
    loop(tmp_path / "run", on_open=lambda: opened.append(1))
    assert opened == [1]
    with pytest.raises(ValueError, match="of another run"):
        resumable(
            step,
            jnp.ones(()),
            lambda done: range(0),
            steps=1,
            folder=tmp_path / "run",
            run={"seed": 2},
            on_open=lambda: opened.append(2),
            label="",
            quiet=True,
        )
    assert opened == [1]


def test_without_a_folder_nothing_is_written(monkeypatch):
    monkeypatch.setattr(RunCheckpointer, "add", None)
    assert float(loop()) == float(loop())
