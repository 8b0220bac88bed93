"""Equations that move vectors whole: a matrix before each is a matrix behind it."""

import functools

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsim.network.moves import destination, origins
from tests.support.models import normal

A, B = normal(2, 5, 3, 4), normal(2, 5, 3, 4, seed=1)
MATRIX = np.linalg.qr(normal(4, 4, seed=2))[0]
MARK = normal(2, 5, seed=3) > 0


def of_scalar(atom, axis):
    return len(atom.aval.shape) <= axis or atom.aval.shape[axis] == 1


MOVES = {
    "transpose": (lambda a: a.transpose(1, 3, 0, 2), 1),
    "merge": (lambda a: a.reshape(10, 3, 4), 2),
    "split a merged axis": (lambda a: a.reshape(2, 5, 3, 1, 4), 4),
    "squeeze": (lambda a: lax.squeeze(a[:, :1], (1,)), 2),
    "repeat": (lambda a: jnp.broadcast_to(a[:, :, :, None], (2, 5, 3, 6, 4)), 4),
    "scale": (lambda a: 2.0 * a, 3),
    "scale each": (lambda a: a / lax.broadcast_in_dim(2.0 + A[..., 0], (2, 5, 3, 1), (0, 1, 2)), 3),
    "negate": (lambda a: -a, 3),
    "slice": (lambda a: a[:, 1:3], 3),
    "slice at": (lambda a: lax.dynamic_slice_in_dim(a, 2, 2, 1), 3),
    "reverse": (lambda a: lax.rev(a, (1,)), 3),
    "pad": (lambda a: lax.pad(a, 0.0, [(0, 0, 0), (1, 0, 0), (0, 0, 0), (0, 0, 0)]), 3),
    "take": (lambda a: jnp.take(a, jnp.array([4, 0]), axis=1, mode="clip"), 3),
    "tile": (lambda a: jnp.tile(a, (1, 1, 2, 1)), 3),
    "unstack": (lambda a: jnp.unstack(a, axis=1)[2], 2),
    "split": (lambda a: jnp.split(a, [2], axis=1)[0], 3),
}
JOINS = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "concatenate": lambda a, b: jnp.concatenate([a, b], 1),
    "stack": lambda a, b: jnp.stack([a, b], -2).reshape(2, 5, 6, 4),
    "update": lambda a, b: lax.dynamic_update_slice_in_dim(a, b[:, :2], 1, 1),
    "scatter": lambda a, b: a.at[:, jnp.array([3, 1])].set(b[:, :2]),
    "select": lambda a, b: lax.select_n(lax.broadcast_in_dim(MARK, A.shape, (0, 1)), a, b),
}
OTHER = {
    "reshape of vectors": lambda a: a.reshape(2, 5, 12),
    "scale of entries": lambda a: a * A,
    "slice of entries": lambda a: a[..., :2],
    "function": jnp.tanh,
    "pad with ones": lambda a: lax.pad(a, 1.0, [(0, 0, 0), (1, 0, 0), (0, 0, 0), (0, 0, 0)]),
    "reverse of entries": lambda a: a[..., ::-1],
    "sum": lambda a: a.sum(-1),
    "scatter of entries": lambda a: a.at[..., 1].set(0.0),
    "reciprocal": lambda a: 1.0 / a,
    "concatenation of vectors": lambda a: jnp.concatenate([a, a], -1),
    "part of each": lambda a: jax.vmap(lambda r, i: lax.dynamic_slice(r, (0, 0, i), (5, 3, 2)))(
        a, jnp.arange(2)
    ),
}


@functools.cache
def uniform():
    """Tells whether a value is the same along an axis, of masks that are broadcast."""

    def same(atom, axis):
        return of_scalar(atom, axis) or atom.aval.dtype == bool

    return same


def followed(fn, axes, *operands):
    """Axis of the result along which vectors lie, by the equations; None where they are lost."""
    with jax.disable_jit():
        jaxpr = jax.make_jaxpr(fn)(*operands).jaxpr
    marks = dict(zip(jaxpr.invars, axes, strict=True))
    for eqn in jaxpr.eqns:
        known = [None if isinstance(v, jex.Literal) else marks.get(v) for v in eqn.invars]
        ins = [(i, axis) for i, axis in enumerate(known) if axis is not None]
        if not ins:
            continue
        after = destination(eqn, *ins[0], uniform())
        if after is None or sorted(origins(eqn, after, uniform())) != ins:
            return None
        marks.update(dict.fromkeys(eqn.outvars, after))
    return marks.get(jaxpr.outvars[0])


def turn(a, axis):
    return np.moveaxis(np.moveaxis(np.asarray(a), axis, -1) @ MATRIX, -1, axis)


@pytest.mark.parametrize("name", MOVES)
def test_a_matrix_before_a_move_is_one_behind_it(name):
    fn, axis = MOVES[name]
    assert followed(fn, [3], A) == axis
    np.testing.assert_allclose(fn(jnp.asarray(turn(A, 3))), turn(fn(A), axis), atol=1e-5)


@pytest.mark.parametrize("name", JOINS)
def test_vectors_of_two_operands_are_turned_together(name):
    fn = JOINS[name]
    assert followed(fn, [3, 3], A, B) == 3
    both = fn(jnp.asarray(turn(A, 3)), jnp.asarray(turn(B, 3)))
    np.testing.assert_allclose(both, turn(fn(jnp.asarray(A), jnp.asarray(B)), 3), atol=1e-5)
    assert followed(fn, [3, None], A, B) is None  # one alone would stand beside others


@pytest.mark.parametrize("name", OTHER)
def test_what_looks_into_vectors_is_no_move(name):
    fn = OTHER[name]
    assert followed(fn, [3], A) is None
    if fn(jnp.asarray(A)).shape == A.shape:  # the known wrong way is seen
        assert np.abs(fn(jnp.asarray(turn(A, 3))) - turn(fn(jnp.asarray(A)), 3)).max() > 0.01


@pytest.mark.parametrize("hold", [lax.optimization_barrier, jax.device_put])
def test_what_is_held_beside_others_comes_from_none_of_them(hold):
    (eqn,) = jax.make_jaxpr(lambda a, b: hold([a, b]))(A, B).jaxpr.eqns
    assert origins(eqn, 3, uniform()) is None
    (alone,) = jax.make_jaxpr(lambda a: hold([a]))(A).jaxpr.eqns
    assert origins(alone, 3, uniform()) == [(0, 3)]
