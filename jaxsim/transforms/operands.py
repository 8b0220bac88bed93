"""Products of two activations whose keys and values are written into arrays in each call."""

from __future__ import annotations

from collections.abc import Sequence

from jaxsim.cores.adc.converter import ADC
from jaxsim.cores.cells.device import Device
from jaxsim.cores.conductance import conductance
from jaxsim.cores.dac import DAC
from jaxsim.cores.operand import written_operand
from jaxsim.cores.wires import Wires
from jaxsim.cores.wrapper import Wrapper, first_of
from jaxsim.network.network import Network
from jaxsim.network.site import Site
from jaxsim.staged.value_products import find_stored
from jaxsim.transforms.codes import require_codes, require_grid


def why_not_written(cells: Device, wires: Wires | None) -> str:
    """Tells why calls cannot write such cells, in a phrase; "" where they can.

    Args:
      cells: Device of the cells.
      wires: Wires between them, or None.
    """
    if wires is not None:
        return f"wires={wires}: in a column, tokens that follow would change what is read of one"
    if cells.aging is not None:
        return f"cells={cells}: a chip has one time, and each token is as old as it is"
    if cells.pulses is not None:
        return f"cells={cells}: pulses are counted where a chip is written, not in calls"
    return ""


def why_not_kept(adc: ADC | None, dac: DAC | None) -> str:
    """Tells why a chip cannot have such converters around what calls write, in a phrase, or "".

    Args:
      adc: Converter of the columns; None for one without errors of its own.
      dac: What drives the rows, or None.
    """
    for name, converter in (("adc", adc), ("dac", dac)):
        if converter is not None and converter.parts is not None:
            return (
                f"{name}={converter}: what differs from chip to chip is drawn where a chip is "
                "written, for as many columns as there are; here tokens are columns"
            )
    return ""


def operand_wrappers(
    net: Network, sites: Sequence[Site], rows: int, why_not: str
) -> dict[str, Wrapper]:
    """Makes what writes the keys or values of each product of two activations.

    Args:
      net: Network.
      sites: Sites of it that contract two activations.
      rows: Rows of one array.
      why_not: Why calls cannot write such arrays, "" where they can.

    Raises:
      ValueError: They cannot; neither operand is known to be keys or values; or what is written
        for a token would depend on others.
    """
    if not sites:
        return {}
    stored, found = find_stored(net.traced().plan), dict[str, Wrapper]()
    for site in sites:
        if why_not:
            raise ValueError(f"analog at {site.name}, which each call writes, with {why_not}")
        if site.name not in stored:
            raise ValueError(
                f"analog at {site.name}: calls write keys and values of an attention, and neither "
                "operand is one: no softmax stands between this product and another"
            )
        if any(site.axes):
            raise ValueError(
                f"analog at {site.name}: it runs on each device of a shard_map, and devices have "
                "no range of their own"
            )
        require_codes(net, site, "analog", operands=True)
        grid = require_grid(net, site, "analog", operands=True)
        groups = first_of(net.cores.get(site.name, ()), "groups")
        if grid.per != "tensor" or groups is not None or grid.rounding != "nearest":
            per = "group" if groups is not None else grid.per
            raise ValueError(
                f"analog at {site.name}: what a call writes for a token must not depend on tokens "
                f"that follow, and weights={grid} has steps per {per} and rounds to "
                f"{grid.rounding}; expected quantize(weights=js.Grid({grid.bits}))"
            )
        # the second operand has the weight's place
        swapped = stored[site.name] == 0
        found[site.name] = Wrapper.of(written_operand, form=grid, swapped=swapped, rows=rows)
    return found


def by_place(wrapper: Wrapper) -> Wrapper:
    """A wrapper of an array with errors of cells by their place, whatever else is written.

    Args:
      wrapper: One inside of an array.
    """
    if wrapper.factory is not conductance:
        return wrapper
    return Wrapper.of(conductance, **{**wrapper.settings, "placed": True})
