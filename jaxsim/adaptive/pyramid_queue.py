"""Runs a pyramid on the host: batches of rows of like lengths, of what is still computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsim.adaptive.encoder import flops_of_rows
from jaxsim.adaptive.pyramid_step import (
    LayerOutputs,
    embed_ids,
    jitted_attend,
    jitted_decide,
    jitted_layers,
    take_rows,
    take_tokens,
)
from jaxsim.adaptive.rule import (
    Buckets,
    Exits,
    PatienceState,
    initial_patience,
    pad_rows,
    round_up,
)

if TYPE_CHECKING:
    from jaxsim.adaptive.pyramid import Pyramid


class _ExitRecord(NamedTuple):
    """Outputs of one layer for the rows that reached it.

    Attributes:
      rows: Indices of the rows in the input.
      at: Indices of the rows in the batch.
      layer: Index of the layer, from 0.
      kept: Number of tokens of each row.
      answer: Outputs of the whole batch.
    """

    rows: np.ndarray
    at: np.ndarray
    layer: int
    kept: np.ndarray
    answer: LayerOutputs


def run_in_batches(net: Pyramid, ids: np.ndarray, lengths: np.ndarray, buckets: Buckets) -> Exits:
    """Computes the exits of all rows, without what is left out.

    Args:
      net: Pyramid.
      ids: Token ids [N, n].
      lengths: Number of tokens of each row, [N].
      buckets: Shapes to compile for.
    """
    order = np.argsort(lengths, kind="stable")
    said: list[_ExitRecord] = []
    for start in range(0, len(order), buckets.max_batch):
        said += _run_batch(net, ids, lengths, order[start : start + buckets.max_batch], buckets)
    B, L, C = len(ids), len(net.encoder.attention), net.encoder.head["bias"].shape[0]
    dtype = net.encoder.head["bias"].dtype
    logits, layer = np.zeros((B, C), dtype), np.zeros(B, np.int32)
    kept, uncertainty = np.zeros((B, L), np.int32), np.full((B, L), np.nan, np.float32)
    for rows, at, i, count, answer in said:
        # Later layers overwrite: what is left is the exit that each row took.
        logits[rows], layer[rows] = np.asarray(answer.logits)[at], i + 1
        kept[rows, i], uncertainty[rows, i] = count, np.asarray(answer.uncertainty)[at]
    flops = flops_of_rows(net.encoder, np.concatenate([lengths[:, None], kept[:, :-1]], 1), kept)
    return Exits(*map(jnp.asarray, (logits, layer, uncertainty, flops, kept)))


def _run_batch(
    net: Pyramid, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray, buckets: Buckets
) -> list[_ExitRecord]:
    """Runs all layers over rows of like lengths."""
    encoder, ends = net.encoder, _ends(net)
    padded = pad_rows(rows, round_up(len(rows), buckets.batch))
    count = lengths[padded].astype(np.int32)
    n = min(round_up(int(count.max()), buckets.token), encoder.positions)
    given = np.zeros((len(padded), n), np.int32)
    width = min(n, ids.shape[1])
    given[:, :width] = ids[padded, :width]
    x, streak = embed_ids(encoder.embed, given), initial_patience(len(padded))
    at, said, i = np.arange(len(rows)), [], 0
    while i < len(ends):
        size = round_up(len(at), buckets.batch)
        if size < len(count):
            chosen = pad_rows(at, size)
            x = take_rows(x, chosen)
            streak = PatienceState(*(jnp.asarray(np.asarray(part)[chosen]) for part in streak))
            count, at = count[chosen], np.arange(len(at))
        if ends[i] > i:
            x, streak, answers = _layers(net, i, ends[i], x, count, streak)
        else:
            x, keep = jitted_attend(
                encoder.attention[i], net.level[i], x, count, net.keeps, net.protect
            )
            keep = np.asarray(keep)
            count = keep.sum(1, dtype=np.int32)
            n = min(round_up(int(count[at].max()), buckets.token), x.shape[1])
            count = np.minimum(count, n)  # of rows that have left
            # Tokens that stay keep their order.
            tokens = np.argsort(~keep, 1, kind="stable")[:, :n].astype(np.int32)
            x, streak, answers = _second_half(net, i, take_tokens(x, tokens), count, streak)
        said += [_ExitRecord(rows, at, i + k, count[at], a) for k, a in enumerate(answers)]
        i += len(answers)
        if _waits(net, i - 1):
            stay = ~np.asarray(answers[-1].leave)[at]
            rows, at = rows[stay], at[stay]
            if not len(at):
                break
    return said


def _second_half(
    net: Pyramid, i: int, y: Any, count: Any, streak: PatienceState
) -> tuple[Array, PatienceState, list[LayerOutputs]]:
    """Runs the second half of layer i."""
    pieces = net.encoder.feed_forward[i], net.all_heads[i]
    x, streak, answer = jitted_decide(
        *pieces, y, count, streak, net.threshold, np.int32(i + 1), **_static(net)
    )
    return x, streak, [answer]


def _layers(
    net: Pyramid, i: int, end: int, x: Any, count: Any, streak: PatienceState
) -> tuple[Array, PatienceState, list[LayerOutputs]]:
    """Runs layers i to `end`, which leave out no token."""
    encoder = net.encoder
    layers = zip(encoder.attention, encoder.feed_forward, net.all_heads, strict=True)
    return jitted_layers(
        tuple(layers)[i:end], x, count, streak, net.threshold, np.int32(i + 1), **_static(net)
    )


def _static(net: Pyramid) -> dict[str, Any]:
    return {"pool": net.encoder.pool, "patience": net.patience, "first": net.first}


def _ends(net: Pyramid) -> list[int]:
    """Finds for each layer where the run of layers from it on ends that one program computes.

    That is before a layer that leaves out tokens, and after one whose rows may leave: the layer
    itself where it leaves out tokens.
    """
    levels, L = np.asarray(net.level), len(net.encoder.attention)
    ends: list[int] = []
    for i in range(L):
        end = i
        while end < L and levels[end] <= 0 and (end == i or not _waits(net, end - 1)):
            end += 1
        ends.append(end)
    return ends


def _waits(net: Pyramid, i: int) -> bool:
    """Tells if rows may leave after layer i, so that the host has to look."""
    may = bool(net.patience) or float(net.threshold) > 0
    return may and net.first <= i + 1 < len(net.encoder.attention)


def precompile(net: Pyramid, longest: int, buckets: Buckets) -> None:
    """Compiles what `run_in_batches` can meet for sequences of up to `longest` tokens.

    Args:
      net: Pyramid.
      longest: Number of tokens of the longest sequence.
      buckets: Shapes to compile for.
    """
    rows = range(buckets.batch, buckets.max_batch + 1, buckets.batch)
    steps = range(buckets.token, round_up(longest, buckets.token) + 1, buckets.token)
    tokens = [min(n, net.encoder.positions) for n in steps]
    sizes = {1, len(net.all_heads)} | {end - i for i, end in enumerate(_ends(net)) if end > i}
    for B in rows:
        for n in tokens:
            x = embed_ids(net.encoder.embed, np.zeros((B, n), np.int32))
            count = np.ones(B, np.int32)
            jitted_attend(net.encoder.attention[0], net.level[0], x, count, net.keeps, net.protect)
            _second_half(net, 0, x, count, initial_patience(B))
            for size in sizes:
                _layers(net, 0, size, x, count, initial_patience(B))
            for b in (b for b in rows if b < B):
                take_rows(x, np.zeros(b, np.int32))
            for m in (m for m in tokens if m <= n):
                take_tokens(x, np.zeros((B, m), np.int32))
