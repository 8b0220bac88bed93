"""Graphs whose nodes have names: from edge lists in files, and from networkx."""

import re
from os import PathLike
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxsim.cascades.graph import ICGraph, from_edges
from jaxsim.files.text import read_lines
from jaxsim.numerics.checks import checked_int


class LabeledGraph(NamedTuple):
    """A graph and the names its nodes had in the file or object it came from.

    Examples:
      >>> import networkx as nx
      >>> import jaxsim.cascades as jc
      >>> found = jc.from_networkx(nx.DiGraph([("a", "b")]), 0.5)
      >>> found.labels.tolist(), found.graph.m
      (['a', 'b'], 1)
    """

    graph: ICGraph
    labels: np.ndarray
    """Original name of node i."""


def load_edgelist(
    path: str | PathLike[str],
    *,
    undirected: bool = False,
    probabilities: bool = False,
    skip_lines: int = 0,
    parallel: Literal["error", "combine"] = "combine",
) -> LabeledGraph:
    r"""Reads an edge list in the manner of SNAP: one `src dst` or `src dst p` a line.

    Args:
      path: Text file in UTF-8, columns separated by white space or commas; lines starting with
        # or % are comments. Node names are whole numbers of any length, or any text without
        commas and white space that is no number.
      undirected: Whether each line is an edge both ways.
      probabilities: Whether p is the third column; otherwise every p is 1 (follow with
        `weighted_cascade`, `uniform` or `trivalency`).
      skip_lines: Lines to leave out at the start, such as a header of sizes, at least 0.
      parallel: Treatment of repeated edges, as in `from_edges`.

    Returns:
      The graph and the file's node names as they are written there, in order: integers where
      all are integers of 64 bits, else text.

    Raises:
      ValueError: A line that does not parse, with its number, another encoding, or a file
        without edges.
      FileNotFoundError: No such file.

    Examples:
      >>> import pathlib, tempfile
      >>> import jaxsim.cascades as jc
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "edges.txt")
      ...     _ = path.write_text("# a comment\n10 20\n20 30\n")
      ...     found = jc.load_edgelist(path)
      >>> found.labels.tolist(), found.graph.src.tolist(), found.graph.dst.tolist()
      ([10, 20, 30], [0, 1], [1, 2])
    """
    skip_lines, columns = checked_int("skip_lines", skip_lines, 0), 3 if probabilities else 2
    names: list[str] = []
    strengths: list[float] = []
    where: list[int] = []
    for number, line in read_lines(path, skip=skip_lines):
        fields = _SEPARATOR.split(line)[:columns]
        if len(fields) < columns or not all(fields):
            raise ValueError(
                f"path = {path}, line {number}: {line!r}; allowed: {columns} columns, "
                "src dst" + " p" * probabilities
            )
        names += fields[:2]
        where.append(number)
        if probabilities:
            strengths.append(_strength(path, number, fields[2]))
    if not names:
        raise ValueError(f"path = {path} holds no edge; allowed: at least one line `src dst`")
    labels, ids = _node_ids(path, names, where)
    src, dst = ids.reshape(-1, 2).T
    p = np.asarray(strengths) if probabilities else 1.0
    graph = from_edges(src, dst, p, len(labels), undirected=undirected, parallel=parallel)
    return LabeledGraph(graph, labels)


_SEPARATOR = re.compile(r"\s*,\s*|\s+")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_DIGITS = 4000
"""Of a whole number that Python reads; names of more are in the order of text."""
_FRACTION = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


def _strength(path: str | PathLike[str], number: int, field: str) -> float:
    try:
        p = float(field)
    except ValueError:
        p = float("nan")
    if not 0 <= p <= 1:
        raise ValueError(f"path = {path}, line {number}: p = {field!r}; allowed: 0 to 1")
    return p


def _node_ids(
    path: str | PathLike[str], names: list[str], where: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Names of nodes in order, and the place there of each name of a file, two a line."""
    different = set(names)
    whole = {name for name in different if _WHOLE.fullmatch(name)}
    odd = different - whole if whole else {n for n in different if _FRACTION.fullmatch(n)}
    if odd:
        at = next(i for i, name in enumerate(names) if name in odd)
        raise ValueError(
            f"path = {path}, line {where[at // 2]}: node {names[at]!r} is no whole number; "
            "allowed: numeric names that are not fractional, or none that is a number; skip_lines "
            "leaves a header out"
        )
    # As they are written: "7" and "07" are two nodes, and a number may have any length.
    whole = whole if max(map(len, different)) < _DIGITS else set()
    ordered = sorted(different, key=(lambda n: (int(n), n)) if whole else None)
    index = {name: i for i, name in enumerate(ordered)}
    numbers = [int(name) for name in ordered] if whole else []
    plain = all(str(n) == name for n, name in zip(numbers, ordered, strict=False))
    if whole and plain and numbers[0] >= -(2**63) and numbers[-1] < 2**63:
        labels = np.asarray(numbers, np.int64)
    else:
        labels = np.asarray(ordered)
    return labels, np.fromiter((index[name] for name in names), np.int64, len(names))


def from_networkx(g: Any, p: str | float = 1.0) -> LabeledGraph:
    """Converts a networkx graph; an undirected edge becomes two, a parallel edge is combined.

    Args:
      g: A networkx graph, directed or not, with or without parallel edges.
      p: Probability of every edge in [0, 1], or the name of the edge attribute that has it.

    Returns:
      The graph and the networkx node of each index.

    Raises:
      ValueError: An edge without the attribute, or p outside [0, 1].

    Examples:
      >>> import networkx as nx
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_networkx(nx.path_graph(3), 0.5).graph  # undirected: both ways
      >>> g.n, g.m
      (3, 4)
    """
    nodes = list(g.nodes)
    index = {node: i for i, node in enumerate(nodes)}
    edges = [(index[u], index[v], data) for u, v, data in g.edges(data=True)]
    if isinstance(p, str):
        for u, v, data in edges:
            if p not in data:
                raise ValueError(
                    f"p = {p!r}: edge ({nodes[u]}, {nodes[v]}) lacks this attribute; "
                    "allowed: an attribute of every edge, or a number"
                )
        prob = np.asarray([data[p] for *_, data in edges], np.float64)
    else:
        prob = np.full(len(edges), p, np.float64)
    graph = from_edges(
        np.asarray([u for u, *_ in edges], np.int64),
        np.asarray([v for _, v, _ in edges], np.int64),
        prob,
        len(nodes),
        undirected=not g.is_directed(),
        parallel="combine",
    )
    labels = np.empty(len(nodes), object)
    labels[:] = nodes
    return LabeledGraph(graph, labels)
