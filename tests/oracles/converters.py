"""Converters by their circuits, one value at a time, in volts and double precision.

The unit of a voltage is one step of the ideal converter, and zero its lowest code, or the middle of
a signed one; none of this knows how the package arranges its arithmetic.
"""

import math

import numpy as np


def levels(bits, errors=None, amplifier=math.inf):
    """Level of each code of a DAC of capacitors, in steps, behind an amplifier of finite gain.

    `errors` are those of its capacitors of 1, 2, 4, … units and of the one of feedback of 2^bits
    units, each in deviations that a capacitor of one unit has.
    """
    errors = np.zeros(bits + 1) if errors is None else np.asarray(errors, float)
    units = [2.0**k + math.sqrt(2.0**k) * errors[k] for k in range(bits)]
    feedback = 2.0**bits + math.sqrt(2.0**bits) * errors[-1]
    found = []
    for code in range(2**bits):
        charge = sum(units[k] for k in range(bits) if code >> k & 1)
        share = charge / feedback  # of the reference, which is 2^bits steps
        found.append(2**bits * share / (1 + (1 + share) / amplifier))
    return np.array(found)


def split_levels(bits, low, errors, parasitic=0.0, amplifier=math.inf):
    """Level of each code of two arrays that a capacitor bridges, by the charges on both nodes.

    Of each node: what its capacitors hold against their drivers, ground and the other node is
    nothing in all, as it was before they were switched. `errors` are those of the capacitors of
    the bits, of the unit at ground and of the bridge.
    """
    units = [2.0 ** (k if k < low else k - low) for k in range(bits)]
    held = [n + math.sqrt(n) * e for n, e in zip(units, errors[:bits], strict=True)]
    ideal = 2.0**low / (2.0**low - 1)
    bridge = ideal + math.sqrt(ideal) * errors[-1]
    at_ground = 1 + errors[-2] + parasitic
    lower, upper = sum(held[:low]) + at_ground, sum(held[low:])
    charges = np.array([[lower + bridge, -bridge], [-bridge, upper + bridge]])
    found = []
    for code in range(2**bits):
        driven = [held[k] if code >> k & 1 else 0.0 for k in range(bits)]
        _, compared = np.linalg.solve(charges, [sum(driven[:low]), sum(driven[low:])])
        found.append(2**bits * compared / (1 + 1 / amplifier))
    return np.array(found)


def sar(u, bits, *, signed, errors=None, offset=0.0, amplifier=math.inf, split=None):
    """Successive approximation of a value in steps: its code, from zero or the lowest.

    `split` is the number of bits of the lower of two arrays and the parasitic at its node.
    """
    u = u + offset
    settings = {"errors": errors, "amplifier": amplifier, "split": split}
    if signed:
        magnitude = sar(abs(u), bits - 1, signed=False, **settings)
        return -magnitude if u < 0 else magnitude
    level = levels(bits, errors, amplifier)
    if split is not None:
        level = split_levels(bits, split[0], errors, split[1], amplifier)
    code = 0
    for bit in reversed(range(bits)):
        if u > level[code + 2**bit] - 0.5:
            code += 2**bit
    return code


def ramp(u, bits, *, signed, errors=None, offset=0.0, amplifier=math.inf):
    """The last code before the ramp exceeds a value in steps."""
    u = u + offset
    count = bits - 1 if signed else bits
    level = levels(count, errors, amplifier)
    climb = [*(-level[:0:-1]), *level] if signed else list(level)
    code = 0
    while code + 1 < len(climb) and u > climb[code + 1] - 0.5:
        code += 1
    return code - (2**count - 1 if signed else 0)


def staged(u, bits, *, signed, capacitors=None, offsets=None, amplifier=math.inf):
    """Stages of one and a half bits: residues in volts, digits added with their overlap.

    `capacitors` [stages, 2] and `offsets` [stages + 1, 2] are relative errors of a stage's two
    capacitors and offsets of its two comparators in volts; the last two are those of the end.
    """
    reference = 2.0 ** (bits - 1)
    top = 2**bits - 1
    ends = (-(reference - 1), reference - 1) if signed else (0, top)
    v = min(max(u, ends[0]), ends[1]) - (0.0 if signed else reference)
    total = 0
    for stage in range(bits - 1):
        c1, c2 = (1.0, 1.0) if capacitors is None else 1 + np.asarray(capacitors[stage])
        upper, lower = (0.0, 0.0) if offsets is None else offsets[stage]
        digit = int(v > reference / 4 + upper) - int(v < -reference / 4 + lower)
        feedback = c1 / (c1 + c2)
        v = ((c1 + c2) * v - digit * reference * c2) / c1 / (1 + 1 / (amplifier * feedback))
        total = 2 * total + digit
    upper, lower = (0.0, 0.0) if offsets is None else offsets[-1]
    last = int(v > reference / 2 + upper) - int(v < -reference / 2 + lower)
    code = total + last if signed else total + last + int(reference)
    return int(min(max(code, ends[0]), ends[1]))
