"""Exchanges of weights by hand: which go, which come, when, and what they come back as."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim.sparsity.optimizers.growth import _cosine, _exchange
from jaxsim.sparsity.optimizers.masked import masks_of

sp = js.sparsity

MASK = jnp.array([[1, 0, 1, 1], [0, 1, 0, 1]], bool)
W = jnp.array([[1.0, 9, -2, 3], [9, -4, 9, 5]])  # 9 where nothing is
WORTH = jnp.array([[7.0, 2, 8, 8], [3, 7, 1, 7]])


def exchanged(share, stack=()):
    return np.asarray(_exchange(MASK, W, WORTH, stack, share)).astype(int).tolist()


def test_the_smallest_go_and_the_most_wanted_come():
    """Of 1, 2, 3, 4 and 5 the first 0.4 · 5 go; of 2, 3 and 1 outside the two largest come."""
    assert exchanged(0.0) == MASK.astype(int).tolist()
    assert exchanged(0.2) == [[0, 0, 1, 1], [1, 1, 0, 1]]
    assert exchanged(0.4) == [[0, 1, 0, 1], [1, 1, 0, 1]]
    # three are out, and no more than those can come
    assert exchanged(0.6) == exchanged(1.0) == [[0, 1, 0, 0], [1, 1, 1, 1]]


def test_each_layer_of_a_stack_exchanges_its_own():
    """A third of (1, 2, 3) and of (4, 5), rounded: one each."""
    assert exchanged(0.34, (2,)) == [[0, 1, 1, 1], [1, 0, 0, 1]]


def test_the_share_falls_by_half_a_cosine():
    """0.3 at first, half of it half way, none at the end; a third of the way 3/4."""
    share = _cosine(0.3, 12)
    found = [float(share(jnp.float32(t))) for t in (0, 4, 6, 12)]
    np.testing.assert_allclose(found, [0.3, 0.225, 0.15, 0], atol=1e-6)


def net():
    made = js.trace(
        lambda p, x: x @ p["w"], {"w": jnp.array([[1.0], [2], [3], [4]])}, jnp.ones((1, 4))
    )
    return js.prune(0.5)(made)  # 1 and 2 are out


def run(tx, grads, steps):
    """Masks after each step with the same gradient."""
    params, state = net().masked_params(), tx.init(net().params)
    step = jax.jit(lambda s, p: tx.update({"w": grads}, s, p))
    for _ in range(steps):
        updates, state = step(state, params)
        params = optax.apply_updates(params, updates)
        yield masks_of(state)["w"].ravel().astype(int).tolist(), params["w"].ravel().tolist()


GRADS = jnp.array([[0.0], [0.5], [0], [-0.5]])


def test_exchanges_come_every_so_often_after_the_start_and_before_the_end():
    """Steps 2 and 4 of 5: at 2 the 3 goes for the largest gradient, weight 2; it starts at zero."""
    tx = sp.rigl(optax.sgd(0.0), net(), every=2, until=5, fraction=1.0)
    masks, params = zip(*run(tx, GRADS, 8), strict=True)
    changed = [i for i in range(1, 8) if masks[i] != masks[i - 1]]
    assert masks[0] == masks[1] == [0, 0, 1, 1]
    # 0.655 of two weights is one, 0.095 of them none
    assert masks[2] == [0, 1, 0, 1]
    assert params[2] == [0, 0, 0, 4]
    assert changed == [2]
    late = [
        m for m, _ in run(sp.rigl(optax.sgd(0.0), net(), every=2, until=2, fraction=1.0), GRADS, 5)
    ]
    assert late == [[0, 0, 1, 1]] * 5


def test_every_step_may_be_an_exchange_but_the_first():
    tx = sp.sparse_evolution(
        optax.sgd(0.0), net(), key=jax.random.key(0), every=1, until=3, fraction=0.5
    )
    masks = [m for m, _ in run(tx, GRADS, 4)]
    assert masks[0] == [0, 0, 1, 1]
    assert masks[1] != masks[0]
    assert masks[2] != masks[1]
    assert masks[3] == masks[2]


def test_an_exchange_takes_the_place_of_a_step():
    tx = sp.rigl(optax.sgd(1.0), net(), every=2, until=50, fraction=0.5)
    params = [p for _, p in run(tx, GRADS, 4)]
    assert params[0] == [0, 0, 3, 4.5]
    assert params[1] == [0, 0, 3, 5]
    assert params[2] == [0, 0, 0, 5]
    assert params[3] == [0, -0.5, 0, 5.5]


def test_growth_by_momentum_remembers_what_is_past():
    """Gradients of the first weight are large once, of the second small ever after: 0.9 holds."""
    tx = sp.momentum_growth(optax.sgd(0.0), net(), every=2, until=50, fraction=0.5, decay=0.9)
    params, state = net().masked_params(), tx.init(net().params)
    past, step = np.zeros(4), jax.jit(tx.update)
    for g in ([-8.0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]):
        updates, state = step({"w": jnp.array(g)[:, None]}, state, params)
        params = optax.apply_updates(params, updates)
        past = 0.9 * past + 0.1 * np.array(g)
        np.testing.assert_allclose(state.memory["w"].ravel(), past, rtol=1e-5)
    assert masks_of(state)["w"].ravel().tolist() == [True, False, False, True]
    forgetful = sp.momentum_growth(optax.sgd(0.0), net(), every=2, until=50, fraction=0.5, decay=0)
    params, state = net().masked_params(), forgetful.init(net().params)
    step = jax.jit(forgetful.update)
    for g in ([-8.0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]):
        updates, state = step({"w": jnp.array(g)[:, None]}, state, params)
        params = optax.apply_updates(params, updates)
    assert masks_of(state)["w"].ravel().tolist() == [False, True, False, True]


def test_random_growth_is_drawn_anew_for_each_layer_and_step():
    params = {"a": jnp.ones((30, 30)), "b": jnp.ones((30, 30))}
    wide = js.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 30)))
    half = jnp.arange(900).reshape(30, 30) >= 450
    wide = js.prune(0.5, criterion=sp.given({"a": half, "b": half}))(wide)

    def grown(seed, steps):
        tx = sp.sparse_evolution(
            optax.sgd(0.0), wide, key=jax.random.key(seed), every=1, until=9, fraction=0.5
        )
        params, state, step = wide.masked_params(), tx.init(wide.params), jax.jit(tx.update)
        for _ in range(steps):
            updates, state = step(jax.tree.map(jnp.zeros_like, params), state, params)
            params = optax.apply_updates(params, updates)
        return {n: np.ravel(m)[:450] for n, m in masks_of(state).items()}

    first, same, other = grown(0, 2), grown(0, 2), grown(1, 2)
    np.testing.assert_array_equal(first["a"], same["a"])
    drawn = np.stack([first["a"], first["b"], other["a"]]).astype(float)
    assert np.abs(np.corrcoef(drawn)[np.triu_indices(3, 1)]).max() < 4 / np.sqrt(450)
    # what came at the first exchange is zero and goes again; others come
    assert (grown(0, 3)["a"] != first["a"]).any()


@pytest.mark.parametrize(
    ("message", "options"),
    {
        "every=0": {"every": 0, "until": 2},
        "until=0": {"every": 1, "until": 0},
        "fraction=-0.1": {"every": 1, "until": 2, "fraction": -0.1},
        "fraction=1.1": {"every": 1, "until": 2, "fraction": 1.1},
        "every=1.5": {"every": 1.5, "until": 2},
    }.items(),
)
def test_numbers_out_of_range_are_named(message, options):
    for make in (
        sp.rigl,
        sp.momentum_growth,
        lambda *args, **more: sp.sparse_evolution(*args, key=jax.random.key(0), **more),
    ):
        with pytest.raises(ValueError, match=message):
            make(optax.sgd(0.1), net(), **options)


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_a_decay_is_a_share(decay):
    with pytest.raises(ValueError, match=f"decay={decay}"):
        sp.momentum_growth(optax.sgd(0.1), net(), every=1, until=2, decay=decay)
    sp.momentum_growth(optax.sgd(0.1), net(), every=1, until=1, decay=1, fraction=1)
