"""Cycles of matrix products by SCALE-Sim 3.0, run by an interpreter that has it.

It wants numpy below 2, so it has an environment of its own: this file is a program that reads
`{"rows", "columns", "dataflow", "matmuls"}` from its standard input and writes a cycle count for
each product to its standard output. It imports nothing of jaxsim.
"""

from __future__ import annotations

import contextlib
import csv
import json
import sys
import tempfile
from pathlib import Path

CONFIGURATION = """[general]
run_name = run

[architecture_presets]
ArrayHeight : {rows}
ArrayWidth : {columns}
IfmapSramSzkB: 65536
FilterSramSzkB: 65536
OfmapSramSzkB: 65536
IfmapOffset: 0
FilterOffset: 100000000
OfmapOffset: 200000000
Dataflow : {dataflow}
Bandwidth : 4000
ReadRequestBuffer: 32
WriteRequestBuffer: 32

[layout]
IfmapCustomLayout: False
FilterCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 10
IfmapSRAMBankPort: 2
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 10
FilterSRAMBankPort: 2

[sparsity]
SparsitySupport : false
SparseRep : ellpack_block
OptimizedMapping : false
BlockSize : 8
RandomNumberGeneratorSeed : 40

[run_presets]
InterfaceBandwidth: CALC
UseRamulatorTrace: False
"""
FLOWS = {"output": "os", "weight": "ws", "input": "is"}
ONES = ",".join(["1"] * 40)


def cycles(rows: int, columns: int, dataflow: str, matmuls: list[list[int]]) -> list[int]:
    """Cycles of each product [M, K] @ [K, N], memory never waited for."""
    from scalesim.scale_sim import scalesim

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = {"rows": rows, "columns": columns, "dataflow": FLOWS[dataflow]}
        (folder / "array.cfg").write_text(CONFIGURATION.format(**table))
        layers = [f"L{i},{m},{n},{k},\n" for i, (m, k, n) in enumerate(matmuls)]
        (folder / "layers.csv").write_text("Layer,M,N,K,\n" + "".join(layers))
        layout = [f"L{i},{ONES},\n" for i in range(len(matmuls))]
        (folder / "layout.csv").write_text(f"Layer,{ONES},\n" + "".join(layout))
        with contextlib.redirect_stdout(sys.stderr):
            simulator = scalesim(
                save_disk_space=True,
                verbose=False,
                config=str(folder / "array.cfg"),
                topology=str(folder / "layers.csv"),
                layout=str(folder / "layout.csv"),
                input_type_gemm=True,
            )
            simulator.run_scale(top_path=name)
        (report,) = folder.rglob("COMPUTE_REPORT.csv")
        with report.open() as lines:
            found = [
                {key.strip(): value for key, value in row.items() if key}
                for row in csv.DictReader(lines)
            ]
    return [int(row["Total Cycles"]) for row in found]


if __name__ == "__main__":
    print(json.dumps(cycles(**json.load(sys.stdin))))
