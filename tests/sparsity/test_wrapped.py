"""Sparse optimizers inside and around optax's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim import sparsity as sp
from jaxsim.train.loop import fit, only
from tests.support.models import normal

X = normal(8, 6)
LABELS = np.arange(8) % 3
PARAMS = {"a": normal(6, 8), "b": normal(8, 3), "c": {"bias": jnp.zeros(3)}}


def fn(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"] + p["c"]["bias"]


OPEN = js.trace(fn, PARAMS, X)
NET = js.prune(0.5)(OPEN)
KEY = jax.random.key(0)
A_ALONE = {"a": True, "b": False, "c": {"bias": False}}
HALVES = {"a": "one", "b": "two", "c": {"bias": "two"}}
ADAM = optax.adam(1e-2)


def kinds(inner):
    """Every sparse optimizer around another one."""
    growing = {"every": 2, "until": 9}
    return {
        "fixed": sp.fixed(inner, NET),
        "gradual": sp.gradual(inner, OPEN, sp.cubic(0.5, begin=0, every=1, updates=4)),
        "movement": sp.gradual(
            inner, OPEN, sp.cubic(0.5, begin=0, every=1, updates=4), criterion=sp.movement()
        ),
        "rigl": sp.rigl(inner, NET, **growing),
        "set": sp.sparse_evolution(inner, NET, key=KEY, **growing),
        "momentum": sp.momentum_growth(inner, NET, **growing),
    }


INSIDE = {
    "masked": lambda tx: optax.masked(tx, A_ALONE),
    "multi_transform": lambda tx: optax.multi_transform({"one": tx, "two": optax.sgd(0.1)}, HALVES),
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally": lambda tx: optax.conditionally_transform(tx, lambda step: step < 100),
    "flatten": lambda tx: optax.named_chain(("sparse", tx)),
}
AROUND = {
    "masked": optax.masked(ADAM, A_ALONE),
    "multi_transform": optax.multi_transform({"one": ADAM, "two": optax.sgd(0.1)}, HALVES),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.1)),
    "MultiSteps": optax.MultiSteps(ADAM, 2).gradient_transformation(),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "apply_if_finite": optax.apply_if_finite(ADAM, 3),
    "lion": optax.lion(1e-2),
    "extra": optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()),
}


def run(tx, steps=6):
    """Parameters and state after some steps.

    A step is traced as `jit` would trace it, and then run operation by operation: those are the
    same in all of these optimizers, and a program for each would take a second to compile.
    """

    def step(params, state):
        loss = lambda p: jnp.mean(jnp.square(fn(p, X) - 1))  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optax.with_extra_args_support(tx).update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    params = PARAMS
    state = tx.init(params)
    before = jax.eval_shape(lambda *given: given, params, state)
    after = jax.eval_shape(step, params, state)
    kinds_of = [jax.tree.map(lambda a: (a.shape, a.dtype), tree) for tree in (before, after)]
    assert kinds_of[0] == kinds_of[1]  # so that a loop can carry it
    with jax.disable_jit():
        for _ in range(steps):
            params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("outer", INSIDE)
def test_inside_a_transformation(outer):
    """Masked weights of its own parameters are exactly zero, the others are trained."""
    for kind, tx in kinds(ADAM).items():
        params, state = run(INSIDE[outer](tx))
        masks = sp.masks_of(state)
        assert set(masks) == ({"a"} if outer in ("masked", "multi_transform") else {"a", "b"}), kind
        for name, mask in masks.items():
            gone = ~np.asarray(mask)
            if kind != "gradual":
                assert 0 < gone.mean() < 1, kind
            assert not np.asarray(params[name])[gone].any(), kind
            assert np.asarray(params[name])[~gone].any(), kind
        assert not np.array_equal(params["b"], PARAMS["b"]), kind


@pytest.mark.parametrize("inner", AROUND)
def test_around_a_transformation(inner):
    for kind in ("fixed", "rigl", "gradual"):
        params, state = run(kinds(AROUND[inner])[kind])
        for name, mask in sp.masks_of(state).items():
            assert not np.asarray(params[name])[~np.asarray(mask)].any(), kind
        assert np.isfinite(params["a"]).all()


def test_a_wrapped_optimizer_is_the_bare_one():
    """Where nothing is masked away, a wrapper that does nothing changes no bit."""
    whole = jax.tree.map(lambda _: True, PARAMS)
    for kind, tx in kinds(ADAM).items():
        bare, _ = run(tx)
        wrapped, _ = run(optax.masked(tx, whole))
        assert all(map(np.array_equal, jax.tree.leaves(bare), jax.tree.leaves(wrapped))), kind


def test_two_sparse_optimizers_of_one_network():
    tx = optax.multi_transform(
        {
            "one": sp.rigl(ADAM, NET, every=2, until=9, sites="a"),
            "two": sp.fixed(optax.sgd(0.1), NET),
        },
        HALVES,
    )
    after = fit(NET, X, LABELS, epochs=3, optimizer=tx, key=KEY, batch_size=4, quiet=True)
    assert set(after.masks) == {"a", "b"}
    for name in "ab":
        assert not np.asarray(after.params[name])[~np.asarray(after.masks[name])].any()
        assert after.masks[name].mean() == NET.masks[name].mean()
    assert np.array_equal(after.masks["b"], NET.masks["b"])
    assert not np.array_equal(after.masks["a"], NET.masks["a"])


def test_masks_of_parameters_that_another_optimizer_trains_stay_in_the_network():
    tx = optax.multi_transform(
        {"one": sp.rigl(ADAM, NET, every=2, until=9, sites="a"), "two": optax.sgd(0.1)}, HALVES
    )
    after = fit(NET, X, LABELS, epochs=2, optimizer=tx, key=KEY, batch_size=4, quiet=True)
    assert np.array_equal(after.masks["b"], NET.masks["b"])


def test_what_is_not_for_a_sparse_optimizer_is_refused():
    tx = sp.fixed(ADAM, NET)
    bias = {"a": False, "b": False, "c": {"bias": True}}
    with pytest.raises(ValueError, match="none of the masked ones"):
        optax.masked(tx, bias).init(PARAMS)
    with pytest.raises(ValueError, match="params: a sparse optimizer takes the network's own"):
        tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(ValueError, match="params: a sparse optimizer takes the network's own"):
        tx.init({"a": PARAMS["a"]})


def test_only_inside_a_partition():
    trained = jax.tree.map(jnp.ones_like, PARAMS) | {"a": jnp.zeros((6, 8)).at[0].set(1)}
    params, _ = run(optax.masked(only(ADAM, trained), A_ALONE))
    assert np.array_equal(params["a"][1:], PARAMS["a"][1:])
    assert not np.array_equal(params["a"][0], PARAMS["a"][0])
