"""What the page on reliability counts is what it says."""

import collections

from tests import reliability


def test_kinds_are_told_by_what_a_test_does():
    found = reliability.functions()
    kinds = {kind.what: kind for kind in reliability.KINDS}
    rows = dict(
        zip(kinds, reliability.count(found, collections.Counter(found.keys())), strict=True)
    )
    assert all(0 < tests == cases for _, tests, cases in rows.values())

    def of(what, path, name):
        (kind,) = (kind for text, kind in kinds.items() if text.startswith(what))
        return kind.matches(found[path, name])

    killed = "test_a_killed_run_goes_on_to_the_same_bits_and_is_measured"
    assert of("a run is killed", "tests/cli/test_nac.py", killed)
    assert not of("a run is killed", "tests/cli/test_main.py", "test_versions")
    counted = "test_counts_have_three_digits_and_their_prefix"
    assert not of("an independent", "tests/console/test_table.py", counted)
    assert not of("anything is refused", "tests/console/test_table.py", counted)
    assert of(
        "anything is refused", "tests/cli/test_main.py", "test_a_device_without_memory_is_one_line"
    )


def test_cases_are_those_of_pytest_and_the_page_says_how_many():
    found = {("tests/a.py", "test_b"): reliability.Function("tests/a.py", "test_b", "@given", "")}
    rows = reliability.count(found, collections.Counter({("tests/a.py", "test_b"): 1234}))
    assert ("a property holds for drawn examples (Hypothesis)", 1, 1234) in rows
    text = reliability.page(rows, 5678)
    assert "| a property holds for drawn examples (Hypothesis) | 1 | 1,234 |" in text
    assert "5,678 in all" in text
