"""Every benchmark in a short form: does it run, and what does its table look like?

Together they take less than 25 minutes on two cores. Each run has a process and a limit of time,
and together they have a home of their own: what full runs have cached and recorded stays as it is.
Fashion-MNIST is the packaged subset. Where a generator serves, a file that is not on this machine
has a stand-in (`stand_ins`). Any other line whose files are not there says which it needs, whose
they are and where they go, and is no failure.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time

from benchmarks.common import topics
from benchmarks.common.files import MISSING, STANDS_IN
from benchmarks.common.paths import ROOT

FOLDER = ROOT / "out" / "bench"
SECONDS = 240
"""Limit of one."""


def main() -> int:
    """Runs them one after the other and says how each ended; 1 where one failed.

    What is there of each lies in `out/bench`: its table, its figures, and its output.
    """
    from rich.console import Console
    from rich.table import Table

    home = FOLDER / "home"
    for folder in (home, FOLDER / "images"):
        folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "HOME": str(home),
        "JAXSIM_BENCHMARKS": str(FOLDER),
        "JAXSIM_FASHION_MNIST": "subset",
    }
    table, failed = Table("benchmark", "seconds", "ended", title="short forms"), 0
    console = Console()
    for line in topics.short_lines():
        began = time.perf_counter()
        ended = _ended(line, environment)
        failed += ended.startswith(("with ", "after "))
        table.add_row(line, f"{time.perf_counter() - began:.0f}", ended)
        console.print(f"{line}: {ended}, {time.perf_counter() - began:.0f} s")
    console.print(table)
    subprocess.run([sys.executable, "-m", "benchmarks", "tables"], env=environment, check=True)
    return int(failed > 0)


def _ended(line: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "benchmarks", *shlex.split(line)]
    output = FOLDER / f"{' '.join(command[3:])}.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return "after its limit"
        finally:
            # with what it has started: nothing may run beside the next
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code == 0:
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
        missing = [line.removeprefix(MISSING).strip() for line in lines if line.startswith(MISSING)]
        drawn = dict.fromkeys(line for line in lines if line.startswith(STANDS_IN))
        return "\n".join([*(missing or ["well"]), *drawn])
    return f"with {code}, see {output.relative_to(ROOT)}"
