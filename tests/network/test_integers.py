"""Integers that constants determine are computed as the model would, at all turns at once."""

import itertools
import warnings

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsim.network.integers import _SHAPED, LARGEST, evaluate, integers

A = np.array([-7, 0, 5, 6, -9, 9], np.int32)
B = np.array([3, -2, 4, 6, -2, -4], np.int32)


def equation(fn, *operands):
    """The one equation that a function of operands is; of a slice, behind those of its places."""
    *_, eqn = jax.make_jaxpr(fn)(*operands).jaxpr.eqns
    return eqn


PAIRS = {
    # of -7 and 3, 0 and -2, 5 and 4, 6 and 6, -9 and -2, 9 and -4
    "add": [-4, -2, 9, 12, -11, 5],
    "sub": [-10, 2, 1, 0, -7, 13],
    "mul": [-21, 0, 20, 36, 18, -36],
    "div": [-2, 0, 1, 1, 4, -2],
    "rem": [-1, 0, 1, 0, -1, 1],
    "max": [3, 0, 5, 6, -2, 9],
    "min": [-7, -2, 4, 6, -9, -4],
    "lt": [True, False, False, False, True, False],
    "le": [True, False, False, True, True, False],
    "gt": [False, True, True, False, False, True],
    "ge": [False, True, True, True, False, True],
    "eq": [False, False, False, True, False, False],
    "ne": [True, True, True, False, True, True],
    "bitwise_and": [1, 0, 4, 6, -10, 8],
    "bitwise_or": [-5, -2, 5, 6, -1, -3],
    "bitwise_xor": [-6, -2, 1, 0, 9, -11],
}


@pytest.mark.parametrize("name", PAIRS)
def test_operations_of_two_integers_by_hand(name):
    eqn = equation(getattr(lax, name), A, B)
    found = evaluate(eqn, [A, B], 0)
    np.testing.assert_array_equal(found, PAIRS[name])
    assert found.dtype == eqn.outvars[0].aval.dtype


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lax.neg, [7, 0, -5, -6, 9, -9]),
        (lax.abs, [7, 0, 5, 6, 9, 9]),
        (lax.sign, [-1, 0, 1, 1, -1, 1]),
        (lax.bitwise_not, [6, -1, -6, -7, 8, -10]),
        (lambda a: lax.convert_element_type(a, jnp.int8), [-7, 0, 5, 6, -9, 9]),
        (lambda a: lax.convert_element_type(a, jnp.bool_), [True, False, True, True, True, True]),
        (lambda a: lax.clamp(-2, a, 5), [-2, 0, 5, 5, -2, 5]),
    ],
)
def test_operations_of_one_integer_by_hand(fn, expected):
    eqn = equation(fn, A)
    ins = [np.asarray(v.val) if isinstance(v, jex.Literal) else A for v in eqn.invars]
    found = evaluate(eqn, ins, 0)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == eqn.outvars[0].aval.dtype


def test_cases_are_chosen_entry_by_entry_or_by_one_number():
    cases = [np.array([[1, 2], [3, 4]]) + 10 * k for k in range(3)]
    which = np.array([[2, 0], [1, 2]], np.int32)
    eqn = equation(lambda i, *c: lax.select_n(i, *c), which, *cases)
    np.testing.assert_array_equal(evaluate(eqn, [which, *cases], 0), [[21, 2], [13, 24]])
    one = equation(lambda i, *c: lax.select_n(i, *c), np.int32(1), *cases)
    np.testing.assert_array_equal(evaluate(one, [np.int32(1), *cases], 0), cases[1])
    truth = np.array([[True, False], [False, True]])
    two = equation(lambda i, *c: lax.select_n(i, *c), truth, *cases[:2])
    np.testing.assert_array_equal(evaluate(two, [truth, *cases[:2]], 0), [[11, 2], [3, 14]])


def numbers(k, *shape):
    """Distinct integers, others for each operand."""
    return (np.arange(np.prod(shape)).reshape(shape) + 100 * k).astype(np.int32)


FORMS = {
    # a function, the shapes of its operands, and what NumPy makes of them
    "add": (lax.add, [(2, 3), (2, 3)], np.add),
    "clamp": (lax.clamp, [(), (2, 3), ()], lambda a, x, b: np.minimum(np.maximum(x, a), b)),
    "select": (
        lambda i, a, b: lax.select_n(i, a, b),
        [(), (2, 3), (2, 3)],
        lambda i, a, b: b if i else a,
    ),
    "broadcast": (
        lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (0, 2)),
        [(2, 4)],
        lambda x: np.repeat(x[:, None], 3, 1),
    ),
    "broadcast of one": (
        lambda x: lax.broadcast_in_dim(x, (5, 3), (0, 1)),
        [(1, 3)],
        lambda x: np.repeat(x, 5, 0),
    ),
    "reshape": (lambda x: lax.reshape(x, (3, 2)), [(2, 3)], lambda x: x.reshape(3, 2)),
    "squeeze": (lambda x: lax.squeeze(x, (1,)), [(2, 1, 3)], lambda x: x[:, 0]),
    "slice": (lambda x: lax.slice(x, (1, 0), (4, 2)), [(5, 3)], lambda x: x[1:4, :2]),
    "strides": (
        lambda x: lax.slice(x, (1, 0), (5, 3), (3, 2)),
        [(5, 3)],
        lambda x: x[1:5:3, 0:3:2],
    ),
    "reverse": (lambda x: lax.rev(x, (1,)), [(2, 3)], lambda x: x[:, ::-1]),
    "concatenate": (
        lambda a, b: lax.concatenate([a, b], 1),
        [(2, 3), (2, 1)],
        lambda a, b: np.concatenate([a, b], 1),
    ),
    "dynamic slice": (
        lambda x, i, j: lax.dynamic_slice(x, (i, j), (2, 3)),
        [(5, 4), (), ()],
        lambda x, i, j: x[np.clip(i, 0, 3) :, np.clip(j, 0, 1) :][:2, :3],
    ),
}
INTEGERS = {
    "clamp": {0: [[3], [-9]], 2: [[4], [20]]},
    "select": {0: [[1, 0, 0]]},
    "dynamic slice": {1: [[-4, 1, 9]], 2: [[0], [1]]},
}
"""Operands that are numbers, at two turns of an outer loop or at three of the one within."""


