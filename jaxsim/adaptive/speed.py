"""Speed: accuracy of a pyramid against the work it saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxsim.adaptive.passes import class_count, pass_all
from jaxsim.adaptive.pyramid import Pyramid, take_exits
from jaxsim.inputs.samples import check_labels
from jaxsim.numerics.checks import check_range


class Speed(NamedTuple):
    """Setting of a pyramid, with its accuracy and cost.

    Attributes:
      scale: Factor of the pyramid's levels.
      threshold: Uncertainty below which rows leave.
      accuracy: Fraction of rows classified right, in [0, 1].
      flops: Mean floating-point operations of a row.
      layer: Mean exit.

    Examples:
      >>> from jaxsim.adaptive import Speed
      >>> Speed(scale=1.0, threshold=0.2, accuracy=0.9, flops=1e6, layer=3.0).accuracy
      0.9
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
    """Measures accuracy and FLOPs at every scale of the levels and every threshold.

    Rows pass once per scale; thresholds are tried on the outputs.

    Args:
      net: Pyramid with distilled classifiers.
      ids: Token ids [N, n], padded at the end.
      lengths: Number of tokens of each row, [N].
      labels: Class of each row, [N].
      scales: Factors of `net.level`, at least 0.
      thresholds: Thresholds of uncertainty, at least 0.

    Raises:
      ValueError: Labels or numbers of rows that do not fit, or what `Pyramid.simulate` raises.
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
            out = _take_exits(rule, passed, jnp.asarray(lengths))
            right = np.mean(np.argmax(out.logits, -1) == labels)
            spent = float(jnp.mean(out.flops)), float(jnp.mean(out.layer))
            found.append(Speed(float(scale), float(threshold), float(right), *spent))
    return found


_take_exits = jax.jit(take_exits)


def fastest(found: Sequence[Speed], accuracy: float) -> Speed:
    """Selects the setting of fewest FLOPs that is accurate enough.

    Args:
      found: Settings from `sweep`, on rows that will not be reported.
      accuracy: Least fraction of rows classified right, in [0, 1].

    Raises:
      ValueError: No setting is accurate enough.

    Examples:
      >>> from jaxsim.adaptive import Speed, fastest
      >>> found = [Speed(1.0, 0.0, 0.92, 4e6, 6.0), Speed(1.0, 0.3, 0.91, 2e6, 3.0)]
      >>> fastest(found, accuracy=0.9).threshold
      0.3
    """
    enough = [speed for speed in found if speed.accuracy >= accuracy]
    if not enough:
        best = max((speed.accuracy for speed in found), default=0.0)
        raise ValueError(f"accuracy={accuracy}: the best of the settings reaches {best}")
    return min(enough, key=lambda speed: speed.flops)


def at_speed(net: Pyramid, speed: Speed) -> Pyramid:
    """Sets a pyramid to a setting that `sweep` found for it.

    Args:
      net: Pyramid that was swept.
      speed: Setting.
    """
    threshold = jnp.float32(speed.threshold)
    return dataclasses.replace(net, level=net.level * speed.scale, threshold=threshold)
