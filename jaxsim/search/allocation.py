"""Allocation: one option for each place, of least summed error within what may be spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

WIDE = 1e6
"""Factor of the objective: the solver stops within 1e-6 of the best, however small losses are."""


class Shares(NamedTuple):
    """Parts that options need, each paid once however many places use it.

    Attributes:
      parts: Number of the part that each option needs at each place.
      costs: What each part costs, by name of a limit.
    """

    parts: Int[np.ndarray, "places options"]
    costs: Mapping[str, Float[np.ndarray, " parts"]]


def allocate(
    errors: Float[np.ndarray, "places options"],
    spent: Mapping[str, Float[np.ndarray, "places options"]],
    limits: Mapping[str, float],
    shares: Shares | None = None,
) -> Int[np.ndarray, " places"]:
    """Chooses an option for each place, exactly, by integer programming (HiGHS).

    Args:
      errors: Error of each option at each place; infinite where it cannot be chosen.
      spent: What each option spends at each place, at least 0, by name.
      limits: Most that all places may spend together, by name; in the units of `spent`.
      shares: Parts that are paid beside it, where used; None for none.

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
    possible = np.isfinite(errors)
    if not possible.any(1).all():
        raise ValueError(f"errors: place {int(np.argmin(possible.any(1)))} has no option")
    problem = _Problem(possible, spent, shares)
    known = np.where(possible, errors, 0.0)
    found = problem.solve(known, np.zeros(problem.parts), limits)
    if found is None:
        raise ValueError(problem.refusal(limits))
    return found


class _Problem(NamedTuple):
    """Choices that are possible, and what they spend."""

    possible: np.ndarray
    spent: Mapping[str, np.ndarray]
    shares: Shares | None

    @property
    def parts(self) -> int:
        return 0 if self.shares is None else int(self.shares.parts.max()) + 1

    def paid(self, name: str) -> np.ndarray:
        """What each part costs of a limit."""
        none = np.zeros(self.parts)
        return none if self.shares is None else self.shares.costs.get(name, none)

    def solve(
        self, cost: np.ndarray, part_cost: np.ndarray, limits: Mapping[str, float]
    ) -> np.ndarray | None:
        """The choice of least cost within limits; None where none is."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        (places, options), parts = self.possible.shape, self.parts
        rules = [_rule(np.kron(np.eye(places), np.ones(options)), np.zeros((places, parts)), 1, 1)]
        for part in range(parts if self.shares else 0):
            used = np.eye(places)[:, :, None] * (self.shares.parts == part)
            switch = np.zeros((places, parts))
            switch[:, part] = -1
            rules.append(_rule(used.reshape(places, -1), switch, -np.inf, 0))
        for name, most in limits.items():
            each, paid = np.where(self.possible, self.spent[name], 0.0), self.paid(name)
            # Tolerances of the solver are absolute.
            scale = max(each.max(), np.max(paid, initial=0), np.finfo(float).tiny)
            rules.append(
                _rule(each.reshape(1, -1) / scale, paid[None] / scale, -np.inf, most / scale)
            )
        objective = np.concatenate([np.where(self.possible, cost, 0.0).ravel(), part_cost])
        upper = np.concatenate([self.possible.ravel().astype(float), np.ones(parts)])
        found = milp(
            objective / max(np.abs(objective).max(), np.finfo(float).tiny) * WIDE,
            integrality=np.ones(places * options + parts),
            bounds=Bounds(0, upper),
            constraints=[LinearConstraint(*rule) for rule in rules],
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            return None
        return np.round(found.x[: places * options]).reshape(places, options).argmax(1)

    def refusal(self, limits: Mapping[str, float]) -> str:
        """What to say of limits that nothing meets: the least of each that can be met alone."""
        said: list[str] = []
        for name, most in limits.items():
            cheapest = self.solve(self.spent[name], self.paid(name), {})
            least = 0.0 if cheapest is None else self.total(cheapest, name)
            if least > most:
                said.append(f"{name}={most:g}: the cheapest choice costs {least:g}")
        joint = ", ".join(f"{name}={most:g}" for name, most in limits.items())
        return "; ".join(said) or f"{joint}: each can be met, all together cannot"

    def total(self, chosen: np.ndarray, name: str) -> float:
        return total_cost(chosen, self.spent[name], self.shares, name)


def total_cost(
    chosen: Int[np.ndarray, " places"],
    spent: Float[np.ndarray, "places options"],
    shares: Shares | None = None,
    name: str = "",
) -> float:
    """Sums what a choice spends, parts that it uses included.

    Args:
      chosen: Number of the option of each place.
      spent: What each option spends at each place.
      shares: Parts that are paid beside it; None for none.
      name: Name of the limit whose parts are paid.
    """
    places = np.arange(len(chosen))
    total = float(spent[places, chosen].sum())
    if shares is None or name not in shares.costs:
        return total
    used = np.unique(shares.parts[places, chosen])
    return total + float(shares.costs[name][used].sum())


def _rule(
    choices: np.ndarray, parts: np.ndarray, low: float, high: float
) -> tuple[np.ndarray, float, float]:
    return np.concatenate([choices, parts], 1), low, high
