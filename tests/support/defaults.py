"""What arguments are when they are not given."""

import inspect


def defaults(made):
    """Defaults of arguments or fields by name, but for None and functions."""
    found = getattr(made, "_field_defaults", None)
    if found is None:
        found = {n: p.default for n, p in inspect.signature(made).parameters.items()}
    return {n: d for n, d in found.items() if isinstance(d, int | float | str | tuple)}
