"""Accelerators as TOML files: a table for each part, level of memory and link."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxsim.accelerators.accelerator import Accelerator
from jaxsim.accelerators.analog import AnalogArray
from jaxsim.accelerators.digital import DigitalArray
from jaxsim.accelerators.memory import Link, Memory
from jaxsim.accelerators.simd import SimdUnit
from jaxsim.files.atomic import write_text
from jaxsim.files.text import read_text
from jaxsim.files.toml import toml_key, toml_value

KINDS = {kind.__name__: kind for kind in (DigitalArray, AnalogArray, SimdUnit)}
"""Parts that a file can hold, by the name of their class."""

_TABLES = {"memory": Memory, "links": Link}


def load(path: str | Path) -> Accelerator:
    """Reads an accelerator from a TOML file.

    Tables `[parts.NAME]` have the fields of the class that their `kind` names, `[memory.NAME]`
    those of `Memory` and `[links.NAME]` those of `Link`; what is left out has its default. Order
    counts: of parts it is that of preference, of memory that from the parts outwards.

    Args:
      path: File to read, as `save` writes it.

    Raises:
      ValueError: Not TOML, a key that there is none of (with the nearest that there is), or a value
        out of range.

    Examples:
      >>> import tempfile, pathlib
      >>> import jaxsim as js
      >>> folder = tempfile.TemporaryDirectory()
      >>> path = pathlib.Path(folder.name, "chip.toml")
      >>> js.accelerators.save(js.accelerators.mixed(), path)
      >>> js.accelerators.load(path) == js.accelerators.mixed()
      True
      >>> folder.cleanup()
    """
    try:
        tables = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"path={str(path)!r}: not TOML: {error}") from None
    where = f"path={str(path)!r}"
    _check_keys(where, tables, ["parts", *_TABLES, "weights", "activations"])
    for name in ("parts", *_TABLES):
        entries = tables.get(name, {})
        if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
            raise ValueError(f"{where}: {name} must hold tables [{name}.NAME]")
    parts: dict[str, Any] = {}
    for name, table in tables.get("parts", {}).items():
        kind = table.pop("kind", None)
        if kind not in KINDS:
            known = ", ".join(map(repr, KINDS))
            raise ValueError(f"{where}, [parts.{name}]: kind={kind!r}: must be one of {known}")
        parts[name] = _made(f"{where}, [parts.{name}]", KINDS[kind], table)
    others = {
        field: {
            name: _made(f"{where}, [{field}.{name}]", kind, table)
            for name, table in tables.get(field, {}).items()
        }
        for field, kind in _TABLES.items()
    }
    try:
        return Accelerator(
            parts,
            **others,
            weights=tables.get("weights"),
            activations=tables.get("activations"),
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def save(accelerator: Accelerator, path: str | Path) -> None:
    """Writes an accelerator to a TOML file, every number of it.

    Args:
      accelerator: Accelerator of jaxsim's own parts.
      path: File to write; its folder must exist.

    Raises:
      ValueError: It has a part of one's own, whose functions a file cannot hold.

    Examples:
      >>> import jaxsim as js
      >>> js.accelerators.save(js.accelerators.isaac_like(), "chip.toml")  # doctest: +SKIP
    """
    lines: list[str] = []
    if accelerator.weights is not None:
        lines.append(f"weights = {toml_value(accelerator.weights)}")
    if accelerator.activations is not None:
        lines.append(f"activations = {accelerator.activations}")
    for name, part in accelerator.parts.items():
        if type(part) not in KINDS.values():
            raise ValueError(
                f"parts[{name!r}]: is of functions of one's own, which no file can hold"
            )
        lines += ["", f"[parts.{toml_key(name)}]", f"kind = {toml_value(type(part).__name__)}"]
        lines += _fields(part)
    for field in _TABLES:
        for name, entry in getattr(accelerator, field).items():
            lines += ["", f"[{field}.{toml_key(name)}]", *_fields(entry)]
    write_text(path, "\n".join(lines).lstrip("\n") + "\n")


def _made(where: str, kind: Any, table: Mapping[str, Any]) -> Any:
    """An object of a class from the fields in a table."""
    _check_keys(where, table, [f.name for f in dataclasses.fields(kind)])
    try:
        return kind(**table)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _check_keys(where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    known = list(known)
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, cutoff=0.0)
            raise ValueError(f"{where}: {key!r} is no key of it; the nearest is {near[0]!r}")


def _fields(value: Any) -> list[str]:
    """A line for each field that is not None."""
    pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    return [f"{name} = {toml_value(field)}" for name, field in pairs if field is not None]
