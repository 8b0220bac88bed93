"""What cells draw on real pictures: fixed figures beside conductances and drives."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

import jaxsim as js
from benchmarks.common.cifar import pictures, resnet
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings
from benchmarks.topics.analog_accuracy import chip
from jaxsim.accelerators import AnalogArray, measure_drive

SHORT = ("--pictures 4 --layouts differential offset",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellEnergySettings(Settings):
    """Settings of the run."""

    depth: int = 14
    """Layers of the network, 14 or 20."""
    pictures: int = 100
    """CIFAR-10 pictures that flow through it."""
    layouts: tuple[str, ...] = (
        "differential",
        "differential, 4 slices",
        "offset",
        "offset, 4 slices",
    )
    """How codes are held."""


def main(args: list[str]) -> None:
    """Measures G · V² over all cells and reads, of whole inputs and of inputs bit by bit."""
    settings = CellEnergySettings.read(args)
    net, held = resnet(settings.depth), pictures().images[: settings.pictures]
    arrays = js.Accelerator({"cells": AnalogArray(), "simd": js.accelerators.SimdUnit()})
    rows: list[list[str]] = []
    for layout in settings.layouts:
        for input_bits in (None, 1):
            made = chip(layout, adc=8, input_bits=input_bits)(net)
            drive = measure_drive(made, held, key=jax.random.key(0))
            fixed = js.estimate(made, arrays, held)
            follows = js.estimate(made, arrays, held, drive=drive)
            cells = [e.components["cells"] / len(held) for e in (fixed, follows)]
            total = sum(fixed.components[name] for name in ("adc", "dac", "cells")) / len(held)
            rows.append(
                [
                    layout,
                    "whole" if input_bits is None else "bit by bit",
                    f"{cells[0] / 1e6:.3f}",
                    f"{cells[1] / 1e6:.4f}",
                    f"{cells[1] / cells[0]:.2%}",
                    f"{min(drive.values()):.2%} to {max(drive.values()):.2%}",
                    f"{cells[0] / total:.1%}",
                ]
            )
    columns = (
        *("codes", "inputs", "cells, fixed, µJ", "cells, by data, µJ", "by data / fixed"),
        *("by layer", "cells of the array's energy, fixed"),
    )
    record(
        Path(__file__).stem,
        Table(columns, rows),
        question="How much less do cells draw on real pictures than when all are full and driven?",
        baseline="the fixed figure for each read of a cell",
        notes=(
            f"ResNet-{settings.depth} on CIFAR-10 pictures, 8-bit weights, 8-bit inputs without a "
            "sign behind each ReLU, ideal cells. Energy of one picture, of cells alone; G is 1 for "
            "the largest code of a cell, V for the largest of a digit. The fixed figure is ISAAC's "
            "for an array, taken to be at full drive. Converters are charged alike either way."
        ),
        settings=settings.recorded(),
    )
