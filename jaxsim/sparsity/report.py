"""Sparsity report: operations and storage that sparse weights save, layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsim.console.table import shown_as_table, si
from jaxsim.cores.role import WEIGHT
from jaxsim.cores.site_weight import captured
from jaxsim.cores.wrapper import Wrapper
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Network
from jaxsim.network.site import Site
from jaxsim.network.writer import write_states
from jaxsim.numerics.checks import checked_int
from jaxsim.sparsity import storage
from jaxsim.sparsity.storage import Format, lower_bound, storage_bits


def sparsity_table(
    rows: Sequence[tuple[str, int, int, float, dict[str, int | None], str]],
    *,
    compression: float,
    useful: float,
) -> Any:
    """Builds a rich table of what sparse weights save.

    Args:
      rows: A tuple for each weight (name, entries, nonzero entries, MACs, bits by format, best
        format).
      compression: Factor by which all weights shrink, each in its best format.
      useful: Fraction of the MACs whose weight is not zero.
    """
    from rich.table import Table

    table = Table(
        title=f"sparse weights, bits by format · {compression:.2f}x smaller · {useful:.1%} of the "
        "MACs"
    )
    table.add_column("weight", style="bold", no_wrap=True)
    for column in ("entries", "nonzero", "density", "MACs"):
        table.add_column(column, justify="right")
    for column in rows[0][4] if rows else ():
        table.add_column(column, justify="right")
    table.add_column("fewest bits")
    for name, size, nonzero, macs, bits, best in rows:
        held = ["–" if b is None else si(b) for b in bits.values()]
        density = f"{nonzero / size:.1%}"
        table.add_row(name, si(size), si(nonzero), density, si(macs), *held, best)
    return table


FORMATS = (
    storage.bitmap(),
    storage.coo(),
    storage.csr(),
    storage.bsr(4, 4),
    storage.delta(4),
    storage.nm(2, 4),
)
"""Formats that a report compares."""


class WeightRow(NamedTuple):
    """Savings at one weight.

    Attributes:
      name: Path of the parameter.
      size: Number of entries.
      nonzero: Number of nonzero entries.
      macs: Multiply-accumulates of one call at its sites, as if nothing were zero.
      bits: Bits by format, of layers that a scan stacks each by itself; None where the format
        cannot store it. "dense" and "bound", below which none can go, among them.
    """

    name: str
    size: int
    nonzero: int
    macs: float
    bits: dict[str, int | None]

    @property
    def best(self) -> str:
        """Name of the format that takes the fewest bits."""
        held = {name: bits for name, bits in self.bits.items() if bits and name != "bound"}
        return min(held, key=lambda name: held[name], default="dense")


@shown_as_table
class SparsityReport(NamedTuple):
    """Savings of a network by its sparse weights. It prints.

    Attributes:
      rows: Savings by weight of a site, in order of execution.
      macs: Multiply-accumulates of one call.
      useful: Multiply-accumulates whose weight is not zero.
      compression: Bits of the dense weights over those of the best format of each.
    """

    rows: tuple[WeightRow, ...]
    macs: float
    useful: float
    compression: float

    def __rich__(self) -> Any:
        rows = [(r.name, r.size, r.nonzero, r.macs, r.bits, r.best) for r in self.rows]
        return sparsity_table(rows, compression=self.compression, useful=self.useful / self.macs)


def sparsity_report(
    net: Network, *, value_bits: int = 32, formats: Sequence[Format] = FORMATS
) -> SparsityReport:
    """Computes what the zeros in a network's weights save, by formula; nothing is run.

    Args:
      net: Network; its masks, and zeros among the weights that it multiplies, count.
      value_bits: Bits of a stored value, at least 1.
      formats: Formats to compare with dense.

    Raises:
      ValueError: `value_bits` out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(8)}, jnp.ones((1, 8)))
      >>> report = js.sparsity_report(net)
      >>> report.rows[0].nonzero, report.useful / report.macs, report.rows[0].bits["bitmap"]
      (8, 0.125, 320)
    """
    checked_int("value_bits", value_bits, 1)
    macs: dict[str, float] = {}
    sizes = {site.name: site.param for site in net.sites if site.param is not None}
    for cost in net.cost().sites:
        if (param := sizes.get(cost.name)) is not None:
            macs[param] = macs.get(param, 0.0) + cost.spent["macs"]
    held, stacks = _nonzero(net), {site.param: site.stack for site in reversed(net.sites)}
    rows = tuple(
        WeightRow(
            name,
            held[name].size,
            int(held[name].sum()),
            amount,
            _all_bits(_layers(held[name], stacks[name]), formats, value_bits),
        )
        for name, amount in macs.items()
    )
    dense = sum(row.size for row in rows) * value_bits
    best = sum(row.bits[row.best] or 0 for row in rows)
    useful = sum(row.macs * row.nonzero / row.size for row in rows)
    return SparsityReport(rows, sum(row.macs for row in rows), useful, dense / max(best, 1))


def _nonzero(net: Network) -> dict[str, np.ndarray]:
    """Finds where the weight that is multiplied is not zero, by the name of its largest parameter.

    In the parameter's own layout where the weight is that parameter alone, else in the site's.
    """
    leaves = jax.tree_util.tree_leaves_with_path(net.masked_params())
    found = {path_name(path): np.asarray(leaf) != 0 for path, leaf in leaves}
    changed: dict[str, Site] = {}
    for site in net.sites:
        here = any(w.role in WEIGHT for w in net.cores.get(site.name, ()))
        if site.param is not None and "#" not in site.name and (here or len(site.parts) != 1):
            changed[site.name] = site
    cores = {
        name: (
            *(w for w in net.cores.get(name, ()) if w.role in WEIGHT),
            Wrapper.of(captured),
        )
        for name in changed
    }
    if cores:
        plain = dataclasses.replace(net, cores=cores, states={}, deployed=False)
        for name, w in write_states(plain, None).items():
            found[str(changed[name].param)] = np.asarray(w) != 0
    return found


def _layers(mask: np.ndarray, stack: tuple[int, ...]) -> list[np.ndarray]:
    """The matrices that are stored: those of each layer where a scan stacks them."""
    if mask.shape[: len(stack)] != stack:
        return [mask]
    return list(mask.reshape(-1, *mask.shape[len(stack) :]))


def _all_bits(
    masks: Sequence[np.ndarray], formats: Sequence[Format], value_bits: int
) -> dict[str, int | None]:
    found: dict[str, int | None] = {"dense": sum(mask.size for mask in masks) * value_bits}
    for form in formats:
        try:
            found[form.name] = sum(storage_bits(mask, form, value_bits) for mask in masks)
        except ValueError:  # blocks or groups that do not tile it
            found[form.name] = None
    return found | {"bound": sum(lower_bound(mask, value_bits) for mask in masks)}
