"""Old names still lead to what has been renamed, and say so."""

import pytest

from jaxsim import checkpoint
from jaxsim.checkpoint import log
from jaxsim.train import losses

RENAMED = [
    (checkpoint, "Log", "ScoreCache"),
    (checkpoint, "Trail", "RunCheckpointer"),
    (checkpoint, "fingerprint", "run_digest"),
    (checkpoint, "trail", "run_checkpoints"),
    (log, "Log", "ScoreCache"),
    (log, "fingerprint", "run_digest"),
    (losses, "taught", "distillation_targets"),
]


@pytest.mark.parametrize(("module", "old", "new"), RENAMED)
def test_an_old_name_is_the_new_one_and_says_so(module, old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is now called {new}"):
        found = getattr(module, old)
    assert found is getattr(module, new)
    assert old not in getattr(module, "__all__", ())


def test_any_other_name_is_no_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'Lock'"):
        _ = checkpoint.Lock
