"""Each column of a printed table, from numbers that are all different."""

from jaxsim.console.table import render
from jaxsim.network.tables import cost_table, cuts_table, sites_table


def rows_of(table):
    """The cells of a rendered table, its heading first, and what stands above and below it."""
    lines = render(table).splitlines()
    cells = [
        [cell.strip() for cell in line.strip(" │┃").replace("┃", "│").split("│")]
        for line in lines
        if "│" in line or "┃" in line
    ]
    return cells, "\n".join(line for line in lines if "│" not in line and "┃" not in line)


SITES = [
    ("a", "dot", (3, 4), (), (2, 3), 24, ("one", "two"), 1),
    ("b", "conv", (5, 6, 7), (8, 9), (10, 11), 12_345, (), 0.25),
    ("c", "dot", (13,), (), (14,), 2, (), None),
]


def test_a_table_of_sites_has_a_row_each():
    table = sites_table(SITES, ["x is a buffer", "y too"], "half", deployed=False, calibrated=False)
    (heading, *rows), around = rows_of(table)
    assert heading[:6] == ["site", "kind", "weight", "input", "MACs", "kept"]
    assert rows == [
        ["a", "dot", "3×4", "2×3", "24", "all", "'one' → 'two'"],
        ["b", "conv", "8×9 · 5×6×7", "10×11", "12.3 k", "25.0%", "float"],
        ["c", "dot", "13", "14", "2", "traced", "float"],
    ]
    assert "not sites: x is a buffer; y too" in around
    assert "half" in around


def test_the_title_says_how_far_a_network_is():
    titles = {
        (False, False): "not deployed",
        (True, False): "deployed",
        (True, True): "deployed, calibrated",
    }
    for (deployed, calibrated), expected in titles.items():
        table = sites_table([], (), "half", deployed=deployed, calibrated=calibrated)
        assert table.title == f"jaxsim.Network · {expected}"
        assert table.caption == "half"


def test_a_table_of_costs_has_a_column_for_each_count_and_zero_where_there_is_none():
    costs = [("a", 1_000, 500, {"macs": 7, "cells": 8}), ("b", 2, 3, {"weight_bits": 9, "macs": 4})]
    (heading, *rows), _ = rows_of(cost_table(costs))
    assert heading == ["site", "params", "nonzero", "macs", "cells", "weight bits"]
    assert rows == [["a", "1 k", "500", "7", "8", "0"], ["b", "2", "3", "4", "0", "9"]]


def test_a_table_of_cuts_has_its_own_columns():
    (heading, *rows), around = rows_of(cuts_table("cuts", ["at", "live"], [("a", 1), ("b", 2)]))
    assert (heading, rows) == (["at", "live"], [["a", "1"], ["b", "2"]])
    assert "cuts" in around
