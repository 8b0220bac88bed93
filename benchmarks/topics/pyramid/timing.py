"""Seconds of the whole encoder and of what is left of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.record import Table, record
from benchmarks.topics.pyramid.settings import NAMES, PyramidSettings, data_sets
from benchmarks.topics.pyramid.sweeps import (
    chosen_networks,
    timed_rows,
)
from jaxsim.adaptive.encoder import Encoder
from jaxsim.adaptive.pyramid import count_programs
from jaxsim.adaptive.rule import round_up
from jaxsim.console.timing import alternate


def timing(settings: PyramidSettings) -> None:
    """Seconds of the whole and of what is left, on the same rows."""
    tables: list[Table] = []
    for name in data_sets(settings):
        nets, rows = chosen_networks(settings, name), timed_rows(settings, name)
        pyramid = nets["pruning and exit"]
        zero = dataclasses.replace(pyramid, level=0 * pyramid.level, threshold=jnp.float32(0))
        nets = {"pyramid that leaves out nothing": zero, **nets}
        ids, lengths = rows.ids, rows.lengths
        longest = np.full_like(lengths, 128)
        runs: dict[str, Callable[[], Any]] = {
            "whole, sorted by length": functools.partial(_dense, zero.encoder, ids, lengths),
            "whole, padded to 128": functools.partial(_dense, zero.encoder, ids, longest),
            **{family: functools.partial(net.run, ids, lengths) for family, net in nets.items()},
        }
        before = count_programs()
        times = alternate(runs, runs=settings.runs)
        compiled = count_programs() - before
        sorted_, padded = (times[way].median for way in list(runs)[:2])
        spent = {
            family: float(np.mean(net.run(ids, lengths).flops)) for family, net in nets.items()
        }
        body: list[list[Any]] = []
        for way, timed in times.items():
            gain, fewer = sorted_ / timed.median, 1.0
            if way in spent:
                fewer = spent["pyramid that leaves out nothing"] / spent[way]
            figures = [timed.median, gain, padded / timed.median, fewer, gain / fewer, timed.first]
            body.append([way, *(f"{figure:.2f}" for figure in figures)])
        columns = ["what is run", "s", "times faster", "than padded", "GFLOPs, times fewer"]
        title = f"{NAMES[name]}, {len(ids)} test rows; {compiled} count_programs compiled by `run`"
        tables.append(Table([*columns, "faster over fewer", "first call, s"], body, title))
    record(
        "pyramid_timing",
        *tables,
        question="How much of the FLOPs saved is saved on the clock?",
        baseline="the whole encoder as one program for each shape, rows sorted by length, the "
        "same buckets",
        notes="Seed 0 of the accuracy part, each at the setting that validation rows chose for "
        "half a point. Batches of up to 64 rows in multiples of 8, tokens in multiples of 16. "
        "First calls compile, those below with what the ones above have left.",
        settings={"runs": settings.runs, "rows": settings.rows},
    )


def _dense(pieces: Encoder, ids: np.ndarray, lengths: np.ndarray) -> list[Any]:
    """The whole encoder over batches of like lengths, in the shapes that `run` has."""
    order, found = np.argsort(lengths, kind="stable"), []
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        rows = np.resize(rows, round_up(len(rows), 8))
        n = round_up(int(lengths[rows].max()), 16)
        padded = np.pad(ids[rows], ((0, 0), (0, max(0, n - ids.shape[1]))))[:, :n]
        found.append(_whole(pieces, padded, lengths[rows]))
    return found


@jax.jit
def _whole(pieces: Encoder, ids: Any, lengths: Any) -> Any:
    return pieces(ids, lengths)
