"""Which test reaches which line."""

import hashlib
import json
from pathlib import Path
from typing import Any

import coverage
import pytest

# A module's own lines run when it is imported: every test of a file reaches them.
IMPORT = ""


def digest(text: str) -> str:
    """Names a text in few letters."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Recorder:
    """A plugin of pytest that writes, for each file of jaxsim, the tests that reach each line.

    Also writes how long each test took, and a digest of each file, whose lines may have moved
    since. A line within a jitted function counts for the test that traces it first, and one within
    a fixture for the first test that asks for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}
        self.coverage = coverage.Coverage(data_file=None, include=["jaxsim/*"], config_file=False)
        self.coverage.start()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        self.coverage.switch_context(item.nodeid)
        yield
        self.coverage.switch_context(IMPORT)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data = self.coverage.get_data()
        root = Path.cwd()
        lines = {
            str(Path(file).relative_to(root)): data.contexts_by_lineno(file)
            for file in data.measured_files()
        }
        sources = {file: digest(Path(file).read_text()) for file in lines}
        record = {"seconds": self.seconds, "lines": lines, "sources": sources}
        self.path.write_text(json.dumps(record))


def reaching(record: dict[str, Any], path: str, line: int) -> list[str]:
    """Lists the tests of a record that reach a line, quickest first."""
    contexts = record["lines"].get(path, {}).get(str(line), [])
    reached = list(record["seconds"]) if IMPORT in contexts else [c for c in contexts if c]
    return sorted(reached, key=lambda test: record["seconds"].get(test, 0))
