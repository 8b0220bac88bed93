"""Figures of the documentation that need no long run: `python -m benchmarks figures`."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np

import jaxsim as js
from benchmarks.common.files import file, unless_missing
from benchmarks.common.graphs import FILES
from benchmarks.common.record import IMAGES, RESULTS
from jaxsim.cli.influence import Influence, influence
from jaxsim.pipeline.plot import gantt


def main() -> int:
    """Draws them all, from recorded results, by simulation, or from data where they are there."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    sparsity()
    pipeline()
    with unless_missing("figure influence.png"):
        graph = file(f"influence/{FILES['email'][0]}")
        influence(Influence(graph, k=20, plot=IMAGES / "influence.png"))
    return 0


def sparsity() -> None:
    """Accuracy against sparsity of each method, as recorded by `sparsity`."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    accuracies = json.loads((RESULTS / "sparsity_curves.json").read_text())["tables"][0]
    _, *shares = accuracies["columns"]
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for i, (name, *cells) in enumerate(accuracies["rows"]):
        means, errors = np.array([[float(v) for v in c.split(" ± ")] for c in cells]).T
        places = np.arange(len(shares)) + 0.02 * i
        shown = {"marker": "os^Dv"[i % 5], "ms": 4, "capsize": 2, "color": colormaps["tab20"](i)}
        ax.errorbar(places, means, errors, label=name, **shown)
    ax.set_xticks(range(len(shares)), shares)
    ax.set_xlabel("weights pruned")
    ax.set_ylabel("accuracy, %")
    ax.set_ylim(bottom=70)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    figure.savefig(IMAGES / "sparsity.png", dpi=120)


def pipeline() -> None:
    """A simulated training step of four equal stages."""
    x, weights = jnp.ones((8, 16)), [jnp.eye(16)] * 4

    def layers(weights: list[jax.Array], x: jax.Array) -> jax.Array:
        for w in weights:
            x = jnp.tanh(x @ w)
        return x

    cut = js.pipeline_shard(4, 8, schedule="1f1b", remat="none", devices=jax.devices()[:1] * 4)
    gantt(IMAGES / "pipeline.png", js.simulate_schedule(cut(js.trace(layers, weights, x))))
