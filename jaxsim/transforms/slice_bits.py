"""How a stored number is spread over cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from jaxsim.cores.bit_sliced import bit_sliced
from jaxsim.cores.role import DIGITAL
from jaxsim.cores.wrapper import Wrapper, first_of, place_of
from jaxsim.network.network import Net, require_dense
from jaxsim.network.transform import Transform, transformable
from jaxsim.numerics.checks import checked_int
from jaxsim.transforms.codes import require_codes
from jaxsim.values.calls import shown_as_called

_OUTSIDE = DIGITAL | {"operand", "groups", "codes", "blocks", "inputs", "serial", "mapping"}
_INSIDE = {"array", "adc", "inputs", "serial", "mapping", "cells"}
"""Roles around slices: of codes and how they are driven, and of the array whose cells hold them."""


@shown_as_called
def slice_bits(
    bits: int,
    *,
    top: Literal["full_range", "padded"] = "full_range",
    sites: str | Sequence[str] = "*",
) -> Transform:
    """Stores each weight code as several cells of a few bits.

    Args:
      bits: magnitude bits a cell holds, 1 to 7.
      top: whether the top slice, which may hold fewer bits, spreads them over the whole range of
        its cells ("full_range") or leaves the upper part of it unused ("padded"). 7 bits in cells
        of 2 leave one bit: padded, its errors weigh three times as much.
      sites: patterns of the sites to slice.

    `analog` may stand before or behind: slices are in its arrays. At products of two activations it
    stands before.

    Raises:
      ValueError: bits or top out of range; when applied, a site whose weights are not quantized, or
        that is sliced already.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.linspace(-1, 1, 32).reshape(4, 8)
      >>> net = js.trace(lambda params, x: x @ params["w"], {"w": jnp.eye(8)}, x)
      >>> chip = js.deploy(js.compose(js.quantize(8, 8), js.slice_bits(2))(net), calibrate=x)
      >>> chip.states["w"].inner.shape  # 7 bits of magnitude in four cells
      (4, 8, 8)

    Source: Xiao et al. (2022), arXiv 2109.01262, eq. 6–7.
    """
    bits = checked_int("bits", bits, 1, 7)
    if top not in ("full_range", "padded"):
        raise ValueError(f"top={top!r}: must be 'full_range' or 'padded'")

    def apply(net: Net) -> Net:
        cores = dict(net.cores)
        for site in transformable(net, "slice_bits", sites, tell_rest=True):
            require_dense(net, site.name, "slice_bits")
            written = first_of(net.cores.get(site.name, ()), "operand") is not None
            require_codes(net, site, "slice_bits", operands=written)
            chain = cores[site.name]
            at = place_of(chain, "array")
            before = (w for w in chain[:at] if w.role not in _OUTSIDE)
            if refused := [*before, *(w for w in chain[at:] if w.role not in _INSIDE)]:
                raise ValueError(
                    f"slice_bits cannot follow {refused[-1].name} at {site.name}: it slices the "
                    "codes of quantize, or of block, once"
                )
            cores[site.name] = (
                *chain[:at],
                Wrapper.of(bit_sliced, bits=bits, top=top),
                *chain[at:],
            )
        return dataclasses.replace(net, cores=cores)

    return apply
