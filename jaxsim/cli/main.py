"""What a Flax model becomes on tomorrow's hardware.

Examples:
  jaxsim demo
  jaxsim trace jaxsim.models.resnet:ResNet --input 1 28 28 1
  jaxsim transform chip.toml --out chip
  jaxsim bench chip.toml --batch 256
  jaxsim estimate chip.toml --accelerator mixed
  jaxsim explore chip.toml --accelerator mixed --out found
  jaxsim language model.gguf --text wiki.txt --recipe four_bits.toml --prompt "Once upon"
  jaxsim rpm --configuration grid_2 --out train.npz --picture some.png
  jaxsim nac train skill --out run
  jaxsim nac evaluate run --plot curves.png
  jaxsim influence edges.txt --k 20 --plot spread.png
  jaxsim --version
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Generator
from pathlib import Path

import jax
import tyro

import jaxsim
from jaxsim.cli import demo, nac
from jaxsim.cli.bench import Bench, bench
from jaxsim.cli.estimate import Estimate, estimate
from jaxsim.cli.explore import Explore, explore
from jaxsim.cli.influence import Influence, influence
from jaxsim.cli.language import Language, language
from jaxsim.cli.rpm import Rpm, rpm
from jaxsim.cli.trace import Trace, show
from jaxsim.cli.transform import Transform, transform

_ASCII = str.maketrans({"±": "+-", "×": "x", "–": "-", "−": "-", "…": "...", "µ": "u", "→": "->"})


def main(args: list[str] | None = None) -> None:
    """Runs a subcommand; what it cannot do ends with a message and exit code 2.

    A reader that closes the pipe ends it without a word, with exit code 1.

    Args:
      args: Arguments of the command line; None for the process's.
    """
    codecs.register_error("jaxsim-ascii", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="jaxsim-ascii")
    try:
        _run(sys.argv[1:] if args is None else args)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer has nowhere to go, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, MemoryError, OverflowError) as error:
        _end(str(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _end(f"out of memory: {error}")


@contextlib.contextmanager
def _compilation_cache(folder: Path) -> Generator[None]:
    """Keeps compiled programs in a folder, and what was set before when it ends."""
    before: str | None = jax.config.jax_compilation_cache_dir  # pyright: ignore
    jax.config.update("jax_compilation_cache_dir", str(folder))
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def _end(message: str) -> None:
    print(f"jaxsim: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Escape that stands for a character which an output cannot show."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_ASCII)
    return text.encode("ascii", "replace").decode(), error.end


def _run(args: list[str]) -> None:
    if args == ["--version"]:
        print(f"jaxsim {jaxsim.__version__}, jax {jax.__version__}")
        return
    chosen = tyro.extras.subcommand_cli_from_dict(
        {
            "demo": demo.Demo,
            "trace": Trace,
            "transform": Transform,
            "bench": Bench,
            "estimate": Estimate,
            "explore": Explore,
            "language": Language,
            "nac": nac.Nac,
            "influence": Influence,
            "rpm": Rpm,
        },
        prog="jaxsim",
        description=__doc__,
        args=args,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )
    match chosen:
        case demo.Demo():
            with _compilation_cache(chosen.cache.expanduser() / "compiled"):
                demo.run(chosen)
        case Trace():
            show(chosen)
        case Transform():
            transform(chosen)
        case Bench():
            bench(chosen)
        case Estimate():
            estimate(chosen)
        case Explore():
            explore(chosen)
        case Language():
            language(chosen)
        case nac.Nac():
            nac.run(chosen)
        case Influence():
            influence(chosen)
        case Rpm():
            rpm(chosen)
