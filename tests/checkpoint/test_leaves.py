"""Leaves as they are written and read back: keys, weak types, places and errors."""

import errno
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxsim.checkpoint.leaves import (
    abstract_tree,
    from_leaf_list,
    is_weak,
    readable,
    shape_on,
    to_leaf_list,
    writable,
)

HERE = SingleDeviceSharding(jax.devices()[0])


def test_a_mesh_is_kept_and_everything_else_is_placed_by_the_default():
    meshed = NamedSharding(Mesh(jax.devices()[:1], "d"), PartitionSpec("d"))
    tree = {"m": jax.device_put(np.ones((2, 3)), meshed), "n": np.ones(4, np.int8), "p": 2.0}
    other = NamedSharding(Mesh(jax.devices()[:1], "e"), PartitionSpec())
    found = abstract_tree(tree, other)
    assert [found[n].sharding for n in "mnp"] == [meshed, other, other]
    assert [found[n].shape for n in "mnp"] == [(2, 3), (4,), ()]
    assert [found[n].dtype for n in "mnp"] == [np.float32, np.int8, np.float32]
    assert shape_on(tree["n"], HERE).sharding == HERE


def test_keys_travel_as_their_data_and_come_back_as_keys():
    keys = jax.random.split(jax.random.key(3, impl="rbg"), 2)
    tree = {"a": jnp.arange(3), "key": keys}
    content = to_leaf_list(tree)
    assert np.array_equal(content["leaves"][1], jax.random.key_data(keys))
    back = from_leaf_list(tree, content)
    assert jax.random.key_impl(back["key"]) == jax.random.key_impl(keys)
    assert np.array_equal(jax.random.key_data(back["key"]), jax.random.key_data(keys))
    assert np.array_equal(back["a"], tree["a"])
    shapes = to_leaf_list(jax.eval_shape(lambda: tree))["leaves"]
    assert [(s.shape, s.dtype) for s in shapes] == [((3,), np.int32), ((2, 4), np.uint32)]
    assert isinstance(to_leaf_list({"a": np.ones(2)})["leaves"][0], jax.Array)


@pytest.mark.parametrize("committed", [False, True])
def test_what_is_read_is_bound_to_a_device_only_if_its_like_is(committed):
    like = jax.device_put(jnp.ones(2), jax.devices()[0]) if committed else jnp.ones(2)
    read = jax.device_put(np.array([1.0, 2.0], np.float32), jax.devices()[0])
    found = from_leaf_list(like, {"leaves": [read]})
    assert found.committed == committed
    assert found.tolist() == [1, 2]


def test_what_is_no_array_of_jax_is_left_as_it_is():
    read = np.ones(2)
    assert from_leaf_list(jnp.ones(2), {"leaves": [read]}) is read


def test_a_python_number_makes_a_weak_array():
    assert is_weak(jnp.asarray(2.0)) is True
    assert is_weak(jnp.asarray(2.0, jnp.float32)) is False
    assert is_weak(np.ones(2)) is False


def test_whatever_reading_raises_names_the_checkpoint():
    said = "path='here' is not a readable checkpoint: bad"
    with pytest.raises(ValueError, match=said) as error, readable("here"):
        raise RuntimeError("bad")
    assert isinstance(error.value.__cause__, RuntimeError)
    with readable("here"):
        pass


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (f"long [os_error_code='{errno.ENOSPC}'] text", os.strerror(errno.ENOSPC)),
        ("first line\nsecond line", "first line"),
    ],
)
def test_whatever_writing_raises_is_one_line_with_the_reason(tmp_path, said, reason):
    filters = list(logging.getLogger("absl").filters)
    with pytest.raises(OSError, match="cannot be written") as error, writable(tmp_path):
        raise RuntimeError(said)
    assert str(error.value) == f"{str(tmp_path)!r} cannot be written: {reason}"
    assert logging.getLogger("absl").filters == filters


def test_tracebacks_of_threads_are_not_told_while_writing(tmp_path, caplog):
    log = logging.getLogger("absl")
    with caplog.at_level(logging.INFO, logger="absl"), writable(tmp_path):
        log.warning("a traceback of _SignalingThread")
        log.warning("something else")
    log.warning("_SignalingThread afterwards")
    assert [r.getMessage() for r in caplog.records] == [
        "something else",
        "_SignalingThread afterwards",
    ]
