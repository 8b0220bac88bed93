"""Pruned weights, executed without their zeros where that is faster."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsim.cores.compressed import (
    Layout,
    compressed,
    matrices,
    places,
    stacked_places,
    stored,
)
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.wrapper import Wrapper, build, first_of
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Net, Network
from jaxsim.network.transform import Transform, hardware_chain, transformable
from jaxsim.network.writer import write_states
from jaxsim.numerics.checks import check_range, checked_int, is_traced
from jaxsim.transforms.codes import require_zeros
from jaxsim.transforms.merged_weights import is_merged
from jaxsim.values.calls import shown_as_called

BREAK_EVEN = {"rows": 0.85, "blocks": 0.95}
"""Share of a weight that must be left out before leaving it out is faster, for at least 64 rows of
inputs: measured on two CPU cores with 1024 × 1024 weights, blocks of 32 × 32."""
FEW_ROWS = 64
"""Below so many rows of inputs a dense product reads its weights once and is hard to beat: there is
no number that holds everywhere, and a user must measure."""
GRID = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
"""Shares that `measure_break_even` tries."""


@shown_as_called
def run_sparse(
    layout: Layout = "blocks",
    *,
    block: tuple[int, int] = (32, 32),
    break_even: float | None = None,
    sites: str | Sequence[str] = "*",
) -> Transform:
    """Holds the weights of pruned sites without their zeros and multiplies without them.

    What the masks leave fixes the places; the values stay parameters, so gradients flow and
    training goes on. They are floats, or codes of `quantize`, before or behind. On a CPU zeros must
    be many before this pays, and it is refused below that: for most networks `js.shrink` or a dense
    product is faster.

    Slices of a stack (layers that a scan runs, experts) hold as many weights each as the one with
    the most, which also is the one that must pay.

    Args:
      layout: "rows" for single weights (compressed sparse rows), "blocks" for masks of blocks.
      block: inputs and outputs of a block.
      break_even: share that must be left out, in [0, 1], as you have measured it on your machine
        (`js.measure_break_even`); None for what was measured on ours.
      sites: patterns of the sites.

    Raises:
      ValueError: an argument out of range; when applied, a site without a mask, of several groups,
        on a grid whose zero is no zero code or in other hardware; or one that a dense product would
        run faster.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.linspace(-1, 1, 32).reshape(4, 8)
      >>> net = js.trace(lambda params, x: x @ params["w"], {"w": jnp.eye(8)}, x)
      >>> sparse = js.run_sparse("rows", break_even=0.5)(js.prune(0.875)(net))
      >>> bool(jnp.allclose(sparse(x), x))
      True
    """
    if layout not in BREAK_EVEN:
        raise ValueError(f"layout={layout!r}: must be 'rows' or 'blocks'")
    size = tuple(checked_int("block", n, 1) for n in block)
    if len(size) != 2:
        raise ValueError(f"block={block!r}: must be two whole numbers")
    if break_even is not None:
        check_range("break_even", break_even, 0, 1)

    def apply(net: Net) -> Net:
        chosen = transformable(net, "run_sparse", sites)
        for site in chosen:
            what = f"run_sparse at {site.name}"
            if first_of(net.cores.get(site.name, ()), "mask") is not None:
                why = f"{', '.join(site.shared)} reads its parameter too"
                if is_merged(site, net.weights):
                    why = f"its weight is computed from {', '.join(site.sources)}"
                raise ValueError(
                    f"{what}: its mask stands at the site, as {why}; a sparse weight would be "
                    "another parameter"
                )
            if site.param not in net.masks:
                raise ValueError(f"{what}: no mask; prune it first")
            if is_traced(net.masks[site.param]):
                raise ValueError(f"{what}: its mask is traced, and its places must be known")
            require_zeros(what, hardware_chain(net, site))
        rows = {cost.name: cost.matmul for cost in net.cost().sites}
        held = _held(net, [site.name for site in chosen])
        for site in chosen:
            B, M, K, N = rows[site.name]
            what = f"run_sparse at {site.name}"
            if B > 1:
                raise ValueError(f"{what}: a product in {B} groups, only one can run sparse")
            where = stacked_places(held[site.name], layout, size)
            out = max(1 - stored(where, layout, size) / (K * N), 0.0)
            least = break_even
            if least is None:
                if M < FEW_ROWS:
                    raise ValueError(
                        f"{what}: {M} rows of inputs are few, and which way is faster depends on "
                        "the machine; give break_even=js.measure_break_even(…)"
                    )
                least = BREAK_EVEN[layout]
            if out < least:
                raise ValueError(
                    f"{what}: {out:.1%} of the products would be left out, and below "
                    f"{least:.1%} the dense product is faster; prune more, use js.shrink, or give "
                    "break_even as you have measured it"
                )
            wrapper = Wrapper.of(
                compressed, index=where.inputs, begins=where.begins, layout=layout, block=size
            )
            net = net.wrap([site.name], wrapper)
        return net

    return apply


def _held(net: Network, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Which entries of each site's matrix [*stack, K, N] masks leave; of groups, of the first."""
    ones = jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.asarray(net.masks.get(path_name(path), jnp.ones(p.shape)), p.dtype),
        net.params,
    )
    probe = dataclasses.replace(
        net, params=ones, masks={}, cores={name: (Wrapper.of(matrices),) for name in names}
    )
    return {n: np.asarray(w[..., 0, :, :]) != 0 for n, w in write_states(probe, None).items()}


