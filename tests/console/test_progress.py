"""A bar reads its number now and then, so that steps run ahead of it."""

import io

import numpy as np
import pytest
import rich.progress
from rich.console import Console

from jaxsim.console.progress import progress


@pytest.fixture
def told(monkeypatch):
    """What bars are told, one after the other."""
    calls = []

    class Recorded(rich.progress.Progress):
        def __init__(self, *columns, disable):
            calls.append(("quiet", disable))
            console = Console(file=io.StringIO(), force_terminal=True, width=100)
            super().__init__(*columns, disable=disable, console=console)

        def add_task(self, label, **options):
            calls.append((label, options["total"], options["completed"]))
            assert np.isnan(options["value"])
            return super().add_task(label, **options)

        def update(self, task, *, completed, value):
            calls.append((completed, value))
            super().update(task, completed=completed, value=value)
            calls.append(self.columns[3].render(self.tasks[0]).plain)

    monkeypatch.setattr(rich.progress, "Progress", Recorded)
    return calls


def test_a_number_is_read_every_twenty_steps_and_at_the_end(told):
    with progress("pruning", 47, 3, "loss", quiet=False) as advance:
        for step in range(4, 48):
            advance(np.float32(step / 16))
    read = [("loss 1.250", 20), ("loss 2.500", 40), ("loss 2.938", 47)]
    expected = [("quiet", False), ("pruning", 47, 3)]
    for text, step in read:
        expected += [(step, step / 16), text]
    assert told == expected


def test_a_quiet_bar_shows_nothing(told):
    with progress("pruning", 2, 0, "loss", quiet=True) as advance:
        advance(np.float32(1))
    assert told == [("quiet", True), ("pruning", 2, 0)]
