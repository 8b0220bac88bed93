"""Heads trained on few images, after a backbone trained on other classes."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxsim.collaborative as jcol
from benchmarks.peers.collaborative import Classifier
from benchmarks.topics.coconet.tasks import TASKS, Task
from jaxsim.checkpoint.log import ScoreCache
from jaxsim.models.coconet import CoCoNet, CollaborativeHead, mean_pool

RATES = (1e-3, 4e-3, 1.6e-2)
STEPS = 60


class Backbone(nn.Module):
    """Three convolutions with instance norm."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """A map of 32 channels."""
        for features, stride in ((16, 2), (32, 2), (32, 1)):
            x = nn.Conv(features, (3, 3), stride, use_bias=False)(x)
            x = nn.relu(nn.GroupNorm(num_groups=None, group_size=1)(x))
        return x


class Choice(NamedTuple):
    """What is chosen on validation images: a rate, and one thing that is the head's own."""

    rate: float
    own: float


HEADS: dict[str, tuple[str, tuple[float, float]]] = {
    "softmax": ("weight decay", (1e-4, 3e-2)),
    "bilinear": ("scale of the features", (3.0, 10.0)),
    "CRC after softmax": ("λ", (0.01, 0.1)),
    "collaborative": ("initial λ", (0.03, 0.3)),
    "collaborative, bilinear": ("initial λ", (0.03, 0.3)),
}
"""What each head chooses beside its rate."""


@cache
def _model(head: str, classes: int, own: float) -> Any:
    """A head on a new backbone; `own` only where the module depends on it."""
    if head == "bilinear":
        return Classifier(Backbone(), classes, jcol.bilinear_pool, own)
    if head == "softmax":
        return Classifier(Backbone(), classes)
    pool = jcol.bilinear_pool if "bilinear" in head else mean_pool
    return CoCoNet(Backbone(), CollaborativeHead(classes, guard=False), pool)


@cache
def _steps(model: Any) -> tuple[Any, Any, Any, Any]:
    """A training step, features and logits of a model, compiled once; and its optimizer."""
    optimizer = optax.scale_by_adam()
    collaborative = isinstance(model, CoCoNet)

    def loss_of(params: Any, x: Any, y: Any) -> Any:
        if collaborative:
            return jcol.leave_one_out_entropy(model.apply({"params": params}, x, y), y)
        logits = model.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params: Any, state: Any, x: Any, y: Any, rate: Any, decay: Any) -> Any:
        changes, state = optimizer.update(jax.grad(loss_of)(params, x, y), state)
        moved = jax.tree.map(lambda p, c: p - rate * (c + decay * p), params, changes)
        return moved, state

    features = jax.jit(lambda params, x: model.apply({"params": params}, x, method="features"))
    logits = jax.jit(lambda params, x: model.apply({"params": params}, x))
    return step, features, logits, optimizer


def first_stage(task: Task, seed: int) -> Any:
    """A backbone trained to tell the first classes apart."""
    model = _model("softmax", int(task.first.labels.max()) + 1, 0.0)
    step, _, _, optimizer = _steps(model)
    params = model.init(jax.random.key(seed), jnp.asarray(task.first.images[:1]))["params"]
    state, rng = optimizer.init(params), np.random.default_rng([seed, 1])
    for _ in range(task.epochs):
        order = rng.permutation(len(task.first.labels))
        for i in range(len(order) // 60):
            rows = order[60 * i : 60 * (i + 1)]
            batch = task.first.images[rows], task.first.labels[rows]
            params, state = step(params, state, *batch, 3e-3, 1e-4)
    return params["backbone"]


def second_stage(head: str, choice: Choice, task: Task, seed: int, backbone: Any) -> Any:
    """The parameters of a model after training on the few images."""
    model = _model(head, task.classes, choice.own if head == "bilinear" else 0.0)
    step, _, _, optimizer = _steps(model)
    params = model.init(jax.random.key(seed + 1000), jnp.asarray(task.train.images[:1]))["params"]
    params = {**params, "backbone": backbone}
    if isinstance(model, CoCoNet):
        rho = jnp.log(jnp.expm1(jnp.float32(choice.own)))
        params = {**params, "head": {**params["head"], "lam": rho}}
    state = optimizer.init(params)
    decay = choice.own if head == "softmax" else 1e-4
    for _ in range(STEPS):
        params, state = step(params, state, *task.train, choice.rate, decay)
    return params


class Seed:
    """One seed of a task: what it needs is made when a score is not known yet."""

    def __init__(self, name: str, seed: int, log: ScoreCache):
        self.name, self.seed, self.log = name, seed, log
        self.task = cache(partial(TASKS[name], seed))
        self.backbone = cache(lambda: first_stage(self.task(), seed))
        self.trained = cache(self._trained)

    def score(self, head: str, choice: Choice) -> float:
        """Accuracy of a head on the images to report."""
        name = f"{self.name}, {self.seed}, {head}, {choice.rate:g}, {choice.own:g}"
        return self.log.get(name, lambda: self._accuracy(head, choice))

    def _trained(self, head: str, choice: Choice) -> Any:
        return second_stage(head, choice, self.task(), self.seed, self.backbone())

    def _accuracy(self, head: str, choice: Choice) -> float:
        task = self.task()
        if head == "CRC after softmax":  # shares the softmax networks
            params = self.trained("softmax", Choice(choice.rate, HEADS["softmax"][1][0]))
            model, lam = _model("softmax", task.classes, 0.0), choice.own
        else:
            params = self.trained(head, choice)
            model = _model(head, task.classes, choice.own if head == "bilinear" else 0.0)
            lam = jax.nn.softplus(params["head"]["lam"]) if isinstance(model, CoCoNet) else None
        _, features, logits, _ = _steps(model)
        if lam is None:
            found = logits(params, task.report.images)
        else:
            known, new = (jcol.unit(features(params, s.images)) for s in (task.train, task.report))
            made = jcol.make_dictionary(known, task.train.labels, task.classes, lam)
            found = jcol.dictionary_logits(made, new, 1.0)
        return float(np.mean(np.asarray(found).argmax(1) == task.report.labels))
