"""Decoders of some of another's layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.models.llama.decoder import Llama
from jaxsim.numerics.checks import checked_int


def with_layers(
    model: Llama, params: dict[str, Any], keep: Sequence[int]
) -> tuple[Llama, dict[str, Any]]:
    """Makes a decoder of some layers of another: pruned in depth, or cut short to draft with.

    Embedding, last norm and head are the other's, the same arrays.

    Args:
      model: The decoder.
      params: Its parameters.
      keep: Numbers of the layers that stay, from 0, each once, in the order in which they run.

    Returns:
      The decoder of these layers, and its parameters.

    Raises:
      ValueError: No layer, one that there is not, or one twice.

    Examples:
      >>> import jax
      >>> from jaxsim.models.llama import tiny, with_layers
      >>> model, ids = tiny(), jax.numpy.array([[1, 5, 9]])
      >>> small, some = with_layers(model, model.init(jax.random.key(0), ids)["params"], [1])
      >>> small.layers, small.apply({"params": some}, ids).shape
      (1, (1, 3, 96))
    """
    chosen = [checked_int("keep", i, 0, model.layers - 1) for i in keep]
    if not chosen or len({*chosen}) < len(chosen):
        raise ValueError(f"keep={chosen}: must name at least one layer, and none twice")
    places = np.array(chosen)
    layers = jax.tree.map(lambda a: jnp.asarray(a)[places], params["layers"])
    return model.clone(layers=len(chosen)), {**params, "layers": layers}
