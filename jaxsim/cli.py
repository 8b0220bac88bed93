"""The `jaxsim` command."""

from __future__ import annotations

import sys

import tyro

from jaxsim import demo


def main(args: list[str] | None = None) -> None:
    """Runs a subcommand; a bad value ends with its message and exit code 2."""
    chosen = tyro.extras.subcommand_cli_from_dict(
        {"demo": demo.Demo}, prog="jaxsim", description=__doc__, args=args
    )
    try:
        demo.run(chosen)
    except ValueError as error:
        print(f"jaxsim: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
