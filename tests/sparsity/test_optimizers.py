"""Optimizers that prune: counts, zeros, and what becomes of the network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim.network.params import by_name
from jaxsim.train.loop import fit
from jaxsim.train.losses import cross_entropy
from tests.support.networks import SITES, X, cnn

sp = js.sparsity
LABELS = np.arange(8) % 3
ADAM = optax.adamw(1e-2, weight_decay=0.1)
RUN = {"epochs": 6, "key": jax.random.key(0), "batch_size": 4, "quiet": True}
SIZE = sum(int(p.size) for n, p in by_name(cnn().params).items() if n in SITES)


def sparse(s=0.8, distribution=None):
    return js.prune(
        s,
        criterion=sp.random(jax.random.key(3)),
        distribution=distribution or sp.erk(),
    )(cnn())


def loss(net, params):
    return cross_entropy(dataclasses.replace(net, params=params, masks={})(X), LABELS)


def stepped(net, tx, steps):
    """Parameters and states along a run, one after each step."""
    state = tx.init(net.params)
    params = net.masked_params()
    slope = jax.grad(loss, argnums=1)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(slope(net, params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
        yield params, state
    assert step._cache_size() == 1


def moments(state):
    adam = next(
        s
        for s in jax.tree.leaves(state.inner, is_leaf=lambda s: hasattr(s, "mu"))
        if hasattr(s, "mu")
    )
    return [by_name(adam.mu), by_name(adam.nu)]


def assert_zero(params, state):
    """Masked weights are zero, and so are their moments."""
    for tree in (by_name(params), *moments(state)):
        for name, mask in state.masks.items():
            assert not np.any(np.asarray(tree[name])[~np.asarray(mask)]), name


def nnz(state):
    return {name: int(np.asarray(m).sum()) for name, m in state.masks.items()}


KINDS = {
    "RigL": lambda net: sp.rigl(ADAM, net, every=5, until=150),
    "SET": lambda net: sp.sparse_evolution(ADAM, net, key=jax.random.key(1), every=5, until=180),
    "SNFS": lambda net: sp.momentum_growth(ADAM, net, every=5, until=150),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_keeps_its_number_of_weights_over_two_hundred_steps(kind):
    net = sparse()
    first, moved = {n: int(np.asarray(m).sum()) for n, m in net.masks.items()}, 0
    before = {name: np.asarray(mask) for name, mask in net.masks.items()}
    for i, (params, state) in enumerate(stepped(net, KINDS[kind](net), 200)):
        assert nnz(state) == first
        assert_zero(params, state)
        masks = {name: np.asarray(mask) for name, mask in state.masks.items()}
        changed = sum(int((masks[n] & ~before[n]).sum()) for n in before)
        assert (changed > 0) == (i > 0 and i % 5 == 0 and changed > 0)
        moved, before = moved + changed, masks
    assert moved > 50


def test_an_exchange_of_rigl_is_the_paper_s_by_brute_force():
    net, fraction, until = sparse(0.5), 0.4, 30
    tx = sp.rigl(optax.sgd(0.1), net, every=3, until=until, fraction=fraction)
    runs = list(stepped(net, tx, 4))
    (params, state), (after, exchanged) = runs[2], runs[3]
    grads = by_name(jax.jit(jax.grad(loss, argnums=1))(net, params))
    share = fraction / 2 * (1 + np.cos(np.pi * 3 / until))
    for name, w in by_name(params).items():
        if name not in state.masks:
            continue
        mask, w, g = (np.asarray(a).ravel() for a in (state.masks[name], w, grads[name]))
        count = min(round(share * mask.sum()), (~mask).sum())
        inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
        dropped = inside[np.argsort(abs(w[inside]), kind="stable")[:count]]
        grown = outside[np.argsort(-abs(g[outside]), kind="stable")[:count]]
        expected = mask.copy()
        expected[dropped], expected[grown] = False, True
        np.testing.assert_array_equal(np.ravel(exchanged.masks[name]), expected)
        new = np.ravel(by_name(after)[name])
        np.testing.assert_array_equal(new, np.where(mask & expected, w, 0))


def test_the_cubic_schedule_is_its_closed_form():
    schedule = sp.cubic(0.9, begin=10, every=4, updates=5, initial=0.2)
    steps = jnp.arange(60)
    due = [int(t) for t in steps if schedule.due(t)]
    assert due == [10, 14, 18, 22, 26, 30]
    expected = [0.9 + (0.2 - 0.9) * (1 - (t - 10) / 20) ** 3 for t in due]
    np.testing.assert_allclose([schedule.sparsity(jnp.int32(t)) for t in due], expected, rtol=1e-6)


def test_iterative_rounds_lose_the_same_share_of_what_is_left():
    schedule = sp.iterative(0.9, begin=2, every=3, rounds=4)
    due = [t for t in range(30) if schedule.due(jnp.int32(t))]
    assert due == [2, 5, 8, 11]
    left = [1 - float(schedule.sparsity(jnp.int32(t))) for t in due]
    np.testing.assert_allclose(left, 0.1 ** (np.arange(1, 5) / 4), rtol=1e-6)


@pytest.mark.parametrize("criterion", [sp.magnitude, sp.movement])
def test_gradual_pruning_follows_its_schedule_exactly_and_never_goes_back(criterion):
    schedule = sp.cubic(0.9, begin=2, every=3, updates=4)
    tx = sp.gradual(ADAM, cnn(), schedule, criterion=criterion())
    before = None
    for i, (params, state) in enumerate(stepped(cnn(), tx, 20)):
        last = max((t for t in range(i + 1) if schedule.due(jnp.int32(t))), default=None)
        share = 0 if last is None else float(schedule.sparsity(jnp.int32(last)))
        assert sum(nnz(state).values()) == SIZE - round(np.float32(share) * SIZE)
        assert_zero(params, state)
        masks = {name: np.asarray(mask) for name, mask in state.masks.items()}
        if before is not None:
            assert all(not np.any(masks[n] & ~before[n]) for n in before)
        before = masks


def test_movement_sums_minus_gradient_times_weight():
    criterion = sp.movement()
    params, grads = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.5, 3.0])}
    memory = criterion.init(params)
    for _ in range(2):
        memory = criterion.update(memory, params, grads)
    np.testing.assert_allclose(criterion.score(None, memory)["w"], [-1.0, 12.0])


@pytest.mark.parametrize("rewind", ["weights", "rate"])
def test_a_lottery_goes_back_to_its_early_step(rewind):
    schedule = sp.iterative(0.75, begin=6, every=5, rounds=2)
    tx = sp.lottery(ADAM, cnn(), schedule, at=2, rewind=rewind)
    runs = list(stepped(cnn(), tx, 13))
    early = by_name(runs[1][0])  # before step 2
    for t in (6, 11):
        (params, state), before = runs[t], by_name(runs[t - 1][0])
        share = float(schedule.sparsity(jnp.int32(t)))
        assert sum(nnz(state).values()) == SIZE - round(share * SIZE)
        for name, mask in state.masks.items():
            source = early if rewind == "weights" else before
            np.testing.assert_allclose(
                by_name(params)[name], np.where(mask, source[name], 0), rtol=1e-5, atol=1e-7
            )
        assert int(optax.tree_utils.tree_get(state.inner, "count")) == 2


def test_a_fixed_mask_trains_what_is_left():
    net = sparse()
    for params, state in stepped(net, sp.fixed(ADAM, net), 5):
        assert_zero(params, state)
    for name in SITES:
        np.testing.assert_array_equal(state.masks[name], net.masks[name])
        assert np.all(np.asarray(by_name(params)[name])[np.asarray(net.masks[name])] != 0)


def test_fit_ends_with_the_masks_and_their_weights_zero():
    net = sparse()
    after = fit(net, X, LABELS, optimizer=sp.rigl(ADAM, net, every=2, until=10), **RUN)
    assert any(np.any(after.masks[n] != net.masks[n]) for n in SITES)
    for name in SITES:
        assert after.masks[name].sum() == net.masks[name].sum()
        assert not np.any(by_name(after.params)[name][~np.asarray(after.masks[name])])
    tx = sp.gradual(ADAM, cnn(), sp.one_shot(at=3), pattern=sp.n_of_m(1, 2), sites="Dense*")
    two = fit(cnn(), X, LABELS, optimizer=tx, **RUN)
    assert set(two.masks) == {"Dense_0/kernel"}
    np.testing.assert_array_equal(two.masks["Dense_0/kernel"].reshape(2, 2, 3).sum(1), 1)


def test_sparse_training_goes_through_quantisation_and_learned_ranges():
    net = js.compose(js.quantize(4, 8), js.learn_ranges(X))(sparse())
    tx = sp.rigl(optax.adam(1e-2), net, every=2, until=10)
    after = fit(net, X, LABELS, optimizer=tx, **RUN)
    for name, mask in after.masks.items():
        assert mask.sum() == net.masks[name].sum()
        assert not np.any(by_name(after.params)[name][~np.asarray(mask)])
    assert any(np.any(after.masks[n] != net.masks[n]) for n in SITES)


def test_a_run_that_was_cut_off_ends_as_the_whole_one(tmp_path):
    net = sparse()
    tx = sp.rigl(ADAM, net, every=2, until=10)
    whole = fit(net, X, LABELS, optimizer=tx, **RUN)
    fit(net, X, LABELS, optimizer=tx, checkpoints=tmp_path / "run", **{**RUN, "epochs": 3})
    resumed = fit(net, X, LABELS, optimizer=tx, checkpoints=tmp_path / "run", **RUN)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_seeds_run_side_by_side():
    """The masks of each seed are those of its run alone."""

    def run(key):
        net = js.prune(0.6, criterion=sp.random(key))(cnn())
        tx = sp.sparse_evolution(ADAM, net, key=key, every=2, until=10)
        params, state = net.masked_params(), tx.init(net.params)
        for _ in range(4):
            updates, state = tx.update(jax.grad(loss, argnums=1)(net, params), state, params)
            params = optax.apply_updates(params, updates)
        return state.masks

    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(run))(keys)
    for i, key in enumerate(keys):
        alone = jax.jit(run)(key)
        for name in SITES:
            np.testing.assert_array_equal(together[name][i], alone[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sp.fixed(ADAM, cnn()), "net has no masks"),
        (lambda: sp.rigl(ADAM, cnn(), every=2, until=3), "net has no mask of Conv_0/kernel"),
        (lambda: sp.rigl(ADAM, sparse(), every=0, until=3), "every=0"),
        (lambda: sp.rigl(ADAM, sparse(), every=1, until=3, fraction=2.0), "fraction=2.0"),
        (lambda: sp.cubic(1.0, begin=0, every=1, updates=1), "sparsity=1.0"),
        (lambda: sp.cubic(0.5, begin=-1, every=1, updates=1), "begin=-1"),
        (lambda: sp.gradual(ADAM, cnn(), sp.one_shot()), "sparsity=None"),
        (
            lambda: sp.gradual(ADAM, cnn(), sp.one_shot(0.5), pattern=sp.n_of_m(2, 4)),
            "the pattern fixes it",
        ),
        (lambda: sp.lottery(ADAM, cnn(), sp.one_shot(0.5), rewind="all"), "rewind='all'"),
    ],
)
def test_settings_that_cannot_be_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_sweep_of_sparsities_compiles_one_step():
    """Schedules, fractions and steps are traced, so that a step serves every run."""

    @jax.jit
    def step(params, state, sparsity, every):
        schedule = sp.cubic(sparsity, begin=0, every=every, updates=1)
        tx = sp.gradual(ADAM, cnn(), schedule)
        state = tx.init(params) if state is None else state
        updates, state = tx.update(jax.grad(loss, argnums=1)(cnn(), params), state, params)
        return optax.apply_updates(params, updates), state

    for sparsity, every in ((0.5, 1), (0.8, 2)):
        params, state = step(cnn().params, None, sparsity, every)
        for _ in range(every):
            params, state = step(params, state, sparsity, every)
        assert sum(nnz(state).values()) == SIZE - round(np.float32(sparsity) * SIZE)
    assert step._cache_size() == 2  # with and without a state
