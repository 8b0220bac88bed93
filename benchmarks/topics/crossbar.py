"""Parasitic resistance of one crossbar array: our solvers and those of others, side by side."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.cifar import resnet
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings
from benchmarks.peers.cross_sim import crosssim
from jaxsim.console.timing import alternate
from jaxsim.cores import wires
from tests.oracles import relaxation, resistors

SHORT = ("--sizes 64 --resistances 1e-3 --images 2 --solved 1",)

ON_OFF = 100.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossbarSettings(Settings):
    """Settings of the run."""

    sizes: tuple[int, ...] = (64, 128, 256)
    """Rows and columns of the arrays."""
    resistances: tuple[float, ...] = (1e-4, 1e-3)
    """R · Gmax from one cell to the next, of rows and columns alike."""
    vectors: int = 16
    """Inputs of one read."""
    runs: int = 5
    """Rounds in which the alternatives take turns, at least 5."""
    crosssim: Path | None = None
    """A folder that holds CrossSim's source (`simulator/`), to be timed too."""
    images: int = 256
    """Images of the layer."""
    solved: int = 2
    """How many of them the fixed point solves; its time grows as their number."""


def weights(n: int) -> np.ndarray:
    """A pair of arrays that holds normal weights as the difference of conductances."""
    w = np.random.default_rng(0).normal(0, 0.25, (n, n))
    w = w / np.abs(w).max()
    g = np.stack([np.maximum(w, 0), np.maximum(-w, 0)])
    return (1 / ON_OFF + (1 - 1 / ON_OFF) * g).astype(np.float32)


def settled(g: np.ndarray, v: np.ndarray, row: np.ndarray, column: np.ndarray) -> float:
    """A step with which the fixed point converges for both arrays, near the longest.

    The search, which takes far longer than a solution, is not timed: CrossSim keeps the step it
    found. It begins where the eigenvalues say that it ends.
    """
    m, n = g.shape[-2:]
    reach = (row[0] * (2 * (n + 0.5) / np.pi) ** 2) + (column[0] * (2 * (m + 0.5) / np.pi) ** 2)
    gamma = min(1.0, 2 / float(g.mean() * reach))
    return min(
        relaxation.solve(a, v[:2], row, column, gamma=gamma, iterations=500).gamma for a in g
    )


def solvers(n: int, r: float, settings: CrossbarSettings) -> list[list[Any]]:
    """Times and errors at one size and resistance."""
    g, rng = weights(n), np.random.default_rng(1)
    v = rng.uniform(-1, 1, (settings.vectors, n)).astype(np.float32)
    row, column = np.full(n, r, np.float32), np.full(n, r, np.float32)
    arrays = wires.input_source(r)
    gamma = settled(g, v, row, column)

    def exact() -> np.ndarray:
        plus, minus = (resistors.input_source(a, v, row, column)[0] for a in g)
        return plus - minus

    def fixed_point() -> np.ndarray:
        relax = partial(relaxation.solve, gamma=gamma, iterations=500)
        plus, minus = (relax(a, v, row, column).current for a in g)
        return plus - minus

    @jax.jit
    def cg(g: jax.Array, v: jax.Array, tolerance: float) -> jax.Array:
        plus, minus = wires.solve(g, v, arrays, tolerance=tolerance).current
        return plus - minus

    write = jax.jit(lambda g: wires.effective_conductance(g, arrays))
    read = jax.jit(lambda G, v: v @ G[0] - v @ G[1])
    written, g_, v_ = write(g), jnp.asarray(g), jnp.asarray(v)
    alternatives: dict[str, Callable[[], Any]] = {
        "fixed point, numpy": fixed_point,
        "scipy sparse LU": exact,
        **{
            f"jaxsim, conjugate gradients, {tolerance:g}": partial(cg, g_, v_, tolerance)
            for tolerance in (3e-2, 1e-3, 1e-6)
        },
        "jaxsim, effective conductance": lambda: read(write(g_), v_),
        "jaxsim, the same, written before": lambda: read(written, v_),
    }
    remarks = []
    if compute := resistors.badcrossbar():

        def badcrossbar() -> np.ndarray:
            plus, minus = (
                compute(v.T, 1 / a, r_i=r, node_voltages=False, all_currents=False) for a in g
            )
            return plus.currents.output - minus.currents.output

        alternatives["badcrossbar"] = badcrossbar
    else:
        remarks.append(["badcrossbar", "not installed"])
    if settings.crosssim is not None:
        theirs = crosssim(settings.crosssim.resolve(), r, g, v, gamma)
        if isinstance(theirs, str):
            remarks.append(["CrossSim", theirs])
        else:
            alternatives["CrossSim"] = theirs
    truth, times = exact(), alternate(alternatives, runs=settings.runs)
    base, rows = times["fixed point, numpy"].median, []
    for name, time in times.items():
        y = np.asarray(alternatives[name]())
        error = np.abs(y - truth).max() / np.abs(truth).max()
        rows.append(
            [
                *(n, f"{r:g}", name, f"{1e3 * time.median:.3g}", f"{base / time.median:.3g}"),
                *(f"{error:.1e}", f"{time.first:.1f}"),
            ]
        )
    rows += [[n, f"{r:g}", name, why, "–", "–", "–"] for name, why in remarks]
    return rows


