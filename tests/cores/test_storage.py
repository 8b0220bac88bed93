"""Which wrappers store which format, in which order."""

import pytest

import jaxsim as js
from jaxsim.cores.grouped import grouped
from jaxsim.cores.lookup import codebook_lookup
from jaxsim.cores.minifloat import minifloat
from jaxsim.cores.quantized import quantized
from jaxsim.cores.storage import join_chains, wrappers_of
from jaxsim.cores.wrapper import Wrapper

GRID, INPUTS = js.Grid(4, per="channel"), js.Grid(6)
TABLE, FLOATS = js.Codebook((-1.0, 0.0, 1.0)), js.Floating("bfloat16")


def of(chain):
    return [(wrapper.factory, wrapper.settings) for wrapper in chain]


@pytest.mark.parametrize(
    ("form", "side", "expected"),
    [
        (GRID, "weights", [(quantized, {"weights": GRID, "inputs": None})]),
        (INPUTS, "inputs", [(quantized, {"weights": None, "inputs": INPUTS})]),
        (
            js.Grid(3, per="group", rows=5),
            "weights",
            [
                (grouped, {"rows": 5}),
                (quantized, {"weights": js.Grid(3, per="channel"), "inputs": None}),
            ],
        ),
        (TABLE, "weights", [(codebook_lookup, {"weights": TABLE})]),
        (
            js.fp4(per="group", rows=2),
            "weights",
            [(grouped, {"rows": 2}), (codebook_lookup, {"weights": js.fp4().checked("weights")})],
        ),
        (FLOATS, "weights", [(minifloat, {"weights": FLOATS, "inputs": None})]),
        (FLOATS, "inputs", [(minifloat, {"weights": None, "inputs": FLOATS})]),
    ],
)
def test_a_format_is_stored_by_its_wrappers(form, side, expected):
    assert of(wrappers_of(form, side)) == expected


def joined(weights, inputs):
    return of(join_chains(wrappers_of(weights, "weights"), wrappers_of(inputs, "inputs")))


def test_one_function_stores_both_operands_and_groups_come_first():
    both = [(quantized, {"weights": GRID, "inputs": INPUTS})]
    assert joined(GRID, INPUTS) == both
    groups = js.Grid(4, per="group", rows=3)
    assert joined(groups, INPUTS) == [(grouped, {"rows": 3}), *both]


def test_codes_come_before_what_is_none_whatever_operand_they_store():
    x_codes = (quantized, {"weights": None, "inputs": INPUTS})
    assert joined(TABLE, INPUTS) == [x_codes, (codebook_lookup, {"weights": TABLE})]
    w_codes = (quantized, {"weights": GRID, "inputs": None})
    assert joined(GRID, FLOATS) == [w_codes, (minifloat, {"weights": None, "inputs": FLOATS})]
    groups = js.Codebook((-1.0, 1.0), per="group", rows=2)
    assert [factory for factory, _ in joined(groups, INPUTS)] == [
        grouped,
        quantized,
        codebook_lookup,
    ]


def both(core, *, weights=None, inputs=None, **more):
    del weights, inputs, more
    return core


def test_settings_that_both_operands_give_must_be_equal():
    def pair(**more):
        return (
            [Wrapper.of(both, weights="w", inputs=None, shared=1.5)],
            [Wrapper.of(both, weights=None, inputs="x", **more)],
        )

    found = of(join_chains(*pair(shared=1.5, extra=2)))
    assert found == [(both, {"weights": "w", "inputs": "x", "shared": 1.5, "extra": 2})]
    with pytest.raises(ValueError, match=r"both stores both, with shared=1.5 .* shared=2.5 for"):
        join_chains(*pair(shared=2.5))
    with pytest.raises(ValueError, match=r"with shared=1.5 for the weights and shared=None"):
        join_chains(*pair())


class Empty:
    def wrappers(self, side):
        return ()


class Wrong:
    def wrappers(self, side):
        return [Wrapper.of(quantized, weights=GRID, inputs=None), quantized]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (8, "weights=8: must be an int, a Grid"),
        (Empty, "must be an int, a Grid"),
        (Empty(), r"wrappers\('weights'\) gave \(\), expected Wrappers"),
        (Wrong(), "gave .* expected Wrappers"),
        (js.Grid(9), "weights: bits=9"),
    ],
)
def test_what_says_no_wrappers_is_no_format(form, said):
    with pytest.raises(ValueError, match=said):
        wrappers_of(form, "weights")
