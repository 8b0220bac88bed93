"""Chips of small networks: trained through, programmed several times, scored."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

import jaxsim as js
from jaxsim.data import Images
from jaxsim.evaluate.comparison import classify
from jaxsim.train.loop import fit
from jaxsim.train.reference import CALL


def retrained(
    net: js.Network,
    train: Images,
    *,
    epochs: int,
    seed: int,
    last: optax.GradientTransformation | None = None,
    **more: Any,
) -> js.Network:
    """A composed network trained on by its own gradients.

    Args:
      net: What is trained.
      train: Images it is trained on.
      epochs: Passes over them.
      seed: Of the order of images, and of what is drawn in the network.
      last: What becomes of each update, None for nothing.
      **more: Goes to `fit`.
    """
    steps = epochs * (len(train.labels) // 128)
    adam = optax.adamw(optax.cosine_decay_schedule(1e-3, steps))
    return fit(
        net,
        train.images,
        train.labels,
        epochs=epochs,
        optimizer=adam if last is None else optax.chain(adam, last),
        key=jax.random.key(seed + 7),
        call=CALL,
        label=f"aware, seed {seed}",
        **more,
    )


def programmed(
    net: js.Network, train: Images, test: Images, trials: int, *, norms: int = 0
) -> float:
    """Mean accuracy of a chip over several programmings.

    Args:
      net: What is programmed.
      train: Images of which the first 256 set ranges.
      test: Images that are classified.
      trials: Programmings.
      norms: Training images on which each chip's batch norms are measured anew; 0 for none.
    """
    seen = train.images[:256]
    if not norms:
        chips = (js.deploy(net, key=jax.random.key(k), calibrate=seen) for k in range(trials))
        return float(np.mean([accuracy(chip, test) for chip in chips]))
    update = js.update_norms([train.images[i : i + 256] for i in range(0, norms, 256)], train=True)
    chips = (
        update(js.deploy(net, key=jax.random.key(k), calibrate=seen, **CALL)) for k in range(trials)
    )
    return float(np.mean([accuracy(chip, test) for chip in chips]))


def accuracy(net: js.Network, test: Images) -> float:
    """Share of test images classified right."""
    return float(np.mean(classify(net, test.images) == test.labels))
