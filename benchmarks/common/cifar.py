"""Residual networks trained on CIFAR-10 by others, and a thousand of its test images."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

import jaxsim as js
from benchmarks.common import paths
from benchmarks.common.files import file
from jaxsim.data import read_torch_weights
from jaxsim.models.resnet import ResNet

DATA = paths.DATA / "analog"
DEPTHS = {14: (2, 2, 2), 20: (3, 3, 3)}
"""Blocks in each stage, by the number of layers."""


class Pictures(NamedTuple):
    """Images as the networks take them.

    Attributes:
      images: [N, 32, 32, 3], standardized by channel.
      labels: [N], 0 to 9.
    """

    images: Float[np.ndarray, "N 32 32 3"]
    labels: Int[np.ndarray, " N"]


def pictures() -> Pictures:
    """A thousand test images, in a fixed random order; they have been through JPEG."""
    held = np.load(file("analog/cifar10_test1000.npz"))
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = (held["X"] / 255 - mean) / deviation
    return Pictures(images.astype(np.float32), held["y"].astype(np.int64))


def resnet(depth: int) -> js.Network:
    """A trained network of 14 or 20 layers.

    Source: CrossSim 3.2, applications/dnn/torch/cifar10_resnet (BSD 3-clause).
    """
    weights = read_torch_weights(file(f"analog/resnet{depth}_cifar10.pth"))
    model = ResNet(stages=DEPTHS[depth])
    image = jnp.zeros((1, 32, 32, 3))
    return js.trace(model, _variables(weights, DEPTHS[depth]), image)


def _variables(weights: dict[str, np.ndarray], stages: tuple[int, ...]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}

    def conv(path: tuple[str, ...], name: str) -> None:
        _at(params, path)["kernel"] = jnp.asarray(weights[f"{name}.weight"].transpose(2, 3, 1, 0))

    def norm(path: tuple[str, ...], name: str, epsilon: float = 1e-5) -> None:
        _at(params, path).update(
            scale=jnp.asarray(weights[f"{name}.weight"]), bias=jnp.asarray(weights[f"{name}.bias"])
        )
        # ours adds 1e-5 to every variance
        variance = weights[f"{name}.running_var"] + np.float32(epsilon - 1e-5)
        _at(stats, path).update(
            mean=jnp.asarray(weights[f"{name}.running_mean"]), var=jnp.asarray(variance)
        )

    conv(("Conv_0",), "conv1")
    norm(("BatchNorm_0",), "bn1", 1e-3)
    block = 0
    for stage, blocks in enumerate(stages):
        for i in range(blocks):
            ours, theirs = f"Block_{block}", f"res{stage + 1}.{i}"
            for layer in (0, 1):
                conv((ours, f"Conv_{layer}"), f"{theirs}.conv{layer + 1}")
                norm((ours, f"BatchNorm_{layer}"), f"{theirs}.bn{layer + 1}")
            if f"{theirs}.downsample.0.weight" in weights:
                conv((ours, "Conv_2"), f"{theirs}.downsample.0")
                norm((ours, "BatchNorm_2"), f"{theirs}.downsample.1")
            block += 1
    params["Dense_0"] = {
        "kernel": jnp.asarray(weights["classifier.2.weight"].T),
        "bias": jnp.asarray(weights["classifier.2.bias"]),
    }
    return {"params": params, "batch_stats": stats}


def _at(tree: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for part in path:
        tree = tree.setdefault(part, {})
    return tree
