"""Analog-to-digital converters at the ends of columns (`js.adc`)."""

from jaxsim.cores.adc.converter import ADC, Column, Kind, fpg_bits, uniform
from jaxsim.cores.adc.ramp import ramp
from jaxsim.cores.adc.sar import sar
from jaxsim.cores.adc.stages import cyclic, pipeline

__all__ = ["ADC", "Column", "Kind", "cyclic", "fpg_bits", "pipeline", "ramp", "sar", "uniform"]
