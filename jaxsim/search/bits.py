"""How many bits each site needs: sensitivity, and the best choice under a budget."""

from __future__ import annotations

import dataclasses
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
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Network
from jaxsim.network.transform import Transform, require_network, rules
from jaxsim.network.writer import write_states
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.transforms.quantize import quantize


class Sensitivity(NamedTuple):
    """What each choice of bits is expected to cost, in units of the loss.

    Attributes:
      sites: names of sites with a weight of their own.
      bits: widths to choose from, rising.
      loss: expected increase, [sites, bits].
      weights: number of weights of each site, [sites].
      macs: multiply-accumulates of each site for the traced example, [sites].
    """

    sites: tuple[str, ...]
    bits: tuple[int, ...]
    loss: Float[np.ndarray, "sites bits"]
    weights: Int[np.ndarray, " sites"]
    macs: Int[np.ndarray, " sites"]


class Assignment(NamedTuple):
    """Bits of each site. Printing shows them.

    Attributes:
      bits: by site.
      loss: expected increase of the loss.
      cost: what the choice costs, in the units of the budget.
    """

    bits: dict[str, int]
    loss: float
    cost: float

    def transform(self, inputs: Any = 8) -> Transform:
        """The transform that quantises each site's weights to its bits.

        Args:
          inputs: as in `quantize`.
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
    """Half the mean curvature of each weight times the squared error of rounding it.

    The trace of the Hessian comes from products with random signs: E zᵀHz = tr H.

    Args:
      net: the float network.
      loss: of a network, twice differentiable by its parameters.
      key: of the signs.
      bits: widths to judge, each from 2 to 8.
      samples: products, at least 1.

    Raises:
      ValueError: an argument out of range, or a network that is transformed already.

    Source: Dong et al. (2020), HAWQ-V2, arXiv 1911.03852, eq. 5 (the half is the Taylor series').
    """
    widths = _checked(net, bits)
    samples = checked_int("samples", samples, 1)
    traces = _traces(net, loss, key, samples)
    facts = _facts(net)
    errors = rounding_errors(net, widths)
    curvature = np.asarray([max(float(traces[f.param]), 0.0) / f.size for f in facts])
    found = 0.5 * curvature[:, None] * np.stack([errors[f.name] for f in facts])
    return _sensitivity(facts, widths, found)


def ablation_sensitivity(
    net: Network,
    loss: Callable[[Network], Float[Array, ""]],
    *,
    bits: Sequence[int] = (2, 3, 4, 6, 8),
) -> Sensitivity:
    """The increase of the loss when one site's weights alone are rounded, measured.

    Which site and how many bits is traced, so that all of it compiles once.

    Args:
      net: the float network.
      loss: of a network.
      bits: widths to judge, each from 2 to 8.

    Raises:
      ValueError: an argument out of range, or a network that is transformed already.
    """
    widths, facts = _checked(net, bits), _facts(net)
    measured = jax.jit(loss)

    def rounded(name: str, bits: int) -> float:
        """The loss with one site rounded; of no bits, with none."""
        cores = {
            f.name: (Wrapper.of(coarse, top=float(2 ** (bits - 1) - 1 if f.name == name else 0)),)
            for f in facts
        }
        return float(measured(dataclasses.replace(net, cores=cores)))

    base = rounded("", 1)
    found = [[rounded(f.name, b) - base for b in widths] for f in facts]
    return _sensitivity(facts, widths, np.asarray(found))


def assign_bits(
    sensitivity: Sensitivity, *, mean_bits: float, weigh: str = "weights"
) -> Assignment:
    """The bits of each site that should lose least within a budget, by integer programming.

    Args:
      sensitivity: what each choice loses.
      mean_bits: the budget, as a mean over "weights" (a size) or over "macs" (a compute cost in
        proportion to the bits of the weight).
      weigh: which of the two.

    Raises:
      ValueError: a budget below the fewest bits, or `weigh` neither.

    Source: Yao et al. (2021), HAWQ-V3, arXiv 2011.10680, section 3.4.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    if weigh not in ("weights", "macs"):
        raise ValueError(f"weigh={weigh!r}: must be 'weights' or 'macs'")
    check_range("mean_bits", mean_bits, min(sensitivity.bits))
    size = getattr(sensitivity, weigh).astype(float)
    S, B = sensitivity.loss.shape
    cost = (size[:, None] * np.asarray(sensitivity.bits) / size.sum()).ravel()
    once = np.kron(np.eye(S), np.ones(B))
    # The solver's tolerances are absolute: losses of one size keep them harmless.
    most = max(np.abs(sensitivity.loss).max(), np.finfo(float).tiny)
    found = milp(
        sensitivity.loss.ravel() / most,
        constraints=[
            LinearConstraint(once, 1, 1),
            LinearConstraint(cost[None], -np.inf, float(mean_bits) * (1 + 1e-9)),
        ],
        integrality=np.ones(S * B),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise ValueError(f"mean_bits={mean_bits}: {found.message}")
    chosen = np.round(found.x).reshape(S, B).argmax(1)
    bits = {name: sensitivity.bits[b] for name, b in zip(sensitivity.sites, chosen, strict=True)}
    at = (np.arange(S), chosen)
    return Assignment(bits, float(sensitivity.loss[at].sum()), float(cost.reshape(S, B)[at].sum()))


def rounding_errors(net: Network, bits: Sequence[int]) -> dict[str, Float[np.ndarray, " bits"]]:
    """Squared error of rounding each site's weights to so many bits, one scale a channel.

    Args:
      net: the float network.
      bits: widths.
    """
    plain = _rounded_weights(net, 0)
    found: dict[str, list[float]] = {name: [] for name in plain}
    for width in bits:
        for name, w in _rounded_weights(net, 2 ** (width - 1) - 1).items():
            found[name].append(float(jnp.sum((w - plain[name]) ** 2)))
    return {name: np.asarray(errors) for name, errors in found.items()}


def coarse(core: Core, *, top: float | Array) -> Core:
    """Rounds weights to the symmetric grid of a channel whose largest code is `top`; 0 leaves them.

    Args:
      core: contracts the rounded weights.
      top: traced, unlike the bits of a `Grid`.
    """

    def write(op: Op, w: Array, key: Any) -> State:
        most = jnp.max(jnp.abs(w), op.geometry.contracted, keepdims=True)
        step = jnp.where((most > 0) & (top > 0), most / jnp.maximum(top, 1), 1)
        return core.write(op, jnp.where(top > 0, jnp.round(w / step) * step, w), key)

    return Core(write, core.calibrate, core.read)


class _Fact(NamedTuple):
    name: str
    param: str
    size: int
    macs: int


def _facts(net: Network) -> list[_Fact]:
    """The sites that hold a weight no earlier site does."""
    return [
        _Fact(s.name, s.param, int(np.prod((*s.stack, *s.w_shape))), s.macs)
        for s in net.sites
        if s.param is not None and "#" not in s.name
    ]


def _sensitivity(facts: Sequence[_Fact], bits: tuple[int, ...], loss: np.ndarray) -> Sensitivity:
    sizes, macs = (np.asarray([getattr(f, what) for f in facts]) for what in ("size", "macs"))
    return Sensitivity(tuple(f.name for f in facts), bits, loss, sizes, macs)


def _checked(net: Network, bits: Sequence[int]) -> tuple[int, ...]:
    require_network(net, "sensitivity")
    if net.cores or net.deployed:
        raise ValueError("net: give the float network, before any core is wrapped")
    widths = tuple(sorted({checked_int("bits", b, 2, 8) for b in bits}))
    if not widths:
        raise ValueError("bits=(): give at least one width")
    return widths


def _rounded_weights(net: Network, top: int) -> Mapping[str, Array]:
    """Each site's weights on the grid whose largest code is `top`; 0 leaves them."""
    names = [f.name for f in _facts(net)]
    return write_states(net.wrap(names, Wrapper.of(coarse, top=float(top))), None)


def _traces(
    net: Network, loss: Callable[[Network], Array], key: Key[Array, ""], samples: int
) -> dict[str, Float[Array, ""]]:
    """Estimated trace of the Hessian by each parameter's block, by path."""

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
        dots = jax.tree.map(lambda a, b: jnp.sum(a * b), z, hz)
        return {path_name(path): d for path, d in jax.tree_util.tree_leaves_with_path(dots)}

    found = [product(k) for k in jax.random.split(key, samples)]
    return {name: jnp.mean(jnp.stack([f[name] for f in found])) for name in found[0]}
