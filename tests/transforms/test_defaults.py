"""Arguments that are left out have the values that the documentation shows."""

import pytest

import jaxsim as js
from jaxsim.transforms import run_sparse
from tests.support.defaults import defaults

ALL = {"sites": "*"}
DEFAULTS = {
    "analog": ALL
    | {
        "mapping": "differential",
        "rows": 1152,
        "adc_range": "calibrated",
        "percentile": 99.98,
        "accumulate": "digital",
    },
    "block": ALL | {"mode": "dynamic", "rounding": "trunc"},
    "correct_bias": ALL,
    "distill_exits": {"steps": 400, "learning_rate": 0.02, "batch_size": 256},
    "equalize": ALL | {"epsilon": 1e-5},
    "exit_early": {"exits": 4, "rule": (0.0, 0, 1)},
    "fold_norms": ALL | {"epsilon": 1e-5},
    "learn_ranges": ALL,
    "magic_pyramid": {"protect": 1, "protect_last": 0},
    "measure_break_even": {"layout": "blocks", "block": (32, 32)},
    "pipeline_shard": {
        "stages": 4,
        "microbatches": 16,
        "schedule": "gpipe",
        "chunks": 1,
        "remat": "boundary",
        "engine": "auto",
        "balance": "flops",
    },
    "prune": ALL | {"rounds": 1, "allow_collapse": False},
    "prune_layers": ALL | {"damping": 0.01},
    "prune_tokens": {"protect": 1, "protect_last": 0},
    "quantize": ALL | {"weights": 8, "inputs": 8},
    "round_weights": ALL,
    "run_sparse": ALL | {"layout": "blocks", "block": (32, 32)},
    "shrink": {
        "groups": "*",
        "scope": "group",
        "min_channels": 1,
        "round_to": 1,
        "exact": True,
    },
    "slice_bits": ALL | {"top": "full_range"},
    "smooth": ALL | {"alpha": 0.5},
    "synthesize_inputs": {"count": 64, "steps": 300, "rate": 0.1, "epsilon": 1e-5},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_left_out_is_as_documented(name):
    assert defaults(getattr(js, name)) == DEFAULTS[name]


def test_shares_at_which_zeros_pay_are_those_that_were_measured():
    assert run_sparse.BREAK_EVEN == {"rows": 0.85, "blocks": 0.95}
    assert run_sparse.FEW_ROWS == 64
    assert run_sparse.GRID == (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
