"""Faults are found by rule, planted one at a time, and noticed by the tests that reach them."""

import ast
import json
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mutation.__main__ import HERE, equivalents, known_faults
from tests.mutation.faults import Fault, generated_faults, planted
from tests.mutation.processes import Outcome
from tests.mutation.reach import digest, reaching
from tests.mutation.survey import Survey, Verdict, candidate_files, sampled

SOURCE = textwrap.dedent('''
    """A module."""
    SPEED: float = 2.0

    def cost(b: int, key: "str | None" = None, *, full: bool = True) -> float:
        """Multiplies."""
        if b < 1:
            raise ValueError(f"b={b + 1}: expected at least 1")
        b = b * 3
        return min(b, fold_in(key, 4))
''')


def changes(source):
    return {(f.where, f.was, f.became) for f in generated_faults(source, "m.py")}


def test_factors_bounds_guards_constants_and_keys_are_what_faults_change():
    assert changes(SOURCE) == {
        ("", "2.0", "2.2"),
        ("cost", "True", "False"),
        ("cost", "if b < 1:", "if False:"),
        ("cost", "b < 1", "b <= 1"),
        ("cost", "1", "2"),
        ("cost", "b = b * 3", "pass"),
        ("cost", "b * 3", "b"),
        ("cost", "b * 3", "3"),
        ("cost", "3", "4"),
        ("cost", "min(b, fold_in(key, 4))", "max(b, fold_in(key, 4))"),
        ("cost", "fold_in(key, 4)", "key"),
        ("cost", "4", "5"),
    }


def test_what_a_jitted_or_cast_expression_computes_is_changed_too():
    assert ("", "x * 2", "x") in changes("f = jax.jit(lambda x: x * 2)")
    assert ("", "a * b", "a") in changes("y = cast(float, a * b)")


def test_each_fault_changes_its_place_and_nothing_else():
    before = ast.unparse(ast.parse(SOURCE)).splitlines()
    seen = set()
    for fault in generated_faults(SOURCE, "m.py"):
        after = ast.unparse(planted(SOURCE, fault)).splitlines()
        different = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert len(different) == 1
        seen.add(different[0])
    assert len(seen) == len(generated_faults(SOURCE, "m.py"))


def test_a_text_is_replaced_where_it_stands_once():
    fault = Fault("m.py", 0, "", "b < 1", "b < 0")
    assert "b < 0" in ast.unparse(planted(SOURCE, fault))
    with pytest.raises(ValueError, match="stands 2 times"):
        planted(SOURCE, fault._replace(was="key"))


def test_a_sample_is_the_same_for_the_same_seed(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(SOURCE)
    few = sampled([str(path)], 5, 1)
    assert few == sampled([str(path)], 5, 1)
    assert few != sampled([str(path)], 5, 2)
    assert len(sampled([str(path)], 50, 1)) == 12


def test_the_file_of_a_module_runs_before_those_of_its_wing():
    files = candidate_files("jaxsim/formats/grid.py", ["tests/values"])
    assert files[0] == Path("tests/formats/test_grid.py")
    assert Path("tests/formats/test_clipping.py") in files
    assert files[-1].parent == Path("tests/values")


def test_the_quickest_test_that_reaches_a_line_runs_first():
    lines = {"a.py": {"1": [""], "2": ["slow", "quick"]}}
    record = {"seconds": {"slow": 2, "quick": 1, "other": 0.5}, "lines": lines}
    assert reaching(record, "a.py", 2) == ["quick", "slow"]
    assert reaching(record, "a.py", 1) == ["other", "quick", "slow"]
    assert reaching(record, "a.py", 3) == []


def test_faults_that_were_once_found_still_stand_where_they_did():
    faults = known_faults(HERE / "known.toml")
    assert len(faults) >= 35
    for fault in faults:
        planted(Path(fault.path).read_text(), fault)


def test_what_is_said_to_change_nothing_is_a_fault_that_the_rules_make():
    for path, *rest in equivalents(HERE / "equivalent.toml"):
        made = {tuple(f[2:5]) for f in generated_faults(Path(path).read_text(), path)}
        assert tuple(rest) in made, rest


def test_a_fault_is_noticed_by_a_test_that_reaches_it_and_then_remembered(tmp_path):
    path = "jaxsim/pipeline/schedule.py"
    faults = generated_faults(Path(path).read_text(), path)
    fault = next(f for f in faults if f.became == "1 + busy[k % D] / total")
    (first,) = Survey(tmp_path, [], 60).run([fault], 1, 0)
    assert first.noticed
    assert first.by.startswith("FAILED tests/pipeline/test_schedule.py")
    (again,) = Survey(tmp_path, [], 60).run([fault], 1, 0)
    assert again == first


def test_one_record_serves_every_module_that_is_as_it_was(tmp_path, monkeypatch):
    survey, runs = Survey(tmp_path, [], 60), []
    test, first, other = (tmp_path / name for name in ("test_x.py", "first.py", "other.py"))
    for path in (test, first, other):
        path.write_text("x = 1")
    status = 0

    def run(arguments, log, seconds, reach):
        runs.append(arguments)
        lines = {str(p): {"1": ["t"]} for p in (first, other)}
        sources = {name: digest(Path(name).read_text()) for name in lines}
        reach.write_text(json.dumps({"seconds": {}, "lines": lines, "sources": sources}))
        log.write_text("")
        return Outcome(status, "")

    monkeypatch.setattr(survey.server, "run", run)
    for path, count in ((first, 1), (other, 1), (tmp_path / "unread.py", 1)):
        path.touch()
        assert str(path) in survey._record(test, str(path))["lines"]
        assert len(runs) == count
    other.write_text("x = 2")
    survey._record(test, str(first))
    assert len(runs) == 1
    survey._record(test, str(other))
    survey._record(test, str(first))
    assert len(runs) == 2
    test.write_text("x = 3")
    status = 1
    for _ in range(2):
        assert Survey._record(survey, test, str(first)) is None
    assert len(runs) == 3
    assert not [p for p in tmp_path.glob("*.json") if digest("x = 3") in p.name]


def test_workers_that_need_one_record_wait_for_it(tmp_path, monkeypatch):
    survey, runs = Survey(tmp_path, [], 60), []
    module, other, test = (tmp_path / name for name in ("a.py", "b.py", "test_a.py"))
    for path in (module, other, test):
        path.write_text(path.name)

    def run(arguments, log, limit, fault=None, reach=None):
        runs.append(arguments)
        log.touch()
        time.sleep(0.2)
        sources = {str(p): digest(p.name) for p in (module, other)}
        reach.write_text(json.dumps({"seconds": {}, "lines": {}, "sources": sources}))
        return Outcome(0, "")

    monkeypatch.setattr(survey.server, "run", run)
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(survey._record, test, str(path)) for path in (module, other)]
    assert [future.result()["seconds"] for future in found] == [{}, {}]
    assert len(runs) == 1


def test_a_verdict_is_remembered_where_all_was_tried(tmp_path, monkeypatch):
    tried, fault = [], Fault("jaxsim/pipeline/schedule.py", 1, "", "1", "2", 0)

    def judge(by):
        monkeypatch.setattr(
            Survey, "_judge", lambda _, f: tried.append(by) or Verdict(f, False, by, 1)
        )

    for by in ("(out of time)", "tests/x.py fails without a fault", "", ""):
        judge(by)
        list(Survey(tmp_path, [], 60).run([fault], 1, 0))
    assert tried == ["(out of time)", "tests/x.py fails without a fault", ""]
