"""Spread and drift of the measured devices, in numpy and double precision."""

import math

import numpy as np

FITS = {
    "rram_milo": lambda g: 4.782321 - 0.009107 * g,
    "rram_wan": lambda g: 1.053 + 0.2374 * g - 0.01167 * g**2 + 0.0001536 * g**3,
    "pcm_joshi": lambda g: 0.28638599 + 0.07585724 * g - 0.00178767 * g**2,
}

# Mean drift in nA at a few currents (nA) and days, and the spread's two constants by day: from
# CrossSim 3.2's polynomials, evaluated with 50 digits.
SPREAD = {
    0: (19.88665, 176.3115),
    1: (25.59102, 186.85544),
    2: (28.72753, 193.56834),
    3: (31.04318, 198.90332),
    4: (33.76214, 204.77023),
    5: (34.57909, 207.34309),
}
DRIFT = {
    0: {160.0: 0.0, 560.0: 0.0, 1120.0: 0.0, 1600.0: 0.0},
    1: {160.0: 1.2683, 560.0: -0.9293, 1120.0: -6.2445, 1600.0: -11.5322},
    2: {160.0: 1.9277, 560.0: -2.7318, 1120.0: -13.3508, 1600.0: -22.3723},
    3: {160.0: 3.3254, 560.0: -2.8558, 1120.0: -16.2211, 1600.0: -26.9059},
    4: {160.0: 2.9572, 560.0: -6.4173, 1120.0: -23.0335, 1600.0: -38.2715},
    5: {160.0: 3.3903, 560.0: -6.4311, 1120.0: -25.6661, 1600.0: -40.6984},
}


# Read noise of SONOS: its largest deviation in nA, and the current in nA at which it saturates.
SONOS_NOISE = (12.58037, 215.36557)


def sigma(name, g):
    """Deviation in µS at a conductance in µS."""
    return max(FITS[name](g), 0.0)


def clipped_at_zero(mean, sigma):
    """Mean and deviation of a Gaussian whose negative values are put to zero."""
    z = mean / sigma
    above = 0.5 * (1 + math.erf(z / math.sqrt(2)))
    density = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    first = mean * above + sigma * density
    second = (mean**2 + sigma**2) * above + mean * sigma * density
    return first, math.sqrt(second - first**2)


def sonos(current, days):
    """Mean and deviation in nA after some days: linear between the days measured."""
    lo, hi = math.floor(days), math.ceil(days)
    part = days - lo
    drift = (1 - part) * DRIFT[lo][current] + part * DRIFT[hi][current]
    most, scale = ((1 - part) * a + part * b for a, b in zip(SPREAD[lo], SPREAD[hi], strict=True))
    mean = current + drift
    return mean, most * (1 - np.exp(-mean / scale))
