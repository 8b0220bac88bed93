"""`jaxsim influence`: an edge list or a cascade file in, seeds with a certificate out."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxsim.cascades import graph as graphs
from jaxsim.cascades.infer import diagnose, infer_network
from jaxsim.cascades.labeled import LabeledGraph, load_edgelist
from jaxsim.cascades.maximize import IMResult, maximize_influence
from jaxsim.cascades.plot import plot_influence
from jaxsim.cascades.sample import load_cascades
from jaxsim.cascades.simulate import influence as compare
from jaxsim.cli.options import Seeded


@dataclasses.dataclass(frozen=True)
class Influence(Seeded):
    """Find the most influential nodes of a network, with a certificate."""

    source: Annotated[Path, tyro.conf.Positional]
    """Edge list (`src dst [p]` a line), or with --cascades a file of `node,time` pairs a line."""
    k: int = 10
    """Number of seeds."""
    cascades: bool = False
    """The source holds observed cascades; learn the network from them first."""
    width: float = 1.0
    """Length of a time step of cascades, in the file's unit."""
    p: Literal["weighted-cascade", "trivalency", "file"] | float = "weighted-cascade"
    """Edge probabilities: 1/in-degree, one of .1/.01/.001, the third column, or one number."""
    undirected: bool = False
    """Every line is an edge both ways."""
    skip_lines: int = 0
    """Header lines to leave out."""
    eps: float = 0.1
    """Certify a ratio of 1 - 1/e - eps."""
    max_rr: int | None = None
    """Most reverse-reachable sets to sample."""
    simulations: int = 8192
    """Simulations to report the spread from."""
    plot: Path | None = None
    """Image file for spread against number of seeds."""


def _read_graph(args: Influence, console: Console) -> LabeledGraph:
    if args.cascades:
        cascades, labels = load_cascades(args.source, width=args.width)
        estimate = infer_network(cascades)
        found = jax.device_get(diagnose(cascades, estimate))
        console.print(
            f"{cascades.t} cascades over {cascades.n} nodes; identifiable pairs "
            f"{found.identifiable:.1%}, seeding rates {found.q_least:.2g} to {found.q_most:.2g}, "
            f"seed dependence {found.seed_dependence:.2f} (1 = independent)"
        )
        usable = estimate.identifiable & ~estimate.unlearnable[None]
        return LabeledGraph(estimate._replace(identifiable=usable).to_graph(), labels)
    read = load_edgelist(
        args.source,
        undirected=args.undirected,
        probabilities=args.p == "file",
        skip_lines=args.skip_lines,
    )
    if args.p == "weighted-cascade":
        return read._replace(graph=graphs.weighted_cascade(read.graph))
    if args.p == "trivalency":
        key = jax.random.fold_in(jax.random.key(args.seed), 3)
        return read._replace(graph=graphs.trivalency(read.graph, key))
    if args.p == "file":
        return read
    return read._replace(graph=read.graph.with_p(args.p))


def influence(args: Influence) -> IMResult:
    """Runs the command.

    Args:
      args: The command line.

    Returns:
      What was printed.

    Raises:
      ValueError: An argument out of range or a file that does not parse.
      FileNotFoundError: No such file.
    """
    console = args.open()
    if args.simulations < 1:
        raise ValueError(f"simulations = {args.simulations}; allowed: at least 1")
    columns = (SpinnerColumn("line"), TextColumn("{task.description}"), TimeElapsedColumn())
    search, evaluate = jax.random.split(jax.random.key(args.seed))
    with Progress(*columns, console=console, transient=True, disable=args.quiet) as progress:
        task = progress.add_task(f"reading {args.source}")
        graph, labels = _read_graph(args, console)
        progress.update(task, description=f"{graph.n} nodes, {graph.m} edges: sampling")

        def show(state: IMResult) -> None:
            text = f"{state.n_rr} reverse-reachable sets, certified ratio {state.ratio:.3f}"
            progress.update(task, description=text)

        result = maximize_influence(
            graph, args.k, search, eps=args.eps, max_rr=args.max_rr, progress=show
        )
        progress.update(task, description="simulating the seeds")
        rows = jnp.tril(jnp.ones((args.k, args.k), bool))
        prefixes = compare(
            graph, jnp.where(rows, result.seeds[None], -1), evaluate, args.simulations
        )
    names = [str(labels[i]) for i in np.asarray(result.seeds)]
    table = Table(title=f"{args.k} seeds of {args.source.name}")
    for column in ("seed", "node", "spread up to it", "± s.e."):
        table.add_column(column, justify="right")
    for i, name in enumerate(names):
        row = (f"{float(prefixes.mean[i]):.2f}", f"{float(prefixes.sem[i]):.2f}")
        table.add_row(str(i + 1), name, *row)
    console.print(table)
    verdict = "certified" if result.certified else "[yellow]not certified[/yellow]"
    console.print(
        f"spread between {result.lower:.1f} and, for any {args.k} seeds, {result.upper:.1f}: "
        f"ratio {result.ratio:.3f}, {verdict} at 1 - 1/e - {args.eps} "
        f"({result.n_rr} reverse-reachable sets)"
    )
    if args.cascades:
        console.print("the certificate is about the learned network, not about the world")
    if args.plot is not None:
        plot_influence(args.plot, prefixes, result)
        console.print(f"plot written to {args.plot}")
    args.write(
        {
            "seeds": names,
            "spread": float(prefixes.mean[-1]),
            "sem": float(prefixes.sem[-1]),
            "lower": result.lower,
            "upper": result.upper,
            "ratio": result.ratio,
            "certified": result.certified,
            "n_rr": result.n_rr,
        }
    )
    return result
