"""What a call hands through unchanged, and what it replaces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsim.network.changes import _argument, _find_forwarded, update_buffers

A, B, C = jnp.ones(2), jnp.zeros(2), jnp.arange(2.0)


# what is handed on by a call that JAX does not see through when it traces a loop
held = jax.checkpoint(lambda a: a)


def swapping(carry, _):
    a, b, c = carry
    return (b, a, c), None


def stepping(carry, x):
    a, b = carry
    return (a, b + x), (x, a)


HANDED = {
    # for each result the place of the operand that it is, None where it is computed
    "as they are": (lambda a, b, c: (c, a, b), [2, 0, 1]),
    "computed": (lambda a, b, c: (a + 0, b, c * 1), [None, 1, None]),
    "called": (jax.jit(lambda a, b, c: (b, a * 2, jax.jit(lambda c: c)(c))), [1, None, 2]),
    "called twice over": (lambda a, b, c: jax.jit(lambda b, a: (a, b))(a, b), [1, 0]),
    "remembered": (jax.checkpoint(lambda a, b, c: (a, jnp.sin(b), c)), [0, None, 2]),
    "carried": (
        lambda a, b, c: lax.scan(lambda k, _: ((k[0], k[1] + 1), None), (a, b), None, length=3)[0],
        [0, None],
    ),
    "swapped": (
        lambda a, b, c: lax.scan(swapping, (a, b, c), None, length=3)[0],
        [None, None, 2],
    ),
    "swapped by loops": (
        lambda a, b, c: lax.while_loop(
            lambda k: k[2][0] < 3, lambda k: (k[1], k[0], k[2] + 1), (a, b, c)
        ),
        [None, None, None],
    ),
    "kept by loops": (
        lambda a, b, c: lax.while_loop(
            lambda k: k[1][0] + a[0] < 3, lambda k: (k[0], k[1] + b), (c, a)
        ),
        [2, None],
    ),
    "carried within": (
        lambda a, b, c: lax.scan(
            lambda k, _: ((held(k[0]), k[1] + c, held(k[1])), None), (a, b, c), None, length=3
        )[0],
        [0, None, None],
    ),
    "kept within loops": (
        lambda a, b, c: lax.while_loop(
            lambda k: k[1][0] + a[0] < 3, lambda k: (held(k[0]), k[1] + b), (c, a)
        ),
        [2, None],
    ),
    "in every branch": (
        lambda a, b, c: lax.cond(
            c[0] > 0, lambda a, b: (a, b, a), lambda a, b: (a, a, b + 1), a, b
        ),
        [0, None, None],
    ),
}


@pytest.mark.parametrize("name", HANDED)
def test_results_are_operands_where_nothing_on_the_way_computes(name):
    fn, places = HANDED[name]
    jaxpr = jax.make_jaxpr(fn)(A, B, C).jaxpr
    found = _find_forwarded(jaxpr)
    for each, result, place in zip(found, jaxpr.outvars, places, strict=True):
        assert each is (result if place is None else jaxpr.invars[place])


def test_what_is_scanned_may_be_stacked_as_it_was_and_a_carry_is_another_shape():
    xs = jnp.arange(3.0)
    jaxpr = jax.make_jaxpr(lambda a, b, xs: lax.scan(stepping, (a, b), xs))(0.0, 1.0, xs).jaxpr
    a, _, slices = jaxpr.invars
    kept, moved, stacked, copied = _find_forwarded(jaxpr)
    assert kept is a
    assert stacked is slices
    assert all(v is not w for v in (moved, copied) for w in jaxpr.invars)


def test_what_is_scanned_and_stacked_within_is_as_it_was():
    def step(carry, slices):
        x, y = slices
        return carry + x, (held(y), held(carry), x * 1)

    xs, ys = jnp.arange(3.0), jnp.ones(3)
    fn = lambda a, xs, ys: lax.scan(step, a, (xs, ys))  # noqa: E731
    jaxpr = jax.make_jaxpr(fn)(0.0, xs, ys).jaxpr
    carry, stacked, before, computed = _find_forwarded(jaxpr)
    assert stacked is jaxpr.invars[2]
    assert [carry, before, computed] == [jaxpr.outvars[i] for i in (0, 2, 3)]


def test_arguments_are_named_by_place_or_by_keyword():
    tree = ((1, [2, {"a": 3}]), {"state": {"b": 4}})
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert [_argument(p) for p in paths] == ["args/0", "args/1/0", "args/1/1/a", "state/b"]


BUFFERS = {"s": {"mean": jnp.ones(3), "var": jnp.ones(3)}, "c": jnp.zeros((), jnp.int32)}


def test_buffers_are_replaced_where_they_are_and_added_by_collection():
    found = update_buffers(BUFFERS, {"s": {"var": jnp.full(3, 2.0)}, "new": {"x": 5}})
    assert found["new"] == {"x": 5}
    assert found["s"]["mean"] is BUFFERS["s"]["mean"]
    np.testing.assert_array_equal(found["s"]["var"], 2)
    assert set(found) == {"s", "c", "new"}
    assert update_buffers({"params": {"w": A}}, {"params": {"w": B}})["params"]["w"] is B


@pytest.mark.parametrize(
    ("updates", "said"),
    [
        (3, "updates=int: expected the dict that a call with mutable=… returned"),
        ({"params": {}}, r"updates: params are no buffers; net.with_params\(…\) takes them"),
        ({"s": {"std": A}}, "updates: s/std is no buffer of the network"),
        ({"s": {"var": jnp.ones(4)}}, r"s/var is float32\[3\] in the network, got float32\[4\]"),
        ({"c": jnp.zeros(())}, r"updates: c is int32\[\] in the network, got float32\[\]"),
    ],
)
def test_what_is_no_update_is_refused_by_its_path(updates, said):
    with pytest.raises(ValueError, match=said):
        update_buffers(BUFFERS, updates)
