"""How arrays lie on the devices of a stage."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec, SingleDeviceSharding

from jaxsim.pipeline import devices
from jaxsim.pipeline.devices import StageDevices

ONE = StageDevices(tuple(jax.devices()[:1]))


def test_on_one_device_everything_lies_there():
    assert ONE.replicated == SingleDeviceSharding(jax.devices()[0])
    assert ONE.sharding(np.ones((4, 2))) == ONE.replicated
    moved = ONE.move(jnp.ones(3))
    assert moved.devices() == {jax.devices()[0]}
    assert moved.committed


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((6, 2), PartitionSpec("data")),
        ((3,), PartitionSpec("data")),
        ((4, 3), PartitionSpec()),
        ((), PartitionSpec()),
    ],
)
def test_devices_that_share_a_stage_divide_what_divides(monkeypatch, shape, spec):
    """Among three devices rows by threes; what does not divide has a copy on each."""
    monkeypatch.setattr(devices, "NamedSharding", lambda mesh, spec: (mesh, spec))
    monkeypatch.setattr(devices, "Mesh", lambda given, names: (list(given), names))
    shared = StageDevices(("a", "b", "c"))
    mesh = (["a", "b", "c"], ("data",))
    assert shared.sharding(np.ones(shape)) == (mesh, spec)
    assert shared.replicated == (mesh, PartitionSpec())


def test_a_copy_finds_the_devices_of_its_process_or_says_which_it_lacks():
    assert pickle.loads(pickle.dumps(ONE)) == ONE
    with pytest.raises(ValueError, match="runs on cpu:98, which this process has not"):
        devices._found_here(("cpu", 0), ("cpu", 98), ("cpu", 99))
