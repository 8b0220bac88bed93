"""Run `jaxsim influence` as `python -m jaxsim.cascades`."""

import sys

import tyro

from jaxsim.cascades.command import Influence, influence

if __name__ == "__main__":
    try:
        influence(tyro.cli(Influence))
    except (ValueError, OSError, MemoryError) as e:
        sys.exit(f"error: {e}")
