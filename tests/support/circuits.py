"""Circuits that the kernels are tried on."""

import numpy as np
import pennylane as qml


def strongly(n, layers=2, seed=0):
    """A PennyLane function of no arguments and its weights."""
    weights = np.random.default_rng([seed, n]).uniform(0, 2 * np.pi, (layers, n, 3))
    return (lambda: qml.StronglyEntanglingLayers(weights, wires=range(n))), weights


def random(n, layers=2, seed=42):
    """PennyLane's random layers."""
    weights = np.random.default_rng([seed, n]).uniform(0, 2 * np.pi, (layers, n))
    return (lambda: qml.RandomLayers(weights, wires=range(n), seed=seed)), weights


def angles(n, count, seed=1):
    """Angles of more than a full turn."""
    return np.random.default_rng([seed, n]).uniform(-4, 4, (count, n))
