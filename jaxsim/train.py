"""Training a network: float, quantisation-aware, noise-aware, all by the same loop."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxsim.checkpoint import describe, trail
from jaxsim.network import Network
from jaxsim.pipeline import Pipeline
from jaxsim.pipeline_gradient import pipeline_value_and_grad


def fit(
    net: Network,
    images: Float[np.ndarray, "N ..."],
    labels: Int[np.ndarray, " N"],
    *,
    epochs: int,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    batch_size: int = 128,
    call: Mapping[str, Any] | None = None,
    rngs: Sequence[str] = (),
    checkpoints: str | Path | None = None,
    label: str = "training",
    quiet: bool = False,
) -> Network:
    """Minimises the cross-entropy of a network's logits by its own gradients.

    The order of the images and the noise of the cores in epoch e come from `fold_in(key, e)`, so
    an interrupted run that goes on from its checkpoint ends where the whole run would have.

    Args:
      net: not deployed; its cores say what the training is aware of. A pipeline trains as one.
      images: [N, ...] inputs.
      labels: [N] classes.
      epochs: passes over the data, at least 1.
      optimizer: an optax transformation; it sees `net.params`.
      key: for shuffling and for the cores.
      batch_size: images a step, at most N; an incomplete last batch is left out.
      call: keyword arguments of each call. With "mutable" in it, the model returns updates of its
        buffers as a second output and they are kept.
      rngs: Linen's random streams (`"dropout"`), given a new key at every step.
      checkpoints: folder to write to after each epoch and to resume from; of this run only.
      label: what the progress bar says.
      quiet: show no progress bar.

    Returns:
      The network with trained parameters and buffers.

    Raises:
      ValueError: a deployed network, lengths that differ, epochs or batch_size out of range, or
        checkpoints of another run.
    """
    if net.deployed:
        raise ValueError("net is deployed: train the composed network, then deploy it")
    if len(images) != len(labels):
        raise ValueError(f"labels: {len(labels)} of them for {len(images)} images")
    if epochs < 1:
        raise ValueError(f"epochs={epochs}: must be at least 1")
    if not 1 <= batch_size <= len(images):
        raise ValueError(f"batch_size={batch_size}: must be from 1 to {len(images)}")
    options = dict(call or {})
    steps = len(images) // batch_size

    def streams(key: Any) -> dict[str, Any]:
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(rngs)}
        return {"rngs": keys} if keys else {}

    def loss_of(params: Any, net: Network, x: Array, y: Array, key: Any) -> tuple[Array, Any]:
        out = dataclasses.replace(net, params=params)(x, key=key, **options, **streams(key))
        logits, updates = out if "mutable" in options else (out, {})
        return _entropy(logits, y), updates

    def updated(net: Network, state: optax.OptState, grads: Any, updates: Any) -> Any:
        changes, state = optimizer.update(grads, state, net.params)
        params = optax.apply_updates(net.params, changes)
        buffers = _merged(net.buffers, updates)
        return dataclasses.replace(net, params=params, buffers=buffers), state

    # A step at a time from Python: XLA's CPU backend runs convolutions in a scan far slower.
    @jax.jit
    def step(net: Network, state: optax.OptState, x: Array, y: Array, key: Any) -> Any:
        (loss, updates), grads = jax.value_and_grad(loss_of, has_aux=True)(
            net.params, net, x, y, key
        )
        return *updated(net, state, grads, updates), loss

    update = jax.jit(updated)

    def pipelined(net: Network, state: optax.OptState, x: Any, y: Any, key: Any) -> Any:
        gradients = pipeline_value_and_grad(net, _entropy)
        out, grads = gradients(net.params, (x, y), key=key, **options, **streams(key))
        loss, updates = out if "mutable" in options else (out, {})
        return *update(net, state, grads, updates), loss

    advanced = pipelined if isinstance(net, Pipeline) else step
    state = optimizer.init(net.params)
    with contextlib.ExitStack() as stack:
        done, kept = None, None
        if checkpoints is not None:
            facts = (net, len(images), batch_size, labels, key)
            kept = stack.enter_context(trail(checkpoints, run=_fingerprint(*facts)))
            done, (params, buffers, state) = kept.newest((net.params, net.buffers, state))
            net = dataclasses.replace(net, params=params, buffers=buffers)
        advance = stack.enter_context(_progress(label, epochs, steps, done or 0, quiet))
        for epoch in range(done or 0, epochs):
            epoch_key = jax.random.fold_in(key, epoch)
            order = np.asarray(jax.random.permutation(epoch_key, len(images)))
            for i in range(steps):
                rows = order[i * batch_size : (i + 1) * batch_size]
                step_key = jax.random.fold_in(epoch_key, i)
                net, state, loss = advanced(net, state, images[rows], labels[rows], step_key)
                advance(loss)
            if kept is not None:
                kept.add(epoch + 1, (net.params, net.buffers, state))
    return net


def _entropy(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _merged(buffers: Any, updates: Any) -> Any:
    """Buffers with updates put in, at any depth."""
    if not isinstance(updates, Mapping):
        return updates
    return {**buffers, **{k: _merged(buffers.get(k, {}), v) for k, v in updates.items()}}


def _fingerprint(net: Network, count: int, batch_size: int, labels: Any, key: Any) -> str:
    """What tells one run from another: the network's sites and cores, the data and the key."""
    facts = [*describe(net), str(count), str(batch_size)]
    digest = hashlib.sha256("\n".join(facts).encode())
    digest.update(np.asarray(labels).tobytes())
    for leaf in (jax.random.key_data(key), *jax.tree.leaves(net.params)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _progress(
    label: str, epochs: int, steps: int, done: int, quiet: bool
) -> Generator[Callable[[Array], None]]:
    """A progress bar that shows the loss, read only now and then so that steps run ahead."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=quiet) as bar:
        count, total = done * steps, epochs * steps
        task = bar.add_task(label, total=total, completed=count, loss=float("nan"))

        def advance(loss: Array) -> None:
            nonlocal count
            count += 1
            if count % 20 == 0 or count == total:
                bar.update(task, completed=count, loss=float(loss))

        yield advance
