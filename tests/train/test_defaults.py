"""Arguments that are left out have the values that the documentation shows."""

import pytest

from jaxsim import train
from jaxsim.checkpoint import resumable, run_checkpoints
from jaxsim.train.reference import trained
from tests.support.defaults import defaults

DEFAULTS = {
    train.Soft: {"weight": 0.1, "temperature": (5e-3, 5e-4)},
    train.distillation: {"temperature": 4.0, "weight": 0.9},
    train.fit: {"batch_size": 128, "rngs": (), "label": "training", "quiet": False},
    trained: {"quiet": False},
    resumable: {"every": 1, "steps_per_number": 1, "value": "loss", "quiet": False},
    run_checkpoints: {"read_only": False},
}


@pytest.mark.parametrize("made", DEFAULTS, ids=lambda made: made.__name__)
def test_what_is_left_out_is_as_documented(made):
    assert defaults(made) == DEFAULTS[made]
