"""`python -m tests.mutation`: which faults no test notices."""

import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.mutation.faults import Fault
from tests.mutation.survey import Survey, Verdict, changed_modules, sampled

HERE = Path(__file__).parent


@dataclass
class Settings:
    """Plants faults one at a time, runs the tests that reach them, and lists those that survive.

    Stopped with Ctrl-C or by `--most`, it goes on from there when called again.
    """

    modules: tyro.conf.Positional[tuple[str, ...]] = ()
    """Modules or folders to plant faults in, such as `jaxsim/cores/tiled.py jaxsim/formats`."""
    since: str = ""
    """Plant faults in the modules that changed since this commit, in place of naming them."""
    known: bool = False
    """Plant the faults of known.toml in place of generated ones."""
    count: int = 40
    """Faults drawn from all that the modules have."""
    seed: int = 0
    """Seed of the draw."""
    workers: int = 2
    """Faults tried at the same time."""
    seconds: float = 60
    """Most time to spend on one fault before it counts as unnoticed."""
    most: float = 0
    """Seconds after which to stop with what was reached; 0 for no limit."""
    tests: tuple[str, ...] = ()
    """Folders or files of tests to run where those of a module's own wing notice nothing."""
    out: Path = Path("out/mutate")
    """Folder for records and verdicts."""


def known_faults(path: Path) -> list[Fault]:
    """Reads faults that were once found by hand, each a text and what replaces it."""
    return [
        Fault(f["path"], _line(f["path"], f["was"]), "", f["was"], f["became"])
        for f in tomllib.loads(path.read_text())["fault"]
    ]


def _line(path: str, was: str) -> int:
    before, found, _ = Path(path).read_text().partition(was)
    if not found:
        raise ValueError(f"known.toml: {was!r} does not stand in {path} any more")
    return before.count("\n") + 1


def equivalents(path: Path) -> dict[tuple[str, str, str, str], str]:
    """Reads why faults that nothing can notice change nothing."""
    return {
        (f["path"], f["where"], f["was"], f["became"]): f["because"]
        for f in tomllib.loads(path.read_text()).get("equivalent", [])
    }


def chosen(settings: Settings) -> list[Fault]:
    """Lists the faults that the settings ask for."""
    if settings.known:
        return known_faults(HERE / "known.toml")
    modules = list(settings.modules)
    if settings.since:
        modules += changed_modules(settings.since)
    return sampled(sorted(_files(modules)), settings.count, settings.seed)


def _files(modules: list[str]) -> Iterator[str]:
    for module in modules:
        path = Path(module)
        if not path.exists():
            raise SystemExit(f"modules={module}: there is no such file or folder")
        yield from [str(f) for f in path.rglob("*.py")] if path.is_dir() else [module]


def table(verdicts: list[Verdict], reasons: dict[tuple[str, str, str, str], str]) -> Table:
    """Lays out the faults that survived, and why those that change nothing do."""
    survived = Table("where", "was", "became", "", title="unnoticed")
    for v in sorted(v for v in verdicts if not v.noticed):
        f = v.fault
        why = reasons.get((f.path, f.where, f.was, f.became), v.by)
        survived.add_row(f"{f.path}:{f.line} {f.where}", f.was, f.became, why)
    return survived


def main() -> None:
    """Runs the survey and prints its tables."""
    settings = tyro.cli(Settings)
    console = Console(width=None if sys.stdout.isatty() else 200)
    faults = chosen(settings)
    if not faults:
        console.print("no module to plant faults in")
        return
    reasons = equivalents(HERE / "equivalent.toml")
    survey = Survey(settings.out, settings.tests, settings.seconds)
    verdicts = []
    run = survey.run(faults, settings.workers, settings.most)
    for verdict in track(run, "faults", total=len(faults), console=console):
        verdicts.append(verdict)
    console.print(table(verdicts, reasons))
    wings = defaultdict(list)
    for verdict in verdicts:
        wings[Path(verdict.fault.path).parts[1]].append(verdict)
    shares = Table("wing", "tried", "change nothing", "noticed", "share")
    for wing, tried in sorted(wings.items()):
        noticed = sum(v.noticed for v in tried)
        same = sum(not v.noticed and (v.fault.path, *v.fault[2:5]) in reasons for v in tried)
        share = noticed / (len(tried) - same) if len(tried) > same else 1.0
        shares.add_row(wing, *map(str, (len(tried), same, noticed, f"{share:.0%}")))
    console.print(shares)


if __name__ == "__main__":
    main()
