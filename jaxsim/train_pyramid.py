"""What a pyramid learns: thresholds of tokens, weights that do with fewer, students, its speed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, Num

from jaxsim.checkpoint import trail
from jaxsim.decision import Buckets, check_buckets, rounded_up
from jaxsim.log import fingerprint, programme
from jaxsim.numerics import check_range, checked_int, own_promotion
from jaxsim.progress import progress
from jaxsim.pyramid import Passed, Pyramid, decided
from jaxsim.samples import check_finite, check_labels
from jaxsim.students import fit_students
from jaxsim.train import cross_entropy


class Soft(NamedTuple):
    """How thresholds are learned.

    Attributes:
      weight: of the mean share of tokens that the soft masks leave, in the loss.
      temperature: of the masks, at the first step and at the last; between them it falls
        geometrically. A score is about one over the length: temperatures have to be below that.
    """

    weight: float = 0.1
    temperature: tuple[float, float] = (5e-3, 5e-4)


@own_promotion()
def train_pyramid(
    net: Pyramid,
    ids: Int[np.ndarray, "N n"],
    lengths: Int[np.ndarray, " N"],
    labels: Num[np.ndarray, "N ..."],
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    key: Key[Any, ""],
    soft: Soft | None = None,
    loss: Callable[[Array, Array], Array] = cross_entropy,
    buckets: Buckets = Buckets(max_batch=32),  # noqa: B008
    checkpoints: str | Path | None = None,
    every: int = 50,
    label: str = "training",
    quiet: bool = False,
) -> Pyramid:
    """Minimises a loss of the last classifier, tokens left out as the levels say.

    With `soft`, the levels are learned as well: outputs are scaled by soft masks instead, and what
    these leave costs. Then the levels stay as they are and training without it wins accuracy back.
    With levels of 0 it is the training of the encoder alone.

    Args:
      net: its encoder has no cores.
      ids: of the tokens, padded behind.
      lengths: how many of each row are there.
      labels: classes, or whatever `loss` compares with, an entry a row.
      steps: batches of `buckets.max_batch` rows of like lengths.
      optimizer: an optax transformation of {"encoder": its weights} and, with `soft`,
        {"level": [L]} beside them.
      key: for the order of the rows.
      soft: learn levels; None leaves them.
      loss: mean over a batch of `(logits, labels)`, for instance `distillation(…)`.
      buckets: `max_batch` rows a step, padded to multiples of `token`.
      checkpoints: folder to write to and to resume from, with the same result; of this run only.
      every: steps from one checkpoint to the next, at least 1.
      label: what the progress bar says.
      quiet: show no progress bar.

    Raises:
      ValueError: fewer rows than a batch, an argument out of range, checkpoints of another run, or
        what `Pyramid.simulate` and `Pyramid.soften` raise.

    Source: Kim et al. (2022), Learned Token Pruning, arXiv 2107.00910, section 3.3.
    """
    steps, every = checked_int("steps", steps, 1), checked_int("every", every, 1)
    check_buckets(buckets)
    if not len(ids) == len(lengths) == len(labels):
        raise ValueError(f"ids, lengths, labels: {len(ids)}, {len(lengths)}, {len(labels)} rows")
    if loss is cross_entropy:
        check_labels("labels", labels, _classes(net))
    else:
        check_finite("labels", labels)
    if len(ids) < buckets.max_batch:
        raise ValueError(f"ids: {len(ids)} rows; must be {buckets.max_batch}, a batch, or more")
    if soft is not None:
        check_range("weight", soft.weight, 0)
        for end in soft.temperature:
            check_range("temperature", end, 0, above=True)

    def cost(values: Any, batch: Any, temperature: Any) -> Any:
        x, n, y = batch
        changed = dataclasses.replace(net, **values)
        if soft is None:
            return loss(changed.passed(x, n).logits[:, -1], y)
        found = changed.soften(x, n, temperature)
        return loss(found.logits, y) + soft.weight * jnp.mean(found.shares)

    @jax.jit
    def step(values: Any, state: Any, batch: Any, temperature: Any) -> Any:
        lost, slope = jax.value_and_grad(cost)(values, batch, temperature)
        changes, state = optimizer.update(slope, state, values)
        values = optax.apply_updates(values, changes)
        if soft is not None:
            values = {**values, "level": jnp.maximum(values["level"], 0)}
        return values, state, lost

    values: Any = {"encoder": net.encoder}
    if soft is not None:
        values["level"] = net.level
    state = optimizer.init(values)
    hot, cold = (1.0, 1.0) if soft is None else soft.temperature
    order = _endless(lengths, key, buckets.max_batch)
    with contextlib.ExitStack() as stack:
        done, kept = 0, None
        if checkpoints is not None:
            facts = steps, soft, buckets, jax.random.key_data(key).tolist()
            first = next(_endless(lengths, key, buckets.max_batch))
            n = _bucket(lengths[first], buckets, net)
            batch = _wide(ids[first], n), lengths[first], labels[first]
            rest, _ = programme(step, values, state, batch, np.float32(hot))
            run = {
                "network": fingerprint(net),
                "ids": fingerprint((ids, lengths)),
                "labels": fingerprint(labels),
                "steps, soft, buckets or key": fingerprint((), *facts),
                "loss or optimizer": rest,
                "version of JAX": jax.__version__,
            }
            kept = stack.enter_context(trail(checkpoints, run=run))
            done, (values, state) = kept.newest((values, state))
        advance = stack.enter_context(progress(label, steps, done, "loss", quiet=quiet))
        for i, rows in zip(range(steps), order, strict=False):
            if i < done:
                continue
            temperature = hot * (cold / hot) ** (i / max(steps - 1, 1))
            n = _bucket(lengths[rows], buckets, net)
            batch = _wide(ids[rows], n), lengths[rows], labels[rows]
            values, state, lost = step(values, state, batch, np.float32(temperature))
            advance(lost)
            if kept is not None and ((i + 1) % every == 0 or i + 1 == steps):
                kept.add(i + 1, (values, state))
    return dataclasses.replace(net, **values)


def pass_all(
    net: Pyramid,
    ids: Int[np.ndarray, "N n"],
    lengths: Int[np.ndarray, " N"],
    *,
    buckets: Buckets = Buckets(),  # noqa: B008
) -> Passed:
    """What every exit says of many rows, in batches of like lengths.

    Args:
      net: the pyramid.
      ids: of the tokens, padded behind.
      lengths: how many of each row are there.
      buckets: shapes to compile for.

    Raises:
      ValueError: labels that are no classes or of another number, or what `Pyramid.simulate`
        raises.
    """
    check_buckets(buckets)
    order, parts = np.argsort(lengths, kind="stable"), []
    for start in range(0, len(order), buckets.max_batch):
        rows = order[start : start + buckets.max_batch]
        filled = np.resize(rows, buckets.max_batch)
        n = _bucket(lengths[filled], buckets, net)
        found = _passed(net, _wide(ids[filled], n), lengths[filled])
        parts.append([np.asarray(part)[: len(rows)] for part in found])
    back = np.argsort(order)
    return Passed(*(jnp.asarray(np.concatenate(c)[back]) for c in zip(*parts, strict=True)))


@jax.jit
def _passed(net: Pyramid, ids: Any, lengths: Any) -> Passed:
    return net.passed(ids, lengths)


def distil_students(
    net: Pyramid,
    ids: Int[np.ndarray, "N n"],
    lengths: Int[np.ndarray, " N"],
    key: Key[Any, ""],
    **options: Any,
) -> Pyramid:
    """Classifiers after each layer, drawn to what the last one says of the tokens that are left.

    Args:
      net: its levels are those it is to run with.
      ids: of the tokens, padded behind; no labels are needed.
      lengths: how many of each row are there.
      key: for the order of the rows.
      **options: of `fit_students`.

    Raises:
      ValueError: what `Pyramid.simulate` or `fit_students` raises.
    """
    passed = pass_all(net, ids, lengths)
    features = [passed.features[:, i] for i in range(len(net.encoder.attention) - 1)]
    heads = fit_students(features, passed.logits[:, -1], key, **options) if features else ()
    return dataclasses.replace(net, heads=heads)


class Speed(NamedTuple):
    """One setting of a pyramid, and what it gives.

    Attributes:
      scale: factor of its levels.
      threshold: rows leave below this uncertainty.
      accuracy: share of rows classified right.
      flops: mean of a row.
      layer: mean exit.
    """

    scale: float
    threshold: float
    accuracy: float
    flops: float
    layer: float


def sweep(
    net: Pyramid,
    ids: Int[np.ndarray, "N n"],
    lengths: Int[np.ndarray, " N"],
    labels: Int[np.ndarray, " N"],
    *,
    scales: Sequence[float] = (1.0,),
    thresholds: Sequence[float] | Float[np.ndarray, " k"] = (0.0,),
) -> list[Speed]:
    """Accuracy and FLOPs at every scale of the levels and every threshold.

    Rows pass once a scale; thresholds are tried on what was said.

    Args:
      net: with students.
      ids: of the tokens, padded behind.
      lengths: how many of each row are there.
      labels: classes.
      scales: factors of `net.level`.
      thresholds: of uncertainty.

    Raises:
      ValueError: what `Pyramid.simulate` raises.
    """
    check_labels("labels", labels, _classes(net))
    if not len(ids) == len(lengths) == len(labels):
        raise ValueError(f"ids, lengths, labels: {len(ids)}, {len(lengths)}, {len(labels)} rows")
    found: list[Speed] = []
    for scale in scales:
        check_range("scale", scale, 0)
        scaled = dataclasses.replace(net, level=net.level * scale)
        passed = pass_all(scaled, ids, lengths)
        for threshold in thresholds:
            check_range("threshold", threshold, 0)
            rule = dataclasses.replace(scaled, threshold=jnp.float32(threshold))
            out = _decided(rule, passed, jnp.asarray(lengths))
            right = np.mean(np.argmax(out.logits, -1) == labels)
            spent = float(jnp.mean(out.flops)), float(jnp.mean(out.layer))
            found.append(Speed(float(scale), float(threshold), float(right), *spent))
    return found


_decided = jax.jit(decided)


def fastest(found: Sequence[Speed], accuracy: float) -> Speed:
    """The setting of fewest FLOPs that is at least so accurate.

    Args:
      found: by `sweep`, on rows that will not be reported.
      accuracy: share of rows.

    Raises:
      ValueError: none is.
    """
    enough = [speed for speed in found if speed.accuracy >= accuracy]
    if not enough:
        best = max((speed.accuracy for speed in found), default=0.0)
        raise ValueError(f"accuracy={accuracy}: the best of the settings reaches {best}")
    return min(enough, key=lambda speed: speed.flops)


def at_speed(net: Pyramid, speed: Speed) -> Pyramid:
    """A pyramid at a setting that `sweep` found for it."""
    threshold = jnp.float32(speed.threshold)
    return dataclasses.replace(net, level=net.level * speed.scale, threshold=threshold)


def _endless(lengths: np.ndarray, key: Any, batch: int) -> Iterator[np.ndarray]:
    """Batches of like lengths, epoch after epoch; a last one that is not full is left out.

    Rows are shuffled, sorted within pools of 16 batches, and the batches of a pool shuffled.
    """
    epoch = 0
    while True:
        numbers = np.asarray(jax.random.bits(jax.random.fold_in(key, epoch), (2,)))
        rng = np.random.default_rng(numbers)
        order = rng.permutation(len(lengths))
        batches: list[np.ndarray] = []
        for start in range(0, len(order), 16 * batch):
            pool = order[start : start + 16 * batch]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += [pool[i : i + batch] for i in range(0, len(pool) - batch + 1, batch)]
        yield from (batches[i] for i in rng.permutation(len(batches)))
        epoch += 1


def _bucket(lengths: np.ndarray, buckets: Buckets, net: Pyramid) -> int:
    return min(rounded_up(int(lengths.max()), buckets.token), net.encoder.positions)


def _wide(ids: np.ndarray, n: int) -> np.ndarray:
    """Rows cut or padded to n tokens."""
    return np.pad(ids, ((0, 0), (0, max(0, n - ids.shape[1]))))[:, :n]


def _classes(net: Pyramid) -> int:
    return net.encoder.head["bias"].shape[-1]
