"""Texts to classify, cut into word pieces, and the MiniLM that reads them."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common.files import file
from jaxsim.data.text import Texts, ag_news, sst2
from jaxsim.models.hugging_face import word_pieces

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


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


@functools.cache
def minilm() -> Path:
    """The folder of MiniLM, its weights checked."""
    weights = file("model/model.safetensors")
    folder, digest = weights.parent, hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != MINILM_SHA256:
        raise ValueError(f"{folder}: SHA-256 {digest} of the weights; expected {MINILM_SHA256}")
    return folder


@functools.cache
def corpus_of(name: str, most: int) -> Corpus:
    """Texts of three lengths, at most `most` of each part.

    AG News: 4600, 1000 and 2000 rows of its test file. Joined: one to eight of these of one class
    make a row, those to learn from and to choose by twice, in other groups. SST-2: 6920, 872 and
    1821, its own.
    """
    if name != "sst2":
        texts = ag_news("test", file("mp_ni/ag_news_test.csv").parent)
        order = np.random.default_rng(0).permutation(len(texts.labels))
        places = np.split(order, [4600, 5600])
        if name == "joined":
            parts = [_joined(texts, p, turns) for p, turns in zip(places, (2, 2, 1), strict=True)]
        else:
            pieces = word_pieces(minilm(), texts.texts)
            parts = [Part(pieces.ids[p], pieces.lengths[p], texts.labels[p]) for p in places]
    else:
        read = [
            sst2(split, file(f"mp_ni/sst2_{split}.tsv").parent)
            for split in ("train", "dev", "test")
        ]
        parts = [Part(*word_pieces(minilm(), texts.texts), texts.labels) for texts in read]
    few = (Part(*(column[:most] for column in part)) for part in parts)
    return Corpus(*few, classes=2 if name == "sst2" else 4)


def _joined(texts: Texts, places: np.ndarray, turns: int) -> Part:
    """One to eight texts of one class as a row, each text `turns` times."""
    rng = np.random.default_rng(len(places))
    rows: list[tuple[str, int]] = []
    for label in range(4):
        of_class = places[texts.labels[places] == label]
        for _ in range(turns):
            order = rng.permutation(of_class)
            ends = np.cumsum(rng.integers(1, 9, len(order)))
            for group in np.split(order, ends[ends < len(order)]):
                rows.append((" ".join(texts.texts[i] for i in group), label))
    shuffled = [rows[i] for i in rng.permutation(len(rows))]
    joined, labels = zip(*shuffled, strict=True)
    return Part(*word_pieces(minilm(), joined, longest=384), np.array(labels, np.int32))