@pytest.mark.parametrize("name", FORMS)
def test_turns_of_two_loops_are_computed_at_once(name):
    """An operand of the outer loop's turns, the next of the inner one's, as NumPy turn by turn."""
    fn, shapes, oracle = FORMS[name]
    leads = itertools.cycle([(2, 1), (1, 3)])
    ins = [numbers(k, *next(leads), *shape) for k, shape in enumerate(shapes)]
    for k, values in INTEGERS.get(name, {}).items():
        ins[k] = np.asarray(values, np.int32)
    one = [a[0, 0] for a in ins]
    if name == "select":
        ins[0], one[0] = ins[0].astype(bool), np.bool_(one[0])
    eqn = equation(fn, *one)
    found = evaluate(eqn, ins, 2)
    out = eqn.outvars[0].aval
    assert found.ndim == 2 + len(out.shape)
    assert found.dtype == out.dtype
    whole = np.broadcast_to(found, (2, 3, *out.shape))
    for turn in np.ndindex(2, 3):
        at = [a[tuple(min(t, n - 1) for t, n in zip(turn, a.shape, strict=False))] for a in ins]
        np.testing.assert_array_equal(whole[turn], oracle(*at))


def test_places_of_an_array_are_those_of_its_axis_at_every_turn():
    eqn = equation(lambda: lax.broadcasted_iota(jnp.int32, (2, 3), 1))
    found = evaluate(eqn, [], 2)
    assert found.shape == (1, 1, 2, 3)
    np.testing.assert_array_equal(found[0, 0], [[0, 1, 2]] * 2)


def test_a_stack_of_arrays_has_its_axis_behind_those_of_the_turns():
    """A primitive of newer versions of JAX alone."""
    a, b = numbers(0, 2, 1, 4), numbers(1, 1, 3, 4)
    found = _SHAPED["stack"]({"axis": 1}, 2, None, a, b)
    assert found.shape == (2, 3, 4, 2)
    np.testing.assert_array_equal(found[1, 2], np.stack([a[1, 0], b[0, 2]], 1))


def test_what_overflows_wraps_around_without_a_warning():
    low, one = np.array([-(2**31)], np.int32), np.array([-1], np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fn, expected in ((lax.add, 2**31 - 1), (lax.rem, 0), (lax.mul, -(2**31))):
            assert evaluate(equation(fn, low, one), [low, one], 0) == expected


def test_the_lowest_integer_is_divided_towards_zero_as_any_other():
    """Its magnitude is none of its type; divided by -1 it is itself, as for XLA."""
    low = -(2**31)
    a, b = np.array([low, 7, low, low], np.int32), np.array([3, low, low, -1], np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(equation(lax.div, a, b), [a, b], 0)
    np.testing.assert_array_equal(found, [-715827882, 0, 1, low])


@pytest.mark.parametrize("fn", [lax.div, lax.rem])
def test_a_division_by_zero_at_one_turn_is_not_followed(fn):
    eqn = equation(fn, A[0], B[0])
    assert evaluate(eqn, [A, np.array([1, 0, 2, 3, 4, 5], np.int32)], 1) is None
    np.testing.assert_array_equal(
        evaluate(eqn, [A, B], 1), PAIRS["div" if fn is lax.div else "rem"]
    )


def test_floats_other_primitives_and_what_gives_nothing_are_not_followed():
    assert evaluate(equation(lambda a: a.astype(jnp.float32), A), [A], 0) is None
    assert evaluate(equation(lax.population_count, A), [A], 0) is None
    two = equation(lambda a, b: lax.sort((a, b), num_keys=1), A, B)
    assert evaluate(two, [A, B], 0) is None
    shown = equation(lambda a: jax.debug.callback(lambda a: None, a), A)
    assert evaluate(shown, [A], 0) is None


def test_an_array_is_followed_up_to_its_largest_size():
    assert LARGEST == 65536
    for size, followed in ((65536, True), (65537, False)):
        found = evaluate(equation(lambda n=size: lax.iota(jnp.int32, n)), [], 0)
        assert (found is not None) is followed
        assert (integers(np.zeros((size, 1), np.int8)) is not None) is followed


def test_a_constant_is_read_where_it_counts():
    np.testing.assert_array_equal(integers(np.array([[2, 3]])), [[2, 3]])
    np.testing.assert_array_equal(integers(jnp.array([True, False])), [True, False])
    assert integers(7) == 7
    assert integers(np.float32([1.0])) is None
    assert integers(jax.random.key(0)) is None
    seen = []
    jax.make_jaxpr(lambda a: seen.append(integers(a)) or a)(A)
    assert seen == [None]
