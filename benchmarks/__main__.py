"""`python -m benchmarks NAME [options]`: runs one benchmark, `all` or, in little time, `short`.

`tables` writes the pages of what was recorded and of what papers claim, `figures` the figures that
need no long run.
"""

from __future__ import annotations

import importlib
import sys

from benchmarks.common import topics
from benchmarks.common.files import unless_missing
from benchmarks.common.papers import write_page
from benchmarks.common.record import SHORT, write_tables


def main(args: list[str]) -> int:
    """Runs what was asked for and writes the tables of what was measured."""
    names = topics.names()
    if not args or args[0] not in (*names, "all", "short", "tables", "figures"):
        print(f"{__doc__}\nbenchmarks: {', '.join(names)}", file=sys.stderr)
        return 2
    name, *rest = args
    if name in ("short", "figures"):
        return importlib.import_module(f"benchmarks.common.{name}").main()
    for chosen in names if name == "all" else () if name == "tables" else (name,):
        with unless_missing(chosen):
            topics.load(chosen).main(rest)
    print(f"wrote {write_tables()}")
    if not SHORT:
        print(f"wrote {write_page()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
