"""Currents of arrays with parasitic resistance by CrossSim."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def crosssim(
    folder: Path, r: float, g: np.ndarray, v: np.ndarray, gamma: float
) -> Callable[[], np.ndarray] | str:
    """CrossSim's own solver of the pair of arrays, or why it cannot be run."""
    try:
        sys.path.insert(0, str(folder))
        from simulator import CrossSimParameters
        from simulator.backend import ComputeBackend
        from simulator.circuits.array.NonInterleaved_InputSource import (
            NoninterleavedInputSourceArray,
        )

        ComputeBackend(use_gpu=False)

        def solver() -> Any:
            parameters = CrossSimParameters()
            parasitics = parameters.xbar.array.parasitics
            parasitics.enable = True
            parasitics.Rp_row = parasitics.Rp_col = r * parameters.xbar.device.Rmin
            parameters.simulation.Niters_max_parasitics = 500
            parameters.simulation.relaxation_gamma = gamma
            parameters.simulation.hide_convergence_msg = True
            return NoninterleavedInputSourceArray(parameters)

        arrays = [(solver(), np.ascontiguousarray(a.T)) for a in g]
        vectors = np.ascontiguousarray(v.T)
        arrays[0][0].iterative_solve(arrays[0][1], vectors[:, :1])
    except Exception as error:  # whatever its version does not do, the rest is measured
        return f"not run: {type(error).__name__}: {error}"
    finally:
        sys.path.remove(str(folder))

    def run() -> np.ndarray:
        plus, minus = (solver.iterative_solve(a, vectors) for solver, a in arrays)
        return (plus - minus).T

    return run
