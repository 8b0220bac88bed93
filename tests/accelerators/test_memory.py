import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsim.accelerators import Link, Memory, Spent, Work
from jaxsim.accelerators.memory import moves, serving, slowest
from tests.oracles import memory_levels

LEVELS = {
    "near": Memory(read=2.0, write=3.0, size=500),
    "middle": Memory(read=5.0, size=4000),
    "far": Memory(read=7.0),
}
SPENT = Spent({}, 1, 1.0, inputs=900, weights=700, sums=110, results=130)


def test_moves_are_counted_by_hand():
    """Two runs: an input of 60 · 5 bits, a weight of 70 · 6 and a result of 20 · 7.

    Input and result (440) lie near; the weight comes from afar through both levels, once.
    """
    work = Work("w", "codes", runs=2, copies=3, bits=(5, 6, 7), sizes=(60, 70, 20))
    read, written = moves(work, SPENT, LEVELS, "far", held=False)
    assert read == {"near": 900 + 700 + 110, "middle": 2 * 420, "far": 2 * 420}
    assert written == {"near": 110 + 130 + 2 * 420, "middle": 2 * 420, "far": 0}


@pytest.mark.parametrize(("entries", "goes_on"), [(20, 0), (21, 2 * 21 * 10)])
def test_what_fills_a_level_to_the_bit_lies_in_it(entries, goes_on):
    """An input of 60 · 5 bits and a result of 20 · 10 are the 500 that the near level holds."""
    work = Work("w", "codes", runs=2, copies=3, bits=(5, 1, 10), sizes=(60, 70, entries))
    _, written = moves(work, SPENT, LEVELS, "near", held=False)
    assert written["middle"] == goes_on


def test_what_does_not_fit_into_half_a_level_comes_again_and_again():
    """Input 900 and weight 420 bits meet in a level of 500: one of them is in blocks of 250.

    The sums would be six blocks of 250, so the weight is held: two blocks.
    """
    work = Work("w", "codes", runs=1, copies=3, bits=(9, 6, 7), sizes=(100, 70, 40))
    read, written = moves(work, SPENT, LEVELS, "middle", held=False)
    fetched = min(900 * 2 + 420, 420 * 4 + 900)
    assert read == {"near": 900 + 700 + 110 + 280, "middle": fetched, "far": 0}
    assert written == {"near": 110 + 130 + fetched, "middle": 280, "far": 0}


def test_sums_are_held_where_they_are_fewest():
    """Input 2700 and weight 2400 bits meet in a level of 500, where eight sums are one block.

    They come once, in 21 slices of 250 bits, between which the sums are written and read.
    """
    work = Work("w", "codes", runs=2, copies=3, bits=(9, 6, 7), sizes=(300, 400, 7))
    read, written = moves(work, SPENT, LEVELS, "middle", held=False)
    spilled = 2 * 20 * 7 * 32
    assert read == {"near": 1710 + 2 * 49 + spilled, "middle": 2 * 5100, "far": 0}
    assert written == {"near": 240 + 2 * 5100 + spilled, "middle": 2 * 49, "far": 0}


def test_weights_that_arrays_hold_do_not_move():
    work = Work("w", "analog", runs=2, copies=3, bits=(5, 6, 7), sizes=(60, 70, 20))
    read, written = moves(work, SPENT._replace(weights=0, sums=0), LEVELS, "far", held=True)
    assert (read["middle"], read["far"], written["middle"]) == (0, 0, 0)


def test_without_memory_nothing_is_counted():
    assert moves(Work("w", "codes"), SPENT, {}, "", held=False) == ({}, {})


number = st.integers(0, 300)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(number, number, number),
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from([0, 1, 2]),
)
def test_moves_are_those_of_loading_block_by_block(sizes, runs, copies, weights):
    work = Work("w", "codes", runs=runs, copies=copies, bits=(5, 6, 7), sizes=sizes)
    read, written = moves(work, SPENT, LEVELS, list(LEVELS)[weights], held=False)
    bits = dict(zip("xwy", (5 * sizes[0], 6 * sizes[1], 7 * sizes[2]), strict=True))
    spent = {name: getattr(SPENT, name) for name in ("inputs", "weights", "sums", "results")}
    expected = memory_levels.moves(
        {**bits, "sums": 32 * sizes[2], "runs": runs, "copies": copies},
        spent,
        [500, 4000, None],
        weights,
    )
    for name, level in zip(LEVELS, expected, strict=True):
        assert (read[name], written[name]) == pytest.approx(level)


def test_the_slowest_level_says_how_long_it_takes():
    levels = {"near": Memory(read=1, bandwidth=10), "far": Memory(read=1, bandwidth=2)}
    work = Work("w", "codes", runs=1, copies=1, bits=(1, 1, 1), sizes=(10, 50, 20))
    moved = moves(work, SPENT, levels, "far", held=False)
    assert slowest(moved, levels, ["near"]) == (900 + 700 + 220 + 130 + 50) / 10
    assert slowest(moved, levels, ["far"]) == 50 / 2
    assert slowest(moved, LEVELS | levels, ["near", "far"]) == 200


def test_a_level_serves_the_parts_that_it_names():
    levels = {"own": Memory(read=1, serves=("a",)), "all": Memory(read=2)}
    assert list(serving(levels, "a")) == ["own", "all"]
    assert list(serving(levels, "b")) == ["all"]


@pytest.mark.parametrize("kind", [Memory, Link])
def test_settings_out_of_range_are_named(kind):
    needed = {"read": 1.0} if kind is Memory else {"energy": 1.0}
    for field in dataclasses.fields(kind):
        assert field.name in kind.__doc__
        with pytest.raises(ValueError, match=field.name):
            kind(**{**needed, field.name: -1 if field.name != "serves" else "array"})
