"""Large input channels made smaller, their weights larger."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsim.cores.observers import Peaks, peaks
from jaxsim.cores.role import DIGITAL
from jaxsim.cores.scale_shift import smooth_scaling
from jaxsim.cores.wrapper import Wrapper
from jaxsim.inputs.batches import reusable_batches
from jaxsim.network.network import Net
from jaxsim.network.transform import Transform, hardware_chain, transformable
from jaxsim.numerics.checks import check_range
from jaxsim.transforms.codes import require_unset
from jaxsim.transforms.observe import observe_sites, require_run
from jaxsim.values.calls import shown_as_called


@shown_as_called
def smooth(
    inputs: Any, alpha: float | Array = 0.5, *, sites: str | Sequence[str] = "*"
) -> Transform:
    """Divides each input channel of a site by s and multiplies its weights by s, before rounding.

    With s = max |x|^alpha / max |w|^(1 - alpha) for each channel, a share of what makes inputs hard
    to hold on one grid moves into the weights, which often have room for it. Channels are the
    products of a sum, or the input features of a convolution.

    Only cores of the sites change: what else reads a parameter reads it as before. Each of several
    experts is smoothed for the rows that choose it; one that no row chooses stays as it is, with a
    warning that names it.

    Args:
      inputs: what to measure the sites on: a batch (an array, a tuple of positional arguments, or a
        dict of keyword arguments) or an iterable of batches, of which one at a time is in memory; a
        generator is read once, here, and kept.
      alpha: share that moves, in [0, 1]: at 1 all inputs peak at 1, at 0 all weights do. Traced.
      sites: patterns of the sites to smooth.

    Raises:
      ValueError: alpha out of range; when applied, a site whose weights are not quantized, that
        did not run, that is smoothed or corrected already, or the range of whose weights is set.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.linspace(-1, 1, 32).reshape(4, 8)
      >>> net = js.trace(lambda params, x: x @ params["w"], {"w": jnp.eye(8)}, x)
      >>> smooth = js.smooth(x, 0.5)(js.quantize(8, 8)(net))
      >>> [wrapper.name for wrapper in smooth.cores["w"]]
      ['smooth_scaling', 'quantized']

    Source: Xiao et al. (2023), arXiv 2211.10438, eq. 4.
    """
    check_range("alpha", alpha, 0, 1)

    data = reusable_batches(inputs)

    def apply(net: Net) -> Net:
        chosen = transformable(net, "smooth", sites)
        for site in chosen:
            require_unset(net, site, "smooth", "smoothing")
            for other in hardware_chain(net, site):
                if other.role in DIGITAL:
                    raise ValueError(f"smooth cannot follow {other.name} at {site.name}")
        probes = {site.name: (Wrapper.of(peaks),) for site in chosen}
        found: dict[str, Peaks] = observe_sites(net, probes, data)
        cores = dict(net.cores)
        for site in chosen:
            _, w, x, seen = found[site.name]
            require_run(site, seen, x, idle="their channels stay as they are")
            channels = channel_scales(x, w, alpha)
            cores[site.name] = (Wrapper.of(smooth_scaling, channels=channels), *cores[site.name])
        return dataclasses.replace(net, cores=cores)

    return apply


@jax.jit
def channel_scales(
    x: Float[Array, "... C"], w: Float[Array, "... C"], alpha: float | Array
) -> Float[Array, "... C"]:
    """What each input channel is divided by; 1 where the channel or its weights are zero.

    Args:
      x: largest magnitude of each channel.
      w: largest magnitude of its weights.
      alpha: share of the inputs' size that moves into the weights.
    """
    used = (x > 0) & (w > 0)
    x, w = jnp.where(used, x, 1), jnp.where(used, w, 1)
    return x**alpha / w ** (1 - alpha)
