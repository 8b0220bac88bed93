"""How a stored number is spread over cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxsim.cores.bit_sliced import sliced
from jaxsim.cores.blocked import blocked
from jaxsim.cores.quantized import quantized
from jaxsim.cores.scale_shift import DIGITAL
from jaxsim.cores.tiled import grouped
from jaxsim.cores.wrapper import Wrapper, made_by
from jaxsim.network.network import Network
from jaxsim.network.transform import Transform, makers, transformable
from jaxsim.numerics.checks import checked_int
from jaxsim.transforms.codes import require_codes
from jaxsim.values.calls import shown_as_called


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

    Raises:
      ValueError: bits or top out of range; when applied, a site whose weights are not quantised, or
        that is sliced or mapped to cells already.

    Source: Xiao et al. (2022), arXiv 2109.01262, eq. 6–7.
    """
    bits = checked_int("bits", bits, 1, 7)
    if top not in ("full_range", "padded"):
        raise ValueError(f"top={top!r}: must be 'full_range' or 'padded'")

    def apply(net: Network) -> Network:
        chosen = transformable(net, "slice_bits", sites)
        for site in chosen:
            require_codes(net, site, "slice_bits")
            allowed = (*DIGITAL, grouped, quantized, blocked)
            if before := [make for make in makers(net, site) if make not in allowed]:
                raise ValueError(
                    f"slice_bits cannot follow {made_by(before[-1])} at {site.name}: it must come "
                    "right after quantize, or block"
                )
        return net.wrap((s.name for s in chosen), Wrapper.of(sliced, bits=bits, top=top))

    return apply
