"""What a pyramid learns: thresholds of tokens, weights that do with fewer, students, its speed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key, Num

from jaxsim.adaptive.passes import bucket_length, class_count, padded_ids
from jaxsim.adaptive.pyramid import Pyramid
from jaxsim.adaptive.rule import Buckets, check_buckets
from jaxsim.checkpoint.log import fingerprint, programme
from jaxsim.checkpoint.resume import trail
from jaxsim.console.progress import progress
from jaxsim.inputs.samples import check_finite, check_labels
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.train.losses import cross_entropy


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
        check_labels("labels", labels, class_count(net))
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
            return loss(changed.exit_outputs(x, n).logits[:, -1], y)
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
            n = bucket_length(lengths[first], buckets, net)
            batch = padded_ids(ids[first], n), lengths[first], labels[first]
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
            n = bucket_length(lengths[rows], buckets, net)
            batch = padded_ids(ids[rows], n), lengths[rows], labels[rows]
            values, state, lost = step(values, state, batch, np.float32(temperature))
            advance(lost)
            if kept is not None and ((i + 1) % every == 0 or i + 1 == steps):
                kept.add(i + 1, (values, state))
    return dataclasses.replace(net, **values)


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
