"""Devices that age, cell by cell, as IBM's aihwkit documents them, in numpy and double precision.

Each function draws cells that were asked for a relative conductance g and gives what they hold `t`
seconds after the first read, relative to the largest. Formulas are those of the documentation
(pcm_inference.rst) and of the docstrings of the noise models; nothing here knows the package.
"""

import numpy as np

YEAR = 365.25 * 86400


def noise_growth(t, read):
    """Deviation of 1/f noise after t seconds over its Q: the integral of the spectrum's root."""
    return np.sqrt(np.log((t + read) / (2 * read)))


def power_law(g, programmed, mean, deviation, q, t, first, read, rng):
    """Drift and 1/f noise of cells that hold `programmed`, none below zero."""
    nu = np.abs(mean + deviation * rng.normal(size=g.shape))
    drifted = programmed * ((t + first) / first) ** -nu
    noise = np.abs(drifted) * q * noise_growth(t + first, read)
    return np.maximum(drifted + noise * rng.normal(size=g.shape), 0)


def nandakumar_programmed(g, rng):
    sigma = np.maximum(-1.1731 * g**2 + 1.9650 * g + 0.26348, 0)  # µS, of 25
    return np.maximum(g + sigma / 25 * rng.normal(size=g.shape), 0)


def nandakumar_exponents(g):
    log = np.log(np.maximum(g, 1e-7))
    mean, deviation = -0.0155 * log + 0.0244, -0.0125 * log - 0.0059
    return np.clip(mean, 0.049, 0.1), np.clip(deviation, 0.008, 0.045)


def nandakumar_noise(g):
    return np.minimum(0.0088 / np.maximum(g**0.65, 1e-3), 0.2)


def nandakumar(g, t, rng):
    programmed = nandakumar_programmed(g, rng)
    nu = nandakumar_exponents(g)
    return power_law(g, programmed, *nu, nandakumar_noise(programmed), t, 20.0, 250e-9, rng)


def hermes_exponents(g, devices):
    log = np.log(np.maximum(g, 1e-7))
    mean = np.where(
        g < 0.0945,
        np.clip(-0.0387 * log - 0.0182, 0.072, 0.13),
        0.0736 - 0.0126 * g - 0.0436 * g**2,
    )
    if devices == 1:
        low, high = (
            np.clip(-0.012 * log - 0.0023, 0.0124, 0.04),
            0.0104 + 0.0116 * g - 0.0165 * g**2,
        )
        return mean, np.where(g < 0.3039, low, high)
    low, high = np.clip(-0.0117 * log - 0.0057, 0.0091, 0.04), 0.0073 + 0.0093 * g - 0.0118 * g**2
    return mean, np.where(g < 0.3055, low, high)


def hermes_noise(g, devices):
    log = np.log(np.maximum(g, 1e-7))
    if devices == 1:
        high = 0.0088 + 0.0768 * g - 0.1352 * g**2 + 0.0664 * g**3
        return np.where(g < 0.1591, np.clip(-0.0078 * log + 0.0038, 0.0179, 0.04), high)
    high = 0.0123 + 0.0211 * g - 0.028 * g**2 + 0.0069 * g**3
    return np.where(g < 0.16, np.clip(-0.0117 * log - 0.0069, 0.015, 0.04), high)


def hermes_programmed(g, devices, rng):
    fits = {
        1: (10.35, (0.15781817, 2.32443916, -2.16310839, 0.68841818)),
        2: (20.7, (0.16603222, 4.71806468, -8.48101252, 4.68961419)),
    }
    largest, fit = fits[devices]
    sigma = sum(c * g**i for i, c in enumerate(fit)) / largest
    return np.maximum(g + sigma * rng.normal(size=g.shape), 0)


def hermes(g, t, rng, devices):
    programmed = hermes_programmed(g, devices, rng)
    first = {1: 200.0, 2: 300.0}[devices]
    nu, q = hermes_exponents(g, devices), hermes_noise(programmed, devices)
    return power_law(g, programmed, *nu, q, t, first, 512e-9, rng)


def cmo(g, t, rng, *, top=88.2, smallest=9.0, spread=(0.00081107, 0.00106879)):
    """In µS between `smallest` and `top`; the first read is one second after writing."""
    reached = g * top + (spread[0] + spread[1] * g * top) * rng.normal(size=g.shape)
    t = t + 1
    moved = reached - 0.08900206 * np.log(t)
    moved = moved + (0.04201137 * np.log(t) + 0.41183342) * rng.normal(size=g.shape)
    read = 0.0277316483 * np.log10(moved) * noise_growth(t, 1e-6)
    return np.clip(moved + read * rng.normal(size=g.shape), smallest, top) / top


def compensation(w, t, rng, draw):
    """Global and per-column factor of an array of pairs: mean magnitude before over after.

    `w` [rows, columns] are relative weights, `draw(g, t, rng)` cells at a time. The baseline is
    that of cells right after programming, one read as the other; both readouts drive one row after
    the other.
    """
    state = rng.bit_generator.state
    found = []
    for time in (0.0, t):
        rng.bit_generator.state = state  # the same cells at both times
        pair = draw(np.maximum(w, 0), time, rng) - draw(np.maximum(-w, 0), time, rng)
        found.append(np.abs(pair))
    before, after = found
    return before.mean() / after.mean(), before.mean(0) / after.mean(0)
