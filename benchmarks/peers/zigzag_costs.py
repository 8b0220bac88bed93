"""Energy and cycles of matrix products by ZigZag 3.9, run by an interpreter that has it.

It has an environment of its own (`pip install zigzag-dse six`): this file is a program that reads
the array and the products from its standard input and writes what each costs to its standard
output. It imports nothing of jaxsim.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

SUMS = ["r_port_1", "r_port_2", "w_port_1", "w_port_2"]


def hardware(array: dict[str, float]) -> dict[str, Any]:
    """An array whose sums stay, one SRAM for all operands, and DRAM.

    Args:
      array: `rows`, `columns`, `mac` (pJ), `sram` and `dram` (pJ for a bit), `size` (bits of SRAM),
        `sram_bits` and `dram_bits` (bits a cycle).
    """

    def memory(size: float, cost: float, served: list[str], **more: Any) -> dict[str, Any]:
        plain = {"area": 0, "latency": 1, "auto_cost_extraction": False}
        costs = {"size": int(size), "r_cost": cost, "w_cost": cost}
        return {**costs, **plain, "served_dimensions": served, **more}

    def port(name: str, kind: str, bits: float, uses: list[str], least: int) -> dict[str, Any]:
        wide = {"bandwidth_min": least, "bandwidth_max": int(bits)}
        return {"name": name, "type": kind, **wide, "allocation": uses}

    def shared(bits: float, uses: list[str]) -> dict[str, Any]:
        ports = [port("rw_port_1", "read_write", bits, uses, 8)]
        return {"ports": ports, "operands": ["I1", "I2", "O"]}

    kinds, uses = ("read", "read", "write", "write"), ("O, tl", "O, th", "O, fh", "O, fl")
    sums = [port(n, k, 32, [u], 32) for n, k, u in zip(SUMS, kinds, uses, strict=True)]
    passed = [f"{operand}, {way}" for operand in ("I1", "I2", "O") for way in ("tl", "fh")]
    sides, both = ["D1", "D2"], [*passed, "O, fl", "O, th"]
    return {
        "name": "array",
        "memories": {
            "accumulators": memory(32, 0, [], ports=sums, operands=["O"]),
            "sram": memory(
                array["size"],
                array["sram"] * array["sram_bits"],
                sides,
                **shared(array["sram_bits"], both),
            ),
            "dram": memory(
                10**12,
                array["dram"] * array["dram_bits"],
                sides,
                **shared(array["dram_bits"], both),
            ),
        },
        "operational_array": {
            "input_precision": [8, 8],
            "unit_energy": array["mac"],
            "unit_area": 1,
            "dimensions": sides,
            "sizes": [int(array["rows"]), int(array["columns"])],
        },
    }


def costs(array: dict[str, float], matmuls: list[list[int]]) -> list[dict[str, float]]:
    """Energies in pJ by level, and cycles, of each product [M, K] @ [K, N] of 8-bit codes."""
    import yaml
    from zigzag.api import get_hardware_performance_zigzag

    mapping = {
        "name": "default",
        "spatial_mapping": {
            "D1": [f"M, {int(array['rows'])}"],
            "D2": [f"N, {int(array['columns'])}"],
        },
        "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
    }
    found: list[dict[str, float]] = []
    for m, k, n in matmuls:
        layer = {
            "id": 0,
            "name": "layer",
            "operator_type": "Gemm",
            "equation": "O[m][n]+=I[m][k]*W[k][n]",
            "loop_dims": ["M", "K", "N"],
            "loop_sizes": [m, k, n],
            "operand_precision": {"O": 32, "O_final": 8, "W": 8, "I": 8},
            "operand_source": {"I": 0, "W": 0},
        }
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file, value in (("w", [layer]), ("h", hardware(array)), ("m", [mapping])):
                (folder / f"{file}.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
            with contextlib.redirect_stdout(sys.stderr):
                _, _, results = get_hardware_performance_zigzag(
                    *(str(folder / f"{file}.yaml") for file in "whm"),
                    opt="energy",
                    dump_folder=str(folder / "out"),
                    loma_show_progress_bar=False,
                )
        best = results[0][0]
        energies = {str(operand): list(e) for operand, e in best.mem_energy_breakdown.items()}
        found.append(
            {
                "multiply": float(best.mac_energy),
                "sram": sum(e[-2] for e in energies.values()),
                "dram": sum(e[-1] for e in energies.values()),
                "steps": float(best.ideal_temporal_cycle),
                "cycles": float(best.latency_total0),
            }
        )
    return found


if __name__ == "__main__":
    logging.disable(logging.INFO)
    print(json.dumps(costs(**json.load(sys.stdin))))
