"""Arguments that are left out have the values that the documentation shows."""

import pytest

import jaxsim as js
from tests.support.defaults import defaults

DEFAULTS = {
    "Pattern": {"tied": False, "needs_axes": False},
    "channel": {"axis": -1},
    "cubic": {"initial": 0.0},
    "fisher": {"batch": 32},
    "gated": {"sites": "*"},
    "gradual": {"sites": "*"},
    "hard_concrete": {"start": 2.0},
    "lottery": {"at": 0, "rewind": "weights", "sites": "*"},
    "momentum_growth": {"fraction": 0.3, "decay": 0.9, "sites": "*"},
    "obd": {"samples": 16},
    "one_shot": {"at": 0},
    "prune_layer": {"sparsity": 0.5, "damping": 0.01, "block": 64},
    "redundancy": {"axis": -1},
    "rigl": {"fraction": 0.3, "sites": "*"},
    "soft_threshold": {"start": -5.0},
    "sparse_evolution": {"fraction": 0.3, "sites": "*"},
    "topk": {"axes": (-1,)},
    "variational_dropout": {"start": -10.0, "most": 3.0},
    "wood_fisher": {"block": 64, "damping": 1e-05, "batch": 32},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_left_out_is_as_documented(name):
    assert defaults(getattr(js.sparsity, name)) == DEFAULTS[name]


def test_a_report_compares_these_formats():
    assert [form.name for form in js.sparsity.report.FORMATS] == [
        *("bitmap", "COO", "CSR", "BSR 4×4", "delta 4 bits", "2:4")
    ]
    assert defaults(js.sparsity_report)["value_bits"] == 32
    assert defaults(js.storage_bits) == {"value_bits": 32}
    assert defaults(js.storage.lower_bound) == {"value_bits": 32}
    assert defaults(js.sparsity.obs.saliency) == {"damping": 0.01}
