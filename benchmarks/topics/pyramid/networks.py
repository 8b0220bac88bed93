"""Pyramids trained from MiniLM, stage by stage."""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsim as js
from benchmarks.common.texts import corpus_of, minilm
from benchmarks.topics.pyramid.settings import PyramidSettings
from jaxsim.adaptive.tokens import linear_thresholds, prefix_mask
from jaxsim.models.hugging_face import load_bert
from jaxsim.network.network import base_network
from jaxsim.staged.network import Staged
from jaxsim.train.loop import fit
from jaxsim.train.losses import distillation, distillation_targets
from jaxsim.train.soft import Soft

BATCH = 32
"""Rows of a step of training."""


def present(ids: jax.Array, lengths: jax.Array) -> jax.Array:
    """Which tokens there are."""
    return prefix_mask(lengths, ids.shape[1])


def with_exits(net: js.Network, level: jax.Array) -> Staged:
    """A network whose tokens leave at levels, with a classifier behind each layer."""
    return js.magic_pyramid(level, js.Rule(), present=present)(base_network(net))


def network(settings: PyramidSettings, name: str, seed: int, kind: str) -> Staged:
    """A trained network by its last stage.

    `dense` (1 epoch) → `longer` (1.25 more) → `exits` (students), or `dense` → `soft` (0.5,
    thresholds learned) → `hard` (0.75, tokens left out) → `pyramid` (students). `soft` and `hard`
    are drawn to what `longer` says as well.
    """
    corpus = corpus_of(name, settings.texts)
    train = corpus.train
    mean = float(train.lengths.mean())
    before = {"longer": "dense", "soft": "dense", "hard": "soft", "exits": "longer"}
    key = jax.random.fold_in(jax.random.key(seed), len(kind))
    model, params = load_bert(minilm(), classes=corpus.classes, key=jax.random.key(seed))
    whole = js.trace(model, {"params": params}, train.ids[:2], train.lengths[:2])
    fresh = js.prune_tokens(0.0, present=present)(whole)
    path = settings.checkpoints.expanduser() / f"{name}-{seed}-{kind}"
    if path.exists():
        like = with_exits(whole, jnp.zeros(model.layers)) if kind in ("exits", "pyramid") else fresh
        return js.load(path, like)
    start = fresh if kind == "dense" else network(settings, name, seed, before.get(kind, "hard"))
    clock = time.perf_counter()
    if kind in ("exits", "pyramid"):
        net = with_exits(start, start.tokens.level)
        net = js.distill_exits(net, (train.ids, train.lengths), key=key)
    else:
        share, rate = {"dense": (1, 1e-4), "longer": (1.25, 5e-5), "soft": (0.5, 5e-5)}.get(
            kind, (0.75, 5e-5)
        )
        # so much of an epoch, or that and more, as one pass over rows drawn without repeating any
        order = np.random.default_rng([seed, len(kind)]).permutation(len(train.ids))
        rows = np.resize(order, int(share * len(order)))
        steps = len(rows) // BATCH
        learn = functools.partial(
            fit,
            images=(train.ids[rows], train.lengths[rows]),
            epochs=1,
            batch_size=BATCH,
            pad_to=16,
            optimizer=_optimizer(rate, steps, 0.01 / mean if kind == "soft" else 0.0),
            key=key,
            quiet=True,
        )
        if kind in ("soft", "hard"):
            said = network(settings, name, seed, "longer").run(train.ids, train.lengths).logits
            labels = distillation_targets(np.asarray(said), train.labels)[rows]
            learn = functools.partial(learn, labels=labels, loss=distillation())
        else:
            learn = functools.partial(learn, labels=train.labels[rows])
        if kind == "soft":
            # Scores are one over the length on average: everything of theirs is in that unit.
            level = linear_thresholds(0.8 / mean, model.layers)
            rule = dataclasses.replace(start.tokens, level=level)
            start = dataclasses.replace(start, tokens=rule)
            learn = functools.partial(learn, soft=Soft(0.1, (0.25 / mean, 0.025 / mean)))
        net = learn(start)
    path.parent.mkdir(parents=True, exist_ok=True)
    js.save(path, net)
    print(f"{path.stem}: {time.perf_counter() - clock:.0f} s, levels {net.tokens.level}")
    return net


def _optimizer(rate: float, steps: int, level_rate: float = 0.0) -> optax.GradientTransformation:
    warm = max(1, steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warm, max(steps, warm + 1))
    weights = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
    if not level_rate:
        return weights
    return optax.multi_transform(
        {"weights": weights, "level": optax.adam(level_rate)},
        {"params": "weights", "level": "level"},
    )
