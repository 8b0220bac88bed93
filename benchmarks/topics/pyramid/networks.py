"""Pyramids trained from MiniLM, stage by stage."""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.texts import corpus_of, minilm
from benchmarks.topics.pyramid.settings import PyramidSettings
from jaxsim.adaptive.pyramid import Pyramid
from jaxsim.adaptive.rule import Rule
from jaxsim.adaptive.students import distill_students, pass_all
from jaxsim.adaptive.tokens import linear_thresholds
from jaxsim.models.bert import encoder
from jaxsim.models.hugging_face import load_bert
from jaxsim.train.losses import distillation, distillation_targets
from jaxsim.train.pyramid import Soft, train_pyramid
from jaxsim.transforms.magic_pyramid import magic_pyramid


def network(settings: PyramidSettings, name: str, seed: int, kind: str) -> Pyramid:
    """A trained network by its last stage.

    `dense` (1 epoch) → `exits` (1.25 more, then students), or `dense` → `soft` (0.5, thresholds
    learned) → `hard` (0.75, tokens left out) → `pyramid` (students). `soft` and `hard` are drawn to
    what `longer` (`exits` before its students) says as well.
    """
    corpus = corpus_of(name, settings.texts)
    train = corpus.train
    epoch = len(train.ids) // 32
    mean = float(train.lengths.mean())
    before = {"longer": "dense", "soft": "dense", "hard": "soft", "exits": "longer"}
    key = jax.random.fold_in(jax.random.key(seed), len(kind))
    model, params = load_bert(minilm(), classes=corpus.classes, key=jax.random.key(seed))
    fresh = magic_pyramid(0.0, Rule())(encoder(model, params))
    path = settings.checkpoints.expanduser() / f"{name}-{seed}-{kind}.npz"
    if path.exists():
        return _read(path, fresh)
    start = fresh if kind == "dense" else network(settings, name, seed, before.get(kind, "hard"))
    clock = time.perf_counter()
    share, rate = {"dense": (1, 1e-4), "longer": (1.25, 5e-5), "soft": (0.5, 5e-5)}.get(
        kind, (0.75, 5e-5)
    )
    steps = int(share * epoch)
    optimizer = _optimizer(rate, steps, 0.01 / mean if kind == "soft" else 0.0)
    learn = functools.partial(train_pyramid, steps=steps, optimizer=optimizer, key=key, quiet=True)
    if kind in ("exits", "pyramid"):
        net = distill_students(start, train.ids, train.lengths, key)
    elif kind in ("soft", "hard"):
        whole = network(settings, name, seed, "longer")
        said = pass_all(whole, train.ids, train.lengths).logits[:, -1]
        labels = distillation_targets(np.asarray(said), train.labels)
        data, loss = (train.ids, train.lengths, labels), distillation()
        if kind == "soft":
            # Scores are one over the length on average: everything of theirs is in that unit.
            start = dataclasses.replace(start, level=linear_thresholds(0.8 / mean, model.layers))
            soft = Soft(0.1, (0.25 / mean, 0.025 / mean))
            net = learn(start, *data, loss=loss, soft=soft)
        else:
            net = learn(start, *data, loss=loss)
    else:
        net = learn(start, *train)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, *map(np.asarray, jax.tree.leaves(net)))
    part.replace(path)
    print(f"{path.stem}: {time.perf_counter() - clock:.0f} s, levels {np.asarray(net.level)}")
    return net


def _optimizer(rate: float, steps: int, level_rate: float = 0.0) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 10), steps)
    weights = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
    if not level_rate:
        return weights
    return optax.multi_transform(
        {"weights": weights, "level": optax.adam(level_rate)},
        {"encoder": "weights", "level": "level"},
    )


def _read(path: Path, like: Pyramid) -> Pyramid:
    with np.load(path, allow_pickle=False) as file:
        leaves = [jnp.asarray(file[f"arr_{i}"]) for i in range(len(file.files))]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
