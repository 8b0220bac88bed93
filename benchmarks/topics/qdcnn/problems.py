"""Images to classify: a training set for each seed, the reported images the same."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks.common.files import file
from benchmarks.common.small_images import Split
from jaxsim.data import fashion_mnist

TRAIN, VALID, TEST = 1000, 500, 2000


class Problem(NamedTuple):
    """Images to learn from, to choose by and to report."""

    train: Split
    valid: Split
    test: Split


def problem(name: str, seed: int) -> Problem:
    """Training images of a seed; the images that are reported are the same for every seed."""
    if name == "Fashion-MNIST":
        pool, test = fashion_mnist("train"), fashion_mnist("test")
        images, labels = pool.images, pool.labels
        held = Split(test.images[:TEST], test.labels[:TEST])
    else:
        with np.load(file("quantum_coconet/mnist10k_npm.npz"), allow_pickle=False) as loaded:
            images, labels = loaded["images"][..., None] / np.float32(255), loaded["labels"]
        order = np.random.default_rng(0).permutation(len(labels))
        images, labels = images[order], labels[order]
        held = Split(images[:TEST], labels[:TEST])
        images, labels = images[TEST:], labels[TEST:]
    rows = np.random.default_rng([seed, 1]).permutation(len(labels))[: TRAIN + VALID]
    train, valid = rows[:TRAIN], rows[TRAIN:]
    return Problem(Split(images[train], labels[train]), Split(images[valid], labels[valid]), held)
