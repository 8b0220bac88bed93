"""Verdicts follow from records by their rules, and the page from the verdicts."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.common import papers, topics
from benchmarks.common.claims import CLAIMS
from benchmarks.common.record import RESULTS
from benchmarks.common.results import Number, Results, number

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_records_make(tmp_path):
    made = papers.write_page(path=tmp_path / "papers.md").read_text()
    assert made == papers.PAGE.read_text(), "python -m benchmarks tables"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.says[:40])
def test_a_claim_names_a_command_and_a_page(claim):
    assert claim.command.split()[0] in topics.names()
    assert (ROOT / "docs" / claim.page).is_file()
    assert claim.judge(Results())[0] in ("holds", "holds in part", "not seen")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("79.4", Number(79.4)),
        ("+0.78 ± 0.43", Number(0.78, 0.43)),
        ("-0.48 ± 0.16", Number(-0.48, 0.16)),
        ("1,340 M", Number(1340)),
        ("67%", Number(67)),
        ("2e-07", Number(2e-7)),
        ("−1.0 ± 0.5 to 0.7", Number(-1.0, 0.5)),
    ],
)
def test_numbers_of_cells(cell, expected):
    assert number(cell) == expected


def test_a_cell_without_a_number_and_a_row_that_is_not_there():
    with pytest.raises(ValueError, match="expected a number"):
        number("–")
    with pytest.raises(KeyError, match="no row"):
        Results().cell("analog_accuracy", "cells", "none", network="ResNet-15")
    with pytest.raises(KeyError, match="no table"):
        Results().rows("analog_accuracy", "of another title")


CHANGES = {
    "8 bits of ADC": ("analog_accuracy", "differential", "8", "70.0", "not seen"),
    "where cell errors": ("analog_accuracy", "offset", "proportional 10 %", "75.0", "not seen"),
    "the bubble": ("schedules", "gpipe", "simulated bubble", "50.0%", "not seen"),
    "so is the": ("nac_published", "PSRO-Nash, LP", "difference, 95 %", "-1 ± 0.1", "holds"),
    "new functions": (
        *("interpreters_extend", "a head and 2 functions", "200 digits, %"),
        *("99", "holds in part"),
    ),
    "rules held out": (
        *("interpreters_reasoning", "Neural Interpreter", "a rule held out, %"),
        *("90", "holds"),
    ),
    "dilation": ("qdcnn_accuracy", "", "at 5 %", "lower", "not seen"),
    "a collaborative": ("coconet_accuracy", "", "at 5 %", "higher", "holds"),
    "seeds are": ("influence", "email", "certified", False, "holds in part"),
    "up to 70 %": (
        *("pyramid_accuracy", "pruning and exit", "to the whole, points"),
        *("-0.6 ± 0.1", "not seen"),
    ),
    "pruning and exit": (
        *("pyramid_accuracy", "pruning and exit", "GFLOPs, times fewer"),
        *("9 ± 0.1", "holds"),
    ),
    "pruning tokens": ("pyramid_lengths", "exit alone", "times fewer", "3 ± 0.1", "not seen"),
    "gradients do": ("pipeline", "dense", "gradient error", "1e-03", "not seen"),
}
"""By claim: a column of a record, changed where a row holds a word, and what must follow."""


@pytest.mark.parametrize("claim", CHANGES)
def test_another_record_has_another_verdict(claim, tmp_path):
    (judged,) = (c for c in CLAIMS if c.says.startswith(claim))
    name, word, column, value, verdict = CHANGES[claim]
    shutil.copytree(RESULTS, tmp_path, dirs_exist_ok=True)
    path = tmp_path / f"{name}.json"
    record = json.loads(path.read_text())
    for table in record["tables"]:
        if column in table["columns"]:
            at = table["columns"].index(column)
            for row in table["rows"]:
                if word in ("", *row):
                    row[at] = value
    path.write_text(json.dumps(record))
    assert judged.judge(Results())[0] != verdict
    assert judged.judge(Results(tmp_path))[0] == verdict


def test_what_was_not_recorded_says_so(tmp_path):
    page = papers.write_page(Results(tmp_path), tmp_path / "page.md").read_text()
    assert page.count("**not recorded** | –") == len(CLAIMS)