def measure_break_even(
    inputs: int,
    outputs: int,
    rows: int,
    *,
    layout: Layout = "blocks",
    block: tuple[int, int] = (32, 32),
) -> float:
    """The share of a weight that must be left out before that is faster, on this machine, now.

    Args:
      inputs: of the weight.
      outputs: of the weight.
      rows: of inputs at a time, windows of a convolution included.
      layout: how weights are held.
      block: inputs and outputs of a block.

    Returns:
      The smallest share of those tried from which on all were faster; 1 if the largest was not.

    Raises:
      ValueError: an argument out of range.

    Examples:
      >>> import jaxsim as js
      >>> share = js.measure_break_even(64, 64, 8, block=(32, 32))
      >>> 0 <= share <= 1
      True
    """
    if layout not in BREAK_EVEN:
        raise ValueError(f"layout={layout!r}: must be 'rows' or 'blocks'")
    K, N = checked_int("inputs", inputs, 1), checked_int("outputs", outputs, 1)
    M = checked_int("rows", rows, 1)
    found = 1.0
    for share in reversed(GRID):
        dense, sparse = alternatives(K, N, M, share, layout, block)
        if _faster(sparse, dense):
            found = share
        else:
            break
    return found


def alternatives(
    K: int, N: int, M: int, share: float, layout: Layout, block: tuple[int, int]
) -> tuple[Callable[[], Array], Callable[[], Array]]:
    """A dense product and the sparse one of the same random weight, compiled, ready to call.

    Args:
      K: inputs.
      N: outputs.
      M: rows of inputs.
      share: left out, of the entries or of the blocks.
      layout: how weights are held.
      block: inputs and outputs of a block.
    """
    rng = np.random.default_rng(0)
    r, c = (1, 1) if layout == "rows" else block
    coarse = rng.random((-(-K // r), -(-N // c)))
    mask = np.kron(coarse >= np.quantile(coarse, share), np.ones((r, c), bool))[:K, :N]
    w = jnp.asarray(rng.normal(size=(K, N)) * mask, jnp.float32)
    x = jnp.asarray(rng.normal(size=(M, K)), jnp.float32)
    where = places(mask, layout, block)
    settings = {"index": where.inputs, "begins": where.begins, "layout": layout, "block": block}
    core = build([Wrapper.of(compressed, **settings)])
    op = Op(Dot((1,), (), (0,), (), 2, (K, N)), integer=True)
    state = jax.jit(lambda w: core.write(op, w, None))(w)
    sparse = jax.jit(lambda state, x: core.read(op, state, x, None))
    dense = jax.jit(jnp.dot)
    return lambda: dense(x, w), lambda: sparse(state, x)


def _faster(one: Callable[[], Any], other: Callable[[], Any]) -> bool:
    """Whether the median of a function's times is below that of another, called in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(8):
        for function, taken in zip((one, other), times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready([function() for _ in range(5)])
            if turn:  # the first one compiles
                taken.append(time.perf_counter() - began)
    return statistics.median(times[0]) < statistics.median(times[1])
