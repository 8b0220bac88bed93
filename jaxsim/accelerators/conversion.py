"""What one conversion takes, by the kind of the converter: comparisons, capacitors, residues."""

from __future__ import annotations

from typing import NamedTuple


class Steps(NamedTuple):
    """Counts of one conversion.

    Attributes:
      comparison: Decisions of a comparator.
      capacitor: Unit capacitors that are switched on for a decision.
      residue: Residues that an amplifier makes.

    Examples:
      >>> from jaxsim.accelerators.conversion import Steps
      >>> Steps(comparison=8, capacitor=255).residue
      0.0
    """

    comparison: float
    capacitor: float = 0.0
    residue: float = 0.0


def conversion_steps(
    kind: str, bits: float, *, signed: bool = False, split: int | None = None, columns: float = 1
) -> Steps:
    """Counts what a conversion takes, by the definition of the circuit.

    "flash" compares with all 2^b - 1 thresholds at once. "sar" compares b times, and switches the
    2^k units of bit k on for each; behind a pair one comparison finds the sign, and the magnitude
    has a bit less. "ramp" compares at each of 2^b - 1 steps, while one DAC counts up, which
    switches bit k on 2^(b-1-k) times, for all columns that share it. Stages of "pipeline" and
    "cyclic" have two comparators and one residue each, b - 1 of them, and two comparators at the
    end.

    Args:
      kind: "flash", "pipeline", "sar", "cyclic" or "ramp".
      bits: Resolution b.
      signed: Whether a "sar" or a "ramp" converts a sign and a magnitude.
      split: Bits of the lower of two arrays of capacitors; None for one array.
      columns: Number of columns that share a ramp.

    Examples:
      >>> from jaxsim.accelerators.conversion import conversion_steps
      >>> conversion_steps("sar", 8), conversion_steps("sar", 8, split=4).capacitor
      (Steps(comparison=8, capacitor=255, residue=0.0), 30)
    """
    if kind == "flash":
        return Steps(2**bits - 1)
    if kind in ("pipeline", "cyclic"):
        return Steps(2 * bits, residue=bits - 1)
    magnitude = bits - 1 if signed else bits
    if kind == "sar":
        if split is None:
            return Steps(bits, 2**magnitude - 1)
        return Steps(bits, 2**split - 1 + 2 ** (magnitude - split) - 1)
    climbs = 2 if signed else 1
    return Steps(2**bits - 1, climbs * magnitude * 2 ** (magnitude - 1) / columns)
