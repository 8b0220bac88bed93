"""Tasks of few images: other classes to begin with, few to learn from, others to report."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from benchmarks.common.files import file
from benchmarks.common.small_images import Split
from jaxsim.data import fashion_mnist

TUNING = 100
"""Seeds from here on are for choosing: their tasks hold validation images."""


class Task(NamedTuple):
    """Images of other classes to begin with, few to learn from, others to report."""

    first: Split
    train: Split
    report: Split
    classes: int
    epochs: int


def fashion(seed: int) -> Task:
    """Four kinds of upper clothing, 10 images of each; the other six kinds first."""
    train, test = fashion_mnist("train"), fashion_mnist("test")
    kinds = np.array([0, 2, 4, 6])
    rng = np.random.default_rng([seed, 0])
    rows, held = np.split(np.arange(len(train.labels)), [len(train.labels) * 5 // 6])
    other = rng.permutation(rows[~np.isin(train.labels[rows], kinds)])[:2000]
    few = _per_class(rng, train.labels[rows], kinds, 10)
    if seed >= TUNING:
        shown = held[np.isin(train.labels[held], kinds)][:1000]
        report = Split(train.images[shown], train.labels[shown])
    else:
        shown = _per_class(np.random.default_rng(0), test.labels, kinds, 500)
        report = Split(test.images[shown], test.labels[shown])
    return Task(
        _renumbered(Split(train.images[other], train.labels[other])),
        _renumbered(Split(train.images[few], train.labels[few])),
        _renumbered(report),
        4,
        2,
    )


def omniglot(seed: int) -> Task:
    """Twenty characters, 5 drawings of each; the characters of other alphabets first."""
    with np.load(file("quantum_coconet/omniglot_small_28px.npz"), allow_pickle=False) as held:
        images = held["images"][..., None] / np.float32(255)
        labels, names = held["labels"], held["classes"]
    alphabet = np.array([str(name).split("/")[0] for name in names])
    alphabets = sorted(set(alphabet.tolist()))
    tuned, reported = alphabets[5:6], alphabets[6:]
    rng = np.random.default_rng([seed, 0])
    of = alphabet[labels]
    other = np.flatnonzero(np.isin(of, alphabets[:5]))
    wanted = tuned if seed >= TUNING else reported
    pool = np.unique(labels[np.isin(of, wanted)])
    chosen = rng.permutation(pool)[: min(20, len(pool))]
    few = _per_class(rng, labels, chosen, 5)
    rest = np.setdiff1d(np.flatnonzero(np.isin(labels, chosen)), few)
    parts = (Split(images[rows], labels[rows]) for rows in (other, few, rest))
    return Task(*map(_renumbered, parts), len(chosen), 3)


def flowers(seed: int) -> Task:
    """Six species, 10 images of each; the other six first. Copies of training images are out."""
    sets = []
    for part in ("train", "test"):
        path = file(f"quantum_coconet/oxford_flowers12_40px_{part}.npz")
        with np.load(path, allow_pickle=False) as held:
            sets.append(Split(held["x"] / np.float32(255), held["y"]))
    train, test = sets
    flat = train.images.reshape(len(train.images), -1)
    nearest = [np.sqrt(((flat - x.ravel()) ** 2).mean(1).min()) for x in test.images]
    fresh = np.array(nearest) > 3 / 255
    kinds = np.arange(0, 12, 2)
    rng = np.random.default_rng([seed, 0])
    few = _per_class(rng, train.labels, kinds, 10)
    of_kind = np.isin(train.labels, kinds)
    if seed >= TUNING:
        rest = np.setdiff1d(np.flatnonzero(of_kind), few)
        report = Split(train.images[rest], train.labels[rest])
    else:
        shown = fresh & np.isin(test.labels, kinds)
        report = Split(test.images[shown], test.labels[shown])
    first = Split(train.images[~of_kind], train.labels[~of_kind])
    few_split = Split(train.images[few], train.labels[few])
    return Task(*map(_renumbered, (first, few_split, report)), 6, 10)


TASKS = {"Fashion-MNIST, 4 kinds": fashion, "Omniglot": omniglot, "flowers": flowers}


def _per_class(rng: Any, labels: np.ndarray, kinds: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == kind))[:count] for kind in kinds]
    )


def _renumbered(split: Split) -> Split:
    return Split(split.images, np.unique(split.labels, return_inverse=True)[1].astype(np.int32))
