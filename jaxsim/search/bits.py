"""Mixed precision: how much each site loses with few bits, and the best choice under a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxsim.console.table import render
from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.wrapper import Wrapper
from jaxsim.network.network import Network
from jaxsim.network.params import by_name
from jaxsim.network.site import Site
from jaxsim.network.transform import Transform, require_network, rules
from jaxsim.network.writer import write_states
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.search.allocation import allocate
from jaxsim.transforms.quantize import quantize


class Sensitivity(NamedTuple):
    """Expected increase of the loss for each choice of bits.

    Attributes:
      sites: Names of the sites whose weight no earlier site has.
      bits: Widths to choose from, rising.
      loss: Expected increase of the loss, [sites, bits].
      weights: Number of weights of each site, [sites].
      macs: Multiply-accumulates with each of these weights in one call of the traced example, all
        its uses and every turn of a loop counted, [sites].
    """

    sites: tuple[str, ...]
    bits: tuple[int, ...]
    loss: Float[np.ndarray, "sites bits"]
    weights: Int[np.ndarray, " sites"]
    macs: Int[np.ndarray, " sites"]


class Assignment(NamedTuple):
    """Bits of each site. Printing shows them.

    Attributes:
      bits: Bits by site.
      loss: Expected increase of the loss.
      cost: Cost of the choice, in the units of the budget.
    """

    bits: dict[str, int]
    loss: float
    cost: float

    def transform(self, inputs: Any = 8) -> Transform:
        """Makes the transform that quantizes each site's weights to its bits.

        Args:
          inputs: Format of the inputs, as in `quantize`.
        """
        return rules({name: quantize(bits, inputs) for name, bits in self.bits.items()})

    def __str__(self) -> str:
        from rich.table import Table

        table = Table("site", "bits", title=f"expected loss {self.loss:.4g}, cost {self.cost:.4g}")
        for name, bits in self.bits.items():
            table.add_row(name, str(bits))
        return render(table)


def hessian_sensitivity(
    net: Network,
    loss: Callable[[Network], Float[Array, ""]],
    *,
    key: Key[Array, ""],
    bits: Sequence[int] = (2, 3, 4, 6, 8),
    samples: int = 16,
) -> Sensitivity:
    """Estimates what rounding each site loses, from the curvature of the loss (Hessian).

    It is half the mean curvature of each weight times the squared error of rounding it; of layers
    that a scan stacks, which get the same bits, the sum over the layers.

    The trace of the Hessian comes from products with random signs: E zᵀHz = tr H.

    Args:
      net: Float network.
      loss: Function from a network to its loss, twice differentiable by its parameters.
      key: Random key of the signs.
      bits: Widths to judge, each from 2 to 8.
      samples: Number of products with random signs, at least 1.

    Returns:
      The expected increase of the loss for each site and width.

    Raises:
      ValueError: An argument out of range, or a network that is transformed already.

    Source: Dong et al. (2020), HAWQ-V2, arXiv 1911.03852, eq. 5 (the half is the Taylor series').

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x, w = jnp.ones((2, 4)), jnp.linspace(-1, 1, 12).reshape(4, 3)
      >>> net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]), {"a": w}, x)
      >>> found = js.hessian_sensitivity(
      ...     net, lambda net: jnp.mean(net(x) ** 2), key=jax.random.key(0), bits=(4, 8), samples=2
      ... )
      >>> found.sites, found.loss.shape
      (('a',), (1, 2))
    """
    widths = _checked_widths(net, bits)
    samples = checked_int("samples", samples, 1)
    facts = _site_facts(net)
    traces = _traces(net, facts, loss, key, samples)
    errors = _layer_errors(net, widths)
    found: list[np.ndarray] = []
    for f in facts:
        curvature = np.maximum(traces[f.param], 0) / (f.size / f.layers)
        found.append(0.5 * np.sum(curvature[:, None] * errors[f.name], 0))
    return _sensitivity(facts, widths, np.stack(found))


def ablation_sensitivity(
    net: Network,
    loss: Callable[[Network], Float[Array, ""]],
    *,
    bits: Sequence[int] = (2, 3, 4, 6, 8),
) -> Sensitivity:
    """Measures the increase of the loss when one site's weights alone are rounded, wherever used.

    The site and the number of bits are traced, so that all of it compiles once.

    Args:
      net: Float network.
      loss: Function from a network to its loss.
      bits: Widths to judge, each from 2 to 8.

    Returns:
      The increase of the loss for each site and width.

    Raises:
      ValueError: An argument out of range, or a network that is transformed already.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x, w = jnp.ones((2, 4)), jnp.linspace(-1, 1, 12).reshape(4, 3)
      >>> net = js.trace(lambda p, x: x @ p["a"], {"a": w}, x)
      >>> target = net(x)
      >>> found = js.ablation_sensitivity(
      ...     net, lambda net: jnp.mean((net(x) - target) ** 2), bits=(2, 8)
      ... )
      >>> bool(found.loss[0, 0] > found.loss[0, 1] >= 0)
      True
    """
    widths, facts = _checked_widths(net, bits), _site_facts(net)
    measured = jax.jit(loss)

    def rounded(name: str, bits: int) -> float:
        """The loss with one site rounded; of no bits, with none."""
        cores = {
            use: (Wrapper.of(coarse, top=float(2 ** (bits - 1) - 1 if f.name == name else 0)),)
            for f in facts
            for use in f.uses
        }
        return float(measured(dataclasses.replace(net, cores=cores)))

    base = rounded("", 1)
    found = [[rounded(f.name, b) - base for b in widths] for f in facts]
    return _sensitivity(facts, widths, np.asarray(found))


def assign_bits(
    sensitivity: Sensitivity, *, mean_bits: float, weigh: str = "weights"
) -> Assignment:
    """Chooses the bits of each site that should lose least within a budget, by integer programming.

    Args:
      sensitivity: Expected loss of each choice.
      mean_bits: Budget in bits, a mean over "weights" (a size) or over "macs" (a compute cost in
        proportion to the bits of the weight); at least the fewest bits to choose from.
      weigh: What the mean is over, "weights" or "macs".

    Returns:
      The bits of each site, with what they are expected to lose and cost.

    Raises:
      ValueError: A budget below the fewest bits, or `weigh` neither.

    Source: Yao et al. (2021), HAWQ-V3, arXiv 2011.10680, section 3.4.

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> from jaxsim.search.bits import Sensitivity
      >>> loss, size = np.array([[9.0, 0.0], [1.0, 0.0]]), np.array([10, 10])
      >>> found = js.assign_bits(Sensitivity(("a", "b"), (2, 8), loss, size, size), mean_bits=5)
      >>> found.bits, found.loss, round(found.cost, 6)
      ({'a': 8, 'b': 2}, 1.0, 5.0)
    """
    if weigh not in ("weights", "macs"):
        raise ValueError(f"weigh={weigh!r}: must be 'weights' or 'macs'")
    check_range("mean_bits", mean_bits, min(sensitivity.bits))
    size = getattr(sensitivity, weigh).astype(float)
    cost = size[:, None] * np.asarray(sensitivity.bits) / size.sum()
    chosen = allocate(sensitivity.loss, {"mean_bits": cost}, {"mean_bits": float(mean_bits)})
    bits = {name: sensitivity.bits[b] for name, b in zip(sensitivity.sites, chosen, strict=True)}
    at = (np.arange(len(size)), chosen)
    return Assignment(bits, float(sensitivity.loss[at].sum()), float(cost[at].sum()))


def rounding_errors(net: Network, bits: Sequence[int]) -> dict[str, Float[np.ndarray, " bits"]]:
    """Measures the squared error of rounding each site's weights, one scale a channel.

    Args:
      net: Float network.
      bits: Widths to round to, at least 2 each.

    Returns:
      The error of each width, by site.
    """
    return {name: errors.sum(0) for name, errors in _layer_errors(net, bits).items()}


def _layer_errors(net: Network, bits: Sequence[int]) -> dict[str, Float[np.ndarray, "layers bits"]]:
    """Measures the errors of each layer that a scan stacks, of one where none does."""
    plain, layers = _rounded_weights(net, 0), {f.name: f.layers for f in _site_facts(net)}
    found: dict[str, list[np.ndarray]] = {name: [] for name in plain}
    for width in bits:
        for name, w in _rounded_weights(net, 2 ** (width - 1) - 1).items():
            off = (w - plain[name]).reshape(layers[name], -1)
            found[name].append(np.asarray(jnp.sum(off**2, -1)))
    return {name: np.stack(errors, -1) for name, errors in found.items()}


def coarse(core: Core, *, top: float | Array) -> Core:
    """Rounds weights to the symmetric grid of a channel whose largest code is `top`; 0 leaves them.

    Args:
      core: Core that contracts the rounded weights.
      top: Largest code, at least 0; traced, unlike the bits of a `Grid`.
    """

    def write(op: Op, w: Array, key: Any) -> State:
        most = jnp.max(jnp.abs(w), op.geometry.contracted, keepdims=True)
        step = jnp.where((most > 0) & (top > 0), most / jnp.maximum(top, 1), 1)
        return core.write(op, jnp.where(top > 0, jnp.round(w / step) * step, w), key)

    return Core(write, core.calibrate, core.read)


class _SiteFacts(NamedTuple):
    name: str
    param: str
    layers: int
    size: int
    macs: int
    uses: tuple[str, ...]


def _site_facts(net: Network) -> list[_SiteFacts]:
    """The sites that hold a weight no earlier site does."""
    uses: dict[str, list[Site]] = {}
    shapes = {name: np.shape(p) for name, p in by_name(net.params).items()}
    for site in net.sites:
        if site.param is not None and site.multiplies:
            uses.setdefault(site.param, []).append(site)
    return [
        _SiteFacts(
            name=sites[0].name,
            param=param,
            layers=_layers(sites[0], shapes.get(param, ())),
            size=math.prod((*sites[0].stack, *sites[0].w_shape)),
            macs=sum(s.macs * s.runs for s in sites),
            uses=tuple(s.name for s in sites),
        )
        for param, sites in uses.items()
    ]


def _layers(site: Site, shape: tuple[int, ...]) -> int:
    """Number of layers along the first axes of a site's parameter."""
    stack = site.stack
    return math.prod(stack) if shape[: len(stack)] == stack else 1


