"""Arguments that are left out have the values that the documentation shows."""

import importlib

import pytest

from tests.support.defaults import defaults

DEFAULTS = {
    ("bert", "Bert"): {
        "vocabulary": 30522,
        "positions": 512,
        "width": 128,
        "heads": 2,
        "layers": 2,
        "hidden": 512,
        "classes": 2,
        "epsilon": 1e-12,
    },
    ("coconet", "CollaborativeHead"): {
        "lam_init": 0.1,
        "temp_init": 10.0,
        "readout": "residual",
        "leave_one_out": True,
        "guard": True,
    },
    ("efficientnet_lite", "EfficientNetLite"): {"width": 1.0, "depth": 1.0, "classes": 1000},
    ("efficientnet_lite", "InvertedResidual"): {"kernel": 3, "stride": 1, "expansion": 6},
    ("functions", "add_functions"): {"init": "random"},
    ("hugging_face", "word_pieces"): {"longest": 128},
    ("neural_interpreter", "ModLin"): {"use_bias": True, "fold": False},
    ("neural_interpreter", "NeuralInterpreter"): {
        "functions": 5,
        "scripts": 1,
        "iterations": 8,
        "locs": 1,
        "heads": 4,
        "qk_width": 32,
        "code_width": 192,
        "type_width": 24,
        "type_depth": 2,
        "tau": 1.42026,
        "eps": 1e-06,
        "learn_signatures": False,
        "positions": "per_function",
        "fold": False,
    },
    ("neural_interpreter", "affinity"): {"bandwidth": 1.0, "tau": 1.42026, "eps": 1e-06},
    ("quanv", "QDCNN"): {"classes": 10, "pool": 1, "hidden": ()},
    ("quanv", "QuanvConv"): {
        "kernel_size": (2, 2),
        "stride": (1, 1),
        "padding": "VALID",
        "dilation": (1, 1),
        "ansatz": "strongly_entangling",
        "layers": 1,
        "uploads": 1,
        "trainable": True,
        "seed": 0,
        "joint": False,
    },
    ("reasoner", "PanelPixels"): {"width": 96, "features": (16, 32, 32)},
    ("reasoner", "PanelSymbols"): {"width": 96, "levels": 16},
    ("reasoner", "Reasoner"): {"width": 96, "context": True},
    ("relative_position", "RelativePosition"): {"width": 32},
    ("resnet", "Block"): {"stride": 1},
    ("resnet", "ResNet"): {"stages": (1, 1, 1), "features": 16, "classes": 10, "stem_stride": 1},
    ("transformer", "Transformer"): {"layers": 8, "heads": 4, "ratio": 4, "positions": True},
    ("vision", "Vision"): {"tasks": (10,), "patch": 4, "width": 96},
}


@pytest.mark.parametrize(("module", "name"), DEFAULTS)
def test_what_is_left_out_is_as_documented(module, name):
    made = getattr(importlib.import_module(f"jaxsim.models.{module}"), name)
    found = {n: d for n, d in defaults(made).items() if n not in ("parent", "name")}
    assert found == DEFAULTS[module, name]
