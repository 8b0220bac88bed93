"""Digits, cells and converters by their definition, in numpy."""

import numpy as np


def digits(codes, bits, width):
    """Signed digits of `bits` bits, least significant first, of codes of `width` magnitude bits."""
    count = -(-width // bits)
    magnitude = np.abs(codes)
    return np.stack(
        [np.sign(codes) * ((magnitude >> (bits * i)) & (2**bits - 1)) for i in range(count)]
    )


def adc(y, bits, lo, hi, *, signed):
    """A converter over [lo, hi]: odd levels around an exact zero, or even ones from the low end."""
    f = np.float32
    y, lo, hi = f(y), f(lo), f(hi)
    if signed:
        half = f(2 ** (bits - 1) - 1)
        lsb = hi / half
        return np.clip(np.rint(y / lsb), -half, half) * lsb
    steps = f(2**bits - 1)
    lsb = (hi - lo) / steps
    return lo + np.clip(np.rint((y - lo) / lsb), 0, steps) * lsb


def adc_range(y, percentile, *, signed):
    """The range that covers a share of what was seen, scalars."""
    if signed:
        hi = np.percentile(np.abs(y), percentile)
        return -hi, hi
    tail = (100 - percentile) / 2
    return np.percentile(y, tail), np.percentile(y, 100 - tail)


def power_of_two_apart(ends):
    """Ranges widened until their widths are the widest divided by 1, 2, 4, …"""
    widest = max(hi - lo for lo, hi in ends)
    found = []
    for lo, hi in ends:
        width = widest
        while width / 2 >= hi - lo > 0:
            width /= 2
        found.append((-width / 2, width / 2) if lo == -hi else (lo, lo + width))
    return found
