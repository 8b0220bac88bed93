"""Batch normalization, taken into the weights before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsim.inputs.batches import reusable_batches
from jaxsim.network.network import Net
from jaxsim.network.transform import Transform
from jaxsim.numerics.checks import check_range
from jaxsim.transforms.rescaling import (
    TOLERANCE,
    layers,
    norm_behind,
    norms,
    on_devices,
    on_host,
    on_outputs,
    trials_of,
)
from jaxsim.values.calls import shown_as_called


@shown_as_called
def fold_norms(
    inputs: Any, *, epsilon: float = 1e-5, sites: str | Sequence[str] = "*"
) -> Transform:
    """Takes batch norms into the kernels before them, so that those are quantized as they act.

    A norm multiplies each channel by scale / √(var + epsilon). The kernel takes that factor; the
    norm keeps scale 1, mean 0, variance 1 - epsilon and what is left as its bias (without a bias of
    its own, as its mean). The network computes the same function by stored statistics; training it
    with statistics of the batch would not.

    Which norm stands behind which kernel is found by trial: rescaling the one and adjusting the
    other must change no output. Norms that stand elsewhere, behind a sum for instance, stay, and so
    do those behind a kernel that something else reads too (a tied embedding).

    Args:
      inputs: on which outputs are compared: a batch (an array, a tuple of positional arguments, or
        a dict of keyword arguments) or an iterable of batches; a few inputs are enough.
      epsilon: of the norms, above 0: Flax's default.
      sites: patterns of the sites whose kernels may take a norm.

    Raises:
      ValueError: epsilon out of range; when applied, a transformed site, no norm that can be
        folded, or outputs that change.

    Examples:
      >>> import flax.linen as nn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> model = nn.Sequential(
      ...     [nn.Conv(4, (3, 3)), nn.BatchNorm(True), nn.relu, nn.Conv(2, (3, 3))]
      ... )
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
      >>> net = js.trace(model, jax.jit(model.init)(jax.random.key(1), x), x)
      >>> folded = js.fold_norms(x)(net)
      >>> bool(jnp.allclose(folded(x), net(x), atol=1e-5))
      True

    Source: Jacob et al. (2018), arXiv 1712.05877, §3.2.
    """
    check_range("epsilon", epsilon, 0, 1, above=True)

    data = reusable_batches(inputs)

    def apply(net: Net) -> Net:
        free, trials = layers(net, "fold_norms", sites), trials_of(net, data)
        held, changes, left = on_host(net), {}, norms(net)
        for layer in free:
            norm = norm_behind(layer, left, trials, epsilon)
            if norm is None:
                continue
            left.remove(norm)
            scale = 1 if norm.scale is None else held[norm.scale]
            by = scale / np.sqrt(held[norm.var] + epsilon)
            for path in (layer.kernel, layer.bias):
                if path is not None:
                    changes[path] = on_outputs(held[path], by)
            changes[norm.var] = np.full_like(held[norm.var], 1 - epsilon)
            if norm.scale is not None:
                changes[norm.scale] = np.ones_like(held[norm.scale])
            if norm.bias is None:
                changes[norm.mean] = by * held[norm.mean]
            else:
                changes[norm.mean] = np.zeros_like(held[norm.mean])
                changes[norm.bias] = held[norm.bias] - by * held[norm.mean]
        if not changes:
            raise ValueError(
                f"fold_norms: no norm stands behind a kernel alone, among {len(norms(net))} norms "
                f"and {len(free)} kernels with their output channels last; is epsilon={epsilon} "
                "that of the norms?"
            )
        if (off := trials.off(changes)) > TOLERANCE:
            raise ValueError(
                f"fold_norms: outputs would change by {off:.1e} of the largest; is "
                f"epsilon={epsilon} that of the norms?"
            )
        return on_devices(net, changes)

    return apply
