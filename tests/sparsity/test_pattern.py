"""Which weights go together, number by number, and layers that a pattern does not fit."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js

sp = js.sparsity


def units(pattern, shape, contracted=()):
    """Numbers of the weights in each unit of each group of a layer."""
    layout = pattern.layout("w", shape, contracted)
    count = int(np.prod(shape))
    found = layout.gather(np.arange(count).reshape(1, *shape))[0]
    assert found.shape == (layout.groups, layout.units, layout.size)
    # what is spread over units comes back to the weights that were gathered
    numbers = jnp.arange(layout.groups * layout.units).reshape(1, layout.groups, layout.units)
    back = np.asarray(layout.spread(numbers)).reshape(-1)
    for place, unit in enumerate(found.reshape(-1, layout.size)):
        assert (back[unit] == place).all()
    return found.tolist()


def test_units_by_hand():
    assert units(sp.unstructured(), (2, 3)) == [[[0], [1], [2], [3], [4], [5]]]
    # columns of (2, 3) are 0 3, 1 4 and 2 5, rows are 0 1 2 and 3 4 5
    assert units(sp.channel(), (2, 3)) == [[[0, 3], [1, 4], [2, 5]]]
    assert units(sp.channel(-2), (2, 3)) == [[[0, 1, 2], [3, 4, 5]]]
    assert units(sp.channel(0), (2, 3)) == units(sp.channel(-2), (2, 3))
    # the heads of (2, 3, 2) are its middle axis
    assert units(sp.head(3), (2, 3, 2)) == [[[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]]
    # blocks of one row and two columns of (2, 4), and of two rows and one column
    assert units(sp.block(1, 2), (2, 4)) == [[[0, 1], [2, 3], [4, 5], [6, 7]]]
    assert units(sp.block(2, 1), (2, 4)) == [[[0, 4], [1, 5], [2, 6], [3, 7]]]
    # of a kernel [2, 2, 4] block by block of its last two axes
    assert units(sp.block(2, 2), (2, 2, 4)) == [
        [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    ]


def test_neighbors_compete_along_the_axis_that_is_summed_over():
    """(4, 2): pairs of rows in each column; along the last axis pairs of columns in each row."""
    rows = [[[0], [2]], [[1], [3]], [[4], [6]], [[5], [7]]]
    assert units(sp.n_of_m(1, 2), (4, 2), (0,)) == rows
    assert units(sp.n_of_m(1, 2, axis=0), (4, 2), (1,)) == rows
    assert units(sp.n_of_m(1, 2, axis=-1), (4, 2), (0,)) == [
        [[2 * i], [2 * i + 1]] for i in range(4)
    ]
    # of several the last
    assert units(sp.n_of_m(1, 2), (4, 2), (0, 1)) == units(sp.n_of_m(1, 2, axis=1), (4, 2))


def test_what_a_pattern_says_of_itself():
    for n, m, sparsity in ((1, 4, 0.75), (2, 4, 0.5), (3, 8, 0.625)):
        assert sp.n_of_m(n, m).sparsity == sparsity
    assert (sp.n_of_m(1, 2).needs_axes, sp.n_of_m(1, 2, axis=0).needs_axes) == (True, False)
    for pattern, tied in ((sp.unstructured(), False), (sp.head(2), True), (sp.channel(), False)):
        assert (pattern.sparsity, pattern.tied, pattern.needs_axes) == (None, tied, False)


@pytest.mark.parametrize(
    ("message", "make"),
    {
        "m=1: must be an int of at least 2": lambda: sp.n_of_m(1, 1),
        "n=0: must be an int from 1 to 1": lambda: sp.n_of_m(0, 2),
        "n=2: must be an int from 1 to 1": lambda: sp.n_of_m(2, 2),
        "rows=0: must be": lambda: sp.block(0, 1),
        "columns=0: must be": lambda: sp.block(1, 0),
        "heads=1: must be an int of at least 2": lambda: sp.head(1),
        "m=4: does not divide axis 1": lambda: units(sp.n_of_m(1, 4, axis=1), (4, 6)),
        r"axis=2: w \[4, 6\] has no such axis": lambda: units(sp.channel(2), (4, 6)),
        "axis=-3: w": lambda: units(sp.channel(-3), (4, 6)),
        "rows=3, columns=2: do not divide": lambda: units(sp.block(3, 2), (4, 6)),
        "rows=2, columns=4: do not divide": lambda: units(sp.block(2, 4), (4, 6)),
        "rows=1, columns=1: do not divide": lambda: units(sp.block(1, 1), (4,)),
        "has no axis of that length": lambda: units(sp.head(5), (4, 6)),
        "has several axes of that length": lambda: units(sp.head(4), (4, 4)),
    }.items(),
)
def test_layers_that_do_not_fit_are_named(message, make):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_least_that_fits():
    assert sp.n_of_m(1, 2).sparsity == 0.5
    assert len(units(sp.block(1, 1), (2, 2))[0]) == 4
    assert len(units(sp.head(2), (2, 3))[0]) == 2
    assert len(units(sp.channel(1), (2, 3))[0]) == 3
