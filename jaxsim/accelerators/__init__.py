"""Parts, memory and links of a chip, and what a network spends there."""

from jaxsim.accelerators.analog import AnalogArray
from jaxsim.accelerators.digital import DigitalArray
from jaxsim.accelerators.drive import measure_drive
from jaxsim.accelerators.files import load, save
from jaxsim.accelerators.memory import Link, Memory
from jaxsim.accelerators.part import Part
from jaxsim.accelerators.presets import ax_bxp, isaac_like, mixed, paper_design, systolic_45nm
from jaxsim.accelerators.simd import SimdUnit
from jaxsim.accelerators.work import Spent, Work

__all__ = [
    "AnalogArray",
    "DigitalArray",
    "Link",
    "Memory",
    "Part",
    "SimdUnit",
    "Spent",
    "Work",
    "ax_bxp",
    "isaac_like",
    "load",
    "measure_drive",
    "mixed",
    "paper_design",
    "save",
    "systolic_45nm",
]
