"""Accuracy of a network in stages against the work it saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxsim.adaptive.rule import Buckets, Exits
from jaxsim.inputs.batches import row_count, split_labels
from jaxsim.inputs.samples import check_batch, check_labels
from jaxsim.network.arguments import call_arguments
from jaxsim.network.network import Network
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range
from jaxsim.staged.exit_layout import exit_layout
from jaxsim.staged.exit_queue import run_layout
from jaxsim.staged.exits import ExitOutputs, exit_outputs, require_exits, take_exits
from jaxsim.staged.network import Staged
from jaxsim.staged.passes import pass_all
from jaxsim.staged.rows import find_rows
from jaxsim.staged.seconds import StageSeconds, check_seconds, row_seconds


class Speed(NamedTuple):
    """Setting of a network in stages, with its accuracy and cost.

    Attributes:
      scale: Factor of the levels at which tokens leave.
      threshold: Uncertainty below which rows leave.
      accuracy: Fraction of rows classified right, in [0, 1].
      flops: Mean floating-point operations of a row.
      layer: Mean exit.
      seconds: Mean seconds of a row by times of stages; None where none were given.

    Examples:
      >>> from jaxsim.staged import Speed
      >>> Speed(scale=1.0, threshold=0.2, accuracy=0.9, flops=1e6, layer=3.0).accuracy
      0.9
    """

    scale: float
    threshold: float
    accuracy: float
    flops: float
    layer: float
    seconds: float | None = None


@own_promotion()
def sweep(
    net: Network,
    inputs: Any,
    labels: Any = None,
    *,
    scales: Sequence[float] = (1.0,),
    thresholds: Sequence[float] | Float[np.ndarray, " k"] = (0.0,),
    buckets: Buckets = Buckets(max_batch=256),  # noqa: B008
    seconds: StageSeconds | None = None,
    key: Key[Array, ""] | None = None,
    **kwargs: Any,
) -> list[Speed]:
    """Measures accuracy and FLOPs at every scale of the levels and every threshold.

    Rows pass once per scale, computed to the end; thresholds are tried on the outputs. Nothing is
    compiled anew for a scale or a threshold.

    Args:
      net: Network in stages, its classifiers taught.
      inputs: A batch (an array, a tuple of positional arguments, or a dict of keyword arguments) or
        an iterable of batches, which are joined.
      labels: Class of each row, [N]; None where `inputs` is labeled already, as in `fit`.
      scales: Factors of the levels, at least 0; only 1 where all tokens stay.
      thresholds: Thresholds of uncertainty, at least 0.
      buckets: Its `max_batch` is the rows computed at once, and its `token` what numbers of tokens
        are rounded up to where rows are computed at their length, as in `Staged.run`.
      seconds: How long stages take, from `stage_seconds` at levels of which the same are above 0;
        rows are taken to be in batches as full as those of a long run, each number of tokens
        rounded up to one that was measured.
      key: Random key, needed where cores draw at every call.
      **kwargs: Keyword arguments of the network.

    Returns:
      A setting for each scale and threshold, thresholds within scales; FLOPs are those of
      `Staged.simulate`.

    Raises:
      ValueError: Labels or numbers of rows that do not fit, scales or thresholds out of range,
        seconds of other stages, or what `Staged.simulate` raises.

    Examples:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> import jaxsim as js
      >>> from jaxsim.staged import sweep
      >>> params, x = {"a": jnp.eye(3), "b": jnp.eye(3)}, np.eye(3, dtype=np.float32)
      >>> net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, x)
      >>> exits = js.exit_early(["b"])(net)
      >>> [s.layer for s in sweep(exits, x, np.arange(3), thresholds=(0.0, 2.0))]
      [2.0, 1.0]
    """
    staged = _require_staged(net)
    for scale in scales:
        check_range("scale", scale, 0)
        if staged.tokens is None and scale != 1:
            raise ValueError(
                f"scale={scale}: all tokens of the network stay; js.prune_tokens(…)(net) lets some "
                "leave"
            )
    for threshold in thresholds:
        check_range("threshold", threshold, 0)
    batch, labels = split_labels(inputs, labels, "inputs")
    check_batch("inputs", *batch)
    rows = row_count(batch)
    if len(labels) != rows:
        raise ValueError(f"labels: {len(labels)} of them for {rows} rows")
    arguments = call_arguments(batch.args, {**staged.defaults.combine(), **kwargs, **batch.kwargs})
    _, batched = find_rows(arguments)
    layout = exit_layout(staged, arguments, batched, staged.exits, staged.feature)
    check_labels("labels", labels, layout.classes)
    stages = None if seconds is None else run_layout(staged, arguments)
    if seconds is not None and stages is not None:
        check_seconds(seconds, stages)

    @jax.jit
    def take(threshold: Array, outputs: ExitOutputs) -> tuple[Exits, Array | None]:
        out = take_exits(staged.rule._replace(threshold=threshold), layout, outputs)
        if seconds is None or stages is None:
            return out, None
        spent = row_seconds(staged, stages, seconds, out.layer, outputs.there, outputs.kept)
        return out, jnp.mean(spent)

    found: list[Speed] = []
    for scale in scales:
        outputs = pass_all(_scaled(staged, scale), arguments, exit_outputs, buckets, key)
        for threshold in thresholds:
            out, time = take(jnp.float32(threshold), outputs)
            right = np.mean(np.argmax(out.logits, -1) == np.asarray(labels))
            spent = float(jnp.mean(out.flops)), float(jnp.mean(out.layer))
            took = None if time is None else float(time)
            found.append(Speed(float(scale), float(threshold), float(right), *spent, took))
    return found


def fastest(
    found: Sequence[Speed], accuracy: float, by: Literal["flops", "seconds"] = "flops"
) -> Speed:
    """Selects the setting of fewest FLOPs, or of fewest seconds, that is accurate enough.

    Args:
      found: Settings from `sweep`, on rows that will not be reported.
      accuracy: Least fraction of rows classified right, in [0, 1].
      by: What is to be least; seconds are those of settings that were swept with times of stages.

    Raises:
      ValueError: No setting is accurate enough, another `by`, or settings without seconds.

    Examples:
      >>> from jaxsim.staged import Speed, fastest
      >>> found = [Speed(1.0, 0.0, 0.92, 4e6, 6.0), Speed(1.0, 0.3, 0.91, 2e6, 3.0)]
      >>> fastest(found, accuracy=0.9).threshold
      0.3
    """
    if by not in ("flops", "seconds"):
        raise ValueError(f"by={by!r}: must be 'flops' or 'seconds'")
    if by == "seconds" and any(speed.seconds is None for speed in found):
        raise ValueError("by='seconds': settings have none; sweep(seconds=stage_seconds(net, …))")
    enough = [speed for speed in found if speed.accuracy >= accuracy]
    if not enough:
        best = max((speed.accuracy for speed in found), default=0.0)
        raise ValueError(f"accuracy={accuracy}: the best of the settings reaches {best}")
    return min(enough, key=lambda speed: getattr(speed, by))


def at_speed(net: Network, speed: Speed) -> Staged:
    """Sets a network in stages to a setting that `sweep` found for it.

    Args:
      net: Network that was swept.
      speed: Setting.

    Raises:
      ValueError: A network that nothing leaves.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.staged import Speed, at_speed
      >>> params, x = {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.eye(3)
      >>> net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, x)
      >>> fast = at_speed(js.exit_early(["b"])(net), Speed(1.0, 2.0, 0.9, 1e6, 1.0))
      >>> float(fast.threshold), fast.simulate(x).layer.tolist()
      (2.0, [1, 1, 1])
    """
    staged = _scaled(_require_staged(net), speed.scale)
    return dataclasses.replace(staged, threshold=jnp.float32(speed.threshold))


def _require_staged(net: Network) -> Staged:
    if not isinstance(net, Staged):
        raise ValueError("net: has no exits; js.exit_early(…)(net) makes them")
    require_exits(net)
    return net


def _scaled(net: Staged, scale: float) -> Staged:
    """The network with its levels multiplied."""
    if net.tokens is None:
        return net
    rule = dataclasses.replace(net.tokens, level=net.tokens.level * jnp.float32(scale))
    return dataclasses.replace(net, tokens=rule)
