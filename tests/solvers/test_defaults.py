"""Arguments that are left out have the values that the documentation shows."""

import pytest

import jaxsim.solvers as so
from tests.support.defaults import defaults

DEFAULTS = {
    "ConvMixing": {"features": (8, 16, 8)},
    "EquivariantMixing": {"rounds": 6, "width": 24, "start": 200},
    "GRUMixing": {"width": 32},
    "Objective": {"start": 2, "iterations": 20, "window": 5, "each": False},
    "approximate": {"quality": 0.5},
    "dice": {"episodes": 32},
    "es_value_and_grad": {"sigma": 0.1, "pairs": 15},
    "implicit": {"tolerance": 0.001, "damping": 0},
    "meta_optimizer": {"clip": 1.0},
    "meta_step": {"batch": 16, "gradient": "unrolled", "sigma": 0.1, "pairs": 15},
    "nash": {"iterations": 1000},
    "ppo": {"episodes": 64, "epochs": 4, "clip": 0.2},
    "projected_replicator": {"iterations": 2000, "rate": 0.1, "least": 0.001},
    "psro": {"start": 2, "iterations": 20},
    "rectified": {"iterations": 1000},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_left_out_is_as_documented(name):
    assert defaults(getattr(so, name)) == DEFAULTS[name]


def test_recipes_are_those_of_the_experiments():
    from jaxsim.solvers.experiment import meta_network, recipe

    sizes = {
        name: (r.objective.start, r.objective.iterations, r.objective.window, r.objective.each)
        for name in ("skill", "rps", "lotto", "pennies", "kuhn")
        if (r := recipe(name))
    }
    assert sizes == {
        "skill": (2, 20, 20, True),
        "rps": (2, 15, 15, True),
        "lotto": (2, 10, 5, False),
        "pennies": (1, 9, 9, True),
        "kuhn": (1, 15, 15, True),
    }
    assert (recipe("kuhn").gradient, recipe("rps").gradient) == ("es", "unrolled")
    steps = {
        name: tuple(
            (len(o.args[0]), round(float(o.args[1]), 4))
            for o in (recipe(name).objective.oracle, recipe(name).measure)
        )
        for name in ("skill", "rps", "lotto", "pennies")
    }
    assert steps == {
        "skill": ((5, 25.0), (20, 10.0)),
        "rps": ((5, 2.0), (20, 2.0)),
        "lotto": ((10, 0.5), (30, 0.5)),
        "pennies": ((10, 10.0), (20, 10.0)),
    }
    assert float(recipe("kuhn").objective.oracle.args[0]) == 0.5
    assert defaults(recipe) == {"dim": 200}
    for call, told in (
        (lambda: recipe("chess"), "game='chess'"),
        (lambda: meta_network("x"), "'x'"),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    with pytest.raises(ValueError, match="dim=1: must be an int of at least 2"):
        recipe("skill", dim=1)
    kinds = [type(meta_network(n)).__name__ for n in ("equivariant", "gru", "conv")]
    assert kinds == ["EquivariantMixing", "GRUMixing", "ConvMixing"]
