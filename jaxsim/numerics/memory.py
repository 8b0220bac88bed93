"""A bound on what one call may allocate, checked before it is."""

LIMIT = 4 << 30  # bytes one working array may take


def check(what: str, need: int, hint: str) -> None:
    """Refuse an array that would not fit.

    Args:
      what: the array, with the sizes it comes from.
      need: bytes.
      hint: what to lower.

    Raises:
      MemoryError: more than `LIMIT`.
    """
    if need > LIMIT:
        raise MemoryError(
            f"{what} needs {need / 2**30:.1f} GiB; allowed: {LIMIT / 2**30:.1f} GiB "
            f"(jaxsim.numerics.memory.LIMIT); {hint}"
        )
