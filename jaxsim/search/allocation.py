"""One option for each place, of least summed error within what may be spent."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

WIDE = 1e6
"""Factor of the objective: the solver stops within 1e-6 of the best, however small losses are."""


def allocate(
    errors: Float[np.ndarray, "places options"],
    spent: Mapping[str, Float[np.ndarray, "places options"]],
    limits: Mapping[str, float],
) -> Int[np.ndarray, " places"]:
    """Chooses an option for each place, exactly, by integer programming (HiGHS).

    Args:
      errors: Error of each option at each place; infinite where it cannot be chosen.
      spent: What each option spends at each place, at least 0, by name.
      limits: Most that all places may spend together, by name; in the units of `spent`.

    Returns:
      The number of the option of each place.

    Raises:
      ValueError: A place without an option, or limits that nothing meets.

    Examples:
      >>> import numpy as np
      >>> from jaxsim.search.allocation import allocate
      >>> errors = np.array([[9.0, 0.0], [1.0, 0.0]])
      >>> cost = np.array([[2.0, 8.0], [2.0, 8.0]])
      >>> allocate(errors, {"bits": cost}, {"bits": 10.0}).tolist()
      [1, 0]
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    places, options = errors.shape
    possible = np.isfinite(errors)
    if not possible.any(1).all():
        raise ValueError(f"errors: place {int(np.argmin(possible.any(1)))} has no option")
    known = np.where(possible, errors, 0.0)
    rules = [
        LinearConstraint(np.kron(np.eye(places), np.ones(options)), 1, 1),
        LinearConstraint(~possible.reshape(1, -1), 0, 0),
    ]
    for name, most in limits.items():
        cost, scale = _scaled(possible, spent[name])
        rules.append(LinearConstraint(cost, -np.inf, most / scale))
    while True:
        found = milp(
            known.ravel() / max(np.abs(known).max(), np.finfo(float).tiny) * WIDE,
            integrality=np.ones(places * options),
            bounds=Bounds(0, 1),
            constraints=rules,
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            raise ValueError(_refusal(possible, spent, limits))
        chosen = np.round(found.x).reshape(places, options).argmax(1)
        if all(_total(chosen, spent[n]) <= most * (1 + 1e-9) for n, most in limits.items()):
            return chosen
        # The solver takes 1e-6 more than a limit for no more: this choice is left out by itself.
        same = np.eye(options)[chosen].reshape(1, -1)
        rules.append(LinearConstraint(same, -np.inf, places - 1))


def _scaled(possible: np.ndarray, spent: np.ndarray) -> tuple[np.ndarray, float]:
    """Costs of at most 1 as one row, and their scale: tolerances of the solver are absolute."""
    cost = np.where(possible, spent, 0.0)
    scale = max(float(cost.max()), float(np.finfo(float).tiny))
    return cost.reshape(1, -1) / scale, scale


def _total(chosen: np.ndarray, spent: np.ndarray) -> float:
    return float(spent[np.arange(len(chosen)), chosen].sum())


def _refusal(
    possible: np.ndarray, spent: Mapping[str, np.ndarray], limits: Mapping[str, float]
) -> str:
    """What to say of limits that nothing meets: the least of each that can be met by itself."""
    said: list[str] = []
    for name, most in limits.items():
        least = float(np.where(possible, spent[name], np.inf).min(1).sum())
        if least > most:
            said.append(f"{name}={most:g}: the cheapest choice costs {least:g}")
    joint = ", ".join(f"{name}={most:g}" for name, most in limits.items())
    return "; ".join(said) or f"{joint}: each can be met, all together cannot"
