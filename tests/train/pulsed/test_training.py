"""What the methods are for: asymmetric cells, offsets, and networks that train on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim.train import cross_entropy, fit, pulsed

SOFT = pulsed.soft_bounds(0.02, spread=0.1, imbalance_spread=0.2, bound_spread=0.2)
FINE = pulsed.constant_step(0.005)
CHOPPED = {"TTv2": (0.0, 0.0), "TTv2, off": (0.0, 0.2), "c-TTv2": (0.1, 0.0)}
# what makes an optimizer, and the numbers that differ between those that it makes
METHODS = [
    (lambda key, rate: optax.sgd(rate), {"float": 0.02}),
    (lambda key, rate: pulsed.sgd(FINE, rate, key), {"symmetric": 0.02}),
    (lambda key, rate: pulsed.sgd(SOFT, rate, key), {"asymmetric": 0.02, "slower": 0.005}),
    (
        lambda key, off: pulsed.tiki_taka(SOFT, SOFT, 0.1, key, gain=0.01, reference_error=off),
        {"Tiki-Taka": 0.0, "Tiki-Taka, off": 0.2},
    ),
    (
        lambda key, two: pulsed.chopped_tiki_taka(
            SOFT, SOFT, 0.1, key, gain=0.01, flip=two[0], reference_error=two[1]
        ),
        CHOPPED,
    ),
    (lambda key, gain: pulsed.agad(SOFT, SOFT, 0.1, key, gain=gain), {"AGAD": 0.01}),
]
SHAPE, STEPS = (4, 4), 2000


def error(make, number, key):
    """Root mean square error of weights in the last quarter of a noisy regression."""
    first, second, third = jax.random.split(key, 3)
    target = jax.random.uniform(first, SHAPE, minval=-0.5, maxval=0.5)
    optimizer = make(second, number)

    def step(at, key):
        w, state = at
        a, b = jax.random.split(key)
        x = jax.random.normal(a, (4, SHAPE[0]))
        y = x @ target + 0.3 * jax.random.normal(b, (4, SHAPE[1]))
        grads = x.T @ (x @ w - y) / len(x)
        updates, state = optimizer.update({"w": grads}, state, {"w": w})
        w = w + updates["w"]
        return (w, state), jnp.mean((w - target) ** 2)

    start = jnp.zeros(SHAPE), optimizer.init({"w": jnp.zeros(SHAPE)})
    _, path = jax.lax.scan(step, start, jax.random.split(third, STEPS))
    return jnp.sqrt(path[-STEPS // 4 :].mean())


@functools.cache
def errors():
    """Of five regressions each, by method."""
    seeds, found = jax.random.split(jax.random.key(3), 5), {}
    for make, named in METHODS:
        over = jax.vmap(functools.partial(error, make), (None, 0))
        numbers = jnp.asarray(list(named.values()))
        rows = jax.jit(jax.vmap(over, (0, None)))(numbers, seeds)
        found |= dict(zip(named, np.asarray(rows), strict=True))
    return found


def test_asymmetric_descent_stalls_above_symmetric_descent():
    """At a floor: a smaller learning rate does not get below it."""
    found = errors()
    assert found["symmetric"].max() < 1.5 * found["float"].min()
    for name in ("asymmetric", "slower"):
        assert found[name].min() > 2 * found["symmetric"].max()


@pytest.mark.parametrize("name", ["Tiki-Taka", "TTv2", "c-TTv2", "AGAD"])
def test_a_second_array_gets_below_the_floor(name):
    found = errors()
    assert found[name].max() < min(found["asymmetric"].min(), found["slower"].min())
    assert found[name].mean() < 0.6 * found["asymmetric"].mean()


def test_an_offset_of_the_reference_hurts_those_that_trust_it():
    """AGAD has none to be off, and is no worse than they are with one that is exact."""
    found = errors()
    for name in ("Tiki-Taka", "TTv2"):
        assert found[f"{name}, off"].mean() > 1.25 * found[name].mean()
        assert found["AGAD"].mean() < found[f"{name}, off"].mean() / 1.5
        assert found["AGAD"].mean() < 1.05 * found[name].mean()


def test_sparse_optimizers_around_pulses_are_refused_and_masks_stay():
    net = js.trace(lambda p, x: x @ p["w"], {"w": 0.5 * jnp.ones((6, 4))}, X)
    sparse = js.prune(0.5)(net)
    inner = pulsed.sgd(pulsed.constant_step(0.01), 0.1, jax.random.key(0))
    run = {"epochs": 1, "batch_size": 12, "key": jax.random.key(1), "quiet": True}
    with pytest.raises(ValueError, match=r"params: none for pulsed\.sgd.* of js\.sparsity"):
        fit(sparse, X, LABELS, optimizer=js.sparsity.fixed(inner, sparse), **run)
    trained = fit(sparse, X, LABELS, optimizer=inner, **run)
    np.testing.assert_array_equal(trained.masks["w"], sparse.masks["w"])
    assert not np.array_equal(trained.params["w"], sparse.params["w"])


X = np.asarray(jax.random.normal(jax.random.key(0), (24, 6)))
LABELS = np.argmax(X[:, :3], -1)


@pytest.mark.parametrize("kind", ["quantized", "analog"])
def test_networks_of_arrays_train_by_the_loop(kind, tmp_path):
    """Kernels by pulses, biases digitally; the last run goes on from checkpoints, bit for bit."""

    def model(params, x):
        return jnp.tanh(x @ params["a"]) @ params["b"] + params["bias"]

    keys = jax.random.split(jax.random.key(1), 2)
    a, b = 0.3 * jax.random.normal(keys[0], (6, 8)), 0.3 * jax.random.normal(keys[1], (8, 3))
    net = js.trace(model, {"a": a, "b": b, "bias": jnp.zeros(3)}, X)
    array = js.analog(cells=js.cells.independent(0.02))
    net = js.compose(js.quantize(8, 8), *([array] if kind == "analog" else []))(net)
    cells = pulsed.soft_bounds(0.01, low=-0.8, high=0.8, spread=0.2, noise=0.2)
    rank = lambda p: jax.tree.map(lambda a: "array" if a.ndim > 1 else "digital", p)  # noqa: E731
    arrays = pulsed.agad(cells, cells, 1.0, jax.random.key(2), gain=0.5, period=2)
    optimizer = optax.multi_transform({"array": arrays, "digital": optax.sgd(0.3)}, rank)
    run = {"optimizer": optimizer, "key": jax.random.key(3), "batch_size": 6, "quiet": True}
    if kind == "analog":
        trained = fit(net, X, LABELS, epochs=30, **run)
        key = jax.random.key(4)
        loss = jax.jit(lambda net: cross_entropy(net(X, key=key), LABELS))
        assert float(loss(trained)) < 0.7 * float(loss(net))
        return
    whole = fit(net, X, LABELS, epochs=4, **run)
    fit(net, X, LABELS, epochs=2, checkpoints=tmp_path / "run", **run)
    on = fit(net, X, LABELS, epochs=4, checkpoints=tmp_path / "run", **run)
    assert jax.tree.all(jax.tree.map(np.array_equal, whole.params, on.params))
    assert not np.array_equal(on.params["a"], net.params["a"])
