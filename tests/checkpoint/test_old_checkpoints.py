"""Checkpoints that an earlier version wrote load, and compute what they did.

`tests/fixtures/checkpoints_0.1` was written by jaxsim 0.1.0 (commit 0de89a1) with jax 0.10.2, from
the networks of `tests/support/old_checkpoints.py`; `outputs.npz` is what they computed there.
"""

import importlib
import inspect
import pkgutil
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxsim as js
from jaxsim import cores
from jaxsim.checkpoint.save_load import describe
from tests.support.old_checkpoints import COMPOSED, NETWORKS, X, composed, network

FOLDER = Path(__file__).parents[1] / "fixtures" / "checkpoints_0.1"
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
    for site, state in now.states.items():
        before = then.states[site]._asdict()
        fields = {k: v for k, v in state._asdict().items() if v is not None}
        assert {"inner", "scale"} <= fields.keys()
        mine, theirs = fields, {name: before[name] for name in fields}
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            a, b = np.asarray(a, float), np.asarray(b, float)
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_at_rest_names_a_module(name):
    lines = describe(COMPOSED[name](network()))
    assert not [line for line in lines if "jaxsim" in line]


def test_a_function_of_somebody_elses_is_named_with_its_module():
    wrapped = js.wrap(mine)(network())
    assert "tests.checkpoint.test_old_checkpoints.mine()" in describe(wrapped)[0]


def mine(core):
    return core


def test_names_of_cores_tell_them_apart():
    """A name alone stands for a function only while no two have it."""
    found = {}
    for module in pkgutil.walk_packages(cores.__path__, "jaxsim.cores."):
        for name, function in vars(importlib.import_module(module.name)).items():
            if not inspect.isfunction(function) or function.__module__ != module.name:
                continue
            if next(iter(inspect.signature(function).parameters), None) == "core":
                at_rest = getattr(function, "at_rest", name)
                assert found.setdefault(at_rest, (module.name, name)) == (module.name, name)
    of_0_1 = (
        "quantized blocked sliced tiled differential offset referred serial lifted converted held"
    )
    assert {*of_0_1.split(), "grounded", "wired", "looked_up", "floated"} <= set(found)
    assert {"masked", "shifted", "biased", "smoothed", "compressed"} <= set(found)
