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
from benchmarks.topics.pyramid.batches import like_lengths
from benchmarks.topics.pyramid.settings import NAMES, PyramidSettings
from benchmarks.topics.pyramid.sweeps import (
    chosen_networks,
    timed_rows,
)
from jaxsim.console.timing import alternate
from jaxsim.network.network import Network, base_network
from jaxsim.staged.exit_step import count_programs


def timing(settings: PyramidSettings) -> None:
    """Seconds of the whole and of what is left, on the same rows."""
    tables: list[Table] = []
    for name in settings.data:
        nets, rows = chosen_networks(settings, name), timed_rows(settings, name)
        pyramid = nets["pruning and exit"]
        rule = dataclasses.replace(pyramid.tokens, level=0 * pyramid.tokens.level)
        zero = dataclasses.replace(pyramid, tokens=rule, threshold=jnp.float32(0))
        whole = functools.partial(_whole, base_network(pyramid))
        nets = {"pyramid that leaves out nothing": zero, **nets}
        ids, lengths = rows.ids, rows.lengths
        longest = np.full_like(lengths, ids.shape[1])
        runs: dict[str, Callable[[], Any]] = {
            "whole, sorted by length": functools.partial(like_lengths, whole, ids, lengths),
            "whole, padded to the longest": functools.partial(like_lengths, whole, ids, longest),
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
        title = f"{NAMES[name]}, {len(ids)} test rows; {compiled} programs compiled by `run`"
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


@jax.jit
def _whole(net: Network, ids: Any, lengths: Any) -> Any:
    return net(ids, lengths)
