"""How accurate is a sparse network, by how and when its weights were left out?"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jaxsim as js
from benchmarks.common.chips import accuracy
from benchmarks.common.record import Table, record
from benchmarks.common.settings import CACHE, Trained
from benchmarks.common.spread import mean_and_error
from jaxsim.checkpoint.log import ScoreCache
from jaxsim.collaborative import holm, paired_test
from jaxsim.data import Images, fashion_mnist
from jaxsim.train.losses import cross_entropy

SHORT = ("--seeds 2 --sparsities 0.9 --methods RigL STR",)

HELD_OUT = 5000
"""Training images that no run sees; the learning rate was chosen on them."""
STEPS = 800
BATCH = 64
RATES = (1e-3, 2e-3, 4e-3)
sp = js.sparsity


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsitySettings(Trained):
    """Settings of the run."""

    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98)
    """Shares of weights left out."""
    methods: tuple[str, ...] = ()
    """Which to measure beside one shot; none is all of them."""
    cache: Annotated[Path, tyro.conf.arg(help="folder of what an interrupted run has measured")] = (
        CACHE
    )


class Cnn(nn.Module):
    """Two convolutions of stride 2 and two dense layers; 124 814 parameters by default."""

    width: int = 16
    hidden: int = 76

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits."""
        x = nn.relu(nn.Conv(self.width, (3, 3), 2)(x))
        x = nn.relu(nn.Conv(2 * self.width, (3, 3), 2)(x))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


FULL, SMALL = Cnn(), Cnn(8, 38)
EXAMPLE = jnp.zeros((1, 28, 28, 1))


@functools.cache
def network(model: Cnn) -> js.Network:
    """The network of a model; a run replaces its parameters."""
    return js.trace(model, jax.jit(model.init)(jax.random.key(0), EXAMPLE), EXAMPLE)


Start = Callable[[js.Network, Any, Any, Any], js.Network]
"""`(net, sparsity, key, batch) -> net` with the masks that training begins with."""
Make = Callable[[js.Network, Any, Any, Any], optax.GradientTransformation]
"""`(net, sparsity, key, rate) -> optimizer`."""


def adam(rate: Any, steps: int = STEPS) -> optax.GradientTransformation:
    """Adam with a cosine schedule."""
    return optax.adam(lambda count: rate * (1 + jnp.cos(jnp.pi * count / steps)) / 2)


def dense_start(net: js.Network, s: Any, key: Any, batch: Any) -> js.Network:
    return net


def pruned(criterion: Callable[[Any, Any], Any], distribution: Any = None) -> Start:
    """Masks before the first step; the criterion is made of a key and a batch."""

    def start(net: js.Network, s: Any, key: Any, batch: Any) -> js.Network:
        of = criterion(key, batch)
        return js.prune(s, criterion=of, distribution=distribution, allow_collapse=True)(net)

    return start


def loss_on(batch: Any) -> Callable[[js.Network], Any]:
    return lambda net: cross_entropy(net(batch[0]), batch[1])


def gradual(schedule: Callable[[Any], Any], criterion: Any = None) -> Make:
    return lambda net, s, key, rate: sp.gradual(adam(rate), net, schedule(s), criterion=criterion)


def cubic(s: Any) -> Any:
    return sp.cubic(s, begin=160, every=20, updates=20)


def fixed(net: js.Network, s: Any, key: Any, rate: Any) -> Any:
    return sp.fixed(adam(rate), net)


def fixed_rest(net: js.Network, s: Any, key: Any, rate: Any) -> Any:
    return sp.fixed(adam(rate, STEPS - GATED_STEPS), net)


