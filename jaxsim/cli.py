"""What a Flax model becomes on tomorrow's hardware.

Examples:
  jaxsim demo
  jaxsim trace jaxsim.models.resnet:ResNet --input 1 28 28 1
  jaxsim transform chip.toml --out chip
  jaxsim bench chip.toml --batch 256
  jaxsim rpm --configuration grid_2 --out train.npz --picture some.png
  jaxsim nac train skill --out run
  jaxsim nac evaluate run --plot curves.png
  jaxsim influence edges.txt --k 20 --plot spread.png
"""

from __future__ import annotations

import sys

import tyro

from jaxsim import auto_curriculum, demo, recipe
from jaxsim.cascades.command import Influence, influence
from jaxsim.data.rpm.command import Rpm, rpm


def main(args: list[str] | None = None) -> None:
    """Runs a subcommand; what it cannot do ends with a message and exit code 2."""
    chosen = tyro.extras.subcommand_cli_from_dict(
        {
            "demo": demo.Demo,
            "trace": recipe.Trace,
            "transform": recipe.Transform,
            "bench": recipe.Bench,
            "nac": auto_curriculum.Nac,
            "influence": Influence,
            "rpm": Rpm,
        },
        prog="jaxsim",
        description=__doc__,
        args=args,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )
    try:
        match chosen:
            case demo.Demo():
                demo.run(chosen)
            case recipe.Trace():
                recipe.show(chosen)
            case recipe.Transform():
                recipe.transform(chosen)
            case recipe.Bench():
                recipe.bench(chosen)
            case auto_curriculum.Nac():
                auto_curriculum.run(chosen)
            case Influence():
                influence(chosen)
            case Rpm():
                rpm(chosen)
    except (ValueError, OSError, MemoryError) as error:
        print(f"jaxsim: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
