"""EfficientNet-lite0, and pictures for this and that."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import jaxsim as js
from benchmarks.common.efficientnet import lite0
from benchmarks.common.imagenet import Pictures, pictures
from benchmarks.topics.imagenet.settings import ImagenetSettings

BATCH = 64


class Subject(NamedTuple):
    """The network and its pictures.

    Attributes:
      net: EfficientNet-lite0.
      tested: Pictures that are classified.
      calibrate: Images that set ranges.
      adapt: Pictures to adapt to, whose labels a search alone looks at.
      cache: Where a search keeps what it has measured.
      searched: How many of them a search looks at.
      move: Moves the statistics of norms as they have moved from those of the network.
      settle: Measures statistics of norms anew, in floats.
    """

    net: js.Network
    tested: Pictures
    calibrate: np.ndarray
    adapt: Pictures
    cache: Path
    searched: int
    move: js.Transform
    settle: js.Transform

    @property
    def batches(self) -> list[np.ndarray]:
        """The images to adapt to, in batches."""
        return _batches(self.adapt.images)


def subject_of(settings: ImagenetSettings) -> Subject:
    """Shares the pictures out.

    Args:
      settings: How many serve what.
    """
    held = pictures()
    others = np.random.default_rng(0).permutation(np.arange(1, 1000, 2))
    seen, adapt = np.split(
        others[: settings.calibration + settings.adapting], [settings.calibration]
    )
    tested = held.take(np.arange(0, 2 * settings.pictures, 2))
    net = lite0()
    few = _batches(held.images[adapt[: settings.statistics]])
    move = js.update_norms(few, reference=net, key=jax.random.key(0), train=True)
    settle = js.update_norms(_batches(held.images[adapt]), key=jax.random.key(0), train=True)
    cache, searched = settings.cache.expanduser(), min(settings.searched, settings.adapting)
    return Subject(net, tested, held.images[seen], held.take(adapt), cache, searched, move, settle)


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
