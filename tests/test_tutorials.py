"""Tutorials are notebooks in the navigation. `make docs` runs them, and fails where one does."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "docs" / "tutorials"
NAMES = sorted(path.stem for path in ROOT.glob("*.py"))


def test_all_tutorials_are_in_the_navigation_and_are_run():
    text = (ROOT.parent.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert len(NAMES) == 6
    assert all(f"tutorials/{name}.py" in text for name in NAMES)
    assert "execute: !ENV [JAXSIM_NOTEBOOKS, true]" in text
    assert "allow_errors: false" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_is_a_notebook_that_checks_what_it_says(name):
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    assert "formats: ipynb,py:percent" in text
    cells = text.split("# %%")[1:]
    assert cells[0].startswith(" [markdown]\n# # ")
    assert sum(cell.startswith("\n") for cell in cells) >= 4
    ast.parse(text)
