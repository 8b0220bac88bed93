"""Which layers of a pyramid are one program, and after which the host has to look."""

import types

import numpy as np
import pytest

from jaxsim.adaptive.pyramid_queue import _ends, _waits


def net(levels, threshold=0.0, patience=0, first=1):
    return types.SimpleNamespace(
        level=np.asarray(levels, np.float32),
        threshold=threshold,
        patience=patience,
        first=first,
        encoder=types.SimpleNamespace(attention=(None,) * len(levels)),
    )


@pytest.mark.parametrize(
    ("rule", "waits"),
    [
        ({}, []),
        ({"threshold": 0.1}, [0, 1, 2]),
        ({"patience": 1}, [0, 1, 2]),
        ({"threshold": 0.1, "first": 2}, [1, 2]),
        ({"threshold": 0.1, "first": 3}, [2]),
        ({"threshold": 0.1, "first": 4}, []),
    ],
)
def test_the_host_looks_after_each_exit_that_a_row_may_take_but_the_last(rule, waits):
    made = net([0, 0, 0, 0], **rule)
    assert [i for i in range(4) if _waits(made, i)] == waits


@pytest.mark.parametrize(
    ("levels", "rule", "ends"),
    [
        ([0, 0, 0, 0], {}, [4, 4, 4, 4]),
        ([0.1, 0, 0, 0], {}, [0, 4, 4, 4]),
        ([0, 0, 0.1, 0], {}, [2, 2, 2, 4]),
        ([0, 0, 0, 0.1], {}, [3, 3, 3, 3]),
        ([0, 0, 0, 0], {"threshold": 0.5}, [1, 2, 3, 4]),
        ([0, 0, 0, 0], {"threshold": 0.5, "first": 3}, [3, 3, 3, 4]),
        ([0, 0.1, 0, 0], {"threshold": 0.5, "first": 3}, [1, 1, 3, 4]),
    ],
)
def test_layers_that_decide_nothing_are_one_program(levels, rule, ends):
    """Up to a layer that leaves out tokens, and up to and with one after which rows may leave."""
    assert _ends(net(levels, **rule)) == ends
