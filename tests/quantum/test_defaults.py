"""Arguments that are left out have the values that the documentation shows."""

import pytest

import jaxsim.quantum as jq
from tests.support.defaults import defaults

DEFAULTS = {
    "Channel": {"where": "gates"},
    "CircuitKernel": {"terms": (), "uploads": ()},
    "Gate": {"angles": ()},
    "QuanvSpec": {"kernel_size": (2, 2), "stride": (1, 1), "dilation": (1, 1), "padding": "VALID"},
    "amplitude_damping": {"where": "gates"},
    "compile_circuit": {"params": (), "method": "auto"},
    "depolarizing": {"where": "gates"},
    "kraus": {"where": "gates"},
    "qnode_reference": {"params": ()},
    "quanv2d": {"joint": False},
    "sample": {"joint": False},
    "threshold": {"at": 0.5},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_left_out_is_as_documented(name):
    assert defaults(getattr(jq, name)) == DEFAULTS[name]