EXCHANGE: dict[str, Any] = {"every": 10, "until": 600}
RANDOM = pruned(lambda key, batch: sp.random(key), sp.erk())
METHODS: dict[str, tuple[Start, Make]] = {
    "one shot": (dense_start, gradual(lambda s: sp.one_shot(s, at=480))),
    "iterative": (
        dense_start,
        gradual(lambda s: sp.iterative(s, begin=240, every=80, rounds=4)),
    ),
    "cubic": (dense_start, gradual(cubic)),
    "cubic, movement": (dense_start, gradual(cubic, sp.movement())),
    "lottery": (
        dense_start,
        lambda net, s, key, rate: sp.lottery(
            adam(rate, 220), net, sp.iterative(s, begin=200, every=200, rounds=3), at=20
        ),
    ),
    "static": (RANDOM, fixed),
    "SET": (
        RANDOM,
        lambda net, s, key, rate: sp.sparse_evolution(adam(rate), net, key=key, **EXCHANGE),
    ),
    "RigL": (RANDOM, lambda net, s, key, rate: sp.rigl(adam(rate), net, **EXCHANGE)),
    "SNIP": (pruned(lambda key, batch: sp.snip(loss_on(batch))), fixed),
    "GraSP": (pruned(lambda key, batch: sp.grasp(loss_on(batch))), fixed),
    "SynFlow": (pruned(lambda key, batch: sp.synflow(EXAMPLE)), fixed),
}


GATES: dict[str, tuple[sp.Gates, float]] = {
    "STR": (sp.soft_threshold(-6.0), 1e-4),
    "L0": (sp.hard_concrete(), 1e-4),
    "variational": (sp.variational_dropout(-8.0), 1e-6),
}
"""Gates and the strength of their penalty, for the first 480 steps."""
GATED_STEPS = 480


@functools.cache
def gated_step(method: str) -> Any:
    """A step of training gates, which learn ten times as fast as weights."""
    gates, _ = GATES[method]
    base = sp.gated(network(FULL), gates)

    def faster(updates: Any, params: Any) -> Any:
        return {**updates, "gates": jax.tree.map(lambda u: 10 * u, updates["gates"])}

    @jax.jit
    def step(params: Any, state: Any, strength: Any, rate: Any, key: Any, x: Any, y: Any) -> Any:
        tx = optax.chain(sp.penalized(gates, strength), adam(rate), optax.stateless(faster))
        state = tx.init(params) if state is None else state

        def loss(p: Any) -> Any:
            net = dataclasses.replace(base, params=p)
            return cross_entropy(net(x, rngs={"gates": key}), y)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return base, step


def trained_gates(
    method: str, s: float, seed: int, rate: float, train: Images, strength: float | None = None
) -> js.Network:
    """Gates first, then the mask of their highest scores, and the rest of the steps with it."""
    gates, chosen = GATES[method]
    base, step = gated_step(method)
    net = with_seed(network(FULL), FULL, seed)
    params, state = {**base.params, "params": net.params}, None
    masks, key = None, jax.random.key(1000 + seed)
    for i, (x, y) in enumerate(batches(train, STEPS, BATCH, seed)):
        if i < GATED_STEPS:
            now = jax.random.fold_in(key, i)
            params, state = step(params, state, strength or chosen, rate, now, x, y)
            continue
        if masks is None:
            done = dataclasses.replace(base, params=params)
            net = sp.closed(done, net, gates, sparsity=s)
            params, state, masks = net.params, None, net.masks
            # the rate goes on falling from where it is
            rest = rate * (1 + np.cos(np.pi * GATED_STEPS / STEPS)) / 2
            _, fixed_step = programme("rest")
        params, state = fixed_step(params, state, masks, s, key, rest, x, y)
    return dataclasses.replace(net, params=params)


@functools.cache
def programme(method: str) -> tuple[Any, Any]:
    """What begins a run and what takes a step of it, compiled once for all sparsities."""
    start, make = (dense_start, fixed_rest) if method == "rest" else METHODS[method]
    base = network(FULL)

    @jax.jit
    def begin(net: js.Network, s: Any, key: Any, batch: Any) -> js.Network:
        return start(net, s, key, batch)

    @jax.jit
    def step(
        params: Any, state: Any, masks: Any, s: Any, key: Any, rate: Any, x: Any, y: Any
    ) -> Any:
        tx = make(dataclasses.replace(base, masks=masks), s, key, rate)
        if state is None:
            state = tx.init(params)
            params = dataclasses.replace(
                base, params=params, masks=sp.masks_of(state)
            ).masked_params()
        grads = jax.grad(lambda p: loss_on((x, y))(dataclasses.replace(base, params=p)))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return begin, step


