"""What a Flax model becomes on tomorrow's hardware.

Examples:
  jaxsim demo
  jaxsim nac train skill --out run
  jaxsim nac evaluate run --plot curves.png
  jaxsim influence edges.txt --k 20 --plot spread.png
"""

from __future__ import annotations

import sys

import tyro

from jaxsim import auto_curriculum, demo
from jaxsim.cascades import command


def main(args: list[str] | None = None) -> None:
    """Runs a subcommand; what it cannot do ends with a message and exit code 2."""
    chosen = tyro.extras.subcommand_cli_from_dict(
        {
            "demo": demo.Demo,
            "influence": command.Influence,
            "nac": auto_curriculum.Nac,
        },
        prog="jaxsim",
        description=__doc__,
        args=args,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )
    try:
        if isinstance(chosen, demo.Demo):
            demo.run(chosen)
        elif isinstance(chosen, auto_curriculum.Nac):
            auto_curriculum.run(chosen)
        else:
            command.influence(chosen)
    except (ValueError, OSError, MemoryError) as error:
        print(f"jaxsim: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