def _sensitivity(
    facts: Sequence[_SiteFacts], bits: tuple[int, ...], loss: np.ndarray
) -> Sensitivity:
    sizes, macs = (np.asarray([getattr(f, what) for f in facts]) for what in ("size", "macs"))
    return Sensitivity(tuple(f.name for f in facts), bits, loss, sizes, macs)


def _checked_widths(net: Network, bits: Sequence[int]) -> tuple[int, ...]:
    require_network(net, "sensitivity")
    if net.cores or net.deployed:
        raise ValueError("net: give the float network, before any core is wrapped")
    widths = tuple(sorted({checked_int("bits", b, 2, 8) for b in bits}))
    if not widths:
        raise ValueError("bits=(): give at least one width")
    return widths


def _rounded_weights(net: Network, top: int) -> Mapping[str, Array]:
    """Each site's weights on the grid whose largest code is `top`; 0 leaves them."""
    names = [f.name for f in _site_facts(net)]
    return write_states(net.wrap(names, Wrapper.of(coarse, top=float(top))), None)


def _traces(
    net: Network,
    facts: Sequence[_SiteFacts],
    loss: Callable[[Network], Array],
    key: Key[Array, ""],
    samples: int,
) -> dict[str, Float[np.ndarray, " layers"]]:
    """Estimated trace of the Hessian by each layer's block, by path of the parameter."""
    layers = {f.param: f.layers for f in facts}

    def gradient(params: Any) -> Any:
        return jax.grad(lambda p: loss(dataclasses.replace(net, params=p)))(params)

    @jax.jit
    def product(key: Any) -> dict[str, Array]:
        paths = jax.tree_util.tree_leaves_with_path(net.params)
        keys = jax.random.split(key, len(paths))
        signs = [
            jax.random.rademacher(k, (p.size,), p.dtype).reshape(p.shape)
            for k, (_, p) in zip(keys, paths, strict=True)
        ]
        z = jax.tree.unflatten(jax.tree.structure(net.params), signs)
        _, hz = jax.jvp(gradient, (net.params,), (z,))
        dots = by_name(jax.tree.map(jnp.multiply, z, hz))
        return {n: jnp.sum(d.reshape(layers.get(n, 1), -1), -1) for n, d in dots.items()}

    found = [product(k) for k in jax.random.split(key, samples)]
    return {name: np.mean([np.asarray(f[name]) for f in found], 0) for name in found[0]}
