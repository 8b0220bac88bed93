"""Circuits drawn as text."""

from __future__ import annotations

import numpy as np

from jaxsim.numerics.checks import is_traced
from jaxsim.quantum.circuit import Circuit, Gate


def draw(circuit: Circuit) -> str:
    """Draws a circuit as text: a line a wire, a column for gates that are side by side.

    Args:
      circuit: Circuit from `read_qfunc` or an ansatz; angles are printed in radians.

    Returns:
      Lines of text.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.quantum as jq
      >>> print(jq.draw(jq.basic_entangling(jnp.full((1, 2), 0.5))))
      0: ─RX(0.5)──●─
      1: ─RX(0.5)──X─
    """
    columns: list[list[Gate]] = []
    depth = [0] * circuit.n_wires
    for gate in circuit.gates:
        covered = range(min(gate.wires, default=0), max(gate.wires, default=-1) + 1)
        at = max((depth[w] for w in covered), default=0)
        if at == len(columns):
            columns.append([])
        columns[at].append(gate)
        for w in covered:
            depth[w] = at + 1
    lines = [f"{w}: " for w in range(circuit.n_wires)]
    for column in columns:
        cells = [""] * circuit.n_wires
        for gate in column:
            for w in range(min(gate.wires), max(gate.wires) + 1):
                cells[w] = _cell(gate, w)
        width = max(map(len, cells))
        lines = [
            line + "─" + cell.center(width, "─") + "─"
            for line, cell in zip(lines, cells, strict=True)
        ]
    return "\n".join(lines)


def _cell(gate: Gate, wire: int) -> str:
    """The text on one wire of a gate that covers it."""
    if wire not in gate.wires:
        return "│"
    if gate.name.startswith("C") and len(gate.wires) == 2 and wire == gate.wires[0]:
        return "●"
    name = "X" if gate.name == "CNOT" else gate.name
    shown = [("θ" if is_traced(a) else f"{float(np.asarray(a)):.3g}") for a in gate.angles]
    return f"{name}({', '.join(shown)})" if shown else name
