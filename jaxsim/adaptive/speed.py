"""Accuracy of a pyramid against the work it saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxsim.adaptive.passes import class_count, pass_all
from jaxsim.adaptive.pyramid import Pyramid, decided
from jaxsim.inputs.samples import check_labels
from jaxsim.numerics.checks import check_range


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
    check_labels("labels", labels, class_count(net))
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
