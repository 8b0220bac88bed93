"""Checkpoints that an earlier version wrote load, and compute what they did.

`tests/fixtures/checkpoints_0.1` was written by jaxsim 0.1.0 (commit 0de89a1) with jax 0.10.2, from
the networks of `tests/old_checkpoints.py`; `outputs.npz` is what they computed there.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

import jaxsim as js
from tests.old_checkpoints import COMPOSED, NETWORKS, X, composed, network

FOLDER = Path(__file__).parent / "fixtures" / "checkpoints_0.1"
OUTPUTS = np.load(FOLDER / "outputs.npz")


@pytest.mark.parametrize("name", NETWORKS)
def test_an_old_checkpoint_loads_and_computes_what_it_did(name):
    like = COMPOSED[name](network())
    loaded = js.load(FOLDER / name, like=like)
    np.testing.assert_allclose(loaded(X), OUTPUTS[name], rtol=1e-5, atol=1e-5)


def test_outputs_tell_the_checkpoints_apart():
    """A control: none computes what another does, so that loading the wrong one would be seen."""
    outs = [OUTPUTS[name] for name in NETWORKS if name != "exits"]
    for i, a in enumerate(outs):
        assert all(np.abs(a - b).max() > 1e-4 for b in outs[i + 1 :])


def test_another_composition_is_refused():
    with pytest.raises(ValueError, match="another network"):
        js.load(FOLDER / "codes", like=COMPOSED["table"](network()))


@pytest.mark.parametrize("name", ["codes", "analog"])
def test_what_is_saved_now_reads_as_what_was_saved_then(name, tmp_path):
    js.save(tmp_path / "now", composed(name))
    then = js.load(FOLDER / name, like=COMPOSED[name](network()))
    now = js.load(tmp_path / "now", like=COMPOSED[name](network()))
    for a, b in zip(jax.tree.leaves(now.states), jax.tree.leaves(then.states), strict=True):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-5, atol=1e-6)
