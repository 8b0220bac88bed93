"""Where the rows of a batch lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.network.arguments import call_arguments
from jaxsim.staged import rows


def test_the_first_array_with_an_axis_says_how_many_rows_there_are():
    arrays = (np.float32(2), np.ones((4, 3)), np.ones(4), np.ones((3, 4)))
    arguments = call_arguments(arrays, {})
    assert rows.find_rows(arguments) == (4, (False, True, True, False))
    shapes = [
        a.shape for a in rows.with_batch_size(arguments, (False, True, True, False), 7).arrays
    ]
    assert shapes == [(), (7, 3), (7,), (3, 4)]


@pytest.mark.parametrize("arrays", [(np.float32(2),), (np.ones((0, 3)),)])
def test_no_row_is_no_batch(arrays):
    with pytest.raises(ValueError, match="must have a row at least"):
        rows.find_rows(call_arguments(arrays, {}))


def test_batches_move_to_the_front_and_what_has_none_is_dropped():
    live = [jnp.ones((3, 2)), jnp.ones((4, 5)), jnp.ones((6, 7, 2))]
    assert [a.shape for a in rows.batch_first(live, [1, None, 2])] == [(2, 3), (2, 6, 7)]


def test_abstract_leaves_are_shapes_and_types():
    found = rows.abstract_leaves([np.ones((2, 3), np.int32), jnp.float32(1)])
    assert [(a.shape, a.dtype) for a in found] == [((2, 3), np.int32), ((), np.float32)]
    assert hash(found) == hash(tuple(found))
    assert isinstance(found[0], jax.ShapeDtypeStruct)
