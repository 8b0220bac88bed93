"""Tables as text and as HTML, and numbers with SI prefixes."""

from __future__ import annotations

import io
from typing import Any


def html(renderable: Any) -> str:
    """Renders a table, or whatever rich can print, as HTML for a notebook.

    Args:
      renderable: Object that rich can print.
    """
    from rich.console import Console

    console = Console(record=True, file=io.StringIO(), width=120)
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


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

    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
