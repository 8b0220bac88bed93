"""What of a product is computed: some of its blocks of bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import jax
from jaxtyping import Array, Int

from jaxsim.cores.blocked import Blocks, Pairs, Rounding, blocked, pair_set, product_set
from jaxsim.cores.wrapper import Wrapper, first_of, place_of
from jaxsim.formats.grid import Grid
from jaxsim.network.network import Net, Network, require_dense
from jaxsim.network.site import Site
from jaxsim.network.transform import Transform, hardware_chain, transformable
from jaxsim.numerics.checks import checked_int, is_traced
from jaxsim.values.calls import shown_as_called

Mode = Literal["exact", "static", "dynamic"]
Count = int | Int[Array, ""]


@shown_as_called
def block(
    K: Count,
    n_x: Count | None = None,
    n_w: Count | None = None,
    mode: Mode | tuple[Mode, Mode] = "dynamic",
    *,
    rounding: Rounding = "trunc",
    pairs: Iterable[tuple[int, int]] | None = None,
    sites: str | Sequence[str] = "*",
) -> Transform:
    """Multiplies some blocks of bits of the codes in place of all of them.

    A code of b bits is a sign and N = ceil((b - 1) / K) blocks of K bits. "static" keeps the same
    blocks of all codes, the top ones; "dynamic" keeps blocks from the leading one of each code
    down; "exact" keeps all. Training the composed network is approximation-aware: the derivative
    is that of the exact product.

    Args:
      K: bits of a block, 1 to one less than the width of the codes. Traced.
      n_x: blocks of an input to keep, 1 to N; None for all. Traced.
      n_w: blocks of a weight to keep, 1 to N; None for all. Traced.
      mode: how the blocks are chosen, or a pair of that for (inputs, weights).
      rounding: "trunc" drops what lies below the kept blocks, "rounded" rounds half up in
        magnitude, "unbiased" sets the bit below the kept blocks, at a block product one bit wider.
      pairs: indices (input, weight) of the blocks to multiply, in place of n_x and n_w. Of a
        static operand, 0 is the least significant block; of a dynamic one, the leading block.
      sites: patterns of the sites.

    Raises:
      ValueError: an argument out of range; when applied, a site that is not quantized on
        symmetric grids, or whose codes have fewer blocks.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.linspace(-1, 1, 32).reshape(4, 8)
      >>> net = js.trace(lambda params, x: x @ params["w"], {"w": jnp.eye(8)}, x)
      >>> chip = js.block(2, 2, 2)(js.quantize(8, 8)(net))  # two of four blocks of two bits
      >>> [wrapper.name for wrapper in chip.cores["w"]]
      ['quantized', 'blocked']

    Source: Elangovan, Jain and Raghunathan, "Ax-BxP", arXiv 2011.13000; "unbiased" after
    Hashemi, Bahar and Reda, "DRUM", ICCAD 2015.
    """
    modes = mode if isinstance(mode, tuple) else (mode, mode)
    if len(modes) != 2 or any(m not in get_args(Mode) for m in modes):
        raise ValueError(
            f"mode={mode!r}: must be 'exact', 'static' or 'dynamic', or a pair of them for "
            "(inputs, weights)"
        )
    if rounding not in get_args(Rounding):
        raise ValueError(f"rounding={rounding!r}: must be 'trunc', 'unbiased' or 'rounded'")
    size, counts = _count("K", K, 7), (_kept("n_x", n_x, pairs), _kept("n_w", n_w, pairs))
    for name, n, chosen_by in zip(("n_x", "n_w"), counts, modes, strict=True):
        if n is not None and chosen_by == "exact":
            raise ValueError(f"{name}={n}: mode='exact' keeps all blocks")
    dynamic = (modes[0] == "dynamic", modes[1] == "dynamic")
    chosen = None if pairs is None else _checked_pairs(pairs, size, modes, rounding)

    def blocks_of(widths: tuple[int, int]) -> Blocks:
        if chosen is not None:
            return pair_set(widths, size, chosen, dynamic=dynamic)
        return product_set(widths, size, counts, dynamic=dynamic, rounding=rounding)

    def apply(net: Net) -> Net:
        cores, made = dict(net.cores), dict[tuple[int, int], Blocks]()
        for site in transformable(net, "block", sites, tell_rest=True):
            require_dense(net, site.name, "block")
            widths = _widths(net, site)
            _check_fit(site, widths, size, counts, chosen)
            if widths not in made:
                made[widths] = blocks_of(widths)
            held = [w for w in hardware_chain(net, site) if w.role in ("slices", "array")]
            if held and len(made[widths].rows) > 1:
                raise ValueError(
                    f"block(pairs=…) cannot follow {held[0].name} at {site.name}: these pairs are "
                    "no product set, and a cell holds one code for all of them"
                )
            wrapper = Wrapper.of(blocked, blocks=made[widths], bits=widths)
            chain = cores[site.name]
            at = place_of(chain, "codes") + 1
            cores[site.name] = (*chain[:at], wrapper, *chain[at:])
        return dataclasses.replace(net, cores=cores)

    return apply


_BEHIND = frozenset({"slices", "inputs", "serial", "mapping", "array", "adc", "cells"})
"""Roles of what holds the blocks' codes, before which they are put."""


