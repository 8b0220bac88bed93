"""What a long benchmark has measured so far."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Log:
    """Scores by name, kept in a file after each."""

    def __init__(self, path: Path):
        self.path = path.expanduser()
        self.scores: dict[str, Any] = (
            json.loads(self.path.read_text()) if self.path.exists() else {}
        )

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """A score, made if it is not known."""
        if name not in self.scores:
            self.scores[name] = make()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial_path = self.path.with_suffix(".part")
            partial_path.write_text(json.dumps(self.scores, indent=1))
            partial_path.replace(self.path)
        return self.scores[name]
