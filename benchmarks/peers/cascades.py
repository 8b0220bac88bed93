"""Cascades by CyNetDiff, NDlib and SUBSIM."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import jaxsim.cascades as jc


def as_networkx(g: jc.ICGraph) -> Any:
    """The graph in networkx, probabilities as `activation_prob`."""
    import networkx as nx

    out = nx.DiGraph()
    out.add_nodes_from(range(g.n))
    edges = zip(
        np.asarray(g.src).tolist(),
        np.asarray(g.dst).tolist(),
        np.asarray(g.p).tolist(),
        strict=True,
    )
    out.add_weighted_edges_from(edges, weight="activation_prob")
    return out


def cynetdiff(g: jc.ICGraph, seeds: list[int], seed: int = 0) -> Any:
    """CyNetDiff's independent-cascade model with its seeds set."""
    from cynetdiff.utils import networkx_to_ic_model

    model = networkx_to_ic_model(as_networkx(g), rng=np.random.default_rng(seed))
    model = model[0] if isinstance(model, tuple) else model
    model.set_seeds(seeds)
    return model


def run_cynetdiff(model: Any, count: int) -> np.ndarray:
    """Sizes of `count` cascades of CyNetDiff."""
    sizes = np.empty(count)
    for i in range(count):
        model.reset_model()
        model.advance_until_completion()
        sizes[i] = model.get_num_activated_nodes()
    return sizes


def subsim_ms(program: Path, folder: Path, name: str) -> float:
    """Milliseconds in which SUBSIM says it found fifty seeds, reading the graph left out."""
    command = [str(program.resolve()), "-func=im", f"-gname={name}", "-seedsize=50", "-eps=0.1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    found = re.search(r"Time \(sec\): ([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    return 1e3 * float(found[1])


def write_for_subsim(program: Path, folder: Path, name: str, g: jc.ICGraph) -> None:
    """Writes a graph in the format of SUBSIM, with its weighted-cascade probabilities."""
    (folder / "graphInfo").mkdir(exist_ok=True)
    edges = np.stack([np.asarray(g.src), np.asarray(g.dst)], 1)
    head = f"{g.n} {len(edges)}"
    np.savetxt(folder / "graphInfo" / name, edges, fmt="%d", header=head, comments="")
    command = [str(program.resolve()), "-func=format", f"-gname={name}", "-pdist=wc"]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)


def ndlib(g: jc.ICGraph, seeds: list[int]) -> Callable[[], None]:
    """A function that runs one cascade of NDlib, in pure Python.

    Raises:
      ImportError: NDlib is not installed.
    """
    import ndlib.models.epidemics as epidemics
    from ndlib.models.ModelConfig import Configuration

    graph = as_networkx(g)
    config = Configuration()
    config.add_model_initial_configuration("Infected", seeds)
    for u, v, data in graph.edges(data=True):
        config.add_edge_configuration("threshold", (u, v), data["activation_prob"])
    model = epidemics.IndependentCascadesModel(graph)
    model.set_initial_status(config)

    def run() -> None:
        model.reset(infected_nodes=seeds)
        while model.iteration(node_status=False)["node_count"][1]:
            pass

    return run