def many_vectors(settings: CrossbarSettings) -> list[list[Any]]:
    """Writing a pair of arrays and reading ten thousand vectors, and the break-even with few."""
    rows = []
    for n in settings.sizes:
        g = jnp.asarray(weights(n))
        for r in settings.resistances:
            arrays = wires.input_source(r)
            cg = jax.jit(lambda g, v, arrays=arrays: wires.solve(g, v, arrays).current)
            matrix = jax.jit(lambda g, v, arrays=arrays: v @ wires.effective_conductance(g, arrays))
            v = jax.random.uniform(jax.random.key(0), (10_000, n), minval=-1)
            few = {str(b): partial(cg, g, v[:b]) for b in (4, 16, 64)}
            times = alternate({"0": partial(matrix, g, v), **few}, runs=settings.runs)
            slope = (times["64"].median - times["16"].median) / 48
            once = times["0"].median
            even = 16 + (once - times["16"].median) / slope if slope > 0 else float("nan")
            cells = [f"{1e3 * times[k].median:.3g}" for k in ("0", "4", "16", "64")]
            rows.append([n, f"{r:g}", *cells, f"{even:.0f}"])
    return rows


def gated(settings: CrossbarSettings) -> list[list[Any]]:
    """Cells a second of the one-pass scan, and its error on one vector."""
    rows = []
    for m, n, b in ((576, 64, 256), (1152, 256, 64)):
        rng = np.random.default_rng(0)
        g = jnp.asarray(np.stack([rng.uniform(0, 1, (m, n)), rng.uniform(0, 1, (m, n))]), "float32")
        x = jnp.asarray(rng.integers(0, 2, (b, m)), jnp.float32)
        for pairs in (False, True):
            array = wires.gated(1e-3, interleaved=pairs)
            scan = jax.jit(lambda g, x, array=array: wires.currents(g, x, array))
            times = alternate({"scan": partial(scan, g, x)}, runs=max(settings.runs, 9))
            y, column = np.asarray(scan(g, x)), np.full(m, np.float32(1e-3), float)
            plus, minus = np.asarray(g, float)[:, :, :4]
            exact = resistors.gated(plus, minus if pairs else 0 * minus, np.asarray(x[0]), column)
            error = np.abs(y[0, 0, :4] - exact).max() / np.abs(exact).max()
            rate = 2 * m * n * b / times["scan"].median / 1e9
            kind = "pairs on one wire" if pairs else "two arrays"
            rows.append(
                [
                    *(f"{m} × {n}", b, kind, f"{1e3 * times['scan'].median:.3g}"),
                    *(f"{rate:.2f}", f"{error:.1e}"),
                ]
            )
    return rows