def _kept(name: str, n: Any, pairs: Any) -> Any:
    """A checked number of blocks."""
    if n is None:
        return None
    if pairs is not None:
        raise ValueError(f"{name}={n}: pairs=… says which blocks are kept")
    return _count(name, n, 7)


def _count(name: str, value: Any, most: int) -> Any:
    """A checked int; a traced one, which no check can see, as it is."""
    if is_traced(value):
        return value
    if isinstance(value, jax.Array) and value.ndim == 0:
        value = value.item()
    return checked_int(name, value, 1, most)


def _checked_pairs(
    pairs: Iterable[tuple[int, int]], K: Any, modes: tuple[Mode, Mode], rounding: Rounding
) -> Pairs:
    """The pairs, each once."""
    if is_traced(K):
        raise ValueError("pairs: K must be an int where pairs are given, not a traced value")
    if "exact" in modes or rounding != "trunc":
        raise ValueError(
            f"pairs with mode={modes}, rounding={rounding!r}: chosen blocks are 'static' or "
            "'dynamic', and the others dropped ('trunc')"
        )
    try:
        found = [(i, j) for i, j in pairs]
    except (TypeError, ValueError) as error:
        raise ValueError(f"pairs={pairs!r}: must be pairs of block indices") from error
    if not found:
        raise ValueError("pairs=(): give at least one pair")
    checked = {(checked_int("pairs", i, 0), checked_int("pairs", j, 0)) for i, j in found}
    return tuple(sorted(checked))


def _check_fit(
    site: Site, widths: tuple[int, int], K: Any, counts: tuple[Any, Any], pairs: Pairs | None
) -> None:
    """Checks that a site's codes have the blocks asked for; what is traced is not looked at."""
    if is_traced(K):
        return
    for side, (name, width, n) in enumerate(zip(("n_x", "n_w"), widths, counts, strict=True)):
        blocks = -(-(width - 1) // K)
        if width <= K:
            raise ValueError(f"K={K}: {width}-bit codes at {site.name} take from 1 to {width - 1}")
        if n is not None and not is_traced(n) and n > blocks:
            raise ValueError(
                f"{name}={n}: {width}-bit codes at {site.name} have {blocks} blocks of {K} bits"
            )
        if pairs is not None and (highest := max(pair[side] for pair in pairs)) >= blocks:
            raise ValueError(
                f"pairs: {width}-bit codes at {site.name} have blocks 0 to {blocks - 1} of {K} "
                f"bits, none of index {highest}"
            )


def _widths(net: Network, site: Site) -> tuple[int, int]:
    """Bits of the codes of inputs and weights at a site that blocks can be taken of.

    Raises:
      ValueError: it is not quantized on symmetric grids.
    """
    before = hardware_chain(net, site)
    coded = first_of(before, "codes")
    if coded is None:
        raise ValueError(
            f"block at {site.name}: it holds floats; put quantize(weights=…, inputs=…) before it"
        )
    behind = before[before.index(coded) + 1 :]
    if refused := [wrapper for wrapper in behind if wrapper.role not in _BEHIND]:
        raise ValueError(
            f"block cannot follow {refused[-1].name} at {site.name}: its blocks are of the codes "
            "that quantize makes, and nothing else may stand between"
        )
    widths: list[int] = []
    for name, grid in zip(("inputs", "weights"), coded.formats[::-1], strict=True):
        if grid is None:
            raise ValueError(
                f"block at {site.name}: its {name} are floats; put quantize({name}=…) before it"
            )
        if not isinstance(grid, Grid):
            raise ValueError(f"block at {site.name}: its {name} are on {grid}, expected a Grid")
        if not grid.symmetric:
            raise ValueError(
                f"block cannot follow an affine grid at {site.name}: blocks are of sign and "
                f"magnitude; put quantize({name}={grid.bits}), which is symmetric, before it"
            )
        if grid.spacing != "even":
            raise ValueError(
                f"block cannot follow spacing={grid.spacing!r} at {site.name}: a power of two has "
                "one block that is not zero"
            )
        widths.append(grid.bits)
    return widths[0], widths[1]