def batches(images: Images, steps: int, size: int, seed: int) -> Iterator[tuple[Any, Any]]:
    """Batches in an order of the seed's own, anew after each pass."""
    rng = np.random.default_rng(seed)
    order = np.empty(0, int)
    for _ in range(steps):
        if len(order) < size:
            order = rng.permutation(len(images.labels))
        rows, order = order[:size], order[size:]
        yield images.images[rows], images.labels[rows]


def trained(method: str, s: float, seed: int, rate: float, train: Images) -> js.Network:
    """A network of a method and a seed, after all its steps."""
    if method in GATES:
        return trained_gates(method, s, seed, rate, train)
    begin, step = programme(method)
    net = with_seed(network(FULL), FULL, seed)
    key = jax.random.key(1000 + seed)
    (first,) = batches(train, 1, 512, 10_000 + seed)
    if method == "SynFlow":  # a hundred rounds by one program
        for i in range(100):
            net = begin(net, 1 - (1 - s) ** ((i + 1) / 100), key, first)
    else:
        net = begin(net, s, key, first)
    params, state = net.params, None
    for x, y in batches(train, STEPS, BATCH, seed):
        params, state = step(params, state, net.masks, s, key, rate, x, y)
    masks = sp.masks_of(state)
    return dataclasses.replace(network(FULL), params=params, masks=masks)


def with_seed(net: js.Network, model: Cnn, seed: int) -> js.Network:
    """A network with the first weights of a seed."""
    params = jax.jit(model.init)(jax.random.key(seed), EXAMPLE)["params"]
    return dataclasses.replace(net, params=params)


@functools.cache
def plain_step(model: Cnn, steps: int) -> Any:
    """A step of training without any pruning, of a net whose own masks count."""

    @jax.jit
    def step(net: js.Network, state: Any, rate: Any, x: Any, y: Any) -> Any:
        tx = adam(rate, steps)
        state = tx.init(net.params) if state is None else state
        grads = jax.grad(lambda p: cross_entropy(dataclasses.replace(net, params=p)(x), y))(
            net.params
        )
        updates, state = tx.update(grads, state, net.params)
        return dataclasses.replace(net, params=optax.apply_updates(net.params, updates)), state

    return step


def plainly(
    net: js.Network, model: Cnn, train: Images, steps: int, size: int, seed: int, rate: float
) -> js.Network:
    """A network after some steps of training without pruning."""
    state, step = None, plain_step(model, steps)
    for x, y in batches(train, steps, size, seed):
        net, state = step(net, state, rate, x, y)
    return net


def split() -> tuple[Images, Images, Images]:
    """Training, held out and test images."""
    train, test = fashion_mnist("train"), fashion_mnist("test")
    at = len(train.labels) - HELD_OUT
    parts = [
        train._replace(images=train.images[rows], labels=train.labels[rows])
        for rows in (slice(0, at), slice(at, None))
    ]
    return parts[0], parts[1], test


