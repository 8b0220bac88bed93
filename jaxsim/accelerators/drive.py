"""Drive of analog arrays: what share of their full power cells draw on given inputs."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.operand import writes_in_calls
from jaxsim.cores.role import role
from jaxsim.cores.wrapper import Wrapper, first_of
from jaxsim.network.deployment import deploy
from jaxsim.network.network import Network
from jaxsim.numerics.digits import broadcast_planes


class DriveState(NamedTuple):
    """State behind cells whose power is measured.

    Attributes:
      inner: What the inner core wrote.
      conductances: Conductance of each cell, 1 where it is full.
      power: Sum of conductance times squared drive over all reads of cells.
      reads: Number of reads of cells.
    """

    inner: State
    conductances: Float[Array, "..."]
    power: Float[Array, ""]
    reads: Float[Array, ""]


@role("observer")
def cell_power(core: Core, *, programmed: bool) -> Core:
    """Sums at calibration what the cells of an array draw: conductance times squared drive.

    Args:
      core: Contracts inputs with the cells.
      programmed: True if weights are conductances already, False if they are codes.
    """

    def write(op: Op, w: Array, key: Any) -> DriveState:
        g = jnp.abs(w.astype(jnp.float32))
        if not programmed and op.w_hi is not None and op.w_lo is not None:
            largest = np.maximum(np.maximum(-op.w_lo, op.w_hi), 1).astype(np.float32)
            g = g / broadcast_planes(largest, g.ndim)
        return DriveState(core.write(op, w, key), g, jnp.zeros(()), jnp.zeros(()))

    def calibrate(op: Op, state: DriveState, x: Array) -> DriveState:
        v = x.astype(jnp.float32)
        full = jnp.max(jnp.abs(v)) if op.x_hi is None else max(op.x_hi, -(op.x_lo or 0))
        drawn = op.contract(jnp.square(v / jnp.maximum(full, 1e-30)), state.conductances)
        return DriveState(
            core.calibrate(op, state.inner, x),
            state.conductances,
            state.power + jnp.sum(drawn),
            state.reads + float(drawn.size * op.depth),  # more than an int32 holds
        )

    def read(op: Op, state: DriveState, x: Array, key: Any) -> Array:
        return core.read(op, state.inner, x, key)

    return Core(write, calibrate, read)


def measure_drive(
    net: Network, inputs: Any, *, key: Key[Array, ""] | None = None
) -> dict[str, float]:
    """Measures the mean of G · V² over the cells of each analog site and all their reads.

    G is the conductance of a cell over the largest, V the drive of its row over the largest: 1 for
    a cell that is full and driven fully. `estimate(net, …, drive=…)` scales the energy of cells by
    it. Resistance of wires is left out: cells are taken to see the whole drive.

    Args:
      net: Network with analog sites, not deployed.
      inputs: A batch or an iterable of batches, as `deploy(calibrate=…)` takes them; values count.
      key: Random key, needed where cells have programming errors.

    Returns:
      The mean by name of the site. Sites whose cells each call writes are left out, and `estimate`
      takes their cells to be full.

    Raises:
      ValueError: No site is analog, or what `deploy` raises.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.ones((2, 4))
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((4, 2))}, x)
      >>> chip = js.compose(js.quantize(8, 8), js.analog())(net)
      >>> js.accelerators.measure_drive(chip, x)  # one cell of each pair is full, the other empty
      {'w': 0.5}
    """
    if net.deployed:
        raise ValueError("net is deployed: measure on the network before it")
    cores: dict[str, tuple[Wrapper, ...]] = {}
    for name, chain in net.cores.items():
        if first_of(chain, "array") is None or writes_in_calls(chain):
            cores[name] = chain
            continue
        cells = [i for i, w in enumerate(chain) if w.name == "conductance"]
        at = cells[-1] + 1 if cells else len(chain)
        probe = Wrapper.of(cell_power, programmed=bool(cells))
        cores[name] = (*chain[:at], probe, *chain[at:])
    analog = [name for name, chain in cores.items() if chain != net.cores[name]]
    if not analog:
        raise ValueError(
            "net: none of its sites is analog, or has cells that stay; put analog(…) on some"
        )
    probed = deploy(dataclasses.replace(net, cores=cores), key=key, calibrate=inputs)
    found: dict[str, float] = {}
    for name in analog:
        leaves = jax.tree.leaves(probed.states[name], is_leaf=lambda s: isinstance(s, DriveState))
        states = [leaf for leaf in leaves if isinstance(leaf, DriveState)]
        power, reads = (
            sum(float(jnp.sum(getattr(s, what))) for s in states) for what in ("power", "reads")
        )
        found[name] = power / reads if reads else 0.0
    return found
