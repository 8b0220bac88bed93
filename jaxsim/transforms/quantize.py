"""How numbers are stored: on a grid of codes, in a table, or as short floats."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from jaxsim.cores.storage import Format, join_chains, wrappers_of
from jaxsim.cores.wrapper import Wrapper, first_of, place_of
from jaxsim.formats.block_grid import BlockGrid
from jaxsim.formats.codebook import Codebook, Floating
from jaxsim.formats.grid import Grid
from jaxsim.formats.microscaling import Microscaled
from jaxsim.network.network import Net
from jaxsim.network.transform import Transform, hardware_chain, transformable
from jaxsim.numerics.checks import check_called, is_whole
from jaxsim.transforms.codes import require_zeros
from jaxsim.values.calls import shown_as_called


@shown_as_called
def quantize(
    weights: int | Grid | Codebook | Floating | BlockGrid | Microscaled | Format | None = 8,
    inputs: int | Grid | Floating | Microscaled | Format | None = 8,
    *,
    sites: str | Sequence[str] = "*",
) -> Transform:
    """Stores weights and inputs of each site as integer codes, table indices or short floats.

    Before `deploy`, ranges follow each batch and gradients pass through the rounding: training the
    composed network is quantization-aware training. After it, weights are stored as codes, and
    codes of both operands are multiplied in integers.

    Args:
      weights: Format of the weights. An int stands for a symmetric grid of that many bits, one
        scale a channel; a `Grid`, `Codebook`, `Floating` or format of one's own (an object with a
        method `wrappers`) says more; None keeps floats.
      inputs: Format of the inputs. An int stands for a symmetric grid of that many bits, one
        scale, set at calibration; a `Grid`, `Floating` or format of one's own says more; None
        keeps floats.
      sites: Patterns of the sites to quantize; see `Network.select`.

    Raises:
      ValueError: a format that is none, or whose numbers do not fit together; nothing to do; when
        applied, a site that is quantized already or that another core already took over, or a
        table at a dynamic site.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.linspace(-1, 1, 32).reshape(4, 8)
      >>> net = js.trace(lambda params, x: x @ params["w"], {"w": jnp.eye(8)}, x)
      >>> js.quantize(weights=8, inputs=js.Grid(6, symmetric=False))(net).cores["w"]
      (quantized(inputs=int6 affine per tensor, weights=int8 symmetric per channel),)
      >>> chip = js.deploy(js.quantize(4, 8)(net), calibrate=x)
      >>> chip.states["w"].inner.dtype  # the weight is stored as codes
      dtype('int8')

    Source: Jacob et al. (2018), arXiv 1712.05877; Gholami et al. (2021), arXiv 2103.13630.
    """
    check_called("weights", weights)
    check_called("inputs", inputs)
    w, x = _format(weights, per="channel"), _format(inputs, per="tensor")
    if w is None and x is None:
        raise ValueError("weights=None, inputs=None: nothing to quantize")
    wrappers = join_chains(
        () if w is None else wrappers_of(w, "weights"),
        () if x is None else wrappers_of(x, "inputs"),
    )

    of_tables = () if w is None else tuple(wrappers_of(w, "weights"))

    def apply(net: Net) -> Net:
        chosen = transformable(net, "quantize", sites, lookups="all", tell_rest=True)
        for site in chosen:
            before = [
                w for w in hardware_chain(net, site) if w.role not in ("scale", "digital", "sparse")
            ]
            if before:
                raise ValueError(
                    f"quantize cannot follow {before[-1].name} at {site.name}: codes must be "
                    "made before hardware stores them, and only once"
                )
            if site.kind == "dynamic" and isinstance(w, Codebook | BlockGrid):
                raise ValueError(f"weights={w} at {site.name}: it has no weights to store")
        tables = [s.name for s in chosen if s.kind == "lookup"]
        products = [s.name for s in chosen if s.kind != "lookup"]
        if w is None and not products:
            raise ValueError(f"weights=None at {tables[0]}: integers choose its rows, no inputs")
        sparse = [n for n in products if first_of(net.cores.get(n, ()), "sparse") is not None]
        dense = [name for name in products if name not in sparse]
        for names, chain in ((dense, wrappers), (tables, of_tables)):
            for wrapper in chain:
                net = net.wrap(names, wrapper)
        return _before_sparse(net, sparse, wrappers)

    return apply


_OUTSIDE = ("scale", "digital", "sparse")
"""Roles of what may be around a site before its weights are stored as codes."""


def _before_sparse(net: Net, names: Sequence[str], wrappers: Sequence[Wrapper]) -> Net:
    """Puts wrappers before what holds weights without their zeros."""
    cores = dict(net.cores)
    for name in names:
        require_zeros(f"quantize at {name}, which runs sparse", wrappers)
        at = place_of(cores[name], "sparse")
        cores[name] = (*cores[name][:at], *wrappers, *cores[name][at:])
    return dataclasses.replace(net, cores=cores)


def _format(form: Any, *, per: Literal["tensor", "channel"]) -> Any:
    """The grid that a number of bits stands for; any other format as it is."""
    return Grid(int(form), per=per) if is_whole(form) else form
