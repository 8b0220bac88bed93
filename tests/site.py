"""`python -m tests.site site`: does the search of the built pages find every public name?

The strict build has checked links; this reads what the search reads. A page opened in a browser is
looked at by people, at 1280 and 390 pixels.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import jaxsim as js

FACES = (
    *("adaptive", "cascades", "collaborative", "data", "evaluate", "games", "pipeline"),
    *("quantum", "solvers", "sparsity", "train"),
)
"""Sub-packages whose names are public, too."""


def public_names() -> dict[str, str]:
    """Public names, and those of public modules, by what a search for them would be."""
    names = {name: name for name in js.__all__}
    for name in js.__all__:
        value = getattr(js, name)
        if inspect.ismodule(value):
            names |= {f"{name}.{member}": member for member in getattr(value, "__all__", ())}
    return names


def names_of_faces() -> dict[str, str]:
    """Names of `FACES`, by what a search for them would be."""
    modules = {face: importlib.import_module(f"jaxsim.{face}") for face in FACES}
    return {f"{face}.{n}": n for face, m in modules.items() for n in getattr(m, "__all__", ())}


def lacking(site: Path) -> list[str]:
    """Lists public names that are no word of the search index of a built site.

    Args:
      site: Folder that mkdocs has built.
    """
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    text = " ".join(f"{page['title']} {page['text']}" for page in index["docs"])
    words = set(re.findall(r"\w+", text))
    return [name for name, word in (public_names() | names_of_faces()).items() if word not in words]


def main(site: str) -> int:
    """Prints names that the search does not find; 1 where there are any.

    Args:
      site: Folder that mkdocs has built.
    """
    found = lacking(Path(site))
    for name in found:
        print(f"search does not find {name}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
