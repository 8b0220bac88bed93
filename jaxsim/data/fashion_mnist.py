"""Fashion-MNIST: ten kinds of clothing in 28 by 28 gray pixels, whole or as a packaged subset."""

import hashlib
import http.client
import io
import os
import tempfile
import urllib.request
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from jaxsim.data.idx import read_idx

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
# A commit, not a branch: the address can only ever mean these files.
URL = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/"
    "b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/"
)
SUBSET = "fashion_mnist_subset.npz"
SUBSET_SHA256 = "556bd38beb1c1ca7d190650a02118546e4dd3c442760bfadcdcabc8e40c25760"
SOURCES = ("auto", "env", "debian", "cache", "subset")
_MAX_BYTES = 1 << 26  # the largest file is 47 MB unpacked
_TIMEOUT = 30.0  # seconds without an answer


class IdxFile(NamedTuple):
    """One of the official files.

    Attributes:
      name: File name, without the .gz it may carry.
      sha256: SHA-256 of the unpacked content. Debian's .gz files differ from the official ones
        (no name in the gzip header) and hold the same content, so this is what is compared.
    """

    name: str
    sha256: str


class SplitFiles(NamedTuple):
    """The two official files of a split."""

    images: IdxFile
    labels: IdxFile


FILES = {
    "train": SplitFiles(
        IdxFile(
            "train-images-idx3-ubyte",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        IdxFile(
            "train-labels-idx1-ubyte",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
    ),
    "test": SplitFiles(
        IdxFile(
            "t10k-images-idx3-ubyte",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}


class Images(NamedTuple):
    """A labeled set of images.

    Attributes:
      images: Gray levels in [0, 1], 1 the brightest; not normalized [N, 28, 28, 1].
      labels: Index into `classes` of each image [N].
      classes: Name of each class.
      source: Where the set was read from, in words; starts with "env", "debian", "cache",
        "folder" or "subset".

    Examples:
      >>> from jaxsim.data import fashion_mnist
      >>> test = fashion_mnist("test", source="subset")
      >>> len(test.classes), test.classes[0]
      (10, 'T-shirt/top')
    """

    images: Float32[np.ndarray, "N 28 28 1"]
    labels: Int32[np.ndarray, " N"]
    classes: tuple[str, ...]
    source: str


def fashion_mnist(
    split: Literal["train", "test"],
    *,
    source: Literal["auto", "env", "debian", "cache", "subset"] | Path = "auto",
    download: bool = False,
) -> Images:
    """Loads a split of Fashion-MNIST from the first place that has it; every byte is checksummed.

    The places, in the order in which "auto" tries them:

    - "env": the folder `$JAXSIM_DATA/fashion_mnist`, where that variable is set;
    - "debian": the Debian package dataset-fashion-mnist;
    - "cache": what an earlier download left in `~/.cache/jaxsim/fashion_mnist` (or below
      `$XDG_CACHE_HOME`); with `download`, what is missing there is fetched from the project's
      own repository on GitHub (30 MB for "train", 4 MB for "test");
    - "subset": the class-balanced subset that comes with jaxsim, 7000 images to train and 2000 to
      test.

    Files may be the official ones, compressed or not. A file that is present and wrong is an
    error; no other place is tried in its stead.

    Where `$JAXSIM_FASHION_MNIST` names one of the places, "auto" is that one: "subset" makes short
    runs of what otherwise learns from 60 000 images.

    Args:
      split: "train" (60 000 images in full) or "test" (10 000).
      source: One of the names above, or a `Path` to a folder with the official files.
      download: Whether the network may be used, for sources "auto" and "cache".

    Returns:
      Images, in the official order. Its `source` says which place they came from.

    Raises:
      ValueError: An argument is not one of its allowed values, or a file is damaged or does not
        have the official checksum.
      FileNotFoundError: The place asked for by `source` lacks a file, or a folder that "auto"
        came to holds one file of the split without the other.
      ConnectionError: The download failed.
      OSError: The download cannot be kept in the cache folder.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking
    machine learning algorithms", arXiv:1708.07747.

    Examples:
      >>> from jaxsim.data import fashion_mnist
      >>> test = fashion_mnist("test", source="subset")
      >>> test.images.shape, test.labels.shape
      ((2000, 28, 28, 1), (2000,))
    """
    if split not in tuple(FILES):
        raise ValueError(f"split is {split!r}; expected one of {tuple(FILES)}")
    if source == "auto":
        source = cast(Any, os.environ.get("JAXSIM_FASHION_MNIST") or source)
    if not isinstance(source, Path) and source not in SOURCES:
        raise ValueError(f"source is {source!r}; expected one of {SOURCES} or a pathlib.Path")
    if download and source not in ("auto", "cache"):
        raise ValueError(f"download is True and source {source!r}; expected 'auto' or 'cache'")
    files = FILES[split]

    if isinstance(source, Path):
        return _read_folder(source, files, "folder")
    if source in ("auto", "env"):
        folder = _env_folder()
        if folder is None and source == "env":
            raise ValueError("source is 'env' and $JAXSIM_DATA is not set; expected a folder")
        if folder is not None and (source == "env" or _holds_any(folder, files)):
            return _read_folder(folder, files, "env")
    if source == "debian" or (source == "auto" and _holds_any(DEBIAN_FOLDER, files)):
        return _read_folder(DEBIAN_FOLDER, files, "debian")
    if source in ("auto", "cache"):
        folder = _cache_folder()
        if download:
            for file in files:
                if _locate(folder, file) is None:
                    _download(file, folder)
        # A download that was cut off between the two files is no reason to fail under "auto".
        if source == "cache" or all(_locate(folder, file) for file in files):
            return _read_folder(folder, files, "cache")
    return _read_subset(split)


def _env_folder() -> Path | None:
    """Folder that $JAXSIM_DATA points to, None where it is unset or empty."""
    root = os.environ.get("JAXSIM_DATA")
    return Path(root) / "fashion_mnist" if root else None


def _cache_folder() -> Path:
    """Folder of this user that downloads are kept in."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "jaxsim" / "fashion_mnist"


def _locate(folder: Path, file: IdxFile) -> Path | None:
    """Path of an official file in a folder, compressed or not; None where it has neither."""
    candidates = (folder / f"{file.name}.gz", folder / file.name)
    # os.path.exists, unlike Path.exists, takes a folder that may not be entered for an absence.
    return next((path for path in candidates if os.path.exists(path)), None)


def _holds_any(folder: Path, files: SplitFiles) -> bool:
    """Tells whether a folder has at least one file of a split."""
    return any(_locate(folder, file) for file in files)


def _read_folder(folder: Path, files: SplitFiles, place: str) -> Images:
    """Reads a split from a folder of official files."""
    arrays: list[np.ndarray] = []
    for file in files:
        path = _locate(folder, file)
        if path is None:
            raise FileNotFoundError(
                f"source {place!r}: found neither {file.name}.gz nor {file.name} in {folder}"
            )
        arrays.append(read_idx(path, max_bytes=_MAX_BYTES, sha256=file.sha256))
    images, labels = arrays
    return _images(images, labels, f"{place}: {folder}, all {len(labels)} images")


def _read_subset(split: str) -> Images:
    """Reads a split of the subset that comes with the package."""
    content = resources.files("jaxsim.data").joinpath(SUBSET).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SUBSET_SHA256:
        raise ValueError(f"{SUBSET}: found SHA-256 {digest}; expected {SUBSET_SHA256}")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    return _images(images, labels, f"subset: {len(labels)} {split} images that come with jaxsim")


def _images(
    images: UInt8[np.ndarray, "N 28 28"], labels: UInt8[np.ndarray, " N"], source: str
) -> Images:
    """Puts bytes into the form that models take."""
    return Images(
        images=np.divide(images, 255, dtype=np.float32)[..., None],
        labels=labels.astype(np.int32),
        classes=CLASSES,
        source=source,
    )


def _download(file: IdxFile, folder: Path) -> None:
    """Fetches an official file into a folder, where it appears whole and checked or not at all."""
    url = f"{URL}{file.name}.gz"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            content: bytes = response.read(_MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"download of {url} failed ({error}); without download=True, fashion_mnist uses what "
            "this machine has"
        ) from error
    try:
        read_idx(content, max_bytes=_MAX_BYTES, sha256=file.sha256)
    except ValueError as error:
        raise ValueError(f"download of {url} is not the official file: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        whole = Path(temporary) / file.name
        whole.write_bytes(content)
        os.replace(whole, folder / f"{file.name}.gz")
