"""Tables as text and as HTML, and numbers with SI prefixes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, TypeVar

_PRE = '<pre style="white-space:pre;overflow-x:auto;line-height:normal">{code}</pre>'

C = TypeVar("C", bound=type)


def shown_as_table(cls: C) -> C:
    """Makes values of a class with `__rich__` print as its table, and a notebook show it as HTML.

    A named tuple without a `repr` of its own has a short one, too: of what is long its size alone.

    Args:
      cls: Class whose `__rich__` returns something that rich can print.

    Examples:
      >>> from typing import NamedTuple
      >>> from jaxsim.console.table import shown_as_table
      >>> @shown_as_table
      ... class Prices(NamedTuple):
      ...     rows: tuple[float, ...]
      ...     unit: str
      ...     def __rich__(self):
      ...         return f"{sum(self.rows)} {self.unit}"
      >>> Prices((1.5, 2.0), "pJ")
      Prices(rows: 2, unit='pJ')
      >>> print(Prices((1.5, 2.0), "pJ"))
      3.5 pJ
    """
    cls.__str__ = lambda self: render(self.__rich__())  # pyright: ignore
    cls._repr_html_ = lambda self: html(self.__rich__())  # pyright: ignore
    if cls.__repr__.__module__ == "collections":  # of a named tuple, and not its own
        cls.__repr__ = _short  # pyright: ignore
    return cls


def _short(value: Any) -> str:
    """A tuple with names in a line."""
    parts = list[str]()
    for name in value._fields:
        part = getattr(value, name)
        if hasattr(part, "dtype") and hasattr(part, "shape") and part.shape:
            parts.append(f"{name}: {part.dtype}{list(part.shape)}")
        elif isinstance(part, tuple | list | Mapping):
            parts.append(f"{name}: {len(part)}")
        else:
            shown = repr(part)
            parts.append(f"{name}={shown if len(shown) <= 40 else type(part).__name__}")
    return f"{type(value).__name__}({', '.join(parts)})"


def html(renderable: Any) -> str:
    """Renders a table, or whatever rich can print, as HTML for a notebook.

    Args:
      renderable: Object that rich can print.
    """
    from rich.console import Console

    # Not Jupyter's: that would also show the table where it is printed.
    console = Console(record=True, file=io.StringIO(), width=120, force_jupyter=False)
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format=_PRE)


def si(number: float) -> str:
    """Formats a count with three digits and k, M, G or T behind it.

    Args:
      number: The count.

    Examples:
      >>> from jaxsim.console.table import si
      >>> si(1234567)
      '1.23 M'
    """
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.3g}"


def render(table: Any) -> str:
    """Renders a rich table as plain text.

    Args:
      table: A rich table.
    """
    from rich.console import Console

    console = Console(width=160, color_system=None, force_jupyter=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
