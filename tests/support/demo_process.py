"""`python -m tests.support.demo_process OUT CACHE [POINTS]`: the demo in small.

Several may share a cache. One is killed when it has measured so many points.
"""

import os
import signal
import sys
from pathlib import Path

import jax

from jaxsim.checkpoint.log import ScoreCache
from jaxsim.cli import demo
from jaxsim.data import fashion_mnist
from jaxsim.models.resnet import ResNet
from jaxsim.train import reference

COUNTS = {"train": 130, "test": 40}  # one step of training and a rest, which it leaves out
FULL = {split: fashion_mnist(split, source="subset") for split in COUNTS}
FEW = {
    split: data._replace(images=data.images[:n, 10:18, 10:18], labels=data.labels[:n])
    for split, n in COUNTS.items()
    for data in [FULL[split]]
}


def small(out, cache):
    """The demo on the middles of a few images of the subset, with a network of one block."""
    demo.fashion_mnist = FEW.get
    reference.ResNet = lambda **_: ResNet((1,), 4)
    settings = demo.Demo(out=Path(out), cache=Path(cache), epochs=1, images=20, programmings=2)
    return demo.run(settings)


class Mortal(ScoreCache):
    """Kills its process at its first score after so many."""

    def _add(self, name, made):
        if len(self.scores) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        super()._add(name, made)


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(Path(sys.argv[2]) / "compiled"))
    if len(sys.argv) > 3:
        demo.ScoreCache = Mortal
    small(*sys.argv[1:3])
