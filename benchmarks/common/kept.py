"""What an interrupted run has measured, by what was asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxsim.files import atomic


def kept(folder: Path, asked: object, measure: Callable[[], Any]) -> Any:
    """Takes what an earlier run has measured, or measures it now.

    Args:
      folder: Where it is kept; `~` is the home folder.
      asked: Whatever decides the result, with a `repr` that is the same in every process.
      measure: Makes what JSON can hold.
    """
    path = folder.expanduser() / hashlib.sha256(repr(asked).encode()).hexdigest()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(path, measure())
    return json.loads(path.read_text())
