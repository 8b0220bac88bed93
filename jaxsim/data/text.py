"""Labeled texts from files that a user has: AG News and SST-2. None come with the package."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32

from jaxsim.files.text import read_text

AG_NEWS_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
SST2_CLASSES = ("negative", "positive")


class Texts(NamedTuple):
    """A labeled set of texts.

    Attributes:
      texts: N texts.
      labels: Index into `classes` of each text, [N].
      classes: Name of each class.
    """

    texts: tuple[str, ...]
    labels: Int32[np.ndarray, " N"]
    classes: tuple[str, ...]


def ag_news(split: Literal["train", "test"], path: str | os.PathLike[str] | None = None) -> Texts:
    """Reads news in four classes: title and description joined by a space.

    Args:
      split: Part to read, "train" or "test".
      path: Folder with `ag_news_train.csv` and `ag_news_test.csv`, as the corpus has them under
        `train.csv` and `test.csv`: class from 1, title, description. None for
        `$JAXSIM_DATA/text`.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: Another split, or a row of another form.

    Source: Zhang, Zhao and LeCun (2015), arXiv 1509.01626.
    """
    _check_split(split, ("train", "test"))
    file = _folder(path) / f"ag_news_{split}.csv"
    texts: list[str] = []
    labels: list[int] = []
    rows, line = csv.reader(io.StringIO(read_text(file))), 1
    try:
        for i, row in enumerate(rows, 1):
            if len(row) != 3 or row[0] not in ("1", "2", "3", "4"):
                raise ValueError(f"row {i} is no class 1 to 4, title, description")
            texts.append(f"{row[1]} {row[2]}")
            labels.append(int(row[0]) - 1)
            line = rows.line_num + 1  # a quoted text may hold the ends of lines
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{str(file)!r}, line {line}: {error}") from None
    return Texts(tuple(texts), np.array(labels, np.int32), AG_NEWS_CLASSES)


def sst2(
    split: Literal["train", "dev", "test"], path: str | os.PathLike[str] | None = None
) -> Texts:
    """Reads sentences of film reviews, negative or positive.

    Args:
      split: Part to read, "train", "dev" or "test".
      path: Folder with `sst2_train.tsv`, …: a sentence, a tab, 0 or 1. None for
        `$JAXSIM_DATA/text`.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: Another split, or a row of another form.

    Source: Socher et al. (2013), Recursive Deep Models for Semantic Compositionality.
    """
    _check_split(split, ("train", "dev", "test"))
    file = _folder(path) / f"sst2_{split}.tsv"
    texts: list[str] = []
    labels: list[int] = []
    for i, line in enumerate(read_text(file).rstrip("\n").split("\n"), 1):
        text, tab, label = line.rpartition("\t")
        if not tab or label not in ("0", "1"):
            raise ValueError(f"{str(file)!r}, line {i}: row {i} is no sentence, tab, 0 or 1")
        texts.append(text)
        labels.append(int(label))
    return Texts(tuple(texts), np.array(labels, np.int32), SST2_CLASSES)


def _check_split(split: str, known: tuple[str, ...]) -> None:
    if split not in known:
        raise ValueError(f"split={split!r}: must be one of {', '.join(known)}")


def _folder(path: str | os.PathLike[str] | None) -> Path:
    if path is not None:
        return Path(path)
    root = os.environ.get("JAXSIM_DATA")
    if not root:
        raise ValueError("path=None and $JAXSIM_DATA is not set; give a folder")
    return Path(root) / "text"
