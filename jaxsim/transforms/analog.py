"""Multiplication in an analog crossbar of memory cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.cores.adc.column import column_adc, uniform_adc
from jaxsim.cores.adc.converter import ADC, Kind, RangeRule
from jaxsim.cores.bit_serial import bit_serial, unsigned_inputs
from jaxsim.cores.cells.device import Device
from jaxsim.cores.compensation import Readout, drift_compensation
from jaxsim.cores.conductance import conductance, offset_current
from jaxsim.cores.dac import DAC, drivers
from jaxsim.cores.mapping import differential, offset, unit_column
from jaxsim.cores.tiled import tiled
from jaxsim.cores.wires import Wires, parasitic_resistance
from jaxsim.cores.wrapper import Wrapper, first_of, place_of
from jaxsim.network.network import Net, require_dense
from jaxsim.network.transform import Transform, transformable
from jaxsim.numerics.checks import check_called, check_range, checked_int, is_traced
from jaxsim.transforms.codes import require_codes
from jaxsim.transforms.operands import by_place, operand_wrappers, why_not_kept, why_not_written
from jaxsim.values.calls import shown_as_called


@shown_as_called
def analog(
    adc: float | Array | ADC | None = None,
    cells: Device | None = None,
    *,
    mapping: Literal["differential", "offset", "unit_column"] = "differential",
    rows: int = 1152,
    adc_range: RangeRule = "calibrated",
    percentile: float | Array = 99.98,
    input_bits: int | None = None,
    accumulate: Literal["digital", "analog"] = "digital",
    dac: DAC | None = None,
    wires: Wires | None = None,
    compensation: Readout | None = None,
    sites: str | Sequence[str] = "*",
) -> Transform:
    """Holds the codes in crossbar arrays and reads their columns through ADCs.

    With the differential mapping the currents of a pair are subtracted before the ADC, whose range
    is symmetric. With the other two the code is shifted before it is sliced, the ADC sees the whole
    current, and the offset is subtracted digitally: "offset" computes it, "unit_column" reads it
    from one more column of cells. Inputs on an affine grid are moved up to drive rows with one
    sign. Without `adc` and `cells` the arithmetic is exact.

    Args:
      adc: Bits of the ADC, 1 to 16 (at least 2 for the differential mapping), traced; or a
        converter, from `js.adc` or one's own (`js.adc.ADC`); None for an ideal one.
      cells: device of the cells, from `js.cells`; None for ideal ones.
      mapping: how signs are held.
      rows: rows of one array, at least 1; longer contractions are split over several.
      adc_range: "calibrated" covers what flows at calibration, "max" what an array could yield,
        "granular" makes a step one unit of codes; see `fpg_bits`.
      percentile: share of the calibration values that a calibrated range covers, in (0, 100].
        Traced.
      input_bits: bits of an input code that are applied at once, 1 to 8; None for all of them, as
        an analog voltage.
      accumulate: whether the parts of an input are added after the ADC or, as charge, before it.
      dac: what drives the rows, from `js.dac` or one's own; None for drivers that are linear.
      wires: resistance between the cells, from `js.wires`; None for none. Gated wires need
        `input_bits=1`.
      compensation: scales outputs digitally by what drift has taken: "array" by a readout of each
        array, "column" of each column, "reference" of one more column of cells; None for not at
        all. Needs cells that age.
      sites: patterns of the sites to hold in arrays. Products of two activations are, where
        a pattern begins with `dynamic`: keys and values are written in each call, and errors of
        their cells drawn from its key; see `fix_writes`.

    Raises:
      ValueError: an argument out of range, or of no effect; when applied, a site whose weights are
        not quantized (or its inputs, where `input_bits`, `adc_range` or `dac` needs codes), or that
        is analog already; a product of two activations of which none is known to be keys or
        values, or with what is drawn once for a chip.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.linspace(-1, 1, 32).reshape(4, 8)
      >>> net = js.trace(lambda params, x: x @ params["w"], {"w": jnp.eye(8)}, x)
      >>> array = js.analog(adc=8, cells=js.cells.proportional(0.02), rows=64)
      >>> net = js.compose(js.quantize(8, 8), js.slice_bits(2), array)(net)
      >>> [wrapper.name for wrapper in net.cores["w"]][2:]
      ['tiled', 'uniform_adc', 'differential', 'conductance']

    Source: Xiao et al. (2022), arXiv 2109.01262.
    """
    if mapping not in ("differential", "offset", "unit_column"):
        raise ValueError(f"mapping={mapping!r}: must be 'differential', 'offset' or 'unit_column'")
    if adc_range not in ("calibrated", "max", "granular"):
        raise ValueError(f"adc_range={adc_range!r}: must be 'calibrated', 'max' or 'granular'")
    if accumulate not in ("digital", "analog"):
        raise ValueError(f"accumulate={accumulate!r}: must be 'digital' or 'analog'")
    rows = checked_int("rows", rows, 1)
    signed = mapping == "differential"
    if isinstance(adc, ADC):
        _check_converter(adc, adc_range, percentile, signed)
    elif adc is not None:
        check_range("adc", adc, 2 if signed else 1, 16)
    elif adc_range != "calibrated":
        raise ValueError(f"adc_range={adc_range!r}: has no effect with adc=None")
    check_range("percentile", percentile, 0, 100, above=True)
    check_called("cells", cells)
    check_called("wires", wires)
    if cells is not None and not isinstance(cells, Device):
        raise ValueError(f"cells={cells!r}: must be a device from js.cells, or None")
    if input_bits is not None:
        input_bits = checked_int("input_bits", input_bits, 1, 8)
    if compensation is not None:
        if compensation not in ("array", "column", "reference"):
            raise ValueError(
                f"compensation={compensation!r}: must be 'array', 'column' or 'reference', or None"
            )
        if cells is None or cells.aging is None:
            raise ValueError(f"compensation={compensation!r}: has no effect, cells do not age")
    check_called("dac", dac)
    if dac is not None and not isinstance(dac, DAC):
        raise ValueError(f"dac={dac!r}: must be from js.dac, or None")
    if wires is not None:
        _check_wires(wires, cells, mapping, input_bits)
        if wires.topology == "gated" and dac is not None:
            raise ValueError(f"dac={dac}: gated wires switch cells, which needs no converter")
    if input_bits is None and accumulate == "analog":
        raise ValueError("accumulate='analog': has no effect with input_bits=None")

    steps = [] if input_bits is None else [Wrapper.of(bit_serial, bits=input_bits)]
    before, behind = (steps, []) if accumulate == "digital" else ([], steps)
    sign = {"differential": differential, "offset": offset, "unit_column": unit_column}[mapping]
    spanned = adc.span is not None if isinstance(adc, ADC) else adc_range != "calibrated"
    reading: list[Wrapper] = []
    if isinstance(adc, ADC):
        reading = [Wrapper.of(column_adc, adc=adc, signed=signed)]
    elif adc is not None:
        traced = {
            k: jnp.asarray(v, jnp.float32)
            for k, v in {"bits": adc, "percentile": percentile}.items()
        }
        reading = [Wrapper.of(uniform_adc, **traced, signed=signed, rule=adc_range)]
    holding: list[Wrapper] = []
    if cells is not None:
        noisy = wires is not None and cells.noise is not None
        redrawn = noisy or cells.aging is not None
        holding = [Wrapper.of(conductance, device=cells, redraw=noisy)]
        if wires is not None:
            holding.append(Wrapper.of(parasitic_resistance, wires=wires, redrawn=redrawn))
    if dac is not None:
        holding = [Wrapper.of(drivers, dac=dac), *holding]
    array = [*reading, *behind, *([Wrapper.of(sign)] if signed else []), *holding]
    if compensation is not None and cells is not None:
        kept = Wrapper.of(drift_compensation, per=compensation, device=cells, paired=signed)
        array = [kept, *array]
    if cells is not None and mapping == "offset":
        array = [Wrapper.of(offset_current, device=cells), *array]
    outside = [] if signed else [Wrapper.of(sign)]
    of_calls = "" if cells is None else why_not_written(cells, wires)
    of_calls = of_calls or why_not_kept(adc if isinstance(adc, ADC) else None, dac)

    def apply(net: Net) -> Net:
        cores = dict(net.cores)
        chosen = transformable(net, "analog", sites, tell_rest=True)
        dynamic = [site for site in chosen if site.kind == "dynamic"]
        written = operand_wrappers(net, dynamic, rows, of_calls)
        for site in chosen:
            if first_of(net.cores.get(site.name, ()), "array") is not None:
                raise ValueError(f"analog cannot follow analog at {site.name}")
            require_dense(net, site.name, "analog")
            coded = require_codes(net, site, "analog", operands=True)
            _, inputs = coded.formats
            asked = [f"input_bits={input_bits}"] if steps else []
            asked += [_shown_span(adc, adc_range)] if spanned else []
            asked += [] if dac is None else [f"dac={dac}"]
            asked += [f"wires={wires}"] if wires is not None and wires.law is not None else []
            if inputs is None and asked:
                raise ValueError(
                    f"analog({asked[0]}) at {site.name}: its inputs are floats; put "
                    "quantize(inputs=…) before it"
                )
            lift = [] if inputs is None or inputs.symmetric else [Wrapper.of(unsigned_inputs)]
            chain = cores[site.name]
            at = place_of(chain, "slices")
            first, tiles, cells_of = (), Wrapper.of(tiled, rows=rows), array
            if site.name in written:
                first, tiles = (written[site.name],), Wrapper.of(tiled, rows=rows, full=True)
                cells_of = [by_place(wrapper) for wrapper in array]
            inside = (*outside, *chain[at:], tiles, *cells_of)
            cores[site.name] = (*first, *chain[:at], *lift, *before, *inside)
        return dataclasses.replace(net, cores=cores)

    return apply


def _check_converter(
    adc: ADC, adc_range: RangeRule, percentile: float | Array, signed: bool
) -> None:
    if adc_range != "calibrated" or is_traced(percentile) or percentile != 99.98:
        raise ValueError(
            f"adc={adc}: a converter has its own range; adc_range and percentile are for bits"
        )
    check_called("adc.bits", adc.bits)
    check_range("adc.bits", adc.bits, 2 if signed else 0, above=not signed)
    if adc.kind is not None and not isinstance(adc.kind, Kind):
        raise ValueError(f"adc.kind={adc.kind!r}: must be a js.adc.Kind, or None")


def _check_wires(wires: Wires, cells: Device | None, mapping: str, input_bits: int | None) -> None:
    if not isinstance(wires, Wires):
        raise ValueError(f"wires={wires!r}: must be made by js.wires, or None")
    if cells is None:
        raise ValueError(f"wires={wires}: wires join cells; give cells=…, perfect ones if need be")
    if wires.topology == "gated" and input_bits != 1:
        raise ValueError(f"input_bits={input_bits}: must be 1, gated wires switch cells on and off")
    if wires.interleaved and mapping != "differential":
        raise ValueError(
            f"mapping={mapping!r}: must be 'differential', interleaved wires join pairs"
        )


def _shown_span(adc: float | Array | ADC | None, adc_range: RangeRule) -> str:
    return f"adc={adc}" if isinstance(adc, ADC) else f"adc_range={adc_range!r}"
