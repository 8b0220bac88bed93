"""Numbers in printed tables, and what is shown as one."""

import importlib
import inspect
import pkgutil
from html import unescape
from typing import Any, NamedTuple

import numpy as np
import pytest
from rich.table import Table

import jaxsim
import jaxsim as js
from jaxsim.console.table import html, render, shown_as_table, si
from tests.support.networks import cnn


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
    assert found.startswith("<pre ")
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


@shown_as_table
class Priced(NamedTuple):
    rows: tuple[int, ...]
    table: dict[str, int]
    weights: Any
    total: float
    of: Any

    def __rich__(self):
        return wide(len(self.rows))


def test_what_has_a_table_shows_it_and_has_a_line_for_itself():
    found = Priced((1, 2), {"a": 1}, np.ones((2, 3), np.float32), 1.5, list("abcdefghijk"))
    assert str(found) == render(wide(2))
    assert found._repr_html_() == html(wide(2))
    line = "Priced(rows: 2, table: 1, weights: float32[2, 3], total=1.5, of: 11)"
    assert repr(found) == line
    assert repr(found._replace(of=inspect.signature(html), total=np.float32(2))).endswith(
        "total=np.float32(2.0), of=<Signature (renderable: 'Any') -> 'str'>)"
    )
    assert repr(found._replace(of="x" * 50)).endswith("of=str)")


def test_what_has_a_line_of_its_own_keeps_it():
    @shown_as_table
    class Named(NamedTuple):
        a: int

        def __repr__(self):
            return "mine"

        def __rich__(self):
            return "table"

    assert (repr(Named(1)), str(Named(1))) == ("mine", "table\n")


def test_a_notebook_shows_a_table_once(monkeypatch, capsys):
    shown = []
    plain = html(wide(2)), render(wide(2))
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *args: shown.append(args))
    assert (html(wide(2)), render(wide(2))) == plain
    assert shown == []
    assert capsys.readouterr() == ("", "")


def test_every_class_with_a_table_shows_it_in_a_notebook():
    names = [m.name for m in pkgutil.walk_packages(jaxsim.__path__, "jaxsim.")]
    classes = {
        value
        for name in names
        if "__main__" not in name
        for value in vars(importlib.import_module(name)).values()
        if inspect.isclass(value) and "__rich__" in vars(value) and "jaxsim" in value.__module__
    }
    assert len(classes) > 12
    assert [c.__name__ for c in classes if not hasattr(c, "_repr_html_")] == []


def test_treescope_shows_the_table_and_unfolds_what_is_in_it():
    treescope = pytest.importorskip(
        "treescope", reason="treescope, which Flax brings, is not there"
    )
    net = js.quantize(8, 8)(cnn())
    for value, inside in ((net, "Dense_0/kernel"), (net.cost(), "Dense_0/kernel")):
        page = treescope.render_to_html(value, compressed=False)
        assert unescape(value._repr_html_()) in unescape(page)
        assert inside in treescope.render_to_text(value)
    assert treescope.render_to_text(js.quantize(4, 8)).startswith("quantize(weights=4, inputs=8)")
