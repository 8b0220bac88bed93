"""Draw the subset of Fashion-MNIST that comes with the package: python -m jaxsim.data.make_subset.

It needs the official files (Debian package dataset-fashion-mnist, or any folder given as the
argument) and writes the .npz beside this module. After a change of what is drawn, the digest that
it prints belongs in `SUBSET_SHA256`.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from jaxsim.data.fashion_mnist import CLASSES, DEBIAN_FOLDER, FILES, SUBSET
from jaxsim.data.idx import read_idx
from jaxsim.files.atomic import whole

SEED = 20170825
PER_CLASS = {"train": 700, "test": 200}  # as many as fit into 4 MB


def draw(
    labels: UInt8[np.ndarray, " N"], per_class: int, rng: np.random.Generator
) -> Int[np.ndarray, " M"]:
    """Draws as many rows of each class.

    Args:
      labels: Class of each row [N].
      per_class: Rows to draw of each class.
      rng: Source of randomness.

    Returns:
      The rows drawn, ascending, so that the official order is kept [M].
    """
    rows = [
        rng.permutation(np.flatnonzero(labels == kind))[:per_class] for kind in range(len(CLASSES))
    ]
    return np.sort(np.concatenate(rows))


def make_subset(folder: Path, path: Path) -> str:
    """Write the subset drawn from the official files.

    Args:
      folder: Holds the official .gz files.
      path: The .npz to write. For each split it holds `<split>_images` uint8 [N, 28, 28],
        `<split>_labels` uint8 [N] and `<split>_rows` uint16 [N], the rows of the official
        split that were drawn.

    Returns:
      SHA-256 of the file written, hexadecimal.

    Raises:
      ValueError: An official file is damaged or another one.
      FileNotFoundError: An official file is missing.
    """
    rng = np.random.default_rng(SEED)
    # Any, because savez_compressed takes arrays and its own options from the same keywords.
    arrays: dict[str, Any] = {}
    for split, files in FILES.items():
        images, labels = (
            read_idx(folder / f"{file.name}.gz", sha256=file.sha256) for file in files
        )
        rows = draw(labels, PER_CLASS[split], rng)
        arrays[f"{split}_images"] = images[rows]
        arrays[f"{split}_labels"] = labels[rows]
        arrays[f"{split}_rows"] = rows.astype(np.uint16)
    with whole(path) as part:
        np.savez_compressed(part, **arrays)
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    official = Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN_FOLDER
    written = Path(__file__).with_name(SUBSET)
    print(make_subset(official, written), written.stat().st_size, "bytes", written)
