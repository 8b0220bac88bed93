"""Tables as text and as HTML, and numbers with SI prefixes."""

from __future__ import annotations

import io
from typing import Any


def html(renderable: Any) -> str:
    """What rich shows, as HTML for a notebook."""
    from rich.console import Console

    console = Console(record=True, file=io.StringIO(), width=120)
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def si(number: float) -> str:
    """A count with three digits and k, M, G or T behind it."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.3g}"


def render(table: Any) -> str:
    """A rich table as plain text."""
    from rich.console import Console

    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