def curves(settings: SparsitySettings) -> None:
    """Every method at every sparsity, at an equal number of steps."""
    train, held, test = split()
    log = ScoreCache(settings.cache / "sparsity_curves.json")

    def plain(model: Cnn, name: str, seed: int, rate: float, data: Images) -> float:
        net = with_seed(network(model), model, seed)
        return log.get(
            repr((name, seed, rate, len(data.labels))),
            lambda: accuracy(plainly(net, model, train, STEPS, BATCH, seed, rate), data),
        )

    def score(method: str, s: float, seed: int, rate: float, data: Images) -> float:
        return log.get(
            repr((method, s, seed, rate, len(data.labels))),
            lambda: accuracy(trained(method, s, seed, rate, train), data),
        )

    # seed 99 is of no reported run
    found = [plain(FULL, "dense", 99, rate, held) for rate in RATES]
    rate = RATES[int(np.argmax(found))]
    print("rates", found, flush=True)
    controls = {
        name: np.array([plain(model, name, seed, rate, test) for seed in range(settings.seeds)])
        for name, model in {"dense": FULL, "small": SMALL}.items()
    }
    others = list(settings.methods) or [m for m in (*METHODS, *GATES) if m != "one shot"]
    scores, names = {}, ["one shot", *others]
    for seed in range(settings.seeds):
        for method in names:
            for s in settings.sparsities:
                scores[method, s, seed] = score(method, s, seed, rate, test)
            print(seed, method, [scores[method, s, seed] for s in settings.sparsities], flush=True)
    of = {
        (m, s): np.array([scores[m, s, seed] for seed in range(settings.seeds)])
        for m in names
        for s in settings.sparsities
    }
    rows = [[m, *(mean_and_error(100 * of[m, s]) for s in settings.sparsities)] for m in names]
    tests = {
        (m, s): paired_test(100 * of[m, s], 100 * of["one shot", s])
        for m in others
        for s in settings.sparsities
    }
    corrected = dict(zip(tests, holm([t.t_p for t in tests.values()]), strict=True))

    def cell(m: str, s: float) -> str:
        difference = mean_and_error(100 * (of[m, s] - of["one shot", s]))
        return f"{difference} (p = {corrected[m, s]:.2g})"

    differences = [[m, *(cell(m, s) for s in settings.sparsities)] for m in others]
    heads = [f"{100 * s:g} %" for s in settings.sparsities]
    pooled = []
    for m in others:
        mean = [
            100 * np.mean([scores[m, s, k] - scores["one shot", s, k] for s in settings.sparsities])
            for k in range(settings.seeds)
        ]
        pooled.append((m, np.array(mean), paired_test(mean, [0.0] * len(mean)).t_p))
    together = holm([p for *_, p in pooled])
    means = [
        [m, mean_and_error(d), f"{p:.2g}"] for (m, d, _), p in zip(pooled, together, strict=True)
    ]
    small = sum(int(p.size) for p in jax.tree.leaves(network(SMALL).params))
    full = sum(int(p.size) for p in jax.tree.leaves(network(FULL).params))
    record(
        "sparsity_curves",
        Table(["method", *heads], rows, "accuracy, %"),
        Table(["method", *heads], differences, "points above one shot, paired by seed"),
        Table(["method", "points", "p"], means, "the same, mean over the sparsities"),
        Table(
            ["network", "parameters", "accuracy, %"],
            [
                ["dense", full, mean_and_error(100 * controls["dense"])],
                ["small, from scratch", small, mean_and_error(100 * controls["small"])],
            ],
            "controls, as many steps",
        ),
        question="How accurate is a sparse network, by how and when its weights were left out?",
        baseline="one-shot magnitude pruning after 480 of as many steps",
        notes=f"Fashion-MNIST test set, a CNN of {full} parameters, {STEPS} steps of {BATCH} "
        f"images out of {len(train.labels)} for every method (about one epoch: accuracies are "
        "those of short training), Adam with a cosine schedule (the lottery's begins anew in each "
        f"round), {settings.seeds} seeds, mean ± standard error, differences paired, p by paired "
        "t-test, corrected after Holm over the whole table. Sparsity is of kernels; biases stay. "
        "Static, SET and RigL are distributed by ERK, the others globally. The peak rate, "
        f"{rate:g} for all, was the dense network's best of {RATES} on {HELD_OUT} held-out "
        "training images, with a seed of its own; the strength of the gates' penalties was chosen "
        "there too, of three each, and the exchange of RigL and SET, of three by RigL's score; "
        f"nothing else was tuned. Gates train for {GATED_STEPS} steps, then the mask of their "
        "highest scores is kept.",
        settings=settings.recorded(rate=rate),
    )


def main(args: list[str]) -> None:
    """Measures every row that an earlier run has not."""
    settings = SparsitySettings.read(args)
    jax.config.update("jax_compilation_cache_dir", str(settings.cache.expanduser() / "compiled"))
    curves(settings)
