"""What stands for characters that an output of ASCII alone cannot show."""

from __future__ import annotations

SUBSTITUTES = str.maketrans(
    {
        "±": "+-",
        "×": "x",
        "·": "*",
        "–": "-",
        "—": "-",
        "−": "-",
        "→": "->",
        "←": "<-",
        "θ": "theta",
        "π": "pi",
        "Σ": "sum ",
        "†": "^H",
        "●": "@",
        "≤": "<=",
        "≥": ">=",
        "≠": "!=",
        "∞": "inf",
        "…": "...",
        "µ": "u",
        "μ": "u",
        "σ": "sigma",
        "Δ": "delta ",
        "²": "2",
        "³": "3",
        "█": "#",
        "•": "*",
        "’": "'",
        "“": '"',
        "”": '"',
        **dict.fromkeys("─━═╌╴╶╸╺", "-"),
        **dict.fromkeys("│┃║", "|"),
        **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼┏┓┗┛┡┩╇╈┳┻╋╞╡╪", "+"),
    }
)
"""ASCII for characters that tables and messages use."""


def in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handles an error of encoding: what a character stands for, or a question mark.

    Args:
      error: The error; `codecs.register_error` takes functions of it.

    Raises:
      UnicodeError: It is one of decoding.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(SUBSTITUTES)
    return text.encode("ascii", "replace").decode(), error.end
