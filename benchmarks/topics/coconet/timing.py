"""Leave-one-out codes from one factorization, beside as many refits."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

import jaxsim.collaborative as jcol
from benchmarks.common.record import Table, record
from benchmarks.peers.collaborative import refits
from benchmarks.topics.coconet.settings import CoconetSettings
from jaxsim.console.timing import alternate


def timing(settings: CoconetSettings) -> None:
    """All leave-one-out codes from one factorization, beside as many refits."""
    rows = []
    for N, d in ((40, 128), (200, 64), (400, 256)):
        X = jcol.unit(jax.random.normal(jax.random.key(0), (N, d)))
        ours, theirs = jax.jit(jcol.loo_codes), jax.jit(refits)
        codes = np.asarray(ours(X, 0.1))[~np.eye(N, dtype=bool)].reshape(N, N - 1)
        off = np.abs(codes - theirs(X, 0.1)).max()
        times = alternate(
            {"one": partial(ours, X, 0.1), "refits": partial(theirs, X, 0.1)}, runs=settings.runs
        )
        one, many = times["one"], times["refits"]
        rows.append(
            [
                N,
                d,
                f"{1e3 * one.median:.3f}",
                f"{1e3 * many.median:.2f}",
                f"{many.median / one.median:.0f}",
                f"{one.first:.2f}, {many.first:.2f}",
                f"{off:.0e}",
            ]
        )
    columns = ["N", "d", "one factorization, ms", "N refits, ms", "ratio", "first s", "off by"]
    record(
        "coconet",
        Table(columns, rows),
        question="What do the codes of all samples, each from the others, cost?",
        baseline="N refits in a jitted lax.map, each of them solved in the smaller dimension",
        settings={"runs": settings.runs},
    )
