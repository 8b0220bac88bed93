"""Numbers in printed tables."""

import pytest
from rich.table import Table

from jaxsim.console.table import html, render, si


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (0.0125, "0.0125"),
        (999, "999"),
        (1000, "1 k"),
        (999_000, "999 k"),
        (1_000_000, "1 M"),
        (2_345_678, "2.35 M"),
        (1e9, "1 G"),
        (5.5e11, "550 G"),
        (1e12, "1 T"),
        (7.5e15, "7.5e+03 T"),
    ],
)
def test_counts_have_three_digits_and_their_prefix(number, shown):
    assert si(number) == shown


def wide(columns):
    """A table of so many cells of nine letters."""
    table = Table(*["name"] * columns)
    table.add_row(*["abcdefghi"] * columns)
    return table


def test_a_table_is_html_that_stands_still(capsys):
    """Nine cells fit into a line of 120, in one block; nothing is printed on the way."""
    found = html(wide(9))
    assert found.startswith("<pre>")
    assert found.rstrip().endswith("</pre>")
    assert found.count("abcdefghi") == 9
    assert max(map(len, found.splitlines())) < 1200
    assert html(wide(14)).count("abcdefghi") < 14
    assert capsys.readouterr().out == ""


def test_a_table_is_text_of_160_letters_without_colors(capsys):
    found = render(wide(13))
    assert found.count("abcdefghi") == 13
    assert max(map(len, found.splitlines())) <= 160
    assert render(wide(14)).count("abcdefghi") < 14
    assert "\x1b" not in found
    assert capsys.readouterr().out == ""
