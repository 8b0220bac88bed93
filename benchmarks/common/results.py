"""What was recorded, cell by cell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common.record import RESULTS


class Number(NamedTuple):
    """A number of a cell, with its error where one is given.

    Attributes:
      value: What stands before "±".
      error: What stands behind it, or 0.
    """

    value: float
    error: float = 0.0


class Results:
    """The records of a folder.

    Attributes:
      folder: Where they lie.
    """

    def __init__(self, folder: Path = RESULTS):
        self.folder = folder

    def rows(self, name: str, title: str = "") -> list[dict[str, Any]]:
        """The rows of a table, by its columns.

        Args:
          name: Of the record.
          title: How the table's title begins.

        Raises:
          KeyError: There is no such table.
          FileNotFoundError: There is no such record.
        """
        for table in json.loads((self.folder / f"{name}.json").read_text())["tables"]:
            if table["title"].startswith(title):
                return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        raise KeyError(f"{name}: no table {title!r}")

    def cell(self, name: str, title: str, column: str, **keys: Any) -> str:
        """One cell.

        Args:
          name: Of the record.
          title: How the table's title begins.
          column: Of the cell.
          **keys: Values by column that tell the row; underscores stand for spaces.

        Raises:
          KeyError: There is no such table, row or column.
        """
        return next(self.cells(name, title, column, **keys))

    def cells(self, name: str, title: str, column: str, **keys: Any) -> Iterator[str]:
        """All cells of a column whose rows have given values; see `cell`."""
        asked = {key.replace("_", " "): value for key, value in keys.items()}
        found = [
            row for row in self.rows(name, title) if all(row[k] == v for k, v in asked.items())
        ]
        if not found:
            raise KeyError(f"{name}, {title}: no row {asked}")
        for row in found:
            yield str(row[column])


def number(cell: str) -> Number:
    """The number of a cell such as "79.4", "+0.78 ± 0.43" or "67%".

    Args:
      cell: The cell.

    Raises:
      ValueError: It holds none.
    """
    found = re.findall(r"[-+−]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", cell)
    if not found:
        raise ValueError(f"cell={cell!r}: expected a number")
    values = [float(f.replace(",", "").replace("−", "-")) for f in found]
    return Number(values[0], values[1] if "±" in cell else 0.0)
