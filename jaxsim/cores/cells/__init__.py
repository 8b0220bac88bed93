"""Memory cells: what programming a conductance yields, what time does to it, what reading adds.

Conductances are relative to the largest one: a cell holds g in [1 / on_off, 1].
"""

from jaxsim.cores.cells.aging import drifting, pcm_hermes, pcm_nandakumar, rram_cmo
from jaxsim.cores.cells.device import (
    Aging,
    Device,
    Pulses,
    independent,
    inverse,
    normal,
    proportional,
)
from jaxsim.cores.cells.measured import pcm_joshi, rram_milo, rram_wan, sonos
from jaxsim.cores.cells.programming import at_temperature, stuck, verified
from jaxsim.cores.cells.scaled import scaled

__all__ = [
    "Aging",
    "Device",
    "Pulses",
    "at_temperature",
    "drifting",
    "independent",
    "inverse",
    "normal",
    "pcm_hermes",
    "pcm_joshi",
    "pcm_nandakumar",
    "proportional",
    "rram_cmo",
    "rram_milo",
    "rram_wan",
    "scaled",
    "sonos",
    "stuck",
    "verified",
]
