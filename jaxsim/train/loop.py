"""Training a network: float, quantization-aware, noise-aware, all by the same loop."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Key

from jaxsim.checkpoint.log import run_digest
from jaxsim.checkpoint.resumable import resumable
from jaxsim.checkpoint.save_load import describe
from jaxsim.cores.partition import Partitioned
from jaxsim.inputs.batches import Batch, row_count, split_labels, take_rows
from jaxsim.inputs.samples import check_batch, check_finite, check_labels
from jaxsim.network.arguments import call_arguments
from jaxsim.network.network import Net, Network
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.sparsity.optimizers.masked import masks_of
from jaxsim.staged.lengths import ShortRows, short_rows
from jaxsim.staged.trained import has_exits, is_pipeline, trained_values
from jaxsim.train.errors import scale_errors
from jaxsim.train.losses import OverExits, cross_entropy, over_exits
from jaxsim.train.soft import Soft, check_soft
from jaxsim.train.step import Descent, compile_step, under_masks_of
from jaxsim.transforms.lora import adapters


def only(optimizer: optax.GradientTransformation, trained: Any) -> optax.GradientTransformation:
    """Restricts an optimizer to marked entries; the others stay, whatever decay or momentum do.

    Args:
      optimizer: Optimizer of the marked entries.
      trained: For every parameter an array of its shape, or one that broadcasts to it: 1 where it
        is trained and 0 where it stays, as `jaxsim.models.functions.added` makes.

    Returns:
      An optax transformation with the state of `optimizer`.

    Raises:
      ValueError: When it begins, a mask whose leaves are not those of the parameters.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from jaxsim.train import only
      >>> params, marks = {"w": jnp.ones(3)}, {"w": jnp.array([1.0, 0.0, 1.0])}
      >>> optimizer = only(optax.sgd(0.5), marks)
      >>> updates, _ = optimizer.update({"w": jnp.ones(3)}, optimizer.init(params), params)
      >>> optax.apply_updates(params, updates)["w"].tolist()
      [0.5, 1.0, 0.5]
    """

    def absent(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    def masked(values: Any) -> Any:
        return jax.tree.map(lambda v, m: v if absent(v) else v * m, values, trained, is_leaf=absent)

    def init(params: Any) -> optax.OptState:
        if jax.tree.structure(params, is_leaf=absent) != jax.tree.structure(trained):
            raise ValueError(
                f"trained: {jax.tree.structure(trained)}; must be {jax.tree.structure(params)}"
            )
        return optimizer.init(params)

    def update(updates: Any, state: optax.OptState, params: Any = None) -> Any:
        changes, state = optimizer.update(masked(updates), state, params)
        return masked(changes), state

    return optax.GradientTransformation(init, update)


def adapter_marks(net: Network) -> Any:
    """Marks the adapters of a network as what trains, for `only`; all else stays.

    Args:
      net: Network with adapters (`js.lora`).

    Raises:
      ValueError: It has none.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.train import adapter_marks
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(3)}, jnp.ones((2, 3)))
      >>> marks = adapter_marks(js.lora(1, jax.random.key(0))(net))
      >>> float(marks["params"]["w"]), float(marks["adapters"]["w up"])
      (0.0, 1.0)
    """
    if not adapters(net):
        raise ValueError("net: has no adapters; js.lora adds some")
    values = trained_values(net)
    return {
        kind: jax.tree.map(lambda _, kind=kind: np.float32(kind == "adapters"), value)
        for kind, value in values.items()
    }


@own_promotion()
def fit(
    net: Net,
    images: Any,
    labels: Any = None,
    *,
    epochs: int,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    batch_size: int = 128,
    call: Mapping[str, Any] | None = None,
    rngs: Sequence[str] = (),
    loss: Callable[[Array, Array], Array] = cross_entropy,
    soft: Soft | None = None,
    errors: Callable[[int], Any] | None = None,
    pad_to: int | None = None,
    checkpoints: str | Path | None = None,
    label: str = "training",
    quiet: bool = False,
) -> Net:
    """Minimizes a loss of a network's logits, the cross-entropy unless said, by its own gradients.

    The order of the images and the noise of the cores in epoch e come from `fold_in(key, e)`, so
    an interrupted run that goes on from its checkpoint ends where the whole run would have.

    Args:
      net: Network to train, deployed only with adapters (`js.lora`), which are then all that trains
        while its codes stay; its cores say what the training is aware of. A pipeline trains as a
        pipeline, one with exits together with their classifiers, on the loss of all, and one whose
        tokens leave with these left out.
      images: Inputs: a batch of N rows (an array [N, ...], a tuple of positional arguments, or a
        dict of keyword arguments) or an iterable of batches. All is read once, into memory.
      labels: Classes [N], or whatever `loss` compares with, an entry an image; where `images` is an
        iterable also an iterable of arrays, one a batch. None where `images` is labeled already: a
        pair `(batch, labels)` or an iterable of pairs.
      epochs: Passes over the data, at least 1.
      optimizer: An optax transformation; it sees `net.params`, or `{"params": net.params}` and
        what there is beside them: "ranges" after `js.learn_ranges`, "heads" after `js.exit_early`,
        "adapters" after `js.lora`, "level" with `soft`; of a deployed network "adapters" alone.
        Where its state has masks (`js.sparsity.rigl`), those of `net` make way for them: all
        weights have gradients, and the network ends with the masks.
      key: Random key of the shuffling and of the cores.
      batch_size: Images a step, from 1 to N; an incomplete last batch is left out.
      call: Keyword arguments of each call. With "mutable" in it, the model returns updates of its
        buffers as a second output and they are kept.
      rngs: Linen's random streams (`"dropout"`), given a new key at every step.
      loss: Mean over a batch of `(logits, labels)`, for instance `distillation(…)`. Of a network
        with exits it is that of one, and the mean over them is minimized; `over_exits(…)` weighs
        them.
      soft: Settings of soft masks, to learn the levels at which tokens leave beside the weights:
        tokens are scaled instead (`Staged.soften`), and what is left of them is part of the loss.
        None leaves the levels as they are.
      errors: Share of the cells' errors at a step, from 0: any optax schedule, for instance
        `optax.linear_schedule(0.0, 1.0, 100)` for noise that grows. One program for all steps; the
        network that is returned has all of its errors. None for all of them at every step.
      pad_to: Rows of about equal numbers of tokens make a batch and are computed with so many,
        rounded up to a multiple of this: a program each. It is for networks whose tokens leave by
        a rule that says which are there (`prune_tokens(present=…)`), at level 0 too. None computes
        all rows with all tokens of the inputs, in batches that are shuffled alone.
      checkpoints: Folder to write to after each epoch and to resume from; of this run only, which
        is known by the bits of the network, the data and the key, and by the program of a step:
        its loss, optimizer and call. Not seen are what host callbacks do and the loss of a
        pipeline. Locked while it is in use.
      label: Text before the progress bar.
      quiet: Show no progress bar.

    Returns:
      The network with trained parameters and buffers.

    Raises:
      ValueError: A deployed network without adapters, lengths that differ, images that are not
        finite, labels that are no classes of the cross-entropy, epochs, batch_size, soft or pad_to
        out of range or for a network whose tokens all stay, errors below 0 or of a network without
        cells or deployed, or checkpoints of another run.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> import optax
      >>> import jaxsim as js
      >>> from flax import linen as nn
      >>> from jaxsim.train import fit
      >>> x, model = np.eye(4, dtype=np.float32), nn.Dense(4)
      >>> net = js.trace(model, model.init(jax.random.key(0), x), x)
      >>> trained = fit(
      ...     js.quantize(8, 8)(net), x, np.arange(4), epochs=20, batch_size=4,
      ...     optimizer=optax.adam(0.1), key=jax.random.key(1), quiet=True,
      ... )
      >>> js.classify(trained, x).tolist()
      [0, 1, 2, 3]
    """
    if has_exits(net) and not isinstance(loss, OverExits):
        loss = over_exits(loss)
    if soft is not None:
        check_soft(net, soft)
    descent = Descent(optimizer, loss, dict(call or {}), rngs, soft)
    data = _checked_data(net, images, labels, epochs, batch_size)
    _check_labels(data, descent, net, key)
    lengths = None
    if pad_to is not None:
        multiple = checked_int("pad_to", pad_to, 1)
        said = {**net.defaults.combine(), **descent.call, **data.inputs.kwargs}
        data = data._replace(inputs=Batch(data.inputs.args, said))  # as tokens are counted from
        lengths = short_rows(net, call_arguments(*data.inputs), multiple, "pad_to")
    advance, digest = compile_step(descent, net)
    state = optimizer.init(descent.values(net))
    start = under_masks_of(state, net)
    per_epoch = data.rows // batch_size
    steps = epochs * per_epoch
    shares = None if errors is None else _shares(net, errors, steps)

    def more_at(at: int) -> tuple[Any, ...]:
        """What a step is given behind its key."""
        hot = () if soft is None else (soft.at(at, steps),)
        return hot if shares is None else (*(hot or (None,)), shares[at])

    def batches(done: int) -> Iterator[tuple[Any, ...]]:
        numbers = range(done // per_epoch, epochs)
        found = data.epochs(numbers, key, batch_size, lengths)
        for at, batch in enumerate(found, numbers.start * per_epoch):
            yield *batch, *more_at(at)

    run: Mapping[str, Any] = {}
    if checkpoints is not None:
        rest = digest(start, state, *data.take(slice(0, batch_size)), key, *more_at(0))
        run = _identity(net, data, batch_size, key, rest)
        # only where they are said: runs from before they could be go on
        more = {"soft": soft, "pad_to": pad_to, "errors": shares and run_digest(shares)}
        run |= {name: str(value) for name, value in more.items() if value is not None}

    def step(at: tuple[Net, Any], batch: tuple[Any, ...]) -> Any:
        net, state, value = advance(*at, *batch)
        return (net, state), value

    def with_content(at: tuple[Net, Any], content: Any) -> tuple[Net, Any]:
        values, buffers, state = content
        return dataclasses.replace(descent.with_values(at[0], values), buffers=buffers), state

    end, state = resumable(
        step,
        (start, state),
        batches,
        steps=steps,
        folder=checkpoints,
        run=run,
        every=per_epoch,
        steps_per_number=per_epoch,
        content=lambda at: (descent.values(at[0]), at[0].buffers, at[1]),
        with_content=with_content,
        label=label,
        quiet=quiet,
    )
    return dataclasses.replace(end, masks={**end.masks, **(masks_of(state) or {})})


def _shares(net: Network, errors: Callable[[int], Any], steps: int) -> list[np.float32]:
    """The share of the cells' errors at each step.

    Raises:
      ValueError: One below 0, or a network without errors that can be scaled.
    """
    scale_errors(net, 0.0)
    shares = [np.float32(errors(i)) for i in range(steps)]
    for i, share in enumerate(shares):
        check_range(f"errors({i})", share, 0)
    return shares


class _Data(NamedTuple):
    """Labeled inputs in memory.

    Attributes:
      inputs: All rows as one batch.
      labels: An entry a row.
      rows: Number of rows.
    """

    inputs: Batch
    labels: Any
    rows: int

    def take(self, rows: Any) -> tuple[Partitioned, Any]:
        """Arguments of a call with some rows, and their labels."""
        return call_arguments(*take_rows(self.inputs, rows)), self.labels[rows]

    def epochs(
        self, numbers: range, key: Any, batch_size: int, lengths: ShortRows | None = None
    ) -> Iterator[tuple[Partitioned, Any, Any]]:
        """Shuffled batches of epochs: arguments, labels and the key of the step."""
        for epoch in numbers:
            epoch_key = jax.random.fold_in(key, epoch)
            order = np.asarray(jax.random.permutation(epoch_key, self.rows))
            order = order[: self.rows // batch_size * batch_size].reshape(-1, batch_size)
            if lengths is not None:
                order = like_lengths(
                    order, lengths.counts, jax.random.fold_in(epoch_key, len(order))
                )
            for i, rows in enumerate(order):
                x, y = self.take(rows)
                x = x if lengths is None else lengths.cut(x, rows)
                yield x, y, jax.random.fold_in(epoch_key, i)


def like_lengths(order: np.ndarray, counts: np.ndarray, key: Any) -> np.ndarray:
    """Regroups shuffled rows so that those of a batch have about equal numbers of tokens.

    Within each sixteen batches rows are sorted by their tokens; then batches are shuffled.

    Args:
      order: Rows of each batch, [batches, rows].
      counts: Number of tokens of each row.
      key: Random key of the order of the batches.
    """
    pools = [order[i : i + 16] for i in range(0, len(order), 16)]
    found = [
        pool.ravel()[np.argsort(counts[pool.ravel()], kind="stable")].reshape(pool.shape)
        for pool in pools
    ]
    return np.concatenate(found)[np.asarray(jax.random.permutation(key, len(order)))]


def _identity(
    net: Network, data: _Data, batch_size: int, key: Any, step: tuple[str, bool]
) -> dict[str, Any]:
    """Digests and settings that tell a run from others; warns where not all is seen."""
    rest, covered = step
    if not covered:
        warnings.warn(
            "checkpoints: what host callbacks compute is not compared with the run before",
            stacklevel=4,
        )
    return {
        "network": run_digest(net, describe(net)),
        "images": run_digest(data.inputs),
        "labels": run_digest(data.labels),
        "key": run_digest(key),
        "batch_size": batch_size,
        "loss, optimizer or call": rest,
        "version of JAX": jax.__version__,
    }


def _checked_data(net: Network, images: Any, labels: Any, epochs: int, batch_size: int) -> _Data:
    """All inputs and labels in memory.

    Raises:
      ValueError: As `fit` says, the labels apart.
    """
    if net.deployed and not adapters(net):
        raise ValueError(
            "net is deployed: train the composed network, then deploy it; js.lora gives it what "
            "trains over its codes"
        )
    inputs, labels = split_labels(images, labels, "images")
    count = row_count(inputs, "images")
    if len(labels) != count:
        raise ValueError(f"labels: {len(labels)} of them for {count} images")
    if epochs < 1:
        raise ValueError(f"epochs={epochs}: must be at least 1")
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch_size={batch_size}: must be from 1 to {count}")
    check_batch("images", *inputs)
    return _Data(inputs, labels, count)


def _check_labels(data: _Data, descent: Descent, net: Network, key: Any) -> None:
    """Checks that labels are classes for the cross-entropy, and finite for any other loss."""
    loss = descent.loss.loss if isinstance(descent.loss, OverExits) else descent.loss
    if loss is not cross_entropy:
        check_finite("labels", data.labels)
        return
    # two, as some models run other equations for a single row, of which tokens are not followed
    few = take_rows(data.inputs, slice(0, 2))
    options = {**descent.call, **few.kwargs, **descent.streams(key)}
    check_labels("labels", data.labels, _classes(net, few.args, key, options))


def _classes(net: Network, args: Any, key: Any, options: Mapping[str, Any]) -> int | None:
    """Counts the classes of the outputs; None of a pipeline, where only a call would say."""
    if is_pipeline(net):
        return None
    arguments = call_arguments(args, options)

    def call(net: Network, arguments: Partitioned) -> Any:
        args, kwargs = arguments.combine()
        return net(*args, key=key, **kwargs)

    out = jax.eval_shape(call, net, arguments)
    return (out[0] if "mutable" in options else out).shape[-1]
