"""How numbers are stored: on a uniform grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, cast

import numpy as np

from jaxsim.core import Wrapper, made_by
from jaxsim.cores.quantized import quantized
from jaxsim.network import Network
from jaxsim.numerics import Grid, check_range, checked_int
from jaxsim.transforms.compose import Transform, makers, transformable


def quantize(
    weights: int | Grid | None = 8,
    inputs: int | Grid | None = 8,
    *,
    sites: str | Sequence[str] = "*",
) -> Transform:
    """Stores weights and inputs of each site as integer codes.

    Before `deploy`, ranges follow each batch and gradients pass through the rounding: training the
    composed network is quantisation-aware training. After it, weights are stored as integers and
    multiplied in integers.

    Args:
      weights: grid of the weights; an int stands for a symmetric grid of that many bits, one scale
        a channel; None keeps floats.
      inputs: grid of the inputs; an int stands for a symmetric grid of that many bits, one scale,
        set at calibration; None keeps floats.
      sites: patterns of the sites to quantise.

    Raises:
      ValueError: bits outside 2 to 8, a percentile outside (0, 100], channel scales for inputs,
        dynamic weights, or nothing to do; when applied, a site that is quantised already or that
        another core already took over.

    Source: Jacob et al. (2018), arXiv 1712.05877; Gholami et al. (2021), arXiv 2103.13630.
    """
    w, x = _grid(weights, per="channel"), _grid(inputs, per="tensor")
    if w is None and x is None:
        raise ValueError("weights=None, inputs=None: nothing to quantise")
    w, x = _checked("weights", w), _checked("inputs", x)
    if w is not None and w.dynamic:
        raise ValueError("weights=Grid(dynamic=True): only inputs can be dynamic")
    if x is not None and x.per == "channel":
        raise ValueError("inputs=Grid(per='channel'): inputs take one scale, per='tensor'")

    def apply(net: Network) -> Network:
        chosen = transformable(net, "quantize", sites)
        for site in chosen:
            if before := makers(net, site):
                raise ValueError(
                    f"quantize cannot follow {made_by(before[-1])} at {site.name}: codes must be "
                    "made before hardware stores them, and only once"
                )
        return net.wrap((s.name for s in chosen), Wrapper.of(quantized, weights=w, inputs=x))

    return apply


def _grid(bits: int | Grid | None, *, per: Literal["tensor", "channel"]) -> Grid | None:
    """The grid that a number of bits stands for."""
    if isinstance(bits, int | np.integer) and not isinstance(bits, bool):
        return Grid(int(bits), per=per)
    return cast("Grid | None", bits)


def _checked(name: str, grid: Grid | None) -> Grid | None:
    """The grid, its percentile a float: an int would be static, and a sweep recompile."""
    if grid is None:
        return None
    if not isinstance(grid, Grid):
        raise ValueError(f"{name}={grid!r}: must be an int, a Grid or None")
    bits = checked_int(f"{name}: bits", grid.bits, 2, 8)
    if grid.per not in ("tensor", "channel"):
        raise ValueError(f"{name}: per={grid.per!r}, must be 'tensor' or 'channel'")
    if grid.percentile is None:
        return dataclasses.replace(grid, bits=bits)
    check_range(f"{name}: percentile", grid.percentile, 0, 100, above=True)
    return dataclasses.replace(grid, bits=bits, percentile=grid.percentile * 1.0)
