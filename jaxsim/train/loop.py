"""Training a network: float, quantisation-aware, noise-aware, all by the same loop."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Key

from jaxsim.checkpoint.log import fingerprint, programme
from jaxsim.checkpoint.resume import trail
from jaxsim.checkpoint.save_load import describe
from jaxsim.console.progress import progress
from jaxsim.cores.partition import Parts
from jaxsim.inputs.batches import Batch, labelled, row_count, take_rows
from jaxsim.inputs.samples import check_batch, check_finite, check_labels
from jaxsim.network.arguments import call_arguments
from jaxsim.network.network import Network
from jaxsim.numerics.arrays import own_promotion
from jaxsim.pipeline.gradient import pipeline_value_and_grad
from jaxsim.pipeline.pipeline import Pipeline
from jaxsim.sparsity.masks import select_kept
from jaxsim.sparsity.optimizers.masked import masks_of
from jaxsim.train.losses import cross_entropy
from jaxsim.transforms.learn_ranges import ranges, with_ranges


def only(optimizer: optax.GradientTransformation, trained: Any) -> optax.GradientTransformation:
    """An optimiser that moves no entry but those marked, whatever decay or momentum would do.

    Args:
      optimizer: moves the rest.
      trained: for every parameter an array of its shape, or one that broadcasts to it: 1 where it
        is trained and 0 where it stays, as `jaxsim.models.functions.added` makes.

    Raises:
      ValueError: when it begins, a mask whose leaves are not those of the parameters.
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


