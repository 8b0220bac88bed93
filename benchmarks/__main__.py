"""`python -m benchmarks NAME [options]`: runs one benchmark, `all` or, in little time, `short`.

`tables` writes the page of what was recorded, `figures` the figures that need no long run.
"""

from __future__ import annotations

import importlib
import sys

from benchmarks.record import write_tables

NAMES = (
    "overhead",
    "chips",
    "noise_aware",
    "influence",
    "crossbar",
    "analog_accuracy",
    "blocked",
    "blocked_accuracy",
    "integer",
    "rounding",
    "shrink",
    "pipeline",
    "efficientnet",
    "quantization",
    "qdcnn",
    "coconet",
    "sparsity",
    "nac",
    "interpreters",
    "pyramid",
    "exits",
    "showcase",
)


def main(args: list[str]) -> int:
    """Runs what was asked for and writes the tables of what was measured."""
    if not args or args[0] not in (*NAMES, "all", "short", "tables", "figures"):
        print(f"{__doc__}\nbenchmarks: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    name, *rest = args
    if name in ("short", "figures"):
        return importlib.import_module(f"benchmarks.{name}").main()
    for chosen in NAMES if name == "all" else () if name == "tables" else (name,):
        importlib.import_module(f"benchmarks.{chosen}").main(rest)
    print(f"wrote {write_tables()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
