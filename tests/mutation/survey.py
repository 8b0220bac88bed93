"""Plants faults one after another and remembers which were noticed."""

import functools
import json
import random
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from tests.mutation.faults import Fault, generated_faults
from tests.mutation.processes import MISUSED, NOTICED, Server
from tests.mutation.reach import digest, reaching

# Over what a test took when it was recorded, and for the start of a process.
PATIENCE, START = 4, 40
# Why a fault was not noticed where all was tried: the tests that reach it pass, or none reaches it.
# What else may be said (out of time, a test that fails anyway) is tried again by the next run.
DECIDED = ("", "(unreached)")


class Verdict(NamedTuple):
    """What became of one fault.

    Attributes:
      fault: The fault.
      noticed: Whether a test failed with it.
      by: Test that noticed it; or why none could.
      seconds: Time that the tests took.
    """

    fault: Fault
    noticed: bool
    by: str
    seconds: float


def sampled(paths: Iterable[str], count: int, seed: int) -> list[Fault]:
    """Draws faults from modules, each module's in proportion to how many it has."""
    faults = [f for path in paths for f in generated_faults(Path(path).read_text(), path)]
    return faults if count >= len(faults) else random.Random(seed).sample(faults, count)


def candidate_files(path: str, folders: Iterable[str]) -> list[Path]:
    """Lists the test files that may notice a fault of a module, likeliest first.

    The file of the same name, those that begin with it, the rest of its wing, then other folders.
    """
    parts = Path(path).parts[1:]
    wing, stem = parts[0], Path(path).stem
    own = Path("tests") / wing
    places = [own, *map(Path, folders)]
    found = [f for d in places for f in ([d] if d.is_file() else sorted(d.rglob("test_*.py")))]

    def distance(file: Path) -> tuple[bool, bool, bool]:
        name = file.stem.removeprefix("test_")
        return (name != stem, not name.startswith(stem), wing not in file.parts)

    return sorted(dict.fromkeys(found), key=distance)


class Survey:
    """Runs faults against tests, in a folder that it resumes from.

    Args:
      folder: Where records and verdicts are kept.
      folders: Folders of tests that run where a module's own wing notices nothing.
      seconds: Most time that one fault may take.
    """

    def __init__(self, folder: Path, folders: Iterable[str], seconds: float) -> None:
        self.folder, self.folders, self.seconds = folder, tuple(folders), seconds
        self.server = Server()
        self.recording = defaultdict(threading.Lock)
        self.verdicts = folder / "verdicts.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, faults: list[Fault], workers: int, most: float) -> Iterator[Verdict]:
        """Yields a verdict for each fault as it is reached, those of earlier runs first.

        Args:
          faults: The faults.
          workers: Faults tried at the same time.
          most: Seconds after which no further fault is tried; 0 for no limit.
        """
        begin = time.monotonic()
        known = self._known()
        todo = []
        for fault in faults:
            if verdict := known.get(self._key(fault)):
                yield Verdict(fault, *verdict)
            else:
                todo.append(fault)
        with ThreadPoolExecutor(workers) as pool:
            try:
                for future in as_completed([pool.submit(self._judge, f) for f in todo]):
                    verdict = future.result()
                    if verdict.noticed or verdict.by in DECIDED:
                        with self.verdicts.open("a") as file:
                            entry = [self._key(verdict.fault), *verdict[1:]]
                            file.write(json.dumps(entry) + "\n")
                    yield verdict
                    if most and time.monotonic() - begin > most:
                        return
            finally:
                pool.shutdown(cancel_futures=True)

    def _judge(self, fault: Fault) -> Verdict:
        spent = 0.0
        reached = False
        for file in candidate_files(fault.path, self.folders):
            record = self._record(file, fault.path)
            if record is None:
                return Verdict(fault, False, f"{file} fails without a fault", 0)
            tests = reaching(record, fault.path, fault.line)
            if not tests:
                continue
            reached = True
            limit = START + PATIENCE * sum(record["seconds"][t] for t in tests)
            start = time.monotonic()
            by = self._noticed_by(fault, tests, limit)
            spent += time.monotonic() - start
            if by or spent > self.seconds:
                return Verdict(fault, bool(by), by or "(out of time)", spent)
        return Verdict(fault, False, DECIDED[0 if reached else 1], spent)

    def _noticed_by(self, fault: Fault, tests: list[str], limit: float) -> str:
        log = self.folder / f"{digest(repr(fault))}.log"
        outcome = self.server.run(["-x", "--tb=line", *tests], log, limit, fault)
        log.unlink()
        if outcome.status == 0:
            return ""
        if "ERROR collecting" in outcome.output:
            return "(the tests cannot be imported)"
        if outcome.status in MISUSED:
            raise RuntimeError(f"pytest could not run {tests}: {outcome.output}")
        if outcome.status != NOTICED:
            return f"status {outcome.status}"
        failed = [s for s in outcome.output.splitlines() if s.startswith(("FAILED", "ERROR"))]
        return failed[0].split(" - ")[0] if failed else "a failure"

    def _record(self, file: Path, path: str) -> dict[str, Any] | None:
        """Reads which tests of a file reach which lines, or finds out; None where one fails."""
        return self._recorded(file, digest(file.read_text()), path, digest(Path(path).read_text()))

    @functools.cache  # noqa: B019 -- a survey ends with its process
    def _recorded(self, file: Path, text: str, path: str, source: str) -> dict[str, Any] | None:
        kept = self.folder / f"{file.stem}-{text}.json"
        with self.recording[kept]:  # workers that need the same record wait for it
            # one record serves every module that is as it was then, or that no test imported
            if not kept.exists() or _read(kept)["sources"].get(path, source) != source:
                log = kept.with_suffix(".log")
                if self.server.run([str(file)], log, 1800, reach=kept).status not in (0, 5):
                    kept.unlink(missing_ok=True)
                    return None
                log.unlink()
            record = _read(kept)
        return {**record, "lines": {path: record["lines"].get(path, {})}}

    def _key(self, fault: Fault) -> str:
        """Names a fault until its module or a test that may notice it changes."""
        tests = candidate_files(fault.path, self.folders)
        return _key_of(fault, Path(fault.path).read_text(), _texts(tuple(tests)))

    def _known(self) -> dict[str, tuple[bool, str, float]]:
        if not self.verdicts.exists():
            return {}
        entries = [json.loads(line) for line in self.verdicts.read_text().splitlines()]
        return {key: tuple(rest) for key, *rest in entries}


def _key_of(fault: Fault, source: str, tests: str) -> str:
    return digest(json.dumps([fault, source, tests]))


@functools.cache
def _texts(files: tuple[Path, ...]) -> str:
    return digest("".join(file.read_text() for file in files))


def _read(record: Path) -> dict[str, Any]:
    return json.loads(record.read_text())


def changed_modules(since: str) -> list[str]:
    """Lists the modules that changed since a commit."""
    command = ["git", "diff", "--name-only", "--diff-filter=AM", since, "--", "jaxsim"]
    names = subprocess.check_output(command, text=True).splitlines()
    return [name for name in names if name.endswith(".py")]
