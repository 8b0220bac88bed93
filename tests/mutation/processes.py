"""Processes forked from a server that has JAX imported: each may have one fault planted."""

import importlib.abc
import importlib.util
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.mutation.faults import Fault, planted

# All that a test imports but jaxsim itself. None of it may start a backend: a forked thread hangs.
PRELOADED = ["jax.numpy", "flax.linen", "flax.nnx", "optax", "hypothesis", "pytest"]
# Exit statuses of pytest: a test failed; it was called wrongly or found none, which says nothing.
NOTICED = 1
MISUSED = (4, 5)


class Outcome(NamedTuple):
    """How a run of tests ended.

    Attributes:
      status: Exit status of pytest; negative where the process was killed.
      output: What it printed.
    """

    status: int
    output: str


class Server:
    """Starts processes that run tests."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([*PRELOADED, __name__])

    def run(
        self,
        arguments: list[str],
        log: Path,
        seconds: float,
        fault: Fault | None = None,
        reach: Path | None = None,
    ) -> Outcome:
        """Runs pytest in a process of its own.

        Args:
          arguments: Arguments of pytest: test files or node ids, and options.
          log: File for what the process prints.
          seconds: Limit after which the process is killed.
          fault: Fault to plant before jaxsim is imported; None for the code as it is.
          reach: File to write the lines to that each test reached; None for no record.
        """
        process = self.context.Process(target=_run_tests, args=(arguments, log, fault, reach))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
        status = process.exitcode
        return Outcome(-9 if status is None else status, log.read_text(errors="replace"))


def _run_tests(arguments: list[str], log: Path, fault: Fault | None, reach: Path | None) -> None:
    import pytest

    out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    plugins: list[Any] = []
    if fault is not None:
        sys.meta_path.insert(0, _Planter(fault))
    if reach is not None:
        from tests.mutation.reach import Recorder

        plugins.append(Recorder(reach))
    status = pytest.main(["-p", "no:cacheprovider", "-p", "no:xdist", "-q", *arguments], plugins)
    sys.stdout.flush()
    os._exit(int(status))


class _Planter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module with a fault in it."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.module = fault.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.module:
            return None
        where = Path(self.fault.path).resolve()
        packages = [str(where.parent)] if where.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            fullname, where, loader=self, submodule_search_locations=packages
        )

    def exec_module(self, module: Any) -> None:
        source = Path(self.fault.path).read_text()
        exec(compile(planted(source, self.fault), module.__file__, "exec"), module.__dict__)
