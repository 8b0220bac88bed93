"""Prints the part of the changelog of one version, and fails where versions disagree.

`python .github/release_notes.py 0.2.0`, from the repository's root.
"""

import re
import sys
from pathlib import Path


def notes(version: str, root: Path = Path()) -> str:
    """Reads the section of a version.

    Args:
      version: Version as the changelog heads it, such as "0.2.0".
      root: Folder of the repository.

    Raises:
      ValueError: The package or the citation has another version, or the changelog no such section.
    """
    for name, pattern in (
        ("jaxsim/_version.py", r'^__version__ = "(.+)"$'),
        ("CITATION.cff", r"^version: (.+)$"),
    ):
        found = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        if found is None or found[1] != version:
            raise ValueError(f"{name}: has {found and found[1]!r}, not {version!r}")
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    for section in sections[1:]:
        head, _, body = section.partition("\n")
        if head.split()[0] == version:
            return body.strip() + "\n"
    raise ValueError(f"CHANGELOG.md: has no section {version!r}")


if __name__ == "__main__":
    print(notes(sys.argv[1]), end="")
