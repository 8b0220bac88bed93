"""Cost of a contraction: parameters, stored bits, multiply-accumulates, conversions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxsim.console.table import shown_as_table
from jaxsim.cores.op import Meter, Op
from jaxsim.cores.wrapper import Wrapper, build
from jaxsim.network.tables import cost_table


class SiteCost(NamedTuple):
    """Cost of one call at one site.

    Attributes:
      name: Name of the site.
      params: Number of entries of its parameter; 0 for later uses of the same parameter, and for
        lookups in one that is also multiplied by.
      nonzero: Number of entries that pruning left.
      spent: Counts by name, as the site's core makes them. Always "macs" (multiply-accumulates in
        the hardware, all slices and signs), "cells" (stored numbers) and "weight_bits"; with an ADC
        "conversions"; at a blocked site "block_products"; of what digital logic does beside the
        hardware (adapters, inputs that are turned or scaled, corrections) "digital_adds",
        "digital_multiplies" and the "digital_bits" that it reads; and whatever a user's core adds
        with `Op.count`.
      matmul: Sizes (B, M, K, N) of one execution as B products [M, K] @ [K, N]; M is 0 where rows
        are looked up and nothing is multiplied.
      runs: Number of executions in one call.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x, w = jnp.ones((3, 8)), jnp.ones((8, 2))
      >>> net = js.trace(lambda params, x: x @ params["w"], {"w": w}, x)
      >>> (site,) = net.cost().sites
      >>> site.name, site.params, site.spent["macs"], site.matmul
      ('w', 16, 48.0, (1, 3, 8, 2))
    """

    name: str
    params: int
    nonzero: int
    spent: dict[str, float]
    matmul: tuple[int, int, int, int]
    runs: int


@shown_as_table
class Cost(NamedTuple):
    """Cost of one call of a network.

    Attributes:
      sites: Costs of the sites, in order of execution.
      params: Number of entries of all parameters, at sites or not.
      nonzero: Number of entries that pruning left.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x, w = jnp.ones((3, 8)), jnp.ones((8, 2))
      >>> net = js.trace(lambda params, x: x @ params["w"], {"w": w}, x)
      >>> cost = js.prune(0.5)(net).cost()
      >>> cost.params, cost.nonzero, cost.total("macs")
      (16, 8, 48.0)
    """

    sites: tuple[SiteCost, ...]
    params: int
    nonzero: int

    def __rich__(self) -> Any:
        return cost_table([(s.name, s.params, s.nonzero, s.spent) for s in self.sites])

    def total(self, what: str) -> float:
        """Sums one count over all sites.

        Args:
          what: Name of a count, as in `SiteCost.spent`.

        Returns:
          The sum; 0 where no core counts it.
        """
        return sum(site.spent.get(what, 0.0) for site in self.sites)


class Counted(NamedTuple):
    """Counts of one site, from shapes.

    Attributes:
      written, read: Counts by name, of writing one weight and of one execution.
      matmul: Sizes (B, M, K, N) of one execution, as `SiteCost.matmul`.
    """

    written: Meter
    read: Meter
    matmul: tuple[int, int, int, int]


class SiteCounts:
    """Counts sites by their cores, those that are alike once: layers of a model mostly are."""

    def __init__(self) -> None:
        """Has counted none."""
        self.known: dict[tuple[Any, ...], list[tuple[Sequence[Wrapper], Counted]]] = {}

    def __call__(
        self,
        op: Op,
        wrappers: Sequence[Wrapper],
        x: jax.ShapeDtypeStruct,
        w: jax.ShapeDtypeStruct,
        *,
        looks_up: bool,
    ) -> Counted:
        """Counts one site from shapes, without running it.

        Args:
          op: Contraction of the site.
          wrappers: Wrappers of its core, outermost first.
          x: Shape and dtype of the input of one execution.
          w: Shape and dtype of the weight of one execution.
          looks_up: If True, rows are taken out of the weight, and nothing is multiplied.
        """
        names = tuple(wrapper.name for wrapper in wrappers)
        key = (op, names, x.shape, x.dtype, w.shape, w.dtype, looks_up)
        alike = self.known.setdefault(key, [])
        for others, counted in alike:
            if tuple(others) == tuple(wrappers):
                return counted
        found = _counted(op, wrappers, x, w, looks_up)
        alike.append((wrappers, found))
        return found


def _counted(
    op: Op,
    wrappers: Sequence[Wrapper],
    x: jax.ShapeDtypeStruct,
    w: jax.ShapeDtypeStruct,
    looks_up: bool,
) -> Counted:
    written, read = Meter(), Meter()
    core = build(wrappers)

    def once(w: Any, x: Any, key: Any) -> Any:
        state = core.write(dataclasses.replace(op, integer=True, meter=written), w, key)
        if looks_up:
            read["macs"] = 0.0
            return state
        return core.read(dataclasses.replace(op, integer=True, meter=read), state, x, key)

    jax.eval_shape(once, w, x, jax.eval_shape(lambda: jax.random.key(0)))
    B, K, N = op.geometry.as_matmul().geometry.w_shape
    outputs = 0 if looks_up else jax.eval_shape(op.contract, x, w).size
    return Counted(written, read, (B, outputs // max(B * N, 1), K, N))


def site_cost(
    counted: Counted, *, name: str, params: int, nonzero: int, copies: int, runs: int
) -> SiteCost:
    """Computes the cost of one site.

    Args:
      counted: Counts of one execution.
      name: Name of the site.
      params: Number of entries of its parameter.
      nonzero: Number of entries that pruning left.
      copies: Number of weights that scans stack; 0 for a dynamic site.
      runs: Number of executions in one call.
    """
    spent = {what: amount * copies for what, amount in counted.written.items()}
    for what, amount in counted.read.items():
        spent[what] = spent.get(what, 0.0) + amount * runs
    return SiteCost(name, params, nonzero, spent, counted.matmul, runs)
