"""Training a pyramid: weights that do with fewer tokens, and thresholds of tokens."""

from __future__ import annotations

import dataclasses
import itertools
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
from jaxsim.checkpoint.log import program_digest, run_digest
from jaxsim.checkpoint.resumable import resumable
from jaxsim.inputs.samples import check_finite, check_labels
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.train.losses import cross_entropy
from jaxsim.train.soft import Soft


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
    """Minimizes a loss of the last classifier, tokens left out as the levels say.

    With `soft`, the levels are learned as well: outputs are scaled by soft masks instead, and what
    these leave costs. Then the levels stay as they are and training without it wins accuracy back.
    With levels of 0 it is the training of the encoder alone.

    Args:
      net: Pyramid to train; its encoder has no cores.
      ids: Tokens [N, n], padded behind.
      lengths: Number of tokens of each row, [N].
      labels: Classes [N], or whatever `loss` compares with, an entry a row.
      steps: Batches of `buckets.max_batch` rows of like lengths, at least 1.
      optimizer: An optax transformation of {"encoder": its weights} and, with `soft`,
        {"level": [L]} beside them.
      key: Random key of the order of the rows.
      soft: Settings of soft masks, to learn levels; None leaves the levels.
      loss: Mean over a batch of `(logits, labels)`, for instance `distillation(…)`.
      buckets: Its `max_batch` is the rows a step; lengths are padded to multiples of its `token`.
      checkpoints: Folder to write to and to resume from, with the same result; of this run only.
      every: Steps from one checkpoint to the next, at least 1.
      label: Text before the progress bar.
      quiet: Show no progress bar.

    Returns:
      The pyramid with a trained encoder and, with `soft`, learned levels.

    Raises:
      ValueError: Fewer rows than a batch, an argument out of range, checkpoints of another run, or
        what `Pyramid.simulate` and `Pyramid.soften` raise.

    Source: Kim et al. (2022), Learned Token Pruning, arXiv 2107.00910, section 3.3.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> import optax
      >>> import jaxsim as js
      >>> from jaxsim.models.bert import Bert, encoder
      >>> from jaxsim.train import train_pyramid
      >>> model = Bert(vocabulary=9, positions=4, width=4, heads=1, layers=2, hidden=4, classes=2)
      >>> ids, lengths = np.ones((4, 4), np.int32), np.full(4, 4)
      >>> params = model.init(jax.random.key(0), ids, lengths)["params"]
      >>> net = js.prune_tokens(0.1)(encoder(model, params))
      >>> trained = train_pyramid(
      ...     net, ids, lengths, np.arange(4) % 2, steps=2, optimizer=optax.sgd(0.1),
      ...     key=jax.random.key(1), buckets=js.Buckets(batch=4, max_batch=4), quiet=True,
      ... )
      >>> trained.level.shape, bool((trained.level == net.level).all())
      ((2,), True)
    """
    steps, every = checked_int("steps", steps, 1), checked_int("every", every, 1)
    data = _checked_data(net, ids, lengths, labels, loss, buckets)
    if soft is not None:
        _check_soft(soft)
    hot, cold = (1.0, 1.0) if soft is None else soft.temperature
    update = _compile_step(net, optimizer, soft, loss)
    values: Any = {"encoder": net.encoder}
    if soft is not None:
        values["level"] = net.level
    state = optimizer.init(values)
    run: dict[str, Any] = {}
    if checkpoints is not None:
        rest, _ = program_digest(update, values, state, data.first(net, key), np.float32(hot))
        settings = steps, soft, buckets, jax.random.key_data(key).tolist()
        run = _identity(net, data, settings, rest)

    def step(at: tuple[Any, Any], batch: tuple[int, Any]) -> tuple[tuple[Any, Any], Any]:
        i, rows = batch
        temperature = hot * (cold / hot) ** (i / max(steps - 1, 1))
        values, state, lost = update(*at, data.take(net, rows), np.float32(temperature))
        return (values, state), lost

    values, _ = resumable(
        step,
        (values, state),
        lambda done: itertools.islice(enumerate(data.batches(key)), done, steps),
        steps=steps,
        folder=checkpoints,
        run=run,
        every=every,
        label=label,
        quiet=quiet,
    )
    return dataclasses.replace(net, **values)


class _Data(NamedTuple):
    """Sequences in memory, and how they are batched.

    Attributes:
      ids: Tokens [N, n], padded behind.
      lengths: Tokens of each row, [N].
      labels: An entry a row.
      buckets: Rows a step, and the multiples that lengths are padded to.
    """

    ids: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    buckets: Buckets

    def batches(self, key: Any) -> Iterator[np.ndarray]:
        """Endless batches of rows of like lengths."""
        return _endless(self.lengths, key, self.buckets.max_batch)

    def take(self, net: Pyramid, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Padded tokens, lengths and labels of some rows."""
        n = bucket_length(self.lengths[rows], self.buckets, net)
        return padded_ids(self.ids[rows], n), self.lengths[rows], self.labels[rows]

    def first(self, net: Pyramid, key: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The batch of the first step."""
        return self.take(net, next(self.batches(key)))


def _compile_step(
    net: Pyramid,
    optimizer: optax.GradientTransformation,
    soft: Soft | None,
    loss: Callable[[Array, Array], Array],
) -> Any:
    """A jitted step: `(values, state, batch, temperature) -> (values, state, loss)`."""

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

    return step


def _identity(net: Pyramid, data: _Data, settings: tuple[Any, ...], step: str) -> dict[str, Any]:
    """Digests and settings that tell a run from others."""
    return {
        "network": run_digest(net),
        "ids": run_digest((data.ids, data.lengths)),
        "labels": run_digest(data.labels),
        "steps, soft, buckets or key": run_digest((), *settings),
        "loss or optimizer": step,
        "version of JAX": jax.__version__,
    }


def _checked_data(
    net: Pyramid,
    ids: np.ndarray,
    lengths: np.ndarray,
    labels: np.ndarray,
    loss: Callable[[Array, Array], Array],
    buckets: Buckets,
) -> _Data:
    """Sequences that can be trained on.

    Raises:
      ValueError: Rows that differ in number or are too few, or labels that do not fit the loss.
    """
    check_buckets(buckets)
    if not len(ids) == len(lengths) == len(labels):
        raise ValueError(f"ids, lengths, labels: {len(ids)}, {len(lengths)}, {len(labels)} rows")
    if loss is cross_entropy:
        check_labels("labels", labels, class_count(net))
    else:
        check_finite("labels", labels)
    if len(ids) < buckets.max_batch:
        raise ValueError(f"ids: {len(ids)} rows; must be {buckets.max_batch}, a batch, or more")
    return _Data(ids, lengths, labels, buckets)


def _check_soft(soft: Soft) -> None:
    check_range("weight", soft.weight, 0)
    for end in soft.temperature:
        check_range("temperature", end, 0, above=True)


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
