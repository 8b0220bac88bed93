"""Options of a command from a TOML file, as defaults that the command line goes before."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from jaxsim.cli.keys import check_keys
from jaxsim.files.text import read_text


def config_of(words: Sequence[str]) -> str | None:
    """Finds the file that a command line names with `--config`, the last one where it names more.

    Args:
      words: Words of the command line.
    """
    found = None
    for i, word in enumerate(words):
        if word.startswith("--config="):
            found = word.partition("=")[2]
        elif word == "--config" and i + 1 < len(words):
            found = words[i + 1]
    return found


def defaults(command: type, path: str) -> Any:
    """Makes the options of a command from a file; what it does not say is as without a file.

    Args:
      command: Dataclass of options.
      path: TOML file with a key for each option, with `_` or `-` between words.

    Returns:
      An instance, in which what the command must be told may still be missing.

    Raises:
      ValueError: Not TOML, a key that is no option of the command, or a value of another kind.
    """
    try:
        table = tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"config={path!r}: not TOML: {error}") from None
    said = {name.replace("-", "_"): value for name, value in table.items()}
    fields = {field.name: field for field in dataclasses.fields(command) if field.name != "config"}
    check_keys(f"config={path!r}", said, set(fields))
    kinds = typing.get_type_hints(command)
    missing = {
        name: tyro.MISSING for name, field in fields.items() if field.default is dataclasses.MISSING
    }
    return command(
        **missing | {k: _value(f"config={path!r}: {k}", kinds[k], v) for k, v in said.items()}
    )


def _value(what: str, kind: Any, value: Any) -> Any:
    """A value of TOML as the option that the same words would be."""
    shown = "true or false" if kind is bool else kind.__name__ if isinstance(kind, type) else kind
    if isinstance(value, Mapping):
        value = json.dumps(value)
    if kind is str and isinstance(value, str):
        return value
    if (kind is bool) != isinstance(value, bool):
        raise ValueError(f"{what}={value!r}: must be {shown}")
    words = [str(v) for v in value] if isinstance(value, list) else [str(value)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(kind, args=words)
    except SystemExit:
        raise ValueError(f"{what}={value!r}: must be {shown}") from None
