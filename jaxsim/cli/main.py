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
import dataclasses
import io
import os
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, Union

import jax
import tyro

import jaxsim
from jaxsim.cli import demo, nac
from jaxsim.cli.bench import Bench, bench
from jaxsim.cli.config import config_of, defaults
from jaxsim.cli.estimate import Estimate, estimate
from jaxsim.cli.explore import Explore, explore
from jaxsim.cli.influence import Influence, influence
from jaxsim.cli.language import Language, language
from jaxsim.cli.rpm import Rpm, rpm
from jaxsim.cli.trace import Trace, show
from jaxsim.cli.transform import Transform, transform
from jaxsim.console.ascii import in_ascii


class Command(NamedTuple):
    """A command.

    Attributes:
      options: Dataclass of its options.
      run: Function that is given them.
    """

    options: type
    run: Callable[[Any], Any]


COMMANDS: dict[str, Command] = {
    "demo": Command(demo.Demo, demo.main),
    "trace": Command(Trace, show),
    "transform": Command(Transform, transform),
    "bench": Command(Bench, bench),
    "estimate": Command(Estimate, estimate),
    "explore": Command(Explore, explore),
    "language": Command(Language, language),
    "nac train": Command(nac.Train, nac.train),
    "nac evaluate": Command(nac.Evaluate, nac.evaluate),
    "influence": Command(Influence, influence),
    "rpm": Command(Rpm, rpm),
}
"""Commands by what is typed; the first word of two is that of a group."""

GROUPS = {"nac": "Neural auto-curricula: learn how a population should be mixed."}


def main(args: list[str] | None = None) -> None:
    """Runs a subcommand; what it cannot do ends with a message and exit code 2.

    A reader that closes the pipe ends it without a word, with exit code 1; an interrupt with 130.

    Args:
      args: Arguments of the command line; None for the process's.
    """
    codecs.register_error("jaxsim-ascii", in_ascii)
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
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (ValueError, MemoryError, OverflowError) as error:
        _end(str(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _end(f"out of memory: {error}")


def _end(message: str) -> None:
    print(f"jaxsim: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _run(words: list[str]) -> None:
    if words[-1:] == ["--version"] and _names_a_command(words[:-1]):
        print(f"jaxsim {jaxsim.__version__}, jax {jax.__version__}")
        return
    said, config = {}, config_of(words)
    named = next((n for n in COMMANDS if n.split() == words[: len(n.split())]), None)
    if named is not None and config is not None:
        said[named] = defaults(COMMANDS[named].options, config)
    options: Any = tyro.cli(
        _parser(said),
        prog="jaxsim",
        description=__doc__,
        args=words,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )
    options = getattr(options, "do", options)
    next(c for c in COMMANDS.values() if type(options) is c.options).run(options)


def _names_a_command(words: list[str]) -> bool:
    """Whether words are none, a command, or a group of them."""
    return " ".join(words) in ("", *COMMANDS, *GROUPS)


def _parser(said: Mapping[str, Any]) -> Any:
    """The type that tyro parses: one of the commands, or a group with one of its own in `do`.

    Args:
      said: Options of commands that stand before what the command line says.
    """
    alone, grouped = dict[str, Any](), dict[str, dict[str, Any]]()
    for name, command in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        told = {"default": said[name]} if name in said else {}
        made = Annotated[command.options, tyro.conf.subcommand(last, **told)]
        if group:
            grouped.setdefault(group, {})[last] = made
            alone[group] = None
        else:
            alone[name] = made
    for group, inside in grouped.items():
        options = dataclasses.make_dataclass(group, [("do", _one_of(inside))], frozen=True)
        options.__doc__ = GROUPS[group]
        alone[group] = Annotated[options, tyro.conf.subcommand(group)]
    return _one_of(alone)


def _one_of(types: Mapping[str, Any]) -> Any:
    # Not by `|`: tyro 0.9 then loses, of three and more, how their options are to be named.
    return Union.__getitem__(tuple(types.values()))  # pyright: ignore
