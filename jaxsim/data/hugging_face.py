"""Folders of Hugging Face: configuration, and arrays in one file or several."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxsim.data.safetensors import read_safetensors
from jaxsim.files.text import read_text


def read_object(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file of JSON that holds an object, such as `config.json`.

    Args:
      file: The file.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is no JSON, or holds something else.
    """
    try:
        found = json.loads(read_text(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("must hold an object")
    return found


def read_arrays(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads all arrays of a folder.

    Args:
      folder: Folder with `model.safetensors`, or the parts that `model.safetensors.index.json`
        names.

    Raises:
      FileNotFoundError: A file is missing.
      ValueError: A file is damaged, or the index names a part that is no file of the folder.
    """
    place = Path(folder)
    index = place / "model.safetensors.index.json"
    if not index.exists():
        return read_safetensors(place / "model.safetensors")
    try:
        parts = read_object(index).get("weight_map")
        if not isinstance(parts, dict) or not all(_is_part(part) for part in parts.values()):
            raise ValueError("weight_map must name a file of this folder for each array")
    except ValueError as error:
        raise ValueError(f"{str(index)!r}: {error}") from None
    found: dict[str, np.ndarray] = {}
    for part in sorted(set(parts.values())):
        found |= read_safetensors(place / part)
    return found


def _is_part(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name
