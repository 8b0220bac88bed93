"""`python -m tests.site site`: does the reference of the built pages have every public name?

The strict build has checked links; this reads what the search reads, and `tests.browser` opens the
pages.
"""

from __future__ import annotations

import importlib
import inspect
import json
import operator
import re
import sys
from pathlib import Path
from typing import Any

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
    """Lists public names that the search index of a built site lacks.

    A function or class is to head an entry of the reference; anything else, to be a word somewhere.

    Args:
      site: Folder that mkdocs has built.
    """
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    text = " ".join(f"{page['title']} {page['text']}" for page in index)
    words = set(re.findall(r"\w+", text))
    entries = (p for p in index if re.match(r"api/\w+/#jaxsim\.", p["location"]))
    heads = {re.split(r"\W", entry["title"])[0] for entry in entries}  # "Network NamedTuple"
    found = list[str]()
    for name, word in (public_names() | names_of_faces()).items():
        value: Any = operator.attrgetter(name)(js)
        ours = str(getattr(value, "__module__", "")).startswith("jaxsim")
        of_code = ours and (inspect.isclass(value) or inspect.isfunction(value))
        if word not in (heads if of_code else words):
            found.append(name)
    return found


def main(site: str) -> int:
    """Prints names that the reference lacks; 1 where there are any.

    Args:
      site: Folder that mkdocs has built.
    """
    found = lacking(Path(site))
    for name in found:
        print(f"the reference lacks {name}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
