"""A token that leaves a decoder after an early layer, keys and values filled in behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxsim.cores.partition import Partitioned
from jaxsim.cores.wrapper import Wrapper
from jaxsim.evaluate.language.layers import LayerStep, State
from jaxsim.network.interpreter import Walk
from jaxsim.network.network import Network
from jaxsim.network.plan import Entry, Inner
from jaxsim.network.stages import Stage, StageParams, run_stage, stage_params
from jaxsim.numerics.checks import check_range, is_traced

Confidence = Literal["gap", "similarity"]
"""What an exit decides by: how far the most probable token is ahead of the second, or the cosine of
a token's state with the one that it had at the exit before."""


class Leaving(NamedTuple):
    """When a token leaves; all of it may be traced.

    Attributes:
      threshold: Confidence at which it does, at least 0; infinity for never.
      decay: How fast the threshold falls over a text, at least 0; None where it stays.
    """

    threshold: float | Array
    decay: float | Array | None

    def checked(self) -> Leaving:
        """These numbers as arrays.

        Raises:
          ValueError: One out of range.
        """
        if not is_traced(self.threshold) and not float(self.threshold) >= 0:
            raise ValueError(
                f"threshold={self.threshold}: must be at least 0, infinity for no exit"
            )
        if self.decay is not None:
            check_range("decay", self.decay, 0)
        return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), self)

    def at(self, share: Array) -> Array:
        """The threshold at a place of a text.

        Args:
          share: The place, from 0 for its beginning to 1 for its end.
        """
        if self.decay is None:
            return jnp.asarray(self.threshold)
        return 0.9 * self.threshold + 0.1 * jnp.exp(-self.decay * share)


class Said(NamedTuple):
    """What a decoder says behind one token a row.

    Attributes:
      logits: Logits, float32.
      cache: The next cache.
      exit: Number of the exit at which each row left; that behind the last for those that did not.
    """

    logits: Float[Array, "B V"]
    cache: Any
    exit: Int[Array, " B"]


def check_confidence(confidence: str) -> None:
    """Checks that an exit can decide by it.

    Args:
      confidence: Its name.

    Raises:
      ValueError: It cannot.
    """
    if confidence not in get_args(Confidence):
        named = " or ".join(map(repr, get_args(Confidence)))
        raise ValueError(f"confidence={confidence!r}: must be {named}")


def step_params(net: Network, step: LayerStep) -> list[StageParams]:
    """Collects what each stage reads; of a stack each has its slices.

    Args:
      net: Decoder.
      step: Its stages.
    """
    return [stage_params(net, step.cut, stage) for stage in step.cut.stages]


def run_token(
    net: Network,
    step: LayerStep,
    params: Sequence[StageParams],
    arguments: Partitioned,
    gone: Bool[Array, " B"],
    threshold: Array,
    key: Key[Array, ""] | None,
    *,
    confidence: Confidence,
    skip: bool,
) -> Said:
    """Reads one token a row, each as far as it has to go: a pure function.

    Args:
      net: Decoder.
      step: Its stages for these arguments.
      params: What they read.
      arguments: Arguments of the call: tokens [B, 1] and a cache.
      gone: Rows of which nothing is wanted any more.
      threshold: Confidence at which tokens leave.
      key: Random key of the call, or None.
      confidence: What exits decide by.
      skip: True to compute of layers that all rows have left their keys and values alone, False to
        compute all and choose.
    """
    walker = _Token(net, step, params, arguments, key)
    rows, count = gone.shape[0], len(step.exits)
    known: dict[tuple[int, int], Array] = {}
    x = before = walker.stage(0, known, jnp.zeros(rows, bool), None)
    spoken = jax.eval_shape(lambda x, known: walker.head(known, x), x, known)
    logits, exit_ = jnp.zeros(spoken.shape), jnp.full(rows, count, jnp.int32)
    left = gone

    def either(run: Any, other: Any, *args: Any) -> Any:
        return lax.cond(left.all(), other, run, *args) if skip else run(*args)

    for at in range(1, len(step.given)):

        def run(known: Any, left: Any, x: Array, at: int = at) -> Any:
            return walker.outputs(at, known, left, x)

        def fill(known: Any, left: Any, x: Array, at: int = at) -> Any:
            return walker.outputs(at, known, None, x)

        outs = either(run, fill, known, left, x)
        known = {**known, **{(at, i): y for i, y in enumerate(outs)}}
        x = outs[step.given[at]]
        if at in step.exits:
            number = step.exits.index(at)

            def look(known: Any, now: Any, x: Array, before: Array, number: int = number) -> Any:
                left, logits, exit_ = now
                if confidence == "gap":
                    own = walker.head(known, x)
                    sure = _gap(own)
                else:
                    own, sure = logits, _similarity(x, before)
                leave = ~left & (sure >= threshold)
                logits = jnp.where(leave[:, None], own, logits)
                return left | leave, logits, jnp.where(leave, number, exit_)

            def keep(known: Any, now: Any, x: Array, before: Array) -> Any:
                return now

            now = (left, logits, exit_)
            left, logits, exit_ = either(look, keep, known, now, x, before)
            before = x
    final = walker.rest(known, x)

    def end(known: Any, logits: Array, x: Array) -> Array:
        own = walker.head(known, x)
        return own if confidence == "similarity" else jnp.where(left[:, None], logits, own)

    def stored(known: Any, logits: Array, x: Array) -> Array:
        return logits

    ends = either(end, stored, known, logits, x) if confidence == "gap" else end(known, logits, x)
    known = {**known, **final, (len(step.given), step.logits): ends}
    leaves = [known[source] for source in step.cut.outputs]
    leaves[0] = leaves[0].reshape(rows, 1, -1)
    _, cache = jax.tree.unflatten(step.cut.equations.out_tree, leaves)
    return Said(ends, cache, exit_)


