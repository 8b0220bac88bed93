"""Small sets of images, and images with their labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Images [N, 28, 28, 1] in [0, 1] and labels."""

    images: np.ndarray
    labels: np.ndarray