@own_promotion()
def fit(
    net: Network,
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
    checkpoints: str | Path | None = None,
    label: str = "training",
    quiet: bool = False,
) -> Network:
    """Minimises a loss of a network's logits, the cross-entropy unless said, by its own gradients.

    The order of the images and the noise of the cores in epoch e come from `fold_in(key, e)`, so
    an interrupted run that goes on from its checkpoint ends where the whole run would have.

    Args:
      net: not deployed; its cores say what the training is aware of. A pipeline trains as one.
      images: inputs: a batch of N rows (an array [N, ...], a tuple of positional arguments, or a
        dict of keyword arguments) or an iterable of batches. All is read once, into memory.
      labels: [N] classes, or whatever `loss` compares with, an entry an image; where `images` is an
        iterable also an iterable of arrays, one a batch. None where `images` is labelled already: a
        pair `(batch, labels)` or an iterable of pairs.
      epochs: passes over the data, at least 1.
      optimizer: an optax transformation; it sees `net.params`, or after `js.learn_ranges`
        `{"params": net.params, "ranges": …}`. Where its state has masks (`js.sparsity.rigl`), those
        of `net` make way for them: all weights have gradients, and the network ends with the masks.
      key: for shuffling and for the cores.
      batch_size: images a step, at most N; an incomplete last batch is left out.
      call: keyword arguments of each call. With "mutable" in it, the model returns updates of its
        buffers as a second output and they are kept.
      rngs: Linen's random streams (`"dropout"`), given a new key at every step.
      loss: mean over a batch of `(logits, labels)`, for instance `distillation(…)`.
      checkpoints: folder to write to after each epoch and to resume from; of this run only, which
        is known by the bits of the network, the data and the key, and by the programme of a step:
        its loss, optimizer and call. Not seen are what host callbacks do and the loss of a
        pipeline. Locked while it is in use.
      label: what the progress bar says.
      quiet: show no progress bar.

    Returns:
      The network with trained parameters and buffers.

    Raises:
      ValueError: a deployed network, lengths that differ, images that are not finite, labels that
        are no classes of the cross-entropy, epochs or batch_size out of range, or checkpoints of
        another run.
    """
    if net.deployed:
        raise ValueError("net is deployed: train the composed network, then deploy it")
    inputs, labels = labelled(images, labels, "images")
    count = row_count(inputs, "images")
    if len(labels) != count:
        raise ValueError(f"labels: {len(labels)} of them for {count} images")
    if epochs < 1:
        raise ValueError(f"epochs={epochs}: must be at least 1")
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch_size={batch_size}: must be from 1 to {count}")
    options = dict(call or {})
    check_batch("images", *inputs)
    steps = count // batch_size

    def streams(key: Any) -> dict[str, Any]:
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(rngs)}
        return {"rngs": keys} if keys else {}

    if loss is cross_entropy:
        few = take_rows(inputs, slice(0, 1))
        more = {**options, **few.kwargs, **streams(key)}
        check_labels("labels", labels, _classes(net, few.args, key, more))
    else:
        check_finite("labels", labels)

    def loss_of(values: Any, net: Network, x: Parts, y: Array, key: Any) -> tuple[Array, Any]:
        args, kwargs = x.whole()
        out = _with(net, values)(*args, key=key, **{**options, **kwargs}, **streams(key))
        logits, updates = out if "mutable" in options else (out, {})
        return loss(logits, y), updates

    def updated(net: Network, state: optax.OptState, grads: Any, updates: Any) -> Any:
        changes, state = optimizer.update(grads, state, _trained(net))
        net = _with(net, optax.apply_updates(_trained(net), changes))
        return dataclasses.replace(net, buffers=_merged(net.buffers, updates)), state

    # A step at a time from Python: XLA's CPU backend runs convolutions in a scan far slower.
    @jax.jit
    def step(net: Network, state: optax.OptState, x: Parts, y: Array, key: Any) -> Any:
        (value, updates), grads = jax.value_and_grad(loss_of, has_aux=True)(
            _trained(net), net, x, y, key
        )
        return *updated(net, state, grads, updates), value

    update = jax.jit(updated)

    def pipelined(net: Network, state: optax.OptState, x: Parts, y: Any, key: Any) -> Any:
        gradients, batch = pipeline_value_and_grad(net, loss), Batch(*x.whole())
        out, grads = gradients(net.params, (batch, y), key=key, **options, **streams(key))
        value, updates = out if "mutable" in options else (out, {})
        return *update(net, state, grads, updates), value

    advanced = pipelined if isinstance(net, Pipeline) else step
    if ranges(net) and isinstance(net, Pipeline):
        raise ValueError("net: a pipeline with learned ranges; train them, then shard")
    state = optimizer.init(_trained(net))
    given = net
    if (masks := masks_of(state)) is not None:
        zero = jax.tree.map(np.zeros_like, net.params)
        net = dataclasses.replace(net, params=select_kept(masks, net.params, zero))
        net = dataclasses.replace(net, masks={n: m for n, m in net.masks.items() if n not in masks})
    with contextlib.ExitStack() as stack:
        done, kept = None, None
        if checkpoints is not None:
            few = slice(0, batch_size)
            batch = call_arguments(*take_rows(inputs, few)), labels[few]
            if isinstance(net, Pipeline):  # its step is no one programme
                rest, covered = programme(update, net, state, _trained(net), {})
            else:
                rest, covered = programme(step, net, state, *batch, key)
            if not covered:
                warnings.warn(
                    "checkpoints: what host callbacks compute is not compared with the run before",
                    stacklevel=2,
                )
            run = {
                "network": fingerprint(given, describe(given)),
                "images": fingerprint(inputs),
                "labels": fingerprint(labels),
                "key": fingerprint(key),
                "batch_size": batch_size,
                "loss, optimizer or call": rest,
                "version of JAX": jax.__version__,
            }
            kept = stack.enter_context(trail(checkpoints, run=run))
            done, (values, buffers, state) = kept.newest((_trained(net), net.buffers, state))
            net = dataclasses.replace(_with(net, values), buffers=buffers)
        bar = progress(label, epochs * steps, (done or 0) * steps, "loss", quiet=quiet)
        advance = stack.enter_context(bar)
        for epoch in range(done or 0, epochs):
            epoch_key = jax.random.fold_in(key, epoch)
            order = np.asarray(jax.random.permutation(epoch_key, count))
            for i in range(steps):
                rows = order[i * batch_size : (i + 1) * batch_size]
                step_key = jax.random.fold_in(epoch_key, i)
                x = call_arguments(*take_rows(inputs, rows))
                net, state, value = advanced(net, state, x, labels[rows], step_key)
                advance(value)
            if kept is not None:
                kept.add(epoch + 1, (_trained(net), net.buffers, state))
    return dataclasses.replace(net, masks={**net.masks, **(masks_of(state) or {})})


def _classes(net: Network, args: Any, key: Any, options: Mapping[str, Any]) -> int | None:
    """How many classes the outputs tell apart; None of a pipeline, where only a call would say."""
    if isinstance(net, Pipeline):
        return None
    arguments = call_arguments(args, options)

    def call(net: Network, arguments: Parts) -> Any:
        args, kwargs = arguments.whole()
        return net(*args, key=key, **kwargs)

    out = jax.eval_shape(call, net, arguments)
    return (out[0] if "mutable" in options else out).shape[-1]


def _trained(net: Network) -> Any:
    """What the optimiser sees: the parameters, and ranges if they are learned."""
    learned = ranges(net)
    return {"params": net.params, "ranges": learned} if learned else net.params


def _with(net: Network, values: Any) -> Network:
    """The network with other values of `_trained`."""
    if not ranges(net):
        return dataclasses.replace(net, params=values)
    return with_ranges(dataclasses.replace(net, params=values["params"]), values["ranges"])


def _merged(buffers: Any, updates: Any) -> Any:
    """Buffers with updates put in, at any depth."""
    if not isinstance(updates, Mapping):
        return updates
    return {**buffers, **{k: _merged(buffers.get(k, {}), v) for k, v in updates.items()}}
