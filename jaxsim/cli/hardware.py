"""Accelerators that a command line names: a preset, or a file."""

from __future__ import annotations

from pathlib import Path

import jaxsim as js

PRESETS = {
    "systolic_45nm": js.accelerators.systolic_45nm,
    "ax_bxp": js.accelerators.ax_bxp,
    "isaac_like": js.accelerators.isaac_like,
    "mixed": js.accelerators.mixed,
}


def accelerator_of(name: str) -> js.Accelerator:
    """Makes the accelerator that a name stands for.

    Args:
      name: Name of a preset, or path of a TOML file.

    Raises:
      ValueError: Neither, or a file that does not hold an accelerator.
    """
    if name in PRESETS:
        return PRESETS[name]()
    if not Path(name).exists():
        raise ValueError(
            f"accelerator={name!r}: is no file, and none of {', '.join(map(repr, PRESETS))}"
        )
    return js.accelerators.load(name)
