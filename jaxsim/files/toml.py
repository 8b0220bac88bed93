"""TOML, written: what Python's `tomllib` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def toml_value(value: Any) -> str:
    """Writes a value on one line: tables inline, sequences as arrays.

    Args:
      value: Text, a number, a truth value, or a sequence or mapping of such.

    Examples:
      >>> from jaxsim.files.toml import toml_value
      >>> toml_value({"a b": [1, 2.5, True], "c": "d"})
      '{"a b" = [1, 2.5, true], c = "d"}'
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items())
        return f"{{{inside}}}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return repr(value)


def toml_key(name: str) -> str:
    """Writes a key, in quotes where it needs them.

    Args:
      name: The key.
    """
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else toml_value(name)