def layer(settings: CrossbarSettings) -> list[list[Any]]:
    """A convolution of ResNet-14 for many images: written once, or solved for every window."""
    kernel = np.asarray(resnet(14).params["Block_5"]["Conv_1"]["kernel"])
    w = kernel.reshape(-1, kernel.shape[-1]) / np.abs(kernel).max()
    g = np.stack([np.maximum(w, 0), np.maximum(-w, 0)])
    g = (1 / ON_OFF + (1 - 1 / ON_OFF) * g).astype(np.float32)
    rng, r = np.random.default_rng(1), 1e-4
    shape = (settings.images, 8, 8, kernel.shape[2])
    x = np.maximum(rng.uniform(-1, 1, shape), 0).astype(np.float32)
    arrays = wires.input_source(r)
    row, column = np.full(g.shape[2], r, np.float32), np.full(g.shape[1], r, np.float32)

    @jax.jit
    def convolve(g: jax.Array, x: jax.Array) -> jax.Array:
        plus, minus = wires.effective_conductance(g, arrays)
        kernel_ = (plus - minus).reshape(kernel.shape)
        return jax.lax.conv_general_dilated(
            x, kernel_, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    few = x[: settings.solved]
    padded = np.pad(few, [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    v = np.moveaxis(windows, 3, 5).reshape(-1, g.shape[1])
    chunks = np.split(v, range(64, len(v), 64))
    longest = settled(g, v, row, column)
    gamma = min(
        (share * longest for share in (1.0, 0.9, 0.8, 0.7, 0.6)),
        key=lambda step: relaxation.solve(g[0], v[:2], row, column, gamma=step).iterations,
    )
    theirs: dict[str, Callable[[], np.ndarray]] = {
        "fixed point, numpy": lambda: np.concatenate(
            [
                np.subtract(*(relaxation.solve(a, c, row, column, gamma=gamma).current for a in g))
                for c in chunks
            ]
        )
    }
    if settings.crosssim is not None:
        each = [crosssim(settings.crosssim.resolve(), r, g, c, gamma) for c in chunks]
        solved = [run for run in each if not isinstance(run, str)]
        if len(solved) == len(each):
            theirs["CrossSim"] = lambda: np.concatenate([run() for run in solved])
    exact = np.subtract(*(resistors.input_source(a, v[:64], row, column)[0] for a in g))
    ours = {"jaxsim, matrix written and read": lambda: convolve(jnp.asarray(g), jnp.asarray(x))}
    times = alternate({**theirs, **ours}, runs=settings.runs)
    rows = []
    for name, time in times.items():
        y = np.asarray((theirs | ours)[name]()).reshape(-1, g.shape[2])[:64]
        share = 1 if name in ours else settings.solved / settings.images
        seconds = time.median / share
        error = np.abs(y - exact).max() / np.abs(exact).max()
        base = times["fixed point, numpy"].median * settings.images / settings.solved
        rows.append([name, f"{seconds:.3g}", f"{base / seconds:.3g}", f"{error:.1e}"])
    return rows


def main(args: list[str]) -> None:
    """Measures the solvers beside those of others, many vectors, and the gated scan."""
    settings = CrossbarSettings.read(args)
    rows = [
        row for n in settings.sizes for r in settings.resistances for row in solvers(n, r, settings)
    ]
    first = ("n", "r", "solver", "ms", "× fixed point", "error", "first call s")
    second = ("n", "r", "10 000 by matrix, ms", "4 by CG", "16 by CG", "64 by CG", "break-even")
    third = ("array", "vectors", "cells", "ms", "Gcell/s", "error")
    record(
        "crossbar",
        Table(first, rows, f"A pair of n × n arrays, {settings.vectors} vectors"),
        Table(second, many_vectors(settings), "Many vectors, a pair of arrays"),
        Table(third, gated(settings), "Gated topology, r = 1e-3"),
        Table(
            ("solver", "s", "× fixed point", "error"),
            layer(settings),
            f"A convolution of ResNet-14, 576 × 64, for {settings.images} images, r = 1e-4",
        ),
        question="How fast and how exact are currents of an array whose wires have resistance?",
        baseline="fixed-point iteration with under-relaxation, CrossSim's method, tolerance 1e-3",
        notes="Errors are largest ones of the difference of the pair against sparse LU in float64, "
        "relative to the largest difference. The step of the fixed point was searched for before, "
        "untimed. Break-even is the number of vectors at which computing the matrix costs what "
        "conjugate gradients do. CrossSim is run where `--crosssim` names its source. Cells of the "
        "gated table count both of a pair. The convolution has the weights of ResNet-14's last "
        "and inputs uniform in 0 to 1, half of them zero; the fixed point solves "
        f"{settings.solved} images with the step that takes it the fewest iterations, and its time "
        "is multiplied. Errors there are those of the first image.",
        settings=settings.recorded(crosssim=settings.crosssim is not None),
    )
