"""Optimizers within masks, step by step over four weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim.sparsity.optimizers import masked

sp = js.sparsity

W = jnp.array([[1.0], [2], [3], [4]])
GRADS = jnp.array([[10.0], [20], [-30], [40]])


def net(mask=None):
    made = js.trace(lambda p, x: x @ p["w"], {"w": W}, jnp.ones((1, 4)))
    if mask is None:
        return made
    return dataclasses.replace(made, masks={"w": jnp.array(mask, bool)[:, None]})


def run(tx, made, steps, grads=GRADS):
    params, state, step = made.masked_params(), tx.init(made.params), jax.jit(tx.update)
    for _ in range(steps):
        updates, state = step({"w": grads}, state, params)
        params = optax.apply_updates(params, updates)
        yield params["w"].ravel().tolist(), state


def numbers(rows):
    return [params for params, _ in rows]


def test_what_is_masked_stays_zero_whatever_momentum_and_decay_do():
    """A rate of 0.1, momentum of a half: 1, then 1.5 times the gradient over ten."""
    made = net([0, 1, 1, 0])
    (first, _), (second, state) = run(sp.fixed(optax.sgd(0.1, momentum=0.5), made), made, 2)
    assert first == pytest.approx([0, 0, 6, 0])
    assert second == pytest.approx([0, -3, 10.5, 0])
    trace = optax.tree_utils.tree_get(state.inner, "trace")["w"].ravel()
    np.testing.assert_allclose(trace, [0, 30, -45, 0])
    assert int(state.step) == 2
    # weights that are not yet zero become so
    tx = sp.fixed(optax.sgd(0.1), made)
    updates, _ = tx.update({"w": GRADS}, tx.init({"w": W}), {"w": W})
    np.testing.assert_allclose(updates["w"].ravel(), [-1, -2, 3, -4])


def test_weights_go_before_the_step_that_is_due_and_stay_out():
    """At step 1 the half of the smallest magnitude: -2, -2, 6 and -4 leave 6 and the last."""
    tx = sp.gradual(optax.sgd(0.2), net(), sp.one_shot(0.5, at=1))
    (first, a), (second, b), (third, _) = run(tx, net(), 3)
    assert first == pytest.approx([-1, -2, 9, -4])
    assert a.masks["w"].all()
    assert b.masks["w"].ravel().tolist() == [False, False, True, True]
    assert second == pytest.approx([0, 0, 15, -12])
    assert third == pytest.approx([0, 0, 21, -20])


def test_what_was_out_at_first_is_out_at_the_end():
    made = net([1, 0, 1, 1])
    tx = sp.gradual(optax.sgd(0.0), made, sp.one_shot(0.5, at=0))
    ((params, state),) = run(tx, made, 1)
    assert state.masks["w"].ravel().tolist() == [False, False, True, True]
    assert params == [0, 0, 3, 4]


def test_movement_is_summed_up_to_the_step_that_prunes():
    """Of -g w: -10, -40, 90 and -160 at a rate of zero; the two lowest are the last and second."""
    tx = sp.gradual(optax.sgd(0.0), net(), sp.one_shot(0.5, at=1), criterion=sp.movement())
    *_, (params, state) = run(tx, net(), 2)
    np.testing.assert_allclose(state.memory["w"].ravel(), [-20, -80, 180, -320])
    assert params == [1, 0, 3, 0]
    with pytest.raises(ValueError, match="it sums over a training run"):
        sp.movement().score(net(), ())


@pytest.mark.parametrize(("rewind", "third"), [("weights", [0, 0, 6, 0]), ("rate", [0, 0, 9, 0])])
def test_a_lottery_prunes_and_goes_back_to_its_early_step(rewind, third):
    """At a rate of 0.1 weights go 1, 2, 3, 4, then 0, 0, 6, 0, then -1, -2, 9, -4.

    At step 2 three quarters go, all but the 9, in place of a step; it goes back to what it was
    before step 1, or keeps its number.
    """
    tx = sp.lottery(
        optax.sgd(0.1, momentum=0.0), net(), sp.one_shot(0.75, at=2), at=1, rewind=rewind
    )
    rows = list(run(tx, net(), 4))
    found = numbers(rows)
    assert found[0] == pytest.approx([0, 0, 6, 0])
    assert found[1] == pytest.approx([-1, -2, 9, -4])
    assert found[2] == pytest.approx(third)
    assert found[3] == pytest.approx([0, 0, third[2] + 3, 0])
    assert rows[2][1].masks["w"].ravel().tolist() == [False, False, True, False]


def test_a_lottery_needs_rounds_that_say_how_much():
    for call, told in (
        (lambda: sp.lottery(optax.sgd(0.1), net(), sp.one_shot()), "give it a sparsity"),
        (lambda: sp.lottery(optax.sgd(0.1), net(), sp.one_shot(0.5), at=-1), "at=-1"),
        (
            lambda: sp.lottery(optax.sgd(0.1), net(), sp.one_shot(0.5), at=1.5),
            "at=1.5: must be an int",
        ),
        (lambda: sp.lottery(optax.sgd(0.1), net(), sp.one_shot(0.5), rewind="all"), "rewind='all'"),
        (lambda: sp.fixed(optax.sgd(0.1), net()), "net has no masks"),
        (lambda: sp.fixed(optax.sgd(0.1), net([1, 0, 1, 1])).init({"v": W}), "own parameters"),
        (lambda: sp.fixed(optax.sgd(0.1), net([1, 0, 1, 1])).init(None), "got none"),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_masks_of_several_optimizers_are_all_found_the_first_before_others():
    a, b = ({"w": jnp.array([k])} for k in (0, 1))
    states = tuple(
        masked.SparseState(jnp.int32(0), masks, (), ()) for masks in (a, {**b, "v": jnp.array([2])})
    )
    found = masked.masks_of({"x": states})
    assert {n: int(m[0]) for n, m in found.items()} == {"w": 0, "v": 2}
    assert masked.masks_of(optax.adam(0.1).init({"w": W})) is None


def test_ranges_beside_the_parameters_are_passed_by():
    made = net([0, 1, 1, 0])
    tx = sp.fixed(optax.sgd(0.1), made)
    params = {"params": {"w": W}, "ranges": jnp.ones(2)}
    grads = {"params": {"w": GRADS}, "ranges": jnp.array([5.0, 6])}
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["ranges"], [-0.5, -0.6])
    np.testing.assert_allclose(updates["params"]["w"].ravel(), [-1, -2, 3, -4])
