"""The small network that the demo and benchmarks train once and keep."""

from __future__ import annotations

from pathlib import Path

import jax
import optax
from filelock import FileLock

from jaxsim.checkpoint.log import run_digest
from jaxsim.checkpoint.save_load import load, save
from jaxsim.data import Images
from jaxsim.models.resnet import ResNet
from jaxsim.network.network import Network
from jaxsim.network.tracing import trace
from jaxsim.train.loop import fit
from jaxsim.transforms.prune import prune

CALL = {"train": True, "mutable": ["batch_stats"]}
"""Keyword arguments of a network with batch normalization in training."""


def trained(
    train: Images, *, epochs: int, seed: int, cache: Path, quiet: bool = False
) -> tuple[Network, Network]:
    """Trains the demo's network and its half-pruned form, or reads them from the cache.

    Args:
      train: Training set.
      epochs: Passes over it, at least 1; the pruned form is trained for one more.
      seed: Seed of the weights and of the order of the images.
      cache: Folder of trained weights, by what they were trained with.
      quiet: Show no progress bars.

    Returns:
      The network and its half-pruned form.
    """
    model = ResNet(stages=(1, 1, 1), features=16, stem_stride=2)
    init = jax.jit(model.init)(jax.random.key(seed), train.images[:1])
    net = trace(model, init, train.images[:1])
    recipe = f"{model} {train.source.split(':')[0]} {len(train.labels)} {epochs} {seed}"
    folder = cache.expanduser() / run_digest((), recipe)[:16]

    def through(net: Network, name: str, epochs: int, rate: optax.Schedule) -> Network:
        # Another demo may be training the same network: wait for it, then take what it made.
        with FileLock(folder / f"{name}.lock"):
            if (folder / name).exists():
                return load(folder / name, net)
            net = fit(
                net,
                train.images,
                train.labels,
                epochs=epochs,
                optimizer=optax.adamw(rate, weight_decay=1e-3),
                key=jax.random.key(seed + 1),
                call=CALL,
                checkpoints=folder / f"{name}-training",
                label=name,
                quiet=quiet,
            )
            save(folder / name, net)
            return net

    folder.mkdir(parents=True, exist_ok=True)
    steps = len(train.labels) // 128
    net = through(net, "float", epochs, optax.cosine_onecycle_schedule(epochs * steps, 4e-3))
    sparse = through(prune(0.5)(net), "pruned", 1, optax.cosine_decay_schedule(1e-3, steps))
    return net, sparse
