"""How a batch divides, and how the parts' outputs join."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.partition import Partitioned
from jaxsim.pipeline.microbatch import BatchSplit, OutputJoin, batch_split, example_of, output_join


def arguments(*arrays):
    return Partitioned.of(arrays, lambda a: True)


def test_only_arrays_with_the_batch_in_front_are_divided():
    whole = np.arange(12).reshape(6, 2)
    across, scale = np.arange(12).reshape(2, 6), np.float32(2)
    split = BatchSplit(6, 3)
    assert split.microbatch_size == 2
    assert [split.divides(a) for a in (whole, across, scale)] == [True, False, False]
    shapes = [split.shape(a) for a in (whole, across, scale)]
    assert [s.shape for s in shapes] == [(2, 2), (2, 6), ()]
    assert [s.dtype for s in shapes] == [whole.dtype, across.dtype, scale.dtype]
    parts = split.parts([scale, whole, across])
    assert len(parts) == 3
    for m, (same, some, all_of_it) in enumerate(parts):
        assert same == 2
        np.testing.assert_array_equal(some, whole[2 * m : 2 * m + 2])
        np.testing.assert_array_equal(all_of_it, across)


@pytest.mark.parametrize(
    ("size", "count", "replicas", "message"),
    [
        (12, 4, 3, None),
        (12, 12, 1, None),
        (12, 5, 1, "a batch of 12 is not divisible into microbatches=5 equal parts"),
        (12, 24, 1, "a batch of 12 is not divisible into microbatches=24 equal parts"),
        (0, 4, 1, "a batch of 0 is not divisible into microbatches=4 equal parts"),
        (12, 3, 3, "micro-batches of 4 are not divisible among 3 devices a stage"),
    ],
)
def test_a_batch_divides_evenly_or_not_at_all(size, count, replicas, message):
    given = arguments(np.float32(3), np.zeros((size, 2)), np.zeros((7,)))
    if message is None:
        assert batch_split(given, count, replicas) == BatchSplit(size, count)
        return
    with pytest.raises(ValueError, match=message):
        batch_split(given, count, replicas)


def test_numbers_alone_are_no_batch():
    with pytest.raises(ValueError, match="no array has an axis to divide"):
        batch_split(arguments(np.float32(3)), 1, 1)


def test_outputs_join_along_the_batch_or_by_their_kind():
    """Along axis 1; the last of integers; the mean of floats."""
    parts = [
        [jnp.array([[1.0], [2.0]]), jnp.array([3, 4]), jnp.array([1.0, 6.0])],
        [jnp.array([[5.0], [6.0]]), jnp.array([7, 8]), jnp.array([4.0, 0.0])],
        [jnp.array([[9.0], [10.0]]), jnp.array([11, 12]), jnp.array([7.0, 0.0])],
    ]
    join = OutputJoin((1, None, None), {})
    along, last, mean = join.join(parts)
    np.testing.assert_array_equal(along, [[1, 5, 9], [2, 6, 10]])
    np.testing.assert_array_equal(last, [11, 12])
    np.testing.assert_array_equal(mean, [4, 2])
    assert join.join(parts[:1]) == parts[0]


def test_a_moving_average_of_variances_is_that_of_the_whole_batch():
    """By hand: an average that keeps 3/4 of 8 and takes 1/4 of the batch's variance.

    Of parts [0, 2] and [4, 10] the variances are 1 and 9, the means 1 and 7; of all four numbers
    mean 4 and variance 14. The averages of means, which began at 0, are 1/4 and 7/4.
    """
    parts = [
        [jnp.float32(6 + 1 / 4), jnp.float32(1 / 4)],
        [jnp.float32(6 + 9 / 4), jnp.float32(7 / 4)],
    ]
    join = OutputJoin((None, None), {0: (1, np.float32(3 / 4))})
    var, mean = join.join(parts)
    assert float(var) == 6 + 14 / 4
    assert float(mean) == 4 / 4
    still = OutputJoin((None, None), {0: (1, np.float32(1))})  # nothing is taken
    assert float(still.join([[jnp.float32(8), jnp.float32(0)]] * 2)[0]) == 8


def joined(model, x):
    net = js.trace(model, jnp.ones((3, 5)), x)
    halves = arguments(x)
    micro = Partitioned.of((jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype),), lambda a: True)
    return output_join(net, _call(halves), _call(micro))


def _call(given):
    """Arguments of a call without keywords."""
    return Partitioned.of((given.combine(), {}), lambda a: hasattr(a, "shape"))


def test_the_batch_axis_of_an_output_is_the_one_that_changes():
    def model(w, x):
        return {"front": x @ w, "last": (x @ w).T, "none": w.sum()}

    found = joined(model, jnp.ones((4, 3)))
    assert found == OutputJoin((0, 1, None), {})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda w, x: {"g": x @ w @ w.T @ x.T},
            r"output g: \[4, 4\] for the mini-batch and \[2, 2\]",
        ),
        (lambda w, x: {"s": x @ w if len(x) == 4 else x[0] @ w}, "output s: its rank changes"),
    ],
)
def test_an_output_that_mixes_rows_is_refused_by_name(model, message):
    with pytest.raises(ValueError, match=message):
        joined(model, jnp.ones((4, 3)))


@pytest.mark.parametrize(("parts", "rows"), [(1, 6), (3, 6), (6, 6), (4, 24), (12, 72)])
def test_an_example_that_does_not_divide_is_taken_as_one_part(parts, rows):
    net = js.trace(lambda w, x, y: x @ w + y, jnp.ones((3, 2)), jnp.ones((6, 3)), jnp.ones(2))
    x, y = example_of(net, parts).arrays
    assert (x.shape, y.shape) == ((rows, 3), (2,))


def test_a_number_in_front_is_no_batch():
    net = js.trace(lambda w, t, x: t * x @ w, jnp.ones((3, 2)), jnp.float32(2), jnp.ones((6, 3)))
    t, x = example_of(net, 4).arrays
    assert (t.shape, x.shape) == ((), (24, 3))
