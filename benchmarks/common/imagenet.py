"""A thousand pictures of ImageNet, found where the data lie."""

from __future__ import annotations

import io
import zipfile
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from benchmarks.common.files import file


class Pictures(NamedTuple):
    """Pictures and their classes.

    Attributes:
      images: The middle of each picture, (x - 127) / 128.
      labels: Classes, 0 to 999.
    """

    images: Float[np.ndarray, "N 224 224 3"]
    labels: Int[np.ndarray, " N"]

    def take(self, chosen: np.ndarray | slice) -> Pictures:
        """Some of the pictures.

        Args:
          chosen: Their places.
        """
        return Pictures(self.images[chosen], self.labels[chosen])


def pictures() -> Pictures:
    """Reads all of them, in the order of their classes: one of each.

    Raises:
      MissingFileError: They are not there.
    """
    from PIL import Image

    images, labels = list[np.ndarray](), list[int]()
    with zipfile.ZipFile(file("imagenet/imagenet1000_256.zip")) as archive:
        for name in sorted(archive.namelist()):
            picture = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            images.append((picture[16:240, 16:240].astype(np.float32) - 127) / 128)
            labels.append(int(name.split("/")[-1].split("_")[0]))
    return Pictures(np.stack(images), np.array(labels))
