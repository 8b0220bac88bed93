"""`python -m tests.reliability`: writes docs/reliability.md, what is tried at each change.

Cases are counted as pytest collects them, and sorted by what their code does: a rule a row.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"


class Function(NamedTuple):
    """A test function.

    Attributes:
      path: File below the root.
      name: Name of the function.
      text: Its code, decorators too.
      module: Code of the whole file.
    """

    path: str
    name: str
    text: str
    module: str


class Kind(NamedTuple):
    """A row of the page.

    Attributes:
      what: What is tried.
      matches: Whether a function tries it.
    """

    what: str
    matches: Callable[[Function], bool]


def _says(pattern: str) -> Callable[[Function], bool]:
    return lambda f: re.search(pattern, f.text) is not None


def _uses_oracle(f: Function) -> bool:
    """Whether a function names something that its file has from `tests.oracles`."""
    lines = re.findall(r"^from tests\.oracles\S* import (\([^)]*\)|.*)$", f.module, re.MULTILINE)
    names = re.findall(r"\w+", " ".join(re.sub(r"\w+ as ", "", line) for line in lines))
    return any(re.search(rf"\b{name}\b", f.text) for name in names)


KINDS = (
    Kind("a wrong argument is refused, by name", lambda f: f.path == "tests/test_bad_inputs.py"),
    Kind("anything is refused, with what it must say", _says(r"pytest\.raises\(.*match|refused\(")),
    Kind(
        "numbers at their limits, empty batches, one row",
        lambda f: f.path in ("tests/test_extremes.py", "tests/test_empty.py"),
    ),
    Kind(
        "a damaged, cut or hostile file is read or refused in a sentence",
        lambda f: bool(
            re.search(r"damag|truncat|cut_short|corrupt|lie_about|no_npz|attack", f.name)
        ),
    ),
    Kind(
        "a run is killed or stopped, and goes on",
        lambda f: bool(re.search(r"kill|stopped|goes_on|interrupt|resum", f.name)),
    ),
    Kind("an independent re-computation agrees", _uses_oracle),
    Kind("a property holds for drawn examples (Hypothesis)", _says(r"@given")),
    Kind("programs are counted: one for a sweep", _says(r"_cache_size|compil\w+\(.*==")),
    Kind("two transforms compose or refuse each other", lambda f: "test_pairs" in f.path),
    Kind(
        "one selection on every version of Python and JAX",
        lambda f: f.path in ("tests/test_compatibility.py", "tests/test_internals.py"),
    ),
    Kind(
        "code of the documentation runs",
        lambda f: f.path in ("tests/test_docs.py", "tests/test_examples.py"),
    ),
)


def functions() -> dict[tuple[str, str], Function]:
    """Test functions of all files, by file and name."""
    found: dict[tuple[str, str], Function] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        module, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        lines = module.splitlines()
        for node in ast.walk(ast.parse(module)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                start = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
                text = "\n".join(lines[start : node.end_lineno])
                found[name, node.name] = Function(name, node.name, text, module)
    return found


def cases() -> Counter[tuple[str, str]]:
    """Number of cases of each test function, as pytest collects them."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    named = re.findall(r"^(tests/\S+\.py)::(?:\w+::)?(\w+)", done.stdout, re.MULTILINE)
    return Counter(named)


def count(
    found: dict[tuple[str, str], Function], collected: Counter[tuple[str, str]]
) -> list[tuple[str, int, int]]:
    """Counts functions and cases of each kind; one function may be of several.

    Args:
      found: Test functions, as of `functions`.
      collected: Number of cases of each.
    """
    rows: list[tuple[str, int, int]] = []
    for kind in KINDS:
        of_kind = [key for key, function in found.items() if kind.matches(function)]
        rows.append((kind.what, len(of_kind), sum(collected[key] for key in of_kind)))
    return rows


def page(rows: list[tuple[str, int, int]], total: int) -> str:
    """Writes the page.

    Args:
      rows: What is tried, in how many functions and cases.
      total: Number of all cases.
    """
    faults = tomllib.loads((ROOT / "tests/mutation/known.toml").read_text(encoding="utf-8"))
    tried = "\n".join(f"| {what} | {tests:,} | {number:,} |" for what, tests, number in rows)
    versions = "\n".join(
        f"| {what} | {', '.join(_pinned(name, ('jax', 'flax', 'numpy')))} |"
        for what, name in (
            ("the oldest Python, every test", "constraints.txt"),
            ("the newest, and the one between, a selection", "constraints-newest.txt"),
            ("lowest versions of everything, a selection", "constraints-lowest.txt"),
        )
    )
    return f"""# What is tried

Written by `python -m tests.reliability` from the tests of this checkout; do not edit. Cases are
counted as pytest collects them, {total:,} in all, and one may be in several rows. They say what is
tried at each change, and not that nothing is left.

| what | tests | cases |
|---|---|---|
{tried}

{len(next(iter(faults.values())))} faults that tests once did not notice are kept, and can be
planted again (`python -m tests.mutation --known`); CONTRIBUTING.md has what a sample of new ones
found, by wing.

| on | versions |
|---|---|
{versions}
"""


def _pinned(constraints: str, packages: tuple[str, ...]) -> list[str]:
    text = (ROOT / constraints).read_text(encoding="utf-8")
    return [f"{p} {re.search(rf'^{p}==(.+)$', text, re.MULTILINE)[1]}" for p in packages]  # pyright: ignore


def main() -> None:
    """Writes the page."""
    collected = cases()
    PAGE.write_text(page(count(functions(), collected), collected.total()), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
