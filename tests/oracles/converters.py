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


def sar(u, bits, *, signed, errors=None, offset=0.0, amplifier=math.inf):
    """Successive approximation of a value in steps: its code, from zero or the lowest."""
    u = u + offset
    if signed:
        magnitude = sar(abs(u), bits - 1, signed=False, errors=errors, amplifier=amplifier)
        return -magnitude if u < 0 else magnitude
    level = levels(bits, errors, amplifier)
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
