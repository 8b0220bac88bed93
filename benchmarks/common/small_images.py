"""Small sets of images, and images with their labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks.common import paths

DATA = paths.DATA / "quantum_coconet"
"""Folder of MNIST-10k, Omniglot and flowers."""


class Split(NamedTuple):
    """Images [N, 28, 28, 1] in [0, 1] and labels."""

    images: np.ndarray
    labels: np.ndarray