class _Token:
    """Runs the stages of a step."""

    def __init__(
        self,
        net: Network,
        step: LayerStep,
        params: Sequence[StageParams],
        arguments: Partitioned,
        key: Any,
    ):
        self.net, self.step, self.params = net, step, params
        self.arrays, self.key = arguments.arrays, key

    def _run(self, stage: Stage, at: int, live: Sequence[Any], **more: Any) -> list[Array]:
        given = [jnp.asarray(self.arrays[i]) for i in stage.arguments]
        return run_stage(
            stage, self.params[at], given, live, ranges=self.net.ranges, key=self.key, **more
        )

    def stage(self, at: int, known: dict[tuple[int, int], Array], left: Any, x: Any) -> Array:
        """Runs a stage, notes what it gives, and returns the state."""
        outs = self.outputs(at, known, left, x)
        known.update({(at, i): y for i, y in enumerate(outs)})
        return outs[self.step.given[at]]

    def outputs(self, at: int, known: Mapping[Any, Array], left: Any, x: Any) -> list[Array]:
        """What a stage gives; rows that left keep their state, all of them if `left` is None."""
        stage, place = self.step.cut.stages[at], self.step.given[at]
        live = [known[source] for source in stage.sources]
        walk = partial(FrozenWalk, state=self.step.state, left=left)
        outs = self._run(stage, at, live, walk=walk)
        if x is not None:
            outs[place] = x if left is None else jnp.where(_rows(left, x), x, outs[place])
        return outs

    def head(self, known: Mapping[Any, Array], x: Array) -> Array:
        """Logits of a state, [B, V]."""
        last = len(self.step.given) - 1
        state = {(last, self.step.given[last]): x}
        live = [{**known, **state}.get(source) for source in self.step.head.sources]
        (logits,) = self._run(self.step.head, last + 1, live)
        return logits[:, -1].astype(jnp.float32)

    def rest(self, known: Mapping[Any, Array], x: Array) -> dict[tuple[int, int], Array]:
        """What the last stage gives beside the logits."""
        last = len(self.step.given)
        live = [known[source] for source in self.step.rest.sources]
        outs = self._run(self.step.rest, last, live)
        places = [i for i in range(len(outs) + 1) if i != self.step.logits]
        return {(last, i): y for i, y in zip(places, outs, strict=True)}


class FrozenWalk(Walk):
    """Evaluates layers in which rows that left keep their state, between slices of a stack too."""

    def __init__(
        self,
        cores: Mapping[str, tuple[Wrapper, ...]],
        ranges: Literal["batch", "stored", "missing"],
        key: Key[Array, ""] | None,
        *,
        part: Any = None,
        state: State,
        left: Bool[Array, " B"] | None,
    ):
        """Prepares to evaluate.

        Args:
          cores: Wrappers of each transformed site, outermost first.
          ranges: Where cores take ranges from, as `Network.ranges`.
          key: Random key of the call, or None.
          part: Tells apart the read noise of parts of one call.
          state: What layers hand on.
          left: Rows that left; None for all.
        """
        super().__init__(cores, ranges, key, part=part)
        self.state, self.left = state, left

    def step(
        self, eqn: Any, entry: Entry, ins: list[Any], states: dict[str, Any], indices: Any
    ) -> Sequence[Any]:
        """Computes the results of an equation; a part of a stack slice by slice.

        Args:
          eqn: Equation.
          entry: Its meaning in the plan.
          ins: Values of its operands.
          states: States of the sites, by name.
          indices: Iteration of each loop around, outermost first.
        """
        if isinstance(entry, Inner) and entry.rows is not None:
            outs, _ = self.inner(eqn, entry, ins, states, indices)
            return outs
        return super().step(eqn, entry, ins, states, indices)

    def handed_on(self, entry: Inner, before: Sequence[Any], after: list[Any]) -> list[Any]:
        """What a slice of a stack hands to the next: a row that left what it had.

        Args:
          entry: Meaning of the scan.
          before: What the slice was given.
          after: What it made of it.
        """
        if entry.rows is None:
            return after
        return [
            new
            if not self.state.is_like(new)
            else old
            if self.left is None
            else jnp.where(_rows(self.left, old), old, new)
            for old, new in zip(before, after, strict=True)
        ]


def _rows(marks: Array, like: Array) -> Array:
    return marks.reshape(-1, *[1] * (like.ndim - 1))


def _gap(logits: Float[Array, "B V"]) -> Float[Array, " B"]:
    """How much more probable the first token is than the second."""
    (first, second), _ = (a.T for a in lax.top_k(logits, 2))
    total = jax.nn.logsumexp(logits, -1)
    return jnp.exp(first - total) - jnp.exp(second - total)


def _similarity(x: Array, before: Array) -> Float[Array, " B"]:
    """Cosine of states, not below zero."""
    x, before = (a.reshape(len(a), -1).astype(jnp.float32) for a in (x, before))
    sizes = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(before, axis=-1)
    return jnp.maximum(jnp.sum(x * before, -1) / jnp.where(sizes > 0, sizes, 1), 0)
