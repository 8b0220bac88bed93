"""Arguments that are left out have the values that the documentation shows."""

import pytest

import jaxsim.cascades as jc
from tests.support.defaults import defaults

DEFAULTS = {
    "from_arrays": {"cumulative": False},
    "from_edges": {"p": 1.0, "undirected": False, "parallel": "error"},
    "from_networkx": {"p": 1.0},
    "from_steps": {"cumulative": False},
    "ims": {"mode": "learn", "eps": 0.1, "z": 3.0},
    "load_edgelist": {
        "undirected": False,
        "probabilities": False,
        "skip_lines": 0,
        "parallel": "combine",
    },
    "maximize_influence": {"eps": 0.1, "lanes": 256},
    "mle_refine": {"steps": 600},
    "required_cascades": {"form": "direct"},
    "rr_sample": {"lanes": 256},
    "sample_cascades": {"record": "one_step"},
    "simulate_ic": {"engine": "auto"},
    "trivalency": {"levels": (0.1, 0.01, 0.001)},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_left_out_is_as_documented(name):
    assert defaults(getattr(jc, name)) == DEFAULTS[name]
