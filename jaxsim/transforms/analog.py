"""Multiplication in an analog crossbar of memory cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.core import Wrapper
from jaxsim.cores.cells import Device, held
from jaxsim.cores.converter import converted
from jaxsim.cores.mapping import differential, offset
from jaxsim.cores.sliced import sliced
from jaxsim.cores.tiled import tiled
from jaxsim.network import Network
from jaxsim.numerics import check_range, checked_int
from jaxsim.transforms.compose import Transform, makers, require_codes, transformable


def analog(
    adc: float | Array | None = None,
    cells: Device | None = None,
    *,
    mapping: Literal["differential", "offset"] = "differential",
    rows: int = 1152,
    percentile: float | Array = 99.98,
    sites: str | Sequence[str] = "*",
) -> Transform:
    """Holds the codes in crossbar arrays and reads their columns through ADCs.

    With the differential mapping the currents of a pair are subtracted before the ADC, whose range
    is symmetric; with the offset mapping the code is shifted before it is sliced, the ADC sees the
    whole current and the offset is subtracted digitally. Without `adc` and `cells` the arithmetic
    is exact.

    Args:
      adc: bits of the ADC, 1 to 16 (at least 2 for the differential mapping); None for an ideal
        one. Traced.
      cells: device of the cells, from `js.cells`; None for ideal ones.
      mapping: how signs are held.
      rows: rows of one array, at least 1; longer contractions are split over several.
      percentile: share of the calibration values that the ADC range covers, in (0, 100]. Traced.
      sites: patterns of the sites to hold in arrays.

    Raises:
      ValueError: an argument out of range; when applied, a site whose weights are not quantised or
        that is analog already.

    Source: Xiao et al. (2022), arXiv 2109.01262.
    """
    if mapping not in ("differential", "offset"):
        raise ValueError(f"mapping={mapping!r}: must be 'differential' or 'offset'")
    rows = checked_int("rows", rows, 1)
    signed = mapping == "differential"
    if adc is not None:
        check_range("adc", adc, 2 if signed else 1, 16)
    check_range("percentile", percentile, 0, 100, above=True)
    if cells is not None and not isinstance(cells, Device):
        raise ValueError(f"cells={cells!r}: must be a device from js.cells, or None")

    tiling = [Wrapper.of(tiled, rows=rows)]
    holding = [] if cells is None else [Wrapper.of(held, device=cells)]
    reading: list[Wrapper] = []
    if adc is not None:
        traced = {
            k: jnp.asarray(v, jnp.float32)
            for k, v in {"bits": adc, "percentile": percentile}.items()
        }
        reading = [Wrapper.of(converted, **traced, signed=signed)]

    def apply(net: Network) -> Network:
        cores = dict(net.cores)
        for site in transformable(net, "analog", sites):
            require_codes(net, site, "analog")
            made = makers(net, site)
            if tiled in made:
                raise ValueError(f"analog cannot follow analog at {site.name}")
            before, spread = list(cores[site.name]), list[Wrapper]()
            if signed:
                array = [*tiling, *reading, Wrapper.of(differential), *holding]
            else:
                at = made.index(sliced) if sliced in made else len(made)
                before, spread = before[:at], [Wrapper.of(offset), *before[at:]]
                array = [*tiling, *holding, *reading]
            cores[site.name] = (*before, *spread, *array)
        return dataclasses.replace(net, cores=cores)

    return apply
