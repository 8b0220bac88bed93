"""Analog designs of papers, as transforms for codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Array

from jaxsim.accelerators.presets import find_design
from jaxsim.cores.adc import ADC
from jaxsim.cores.cells import Device
from jaxsim.network.transform import Transform, compose
from jaxsim.transforms.analog import analog
from jaxsim.transforms.slice_bits import slice_bits
from jaxsim.values.calls import shown_as_called

__all__ = ["xiao"]


@shown_as_called
def xiao(
    name: Literal["A", "B", "C", "D", "E"],
    *,
    adc: float | Array | ADC | None = 8,
    cells: Device | None = None,
    input_bits: int | None = 1,
    sites: str | Sequence[str] = "*",
) -> Transform:
    """Holds codes as one of five designs that Xiao et al. compare does.

    | name | a weight of 8 bits | rows | digits of an input are added |
    |---|---|---|---|
    | A | a pair of cells of 7 bits | 1152 | before the converter |
    | B | seven pairs of cells of 1 bit | 1152 | before the converter |
    | C | as A | 144 | before the converter |
    | D | as B | 144 | before the converter |
    | E | four cells of 2 bits, zero in the middle | 72 | after the converter |

    A to D differ in what the table says alone. The converter, its calibrated range and the grids of
    the codes are the user's choice; the hardware of the same name is
    `js.accelerators.paper_design`.

    Args:
      name: "A", "B", "C", "D" or "E".
      adc: Bits of the ADC or a converter, as of `js.analog`; None for an ideal one.
      cells: Device of the cells, from `js.cells`; None for ideal ones.
      input_bits: Bits of an input that are applied at once, 1 to 8; None for all of them, which in
        A to D is the same sum but for noise of single reads, and in E converts once.
      sites: Patterns of the sites to hold in arrays.

    Raises:
      ValueError: No such design; or what `js.analog` and `js.slice_bits` raise.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.linspace(0, 1, 32).reshape(4, 8)
      >>> net = js.trace(lambda params, x: x @ params["w"], {"w": jnp.eye(8)}, x)
      >>> inputs = js.Grid(8, symmetric=False)
      >>> chip = js.compose(js.quantize(8, inputs), js.designs.xiao("B"))(net)
      >>> chip.cost().total("cells")  # 8 x 8 weights of seven pairs
      896

    Source: Xiao et al. (2022), arXiv 2109.01262; shapes as reported, the rest an own reading.
    """
    held = find_design(name)
    array = analog(
        adc,
        cells,
        mapping=held.mapping,
        rows=held.rows,
        input_bits=input_bits,
        accumulate="digital" if input_bits is None else held.accumulate,
        sites=sites,
    )
    if held.cell_bits == 7:
        return array
    return compose(slice_bits(held.cell_bits, sites=sites), array)
