"""What a device was made of others by, and in which order that makes sense."""

from __future__ import annotations

from typing import Any

from jaxsim.cores.cells.device import Device


def layers(device: Device) -> list[str]:
    """Names of the functions that made a device of another, the outermost first."""
    program: Any = device.program
    inner = [a for a in getattr(program, "args", ()) if isinstance(a, Device)]
    name = getattr(getattr(program, "func", program), "__name__", "")
    return [name.lstrip("_"), *layers(inner[0])] if inner else []


def require_layers(name: str, device: Any, *, refused: tuple[str, ...]) -> None:
    """Refuses a device that other functions made of another, in an order without a meaning.

    Args:
      name: of the function that is given it.
      device: what it was given.
      refused: names of functions that go around it, never inside.

    Raises:
      ValueError: no device, or one of these made it.
    """
    if not isinstance(device, Device):
        raise ValueError(f"{name}: device={device!r}: must be a device from js.cells")
    for inner in layers(device):
        if inner in refused:
            raise ValueError(f"{name}: goes inside {inner}, {inner}({name}(device, …), …)")
