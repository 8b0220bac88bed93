"""What a reduction runs over, where an equation stands, and how operands are read."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsim.integer.equations import line_of, refusal, summed_windows
from jaxsim.integer.requantize import dyadic
from jaxsim.integer.steps import Absent, AsIs, Constant, Encode, Encoded, Rescaled

X = np.ones((2, 6, 8, 3), np.float32)
ONES = (1, 1, 1, 1)


def equation(fn, *args):
    (eqn,) = jax.make_jaxpr(fn)(*args).eqns
    return eqn


def windows(sizes, strides=ONES, padding=((0, 0),) * 4, dilation=ONES):
    """A sum over windows, by its four settings."""
    return equation(
        lambda x: lax.reduce_window(
            x, 0.0, lax.add, sizes, strides, padding, base_dilation=dilation
        ),
        X,
    )


@pytest.mark.parametrize(
    ("eqn", "expected"),
    [
        (equation(lambda x: x.sum((1, 3)), X), ([1, 3], 18, False)),
        (windows((1, 2, 3, 1)), ([1, 2], 6, False)),
        (windows((1, 2, 1, 1), (1, 1, 2, 1)), ([1, 2], 2, False)),  # a stride alone
        (windows((1, 2, 1, 1), padding=((0, 0), (0, 0), (0, 1), (0, 0))), ([1, 2], 2, True)),
        (windows((1, 2, 1, 1), padding=((0, 0), (0, 0), (2, 0), (0, 0))), ([1, 2], 2, True)),
        (windows((1, 2, 1, 1), dilation=(1, 1, 2, 1)), ([1, 2], 2, True)),
        (windows((1, 1, 1, 1)), ([], 1, False)),
        (windows((1, 4, 1, 2)), ([1, 3], 8, False)),
    ],
    ids=str,
)
def test_a_reduction_runs_over_these_axes_so_many_numbers_and_maybe_zeros(eqn, expected):
    assert summed_windows(eqn, X.shape) == expected


def test_a_refusal_names_the_primitive_and_the_line():
    eqn = equation(lambda x: jnp.exp(x), X)
    assert line_of(eqn).split(":")[0].endswith("test_equations.py")
    assert str(refusal(eqn, "is no good")) == f"integer_only: exp at {line_of(eqn)} is no good"
    assert str(refusal(None, "is no good")) == "integer_only: an output is no good"


def test_operands_are_read_as_they_say():
    grid = Encode(*map(jnp.float32, (0.5, 3.0, -8.0, 7.0)))
    scale = dyadic(np.float64(0.3), np.float64(0.0), lo=-128.0, hi=127.0, min_code=-9, max_code=9)
    net = SimpleNamespace(constants=(jnp.int32(5), grid, scale))
    value = jnp.array([10, -10])
    assert AsIs().read(net, value) is value
    assert Absent().read(net, value) is None
    assert Constant(0).read(net, value) == 5
    np.testing.assert_array_equal(Rescaled(2).read(net, value), [3, -3])
    # in steps of a half, halves to even, and zero at 3; the ends are -8 and 7
    floats = jnp.array([0.0, 0.25, 0.75, -0.9, 2.0, 9.0, -9.0])
    codes = Encoded(1).read(net, floats)
    np.testing.assert_array_equal(codes, [3, 3, 5, 1, 7, 7, -8])
    assert codes.dtype == jnp.int8
