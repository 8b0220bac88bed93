"""The mean error of each output, taken off."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.cores.observers import Outputs, outputs
from jaxsim.cores.scale_shift import bias_correction
from jaxsim.cores.wrapper import Wrapper, first_of
from jaxsim.inputs.batches import reusable_batches
from jaxsim.network.network import Net, Network
from jaxsim.network.transform import Transform, hardware_chain, require_network, transformable
from jaxsim.numerics.checks import MissingKeyError
from jaxsim.transforms.observe import observe_sites, require_run
from jaxsim.values.calls import shown_as_called


@shown_as_called
def correct_bias(
    inputs: Any, *, reference: Network | None = None, sites: str | Sequence[str] = "*"
) -> Transform:
    """Adds to each output channel of a site what its mean has lost to quantization.

    Rounding and clipping shift the means of outputs, and the shifts add up from site to site. Each
    site is corrected as the inputs reach it, so the sites that follow see what a corrected network
    hands on. With several batches a correction is that of all of them so far.

    Only cores of the sites change: what else reads a parameter reads it as before. Each of several
    experts is corrected for the rows that choose it; one that no row chooses is not, with a warning
    that names it.

    Args:
      inputs: what to measure the sites on: a batch (an array, a tuple of positional arguments, or a
        dict of keyword arguments) or an iterable of batches, of which one at a time is in memory; a
        generator is read once, here, and kept.
      reference: network whose means the outputs are to have, with the same sites; None for this
        network in floats. After `round_weights`, which changes parameters, give the network before.
      sites: patterns of the sites to correct.

    Raises:
      ValueError: `reference` is no network; when applied, a site that nothing transforms, that
        contracts two inputs, is corrected already, did not run, or is not in the reference; chips
        that differ from one another, as cells with errors make them.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> normal = jax.random.normal
      >>> params = {"a": normal(keys[0], (6, 8)), "b": normal(keys[1], (8, 3))}
      >>> x = jax.random.normal(keys[2], (4, 6))
      >>> net = js.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, x)
      >>> chip = js.correct_bias(x)(js.quantize(3, 8)(net))
      >>> bool(jnp.allclose(chip(x).mean(0), net(x).mean(0), atol=1e-4))
      True

    Source: Nagel et al. (2019), arXiv 1906.04721, §4.2 (empirical); Banner et al. (2019),
    arXiv 1810.05723.
    """
    if reference is not None:
        require_network(reference, "correct_bias(reference=…)")

    data = reusable_batches(inputs)

    def apply(net: Net) -> Net:
        exact = net if reference is None else reference
        known = {(site.name, site.w_shape, site.stack) for site in exact.sites}
        chosen = transformable(net, "correct_bias", sites)
        for site in chosen:
            made = hardware_chain(net, site)
            if site.kind == "dynamic":
                raise ValueError(f"correct_bias at {site.name}: it contracts two inputs")
            if not made:
                raise ValueError(
                    f"correct_bias at {site.name}: it computes in floats; put quantize before it"
                )
            if first_of(made, "bias") is not None:
                raise ValueError(f"correct_bias cannot follow correct_bias at {site.name}")
            if (site.name, site.w_shape, site.stack) not in known:
                raise ValueError(f"reference: it has no site {site.name} like that of the network")
        floats: dict[str, Outputs] = observe_sites(
            exact, {site.name: (Wrapper.of(outputs),) for site in chosen}, data
        )
        targets = dict[str, Array]()
        for site in chosen:
            state = floats[site.name]
            require_run(site, state.seen, state.total, idle="they are not corrected")
            targets[site.name] = jnp.where(state.seen > 0, state.mean, jnp.nan)
        probes = {
            name: (Wrapper.of(outputs, target=target), *net.cores[name])
            for name, target in targets.items()
        }
        found: dict[str, Outputs] = _observed(net, probes, data)
        cores = dict(net.cores)
        for site in chosen:
            bias = targets[site.name] - found[site.name].mean
            # routers behind quantized layers may choose others: what one network never ran, stays
            bias = jnp.where((found[site.name].seen > 0) & ~jnp.isnan(bias), bias, 0)
            cores[site.name] = (Wrapper.of(bias_correction, bias=bias), *cores[site.name])
        return dataclasses.replace(net, cores=cores)

    return apply


def _observed(net: Network, probes: dict[str, tuple[Wrapper, ...]], data: Any) -> dict[str, Any]:
    try:
        return observe_sites(net, {**net.cores, **probes}, data)
    except MissingKeyError as error:
        raise ValueError(
            "correct_bias: means differ from chip to chip, or from call to call "
            f"({error.reason}); put it before what draws them"
        ) from error
