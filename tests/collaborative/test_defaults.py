"""Arguments that are left out have the values that the documentation shows."""

import importlib

import pytest

from tests.support.defaults import defaults

DEFAULTS = {
    ("head", "batch_logits"): {"readout": "residual", "leave_one_out": True},
    ("head", "dictionary_logits"): {"readout": "residual"},
    ("residuals", "class_residuals"): {"normalize": False},
    ("residuals", "residuals_of"): {"normalize": False},
    ("transfer", "Stage"): {"freeze": False, "weight_decay": 0.0},
}


@pytest.mark.parametrize(("module", "name"), DEFAULTS)
def test_what_is_left_out_is_as_documented(module, name):
    made = getattr(importlib.import_module(f"jaxsim.collaborative.{module}"), name)
    found = {n: d for n, d in defaults(made).items() if n not in ("parent", "name")}
    assert found == DEFAULTS[module, name]
