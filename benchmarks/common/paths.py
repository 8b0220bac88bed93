"""Folders of the repository and of the data that stands beside it."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("JAXSIM_DATA", ROOT.parent / "shared" / "data"))
"""Data sets that are not part of the repository; JAXSIM_DATA names another folder."""
