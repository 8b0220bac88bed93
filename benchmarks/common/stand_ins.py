"""Files that generators draw in place of data a machine lacks, so that short forms run on them.

Nothing is recorded of them: a full run reads the data, or says what it needs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.common.graphs import FILES, SEEDS

EDGES = 10_000

WORDS = (
    "awful bad boring clumsy dull empty flat grim lame poor slow stale tired ugly weak worse",
    "best bright charming clever fine fresh funny good great lovely moving rich sharp smart warm",
)
"""Words that blame, and words that praise."""
_OTHERS = "a an and as but film in is it its movie of plot story that the this with"


def graph(name: str, header: bool) -> str:
    """Edges of a ring and between hubs, among which are the seeds of the graph it stands for.

    Args:
      name: Key of `graphs.FILES`.
      header: Whether a line with both counts is above the edges.
    """
    rng = np.random.default_rng(len(name))
    ring = np.arange(max(SEEDS[name]) + 500)
    rest = rng.permutation(np.setdiff1d(ring, SEEDS[name]))
    nodes = np.concatenate([SEEDS[name], rest])
    share = (np.arange(len(nodes)) + 10.0) ** -0.7
    ends = rng.choice(nodes, (2, EDGES), p=share / share.sum())
    ends = np.concatenate([[ring, np.roll(ring, 1)], ends[:, ends[0] != ends[1]]], 1)
    edges = np.unique(ends, axis=1).T
    lines = [f"{a} {b}" for a, b in edges.tolist()]
    return "\n".join(([f"{len(nodes)} {len(edges)}"] if header else []) + lines) + "\n"


def sentences(seed: int, count: int) -> str:
    """Sentences of words that praise or blame, and of others, each with 1 or 0 behind a tab.

    Args:
      seed: Of the draw.
      count: Number of sentences.
    """
    rng = np.random.default_rng(seed)
    lines = list[str]()
    for label in rng.integers(0, 2, count).tolist():
        words = [
            *rng.choice(WORDS[label].split(), 2),
            *rng.choice(_OTHERS.split(), rng.integers(3, 16)),
        ]
        lines.append(f"{' '.join(rng.permutation(words))}\t{label}")
    return "\n".join(lines) + "\n"


def _graph_of(name: str) -> Callable[[], str]:
    return lambda: graph(name, header="skip_lines" in FILES[name][1])


STAND_INS: dict[str, Callable[[], str]] = {
    **{f"influence/{file}": _graph_of(name) for name, (file, _) in FILES.items()},
    "mp_ni/sst2_train.tsv": lambda: sentences(0, 600),
    "mp_ni/sst2_dev.tsv": lambda: sentences(1, 200),
    "mp_ni/sst2_test.tsv": lambda: sentences(2, 200),
}
"""Texts of files, by the names that `files.SOURCES` has."""
