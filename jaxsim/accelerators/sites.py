"""Work of the sites of a network, read off their chains of cores."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxsim.accelerators.work import Arithmetic, Work
from jaxsim.cores.operand import writes_in_calls
from jaxsim.cores.wrapper import Wrapper, first_of
from jaxsim.network.cost import SiteCost
from jaxsim.network.network import Network
from jaxsim.network.plan import Contraction, contractions
from jaxsim.network.portions import Portion


def site_work(net: Network, portion: Portion, activations: int | None) -> dict[str, Work]:
    """Collects the work of each site in a portion of a call, lookups included.

    Args:
      net: Network.
      portion: Portion of its call.
      activations: Bits in which floats lie in memory between equations; None for their own.

    Raises:
      ValueError: A mask is traced.
    """
    costs = net.cost_of(portion.plan).sites
    found: dict[str, Work] = {}
    for contraction, cost in zip(contractions(portion.plan), costs, strict=True):
        work = _work(net, contraction, cost, activations)
        part = portion.slices.get(cost.name, 1)
        if part != 1:
            counts = {name: amount * part for name, amount in work.counts.items()}
            copies = round(work.copies * part)
            work = work._replace(runs=work.runs * part, copies=copies, counts=counts)
        found[cost.name] = work
    if portion.classifier is not None:
        features, classes = portion.classifier
        rows = portion.rows or 0
        found[portion.exit] = Work(
            portion.exit,
            "floats",
            (1, rows, features, classes),
            copies=1,
            bits=(float_bits(np.dtype(np.float32), activations), 32, 32),
            sizes=(rows * features, features * classes, rows * classes),
        )
    return found


def float_bits(dtype: Any, activations: int | None) -> int:
    """Bits that an entry takes in memory.

    Args:
      dtype: Its dtype.
      activations: Bits in which floats lie there; None for their own.
    """
    bits = 8 * dtype.itemsize
    return bits if activations is None or dtype.kind not in "fV" else min(bits, activations)


def _work(net: Network, c: Contraction, cost: SiteCost, activations: int | None) -> Work:
    site, chain = c.site, net.cores.get(c.site.name, ())
    density = net.density(site)
    if density is None:
        raise ValueError(f"net: the mask of {site.name} is traced; call it outside jit")
    B, M, K, N = cost.matmul
    x_bits, result = float_bits(c.x.dtype, activations), float_bits(c.w.dtype, activations)
    copies = c.runs if writes_in_calls(chain) else _copies(c)
    if site.kind == "lookup":
        width = c.w.shape[-1]
        bits = cost.spent["weight_bits"] / max(copies * c.w.size, 1)
        sizes = (c.x.size, c.x.size * width, c.x.size * width)
        return Work(
            site.name,
            "elements",
            runs=cost.runs,
            copies=copies,
            bits=(8 * c.x.dtype.itemsize, bits, result),
            sizes=sizes,
            chain=chain,
            counts=cost.spent,
        )
    own = (x_bits, x_bits if not copies else 8 * c.w.dtype.itemsize)
    stored = cost.spent.get("weight_bits", 0.0) / max(copies * c.w.size, 1) if copies else None
    arithmetic, (x_width, w_width) = _widths(chain, own, stored)
    blocks = next((w.settings["blocks"] for w in chain if w.role == "blocks"), None)
    if blocks is not None:
        x_width, w_width = int(blocks.x_bits), int(blocks.w_bits)
    shape, sizes = (B, M, K, N), (c.x.size, c.w.size, B * M * N)
    if writes_in_calls(chain) and chain[0].settings["swapped"]:
        shape, sizes = (B, N, K, M), (c.w.size, c.x.size, B * M * N)
    groups = first_of(chain, "groups")
    matmul, runs = shape, cost.runs
    if site.chosen and arithmetic != "analog":
        matmul, runs, sizes = _experts(c, cost)
    return Work(
        site.name,
        arithmetic,
        matmul,
        runs,
        copies,
        density,
        (x_width, w_width, result),
        sizes,
        1 if groups is None else -(-K // groups.settings["rows"]),
        blocks,
        chain,
        cost.spent,
    )


def _experts(
    c: Contraction, cost: SiteCost
) -> tuple[tuple[int, int, int, int], int, tuple[int, int, int]]:
    """Product, runs and sizes where integers choose the weight of each row.

    As many experts as rows choose, all of them if there are no more, take their even part each.
    """
    B, M, K, N = cost.matmul
    outer = max(c.site.runs, 1)
    rows = M * cost.runs // outer
    experts = max(min(c.site.lengths[-1], rows), 1)
    each = -(-rows // experts)
    sizes = (B * rows * K, experts * c.w.size, B * rows * N)
    return (B * experts, each, K, N), outer, sizes


def _copies(c: Contraction) -> int:
    """Number of weights that hardware holds for a site."""
    if c.site.kind == "dynamic":
        return 0
    copies = 1
    for size in c.site.stack:
        copies *= size
    return copies


def _widths(
    chain: tuple[Wrapper, ...], own: tuple[int, int], stored: float | None
) -> tuple[Arithmetic, tuple[float, float]]:
    """What a chain multiplies, and the widths of a stored input and weight.

    Args:
      chain: Wrappers of a site's core, outermost first.
      own: Widths of either operand as a float.
      stored: Bits that a weight takes as its core counts them; None where it is an activation.
    """
    coded, array = first_of(chain, "codes"), first_of(chain, "array")
    weights, inputs = (None, None) if coded is None else coded.formats
    if array is not None:
        bits = own[0] if inputs is None else inputs.bits
        return "analog", (bits, own[1] if weights is None else weights.bits)
    floats = [w for w in chain if w.role == "floats"]
    if weights is not None and inputs is not None and not floats:
        return "codes", (inputs.bits, weights.bits)
    x = inputs
    for wrapper in floats:
        x = wrapper.settings.get("inputs") or x
    x_bits = own[0] if x is None else getattr(x, "bits", own[0])
    w_bits = own[1] if weights is None else weights.bits
    return "floats", (x_bits, w_bits if not floats or stored is None else stored)
