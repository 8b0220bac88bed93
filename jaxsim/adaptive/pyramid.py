"""An encoder that leaves out tokens as it goes up and lets rows leave before the top.

Two functions decide and compute: `_attend`, the first half of a layer and which tokens stay, and
`_conclude`, the second half and what its exit says. `simulate` takes them over whole batches and
masks what is left out; `run` takes them over what remains.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxsim.adaptive.encoder import Encoder, Pool, check_ids, flops_layer
from jaxsim.adaptive.heads import Head, classified
from jaxsim.adaptive.rows import check_rows
from jaxsim.adaptive.rule import (
    Buckets,
    Exits,
    Rule,
    Streak,
    check_buckets,
    check_rule,
    leaves,
    no_streak,
    rounded_up,
)
from jaxsim.adaptive.tokens import Keeps, above, check_levels, prefix, soft_mask, stays
from jaxsim.internals import compile_count
from jaxsim.network.network import Network
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range, checked_int, is_traced
from jaxsim.values.value import PytreeValue


class Passed(NamedTuple):
    """What every exit would say, no row leaving.

    Attributes:
      features: [B, L, d] that each classifier reads.
      logits: [B, L, C] of each.
      kept: [B, L] int32, tokens left after each layer's decision.
    """

    features: Float[Array, "B L d"]
    logits: Float[Array, "B L C"]
    kept: Int[Array, "B L"]


class Softened(NamedTuple):
    """What an encoder says whose tokens are scaled rather than left out.

    Attributes:
      logits: [B, C] of the last classifier.
      shares: [L] mean over tokens that are there of what is left of each; 1 leaves all.
    """

    logits: Float[Array, "B C"]
    shares: Float[Array, " L"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["encoder", "heads", "level", "threshold"],
    meta_fields=["keeps", "protect", "patience", "first"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Pyramid(PytreeValue):
    """An encoder with a classifier after each layer; made by `magic_pyramid` and `prune_tokens`.

    `dataclasses.replace(net, level=…, threshold=…)` changes its speed without compiling anew.

    Attributes:
      encoder: its pieces.
      heads: a classifier after each layer but the last, whose is the encoder's own.
      level: [L] how much each layer leaves out, as `keeps` understands it; 0 is nothing.
      threshold: rows leave below this uncertainty.
      keeps: which tokens stay: `tokens.above` or `tokens.top`.
      protect: so many first tokens always stay.
      patience, first: as in `decision.Rule`.

    Source: He et al. (2021), Magic Pyramid, arXiv 2111.00230.
    """

    encoder: Encoder
    heads: tuple[Head, ...]
    level: Float[Array, " L"]
    threshold: Float[Array, ""]
    keeps: Keeps = above
    protect: int = 1
    patience: int = 0
    first: int = 1

    @property
    def rule(self) -> Rule:
        """When a row leaves."""
        return Rule(self.threshold, self.patience, self.first)

    def __call__(self, ids: Int[Array, "B n"], lengths: Int[Array, " B"]) -> Float[Array, "B C"]:
        """The logits of the exit that each row takes, as `simulate` gives them."""
        return self.simulate(ids, lengths).logits

    @own_promotion()
    def passed(self, ids: Int[Array, "B n"], lengths: Int[Array, " B"]) -> Passed:
        """What every exit would say: a pure function that `decided` and students go on from.

        Args:
          ids: of the tokens, padded behind.
          lengths: how many of each row are there.

        Raises:
          ValueError: what `simulate` raises.
        """
        _check(self, ids, lengths)
        encoder, L = self.encoder, len(self.encoder.attention)
        valid = prefix(jnp.asarray(lengths), ids.shape[1])
        x, found = encoder.embed(ids), []
        for i in range(L):
            y, valid = _attend(
                encoder.attention[i], self.level[i], x, valid, self.keeps, self.protect
            )
            x, feature, logits = _conclude(
                encoder.feed_forward[i], _heads(self)[i], y, valid, encoder.pool
            )
            found.append((feature, logits, jnp.sum(valid, -1)))
        return Passed(*(jnp.stack(column, 1) for column in zip(*found, strict=True)))

    @own_promotion()
    def simulate(self, ids: Int[Array, "B n"], lengths: Int[Array, " B"]) -> Exits:
        """Everything computed, and what it would have said: a pure function of static shapes.

        Args:
          ids: of the tokens, padded behind.
          lengths: how many of each row are there.

        Returns:
          Logits, exits, uncertainties, tokens kept, and the FLOPs that true counts of tokens spend
          by `flops_layer`.

        Raises:
          ValueError: levels or a rule out of range, a number of classifiers other than that of the
            layers, or ids and lengths that the encoder does not take.
        """
        return decided(self, self.passed(ids, lengths), lengths)

    @own_promotion()
    def soften(
        self,
        ids: Int[Array, "B n"],
        lengths: Int[Array, " B"],
        temperature: Float[Array, ""] | float,
    ) -> Softened:
        """The encoder with the output of each layer scaled by a soft mask, to learn levels by.

        Attention sees all tokens, as in the paper's training. The scores are of the order of one
        over the length: temperatures have to be well below that.

        Args:
          ids: of the tokens, padded behind.
          lengths: how many of each row are there.
          temperature: of the mask.

        Raises:
          ValueError: what `simulate` raises, a temperature that is not above 0, or `keeps` other
            than `above`, whose levels alone are thresholds.
        """
        _check(self, ids, lengths)
        check_range("temperature", temperature, 0, above=True)
        if self.keeps is not above:
            raise ValueError(f"keeps={self.keeps!r}: soft masks are of thresholds, tokens.above")
        encoder, valid = self.encoder, prefix(jnp.asarray(lengths), ids.shape[1])
        x, shares = encoder.embed(ids), []
        first = jnp.arange(ids.shape[1]) < self.protect
        for i, (attention, feed_forward) in enumerate(
            zip(encoder.attention, encoder.feed_forward, strict=True)
        ):
            y, received = attention(x, valid)
            mask = jnp.where(first, 1.0, soft_mask(received, self.level[i], temperature))
            y = feed_forward(y)
            x = mask[..., None].astype(y.dtype) * y
            shares.append(jnp.sum(mask * valid) / jnp.sum(valid))
        logits = classified(encoder.head, encoder.pool(x, valid))
        return Softened(logits, jnp.stack(shares))

    @own_promotion()
    def run(
        self,
        ids: Int[Array, "B n"],
        lengths: Int[Array, " B"],
        *,
        buckets: Buckets = Buckets(),  # noqa: B008
    ) -> Exits:
        """What `simulate` says, without computing what is left out.

        Rows are sorted by length and run in batches. Tokens that are left out and rows that have
        left are dropped as soon as that saves a bucket; copies that fill one change nothing. Layers
        that decide nothing are one programme, for which nothing waits.

        Args:
          ids: of the tokens, padded behind, any number of rows.
          lengths: how many of each row are there.
          buckets: shapes to compile for.

        Returns:
          The rows in their order. Scores within rounding of a level may fall on the other side of
          it than in `simulate`.

        Raises:
          ValueError: what `simulate` raises; traced arguments; or layers whose cores take ranges
            from the tokens that happen to be in a batch.
        """
        _check(self, ids, lengths)
        check_buckets(buckets)
        if any(map(is_traced, jax.tree.leaves((self, ids, lengths)))):
            raise ValueError("run drops tokens outside of any programme; under jit, use simulate")
        for net in (*self.encoder.attention, *self.encoder.feed_forward):
            check_rows(net, "js.deploy_layers(encoder, …)")
        return _run(self, np.asarray(ids), np.asarray(lengths), buckets)

    def warm_up(self, longest: int, *, buckets: Buckets = Buckets()) -> int:  # noqa: B008
        """Compiles what `run` can meet for sequences of up to `longest` tokens.

        Other levels and thresholds compile nothing more, unless other layers are then at level 0.

        Args:
          longest: tokens.
          buckets: as of `run`.

        Returns:
          How many programmes were compiled; none where all were known.

        Raises:
          ValueError: more tokens than the encoder has positions, or buckets out of range.
        """
        check_buckets(buckets)
        longest = checked_int("longest", longest, 1, self.encoder.positions)
        before = programmes()
        rows = range(buckets.batch, buckets.max_batch + 1, buckets.batch)
        steps = range(buckets.token, rounded_up(longest, buckets.token) + 1, buckets.token)
        tokens = [min(n, self.encoder.positions) for n in steps]
        sizes = {1, len(_heads(self))} | {end - i for i, end in enumerate(_ends(self)) if end > i}
        for B in rows:
            for n in tokens:
                x = _embed(self.encoder.embed, np.zeros((B, n), np.int32))
                count = np.ones(B, np.int32)
                _attend_jit(
                    self.encoder.attention[0], self.level[0], x, count, self.keeps, self.protect
                )
                _second_half(self, 0, x, count, no_streak(B))
                for size in sizes:
                    _layers(self, 0, size, x, count, no_streak(B))
                for b in (b for b in rows if b < B):
                    _take_rows(x, np.zeros(b, np.int32))
                for m in (m for m in tokens if m <= n):
                    _take_tokens(x, np.zeros((B, m), np.int32))
        return programmes() - before


def programmes() -> int:
    """How many programmes `run` has compiled in this process."""
    return compile_count(
        *(_embed, _attend_jit, _conclude_jit, _whole_jit), *(_take_rows, _take_tokens)
    )


def decided(net: Pyramid, passed: Passed, lengths: Int[Array, " B"]) -> Exits:
    """The exits that rows take, from what every exit says: cheap, to sweep `threshold` with.

    Args:
      net: its rule counts, and the sizes of its encoder.
      passed: what `Pyramid.passed` gave.
      lengths: how many tokens each row had.
    """
    B, L = passed.kept.shape
    streak, here = no_streak(B), jnp.ones(B, bool)
    layer, uncertainty = jnp.full(B, L, jnp.int32), []
    for i in range(L):
        leave, doubt, streak = leaves(net.rule, passed.logits[:, i], streak, i + 1)
        uncertainty.append(jnp.where(here, doubt, jnp.nan))
        layer = jnp.where(here & leave, jnp.minimum(layer, i + 1), layer)
        here = here & ~leave
    logits = jnp.take_along_axis(passed.logits, layer[:, None, None] - 1, 1)[:, 0]
    logits = logits.astype(net.encoder.head["bias"].dtype)
    computed = jnp.arange(L) < layer[:, None]
    kept = jnp.where(computed, passed.kept, 0).astype(jnp.int32)
    n_in = jnp.concatenate([jnp.asarray(lengths)[:, None], kept[:, :-1]], 1)
    flops = _flops(net.encoder, n_in, kept)
    return Exits(logits, layer, jnp.stack(uncertainty, 1), flops, kept)


def _heads(net: Pyramid) -> tuple[Head, ...]:
    return (*net.heads, net.encoder.head)


def _check(net: Pyramid, ids: Any, lengths: Any) -> None:
    L = len(net.encoder.attention)
    check_levels(net.level, L)
    check_rule(net.rule, L)
    checked_int("protect", net.protect, 1)
    if len(net.heads) != L - 1:
        raise ValueError(f"heads: {len(net.heads)} of them; must be {L - 1}, of all layers but one")
    check_ids(net.encoder, ids, lengths)


def _flops(encoder: Encoder, n_in: Any, n_out: Any) -> Any:
    """[B] of each row, from the tokens [B, L] of both halves; without any, a layer did not run."""
    sizes = encoder.width, encoder.hidden
    return (flops_layer(1.0 * n_in, 1.0 * n_out, *sizes) * (n_out > 0)).sum(1)


def _attend(
    attention: Network, level: Any, x: Array, valid: Bool[Array, "B n"], keeps: Keeps, protect: int
) -> tuple[Array, Array]:
    """The first half of a layer, and which tokens stay."""
    y, received = attention(x, valid)
    return y, stays(keeps, level, received, valid, protect)


def _conclude(
    feed_forward: Network, head: Head, y: Array, valid: Bool[Array, "B n"], pool: Pool
) -> tuple[Array, Array, Array]:
    """The second half of a layer, and what its exit says."""
    x = feed_forward(y)
    feature = pool(x, valid)
    return x, feature, classified(head, feature)


# What `run` calls: the same two functions, tokens that are there in front.


@jax.jit
def _embed(embed: Any, ids: Any) -> Array:
    return embed(ids)


@partial(jax.jit, static_argnames=("keeps", "protect"))
def _attend_jit(attention: Network, level: Any, x: Any, count: Any, keeps: Keeps, protect: int):
    return _attend(attention, level, x, prefix(count, x.shape[1]), keeps, protect)


class _Answer(NamedTuple):
    """What one exit says of a batch: [B, …] on the device."""

    logits: Array
    leave: Array
    uncertainty: Array


def _answered(
    feed_forward: Network,
    head: Head,
    y: Array,
    count: Array,
    streak: Streak,
    threshold: Any,
    layer: Any,
    pool: Pool,
    patience: int,
    first: int,
) -> tuple[Array, Streak, _Answer]:
    x, _, logits = _conclude(feed_forward, head, y, prefix(count, y.shape[1]), pool)
    rule = Rule(threshold, patience, first)
    leave, uncertainty, streak = leaves(rule, logits, streak, layer)
    return x, streak, _Answer(logits, leave, uncertainty)


_conclude_jit = partial(jax.jit, static_argnames=("pool", "patience", "first"))(_answered)


@partial(jax.jit, static_argnames=("pool", "patience", "first"))
def _whole_jit(
    layers: tuple[tuple[Network, Network, Head], ...],
    x: Array,
    count: Array,
    streak: Streak,
    threshold: Any,
    layer: Any,
    **rule: Any,
) -> tuple[Array, Streak, list[_Answer]]:
    """Layers that leave out no token, one after the other."""
    answers: list[_Answer] = []
    for i, (attention, feed_forward, head) in enumerate(layers):
        y, _ = attention(x, prefix(count, x.shape[1]))
        x, streak, answer = _answered(
            feed_forward, head, y, count, streak, threshold, layer + i, **rule
        )
        answers.append(answer)
    return x, streak, answers


@jax.jit
def _take_rows(x: Any, rows: Any) -> Array:
    return x[rows]


@jax.jit
def _take_tokens(x: Any, tokens: Any) -> Array:
    """The tokens [B, n'] of each row."""
    return jnp.take_along_axis(x, tokens[..., None], 1, mode="clip")


def _second_half(
    net: Pyramid, i: int, y: Any, count: Any, streak: Streak
) -> tuple[Array, Streak, list[_Answer]]:
    """That of layer i."""
    pieces = net.encoder.feed_forward[i], _heads(net)[i]
    x, streak, answer = _conclude_jit(
        *pieces, y, count, streak, net.threshold, np.int32(i + 1), **_static(net)
    )
    return x, streak, [answer]


def _layers(
    net: Pyramid, i: int, end: int, x: Any, count: Any, streak: Streak
) -> tuple[Array, Streak, list[_Answer]]:
    """Layers i to `end`, which leave out no token."""
    encoder = net.encoder
    layers = zip(encoder.attention, encoder.feed_forward, _heads(net), strict=True)
    return _whole_jit(
        tuple(layers)[i:end], x, count, streak, net.threshold, np.int32(i + 1), **_static(net)
    )


def _static(net: Pyramid) -> dict[str, Any]:
    return {"pool": net.encoder.pool, "patience": net.patience, "first": net.first}


def _ends(net: Pyramid) -> list[int]:
    """For each layer, where the run of layers from it on ends that one programme computes.

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
    """Whether rows may leave after layer i, so that the host has to look."""
    may = bool(net.patience) or float(net.threshold) > 0
    return may and net.first <= i + 1 < len(net.encoder.attention)


class _Said(NamedTuple):
    """What one layer said of the rows that reached it.

    Attributes:
      rows: of the input.
      at: where they are in the batch.
      layer: counted from 0.
      kept: tokens of each row.
      answer: of the whole batch.
    """

    rows: np.ndarray
    at: np.ndarray
    layer: int
    kept: np.ndarray
    answer: _Answer


def _run(net: Pyramid, ids: np.ndarray, lengths: np.ndarray, buckets: Buckets) -> Exits:
    order = np.argsort(lengths, kind="stable")
    said: list[_Said] = []
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
    flops = _flops(net.encoder, np.concatenate([lengths[:, None], kept[:, :-1]], 1), kept)
    return Exits(*map(jnp.asarray, (logits, layer, uncertainty, flops, kept)))


def _run_batch(
    net: Pyramid, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray, buckets: Buckets
) -> list[_Said]:
    """All layers over rows of like lengths."""
    encoder, ends = net.encoder, _ends(net)
    padded = _filled(rows, rounded_up(len(rows), buckets.batch))
    count = lengths[padded].astype(np.int32)
    n = min(rounded_up(int(count.max()), buckets.token), encoder.positions)
    given = np.zeros((len(padded), n), np.int32)
    width = min(n, ids.shape[1])
    given[:, :width] = ids[padded, :width]
    x, streak = _embed(encoder.embed, given), no_streak(len(padded))
    at, said, i = np.arange(len(rows)), [], 0
    while i < len(ends):
        size = rounded_up(len(at), buckets.batch)
        if size < len(count):
            chosen = _filled(at, size)
            x = _take_rows(x, chosen)
            streak = Streak(*(jnp.asarray(np.asarray(part)[chosen]) for part in streak))
            count, at = count[chosen], np.arange(len(at))
        if ends[i] > i:
            x, streak, answers = _layers(net, i, ends[i], x, count, streak)
        else:
            x, keep = _attend_jit(
                encoder.attention[i], net.level[i], x, count, net.keeps, net.protect
            )
            keep = np.asarray(keep)
            count = keep.sum(1, dtype=np.int32)
            n = min(rounded_up(int(count[at].max()), buckets.token), x.shape[1])
            count = np.minimum(count, n)  # of rows that have left
            # Tokens that stay keep their order.
            tokens = np.argsort(~keep, 1, kind="stable")[:, :n].astype(np.int32)
            x, streak, answers = _second_half(net, i, _take_tokens(x, tokens), count, streak)
        said += [_Said(rows, at, i + k, count[at], a) for k, a in enumerate(answers)]
        i += len(answers)
        if _waits(net, i - 1):
            stay = ~np.asarray(answers[-1].leave)[at]
            rows, at = rows[stay], at[stay]
            if not len(at):
                break
    return said


def _filled(chosen: np.ndarray, size: int) -> np.ndarray:
    """Indices with copies of the first behind them, `size` in all."""
    return np.concatenate([chosen, np.full(size - len(chosen), chosen[0])]).astype(np.int32)
