"""A Flax model as a Network: traced once, its contractions named, each one given to a core.

A call traces the model for the shapes at hand, plans
which equations are sites (`_plan`), and walks the equations (`Walk`), handing each site to its
core and binding every other equation as it is. Under `jit` none of this is left at run time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import math
import re
import warnings
import zlib
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Key

from jaxsim import internals
from jaxsim.batches import batches
from jaxsim.core import Conv, Core, Dot, Op, Parts, State, Wrapper, build
from jaxsim.cores.site_weight import masked
from jaxsim.cost import Cost, SiteCost, site_cost
from jaxsim.frontends import (
    Changes,
    NnxCall,
    changes,
    is_array,
    path_name,
    take_apart,
    updated,
)
from jaxsim.grid import Range
from jaxsim.internals import bind, inner_jaxprs, parameters
from jaxsim.numerics import cut_with, is_traced, native, own_promotion, straight_through
from jaxsim.table import html, render, sites_table
from jaxsim.values import PytreeValue

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Site:
    """One contraction of an activation with a parameter (or, if dynamic, with an activation).

    Attributes:
      name: the parameter's path, `#2`, `#3`, … appended for its later uses; `dynamic/0`, … for
        contractions of two activations.
      param: path of the parameter, None if dynamic.
      kind: "dot", "conv", or "dynamic".
      x_shape, w_shape: operand shapes for the example that was traced.
      dtype: dtype of the weight.
      macs: multiply-accumulates of one execution for that example.
      lengths: trip counts of the loops around it, outermost first; 1 for a while loop, whose
        length is unknown.
      stacked: for each of those loops, whether the weight is one slice of a stacked parameter.
      sources: paths of all parameters and buffers that the weight is computed from.
      parts: those of them whose zeros are zeros of the weight, because it is made of their entries,
        moved or scaled; empty where it is computed in another way.
      shared: what else reads the sources: names of sites, or of primitives that are none (`gather`
        for an embedding).
    """

    name: str
    param: str | None
    kind: Literal["dot", "conv", "dynamic"]
    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    dtype: str
    macs: int
    lengths: tuple[int, ...] = ()
    stacked: tuple[bool, ...] = ()
    sources: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    @property
    def stack(self) -> tuple[int, ...]:
        """Leading axes that scans add to the site's state and parameter."""
        return tuple(n for n, s in zip(self.lengths, self.stacked, strict=True) if s)


DATA = ("params", "buffers", "masks", "cores", "states")
"""Fields of a network that hold arrays; every other field is static."""

META = (
    *("fn", "sites", "defaults", "example", "weights", "unreached"),
    *("focus", "deployed", "calibrated"),
)
"""Fields of a network that are static."""


@partial(jax.tree_util.register_dataclass, data_fields=[*DATA], meta_fields=[*META])
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Network(PytreeValue):
    """A model whose contractions can be given other meanings. Calling it is a pure function.

    Attributes:
      params: the trainable parameters, as the model holds them.
      buffers: everything else the model reads (batch statistics, …).
      masks: for each pruned parameter's path, which of its entries remain.
      cores: for each transformed site, its chain of wrappers, the first one outermost.
      states: for each transformed site, what its core has written; empty before `deploy`.
      fn: `(params, buffers, *args, **kwargs) -> outputs`, the model.
      sites: every contraction found, in order of execution.
      defaults: keyword arguments fixed at `trace`.
      example: shapes of the arguments it was traced with.
      weights: paths of the buffers that count as weights.
      unreached: what is contracted with inputs and is no site, each in a phrase.
      focus: names of the only sites that transforms may touch; None for all. Set by `rules`.
      deployed: weights are written; `params` of transformed sites are not read any more.
      calibrated: ranges are stored.
      cut_by: the transform that cuts a network into this kind, empty for one that is whole.
    """

    cut_by: ClassVar[str] = ""

    params: PyTree
    buffers: PyTree
    masks: dict[str, Array]
    cores: dict[str, tuple[Wrapper, ...]]
    states: dict[str, State]
    fn: Callable[..., Any]
    sites: tuple[Site, ...]
    defaults: Parts
    example: Parts
    weights: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    focus: tuple[str, ...] | None = None
    deployed: bool = False
    calibrated: bool = False

    def __call__(self, *args: Any, key: Key[Array, ""] | None = None, **kwargs: Any) -> Any:
        """The outputs of the model on this hardware.

        Args:
          *args: the model's inputs; batch and other free sizes may differ from the traced ones.
          key: needed where cores draw random numbers at every call; random streams of an NNX module
            (dropout) are drawn anew for each key, too.
          **kwargs: the model's keyword arguments.

        Returns:
          What the model returns.

        Raises:
          ValueError: the model rejects the arguments, or a core needs a key.
        """
        arguments = self.arguments(args, kwargs, key)
        if not self.cores:
            with _explained(self.example, arguments):
                return _apply(arguments, self.fn, self.masked_params(), self.buffers)
        return _run(self, arguments, key)

    def arguments(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], key: Key[Array, ""] | None
    ) -> Parts:
        """The arguments of a call, with the defaults of `trace` and a key for random streams.

        Raises:
          ValueError: The key is none.
        """
        check_key(key)
        kwargs = {**self.defaults.whole(), **kwargs}
        if key is not None and isinstance(self.fn, NnxCall) and self.fn.streams:
            kwargs.setdefault("rngs", jax.random.fold_in(key, zlib.crc32(b"rngs")))
        return call_arguments(args, kwargs)

    @property
    def ranges(self) -> Literal["batch", "stored", "missing"]:
        """Where calls take ranges from."""
        return "batch" if not self.deployed else "stored" if self.calibrated else "missing"

    def masked_params(self) -> PyTree:
        """The parameters with pruned entries set to zero."""
        if not self.masks:
            return self.params
        return jax.tree_util.tree_map_with_path(
            lambda path, p: (
                p * self.masks[name].astype(p.dtype)
                if (name := path_name(path)) in self.masks
                else p
            ),
            self.params,
        )

    def site_masks(self, site: Site) -> tuple[Any, ...]:
        """Which entries of a site's weight remain, in one array or more that hold it together.

        Args:
          site: One of this network's sites.

        Returns:
          The masks, of the weight's or its parameters' shapes; empty where nothing is pruned.
        """
        here = [w.settings["mask"] for w in self.cores.get(site.name, ()) if w.make is masked]
        if here:
            return (here[-1],)
        if not any(part in self.masks for part in site.parts):
            return ()
        shapes = {
            path_name(p): a.shape for p, a in jax.tree_util.tree_leaves_with_path(self.params)
        }
        return tuple(
            self.masks[part] if part in self.masks else np.ones(shapes[part], bool)
            for part in site.parts
        )

    def density(self, site: Site) -> float | None:
        """Share of a site's weight that pruning left, in [0, 1]; None while masks are traced."""
        masks = self.site_masks(site)
        if any(map(is_traced, masks)):
            return None
        return sum(map(_count, masks)) / sum(m.size for m in masks) if masks else 1.0

    def select(self, patterns: str | Sequence[str]) -> tuple[Site, ...]:
        """The sites that glob or `re:` patterns name, within the focus.

        Args:
          patterns: globs (`Conv_*`), or regular expressions (`re:Conv_[12]/kernel`), matched to a
            site's name or its parameter's path. Dynamic sites need a pattern that begins with
            `dynamic`, or a focus that holds them.

        Returns:
          The sites, in order of execution.

        Raises:
          ValueError: no pattern, or one that matches nothing within the focus.
        """
        patterns = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
            raise ValueError(f"sites={patterns!r}: give a pattern or a list of patterns")
        if not patterns:
            raise ValueError("sites=[]: give at least one pattern")
        focus, asked = self.focus, self.focus is not None
        sites = self.sites if focus is None else [s for s in self.sites if s.name in focus]
        hits = {pattern: _matching(sites, pattern, dynamic=asked) for pattern in patterns}
        for pattern, names in hits.items():
            if not names:
                known = ", ".join(s.name for s in sites)
                within = " of its rule" if asked else ""
                raise ValueError(
                    f"sites={pattern!r} matches no site{within}; the sites are: {known}"
                )
        chosen = set[str]().union(*hits.values())
        return tuple(s for s in sites if s.name in chosen)

    def with_state(self, updates: PyTree) -> Network:
        """This network with new values of what it reads beside its parameters.

        Args:
          updates: What a call with `mutable=` returned beside its outputs: a tree of buffers, or a
            part of one. Shapes and dtypes are those of before.

        Raises:
          ValueError: A path that no buffer has, or an array of another shape or dtype.

        Examples:
          >>> y, updates = net(x, mutable=["batch_stats"])  # doctest: +SKIP
          >>> net = net.with_state(updates)  # doctest: +SKIP
        """
        return dataclasses.replace(self, buffers=updated(self.buffers, updates))

    def wrap(self, names: Iterable[str], wrapper: Wrapper) -> Network:
        """This network with a wrapper placed innermost at each named site.

        Raises:
          ValueError: it is deployed, or has no site of that name.
        """
        names = list(names)
        if self.deployed:
            raise ValueError(f"{wrapper!r} cannot follow deploy: the weights are written already")
        if unknown := set(names) - {site.name for site in self.sites}:
            raise ValueError(f"names={sorted(unknown)}: no such sites")
        added = {name: (*self.cores.get(name, ()), wrapper) for name in names}
        return dataclasses.replace(self, cores={**self.cores, **added})

    def cost(self, *args: Any, **kwargs: Any) -> Cost:
        """What one call spends, by site.

        Args:
          *args: inputs (only shapes count); without any array, those of the traced example.
          **kwargs: keyword arguments, as in a call.

        Returns:
          Parameters, stored bits, multiply-accumulates and whatever the cores count. Loops of
          unknown length count once, and traced masks as if nothing were pruned.
        """
        defaults = self.defaults.whole()
        if not any(map(is_array, jax.tree.leaves((args, kwargs)))):
            args, defaults = self.example.whole()
        arguments = abstract_arguments(call_arguments(args, {**defaults, **kwargs}))
        params, buffers = jax.eval_shape(lambda net: (net.params, net.buffers), self)
        more = (self.example, self.weights, self.masks)
        traced = trace_plan(self.fn, params, buffers, arguments, *more)
        flat = {path_name(path): p for path, p in jax.tree_util.tree_leaves_with_path(self.params)}
        total = sum(int(np.prod(p.shape)) for p in flat.values())
        for path, b in jax.tree_util.tree_leaves_with_path(self.buffers):
            if path_name(path) in self.weights:
                flat[path_name(path)] = b
        rows: list[SiteCost] = []
        counted = set[str]()
        for contraction in contractions(traced.plan):
            site = contraction.site
            new = [p for p in site.sources if p in flat and p not in counted]
            counted.update(new)
            size = sum(int(np.prod(flat[p].shape)) for p in new)
            zeros = sum(mask.size - _count(mask) for mask in self.site_masks(site)) if size else 0
            rows.append(
                site_cost(
                    dataclasses.replace(contraction.op, at=(0,) * len(site.stack)),
                    self.cores.get(site.name, ()),
                    contraction.x,
                    contraction.w,
                    name=site.name,
                    params=size,
                    nonzero=size - zeros,
                    copies=0 if site.kind == "dynamic" else math.prod(site.stack),
                    runs=math.prod(site.lengths),
                )
            )
        pruned = sum(mask.size - _count(mask) for mask in self.masks.values())
        return Cost(tuple(rows), params=total, nonzero=total - pruned)

    def with_params(self, params: PyTree) -> Network:
        """This network with other values of its parameters, as a training loop needs it.

        Args:
          params: a tree like `params`, of the same shapes.

        Raises:
          ValueError: another structure, another shape, numbers that are no floats, or a deployed
            network, whose calls do not read its parameters any more.
        """
        if self.deployed:
            raise ValueError("net is deployed: its calls do not read the parameters any more")
        check_like(self.params, params)
        return dataclasses.replace(self, params=params)

    @property
    def cut_lines(self) -> tuple[str, ...]:
        """Lines for the cuts at which this network holds arrays; a checkpoint compares them."""
        return ()

    def __repr__(self) -> str:
        size = sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(self.params))
        stage = ("calibrated, " if self.calibrated else "deployed, ") if self.deployed else ""
        counts = f"{len(self.sites)} sites, {len(self.cores)} transformed, {len(self.masks)} pruned"
        return f"{type(self).__name__}({stage}{counts}, {size} parameters)"

    def __str__(self) -> str:
        return render(self.__rich__())

    def _repr_html_(self) -> str:
        return html(self.__rich__())

    def __rich__(self) -> Any:
        rows = [
            (
                s.name,
                s.kind,
                s.w_shape,
                s.stack,
                s.x_shape,
                s.macs * math.prod(s.lengths),
                self.cores.get(s.name, ()),
                self.density(s),
            )
            for s in self.sites
        ]
        return sites_table(rows, self.unreached, deployed=self.deployed, calibrated=self.calibrated)


def trace(model: Any, *args: Any, weights: Any = (), **kwargs: Any) -> Network:
    """Makes a Network of a model, without changing the model.

    Args:
      model: A Flax NNX module; a Flax Linen module; a Hugging Face Flax model; a Haiku transformed;
        or any function `fn(variables, *args, **kwargs)`.
      *args: The model's variables, then example inputs. An NNX module holds its own variables:
        inputs come first, or after None. Linen takes what `init` returned (`{"params": …, …}`),
        Hugging Face its `params`, Haiku `params` or `(params, state)`, a function whatever it is
        to be given: arrays in it are parameters, all other leaves static. Inputs may change shape
        in later calls where the model allows it; values that are no arrays (`None`, `True`) are
        static.
      weights: Variables beside the parameters whose contractions are sites too, though they are
        not trained: names of Linen collections (`["frozen"]`), types of NNX variables or their
        names.
      **kwargs: Example keyword arguments. Those that hold no arrays (`train=False`,
        `mutable=["batch_stats"]`) become defaults of every later call.

    Returns:
      A network that computes exactly what the model does.

    Raises:
      ValueError: The model has no sites, a weight is NaN, infinite or not a float, the variables
        do not fit the model, no input is an array, or a keyword argument is called `key`.

    Warns:
      UserWarning: The module changes variables of its own, or modules among its arguments, which a
        pure function does not: see `mutable=` in docs/state.md.

    Examples:
      >>> import jax.numpy as jnp
      >>> net = trace(lambda params, x: x @ params["w"], {"w": jnp.eye(3)}, jnp.ones((2, 3)))
      >>> [site.name for site in net.sites]
      ['w']
    """
    if "key" in kwargs:
        raise ValueError("key: a network's call keeps this name for its cores; give it by position")
    if "variables" in kwargs:
        args = (kwargs.pop("variables"), *args)
    fn, params, buffers, args, weights = take_apart(model, args, weights)
    params, buffers = jax.tree.map(native, (params, buffers))
    _check_params(params)
    _check_params({"buffers": buffers}, {f"buffers/{name}" for name in weights})
    arrays = {k: v for k, v in kwargs.items() if any(map(is_array, jax.tree.leaves(v)))}
    defaults = Parts.of({k: v for k, v in kwargs.items() if k not in arrays}, is_array)
    arguments = call_arguments(args, kwargs)
    example = abstract_arguments(arguments)
    if not example.arrays:
        raise ValueError("args: no array among them; lists and Python numbers are static")
    traced = trace_plan(fn, params, buffers, arguments, example, weights)
    sites = traced.sites
    if not any(s.kind != "dynamic" for s in sites):
        others = "; ".join(traced.unreached)
        raise ValueError(
            f"model={model!r} has no sites: no dot_general or convolution of an input with a "
            "parameter was found in it" + (f", but {others}" if others else "")
        )
    _warn(changes(fn, params, buffers, arguments))
    if traced.miscomputed and jax.default_backend() == "cpu" and jax.__version_info__ < (0, 12):
        warnings.warn(
            f"jax=={jax.__version__} computes wrong numbers on the CPU for a convolution of floats "
            "whose padding takes some away and adds some: "
            f"{', '.join(traced.miscomputed)}; pad with jnp.pad and slices, or install jax 0.12",
            UserWarning,
            stacklevel=2,
        )
    return Network(
        params=params,
        buffers=buffers,
        masks={},
        cores={},
        states={},
        fn=fn,
        sites=sites,
        defaults=defaults,
        example=example,
        weights=weights,
        unreached=traced.unreached,
    )


def _warn(changed: Changes) -> None:
    """Says what a call of a model changes and a network drops."""
    if changed.variables:
        names = ", ".join(changed.variables)
        warnings.warn(
            f"each call of the model changes its {names}, which the network drops: give "
            f"mutable={list(changed.variables)} to have the new values beside the outputs, or put "
            "the model in evaluation mode (model.eval()); see docs/state.md",
            UserWarning,
            stacklevel=3,
        )
    if changed.arguments:
        warnings.warn(
            f"each call of the model changes {', '.join(changed.arguments)} in place, which the "
            "network drops: trace a function that takes this state and returns the next one; see "
            "docs/state.md",
            UserWarning,
            stacklevel=3,
        )


def retraced(net: Network, fn: Callable[..., Any]) -> Network:
    """A network of another function of the same arguments, its sites found anew.

    Args:
      net: parameters and buffers of `fn`, and the arguments it is traced with.
      fn: `(params, buffers, *args, **kwargs) -> outputs`.
    """
    traced = trace_plan(fn, net.params, net.buffers, net.example, net.example, net.weights)
    return dataclasses.replace(net, fn=fn, sites=traced.sites, unreached=traced.unreached)


def uncut(net: Network) -> Network:
    """The network alone, of one that was cut for exits or a pipeline; any other as it is."""
    return Network(**{f.name: getattr(net, f.name) for f in dataclasses.fields(Network)})


def require_uncut(
    net: Network,
    transform: str,
    *,
    allowed: Collection[str] = (),
    reason: str = "the network is cut",
) -> None:
    """Refuses a network that was cut in a way that a transform cannot follow.

    Args:
      net: any kind of network.
      transform: name of the transform that is to be applied.
      allowed: values of `cut_by` that it can follow.
      reason: why it cannot follow the others.

    Raises:
      ValueError: the network is cut in another way.
    """
    if net.cut_by and net.cut_by not in allowed:
        raise ValueError(f"{transform} cannot follow {net.cut_by}: {reason}")


def data_fields(net: Network) -> dict[str, Any]:
    """The fields of a network of any kind that hold arrays, by name."""
    children, _ = jax.tree_util.tree_flatten_with_path(net, is_leaf=lambda x: x is not net)
    return {path[0].name: value for path, value in children}


def deploy(
    net: Network, *, key: Key[Array, ""] | None = None, calibrate: Any = None, **kwargs: Any
) -> Network:
    """Writes the weights once and sets the ranges, as one programmes a chip.

    Args:
      net: a composed network.
      key: for cores that draw random numbers when they write. Site `name` uses
        `fold_in(key, crc32(name))`, so adding a transform elsewhere does not change its draw.
      calibrate: inputs for which to set input and ADC ranges: one batch (an array, a tuple of
        positional arguments, or a dict of keyword arguments), or any iterable of batches, of which
        one at a time is in memory. Ranges widen from batch to batch.
      **kwargs: further keyword arguments of the model, for every batch.

    Returns:
      A network whose calls read what was written. Gradients with respect to its inputs and its
      states pass straight through rounding.

    Raises:
      ValueError: nothing to deploy, already deployed, weights that became NaN or infinite, a core
        needs `key` or `calibrate`, or what `widen_ranges` raises.
    """
    if not isinstance(net, Network):
        raise ValueError(f"net: a {type(net).__name__} is no Network; js.trace(model, …) makes one")
    if net.deployed:
        raise ValueError("net is deployed already; deploy the composed network again instead")
    if not net.cores:
        raise ValueError("net has no transformed sites to deploy; compose a transform first")
    if calibrate is None and kwargs:
        raise ValueError(
            f"calibrate=None: expected the inputs that go with {', '.join(kwargs)}; give all of "
            "the model's keyword arguments as a dict, calibrate={…}"
        )
    check_key(key)
    inputs = None if calibrate is None else batches(calibrate, "calibrate")
    _check_params(net.params)
    chip = dataclasses.replace(net, states=write_states(net, key), deployed=True)
    if inputs is None:
        any_key = jax.eval_shape(lambda: jax.random.key(0))
        jax.eval_shape(_run, chip, net.example, any_key)
        return chip
    return widen_ranges(chip, inputs, **kwargs)


def widen_ranges(chip: Network, *args: Any, **kwargs: Any) -> Network:
    """Calibrates a deployed network on more inputs: its ranges widen to hold them too.

    Args:
      chip: a deployed network.
      *args: inputs as of `deploy`: a batch or an iterable of batches. Several are one batch of
        positional arguments.
      **kwargs: further keyword arguments of the model, for every batch.

    Raises:
      ValueError: not deployed; no batch; inputs that hold NaN or infinite values; or a site whose
        range is to be stored did not run (a branch not taken).
    """
    if not chip.deployed:
        raise ValueError(
            "chip is not deployed: deploy(net, calibrate=inputs) sets its first ranges"
        )
    inputs = args[0] if len(args) == 1 else args
    if not args:
        inputs, kwargs = kwargs, {}
    chip, fixed = dataclasses.replace(chip, calibrated=True), {**chip.defaults.whole(), **kwargs}
    states = chip.states
    for batch in batches(inputs, "calibrate"):
        arguments = call_arguments(batch.args, {**fixed, **batch.kwargs})
        states = _calibrate(dataclasses.replace(chip, states=states), arguments)
        states = beside_weights(chip, states, jax.device_put)
    for name, state in states.items():
        for r in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Range)):
            if not isinstance(r, Range) or is_traced(r.lo):
                continue
            if np.any((r.lo == np.inf) & (r.hi == -np.inf)):
                raise ValueError(f"calibrate: {name} did not run on it and has no range to store")
            if not (np.isfinite(r.lo).all() and np.isfinite(r.hi).all()):
                raise ValueError(f"calibrate: NaN or infinite values reach {name}")
    return dataclasses.replace(chip, states=states)


@jax.jit
def _run(net: Network, arguments: Parts, key: Any) -> Any:
    """A call of a transformed network, compiled as one even where the caller does not."""
    traced = _trace_call(net, arguments)
    walk = Walk(net.cores, net.ranges, key)
    outputs, _ = walk.run(traced.plan, traced.values, net.states, ())
    return jax.tree.unflatten(traced.out_tree, outputs)


@jax.jit
def write_states(net: Network, key: Key[Array, ""] | None) -> dict[str, State]:
    """Every transformed site's state, from the parameters alone.

    Args:
      net: a composed network.
      key: for cores that draw random numbers when they write.
    """
    traced = _trace_call(net, net.example)
    known = traced.values[: len(traced.values) - len(net.example.arrays)]
    values = [*known, *[None] * len(net.example.arrays)]
    _, states = _Writer(net.cores, key).run(traced.plan, values, ())
    return beside_weights(net, states, jax.device_put)


def beside_weights(
    net: Network, states: Mapping[str, State], put: Callable[[Any, Any], Any]
) -> dict[str, State]:
    """States cut over the devices of their site's weight, where writing them lost its cut.

    Args:
      net: whose parameters lie on a mesh; nothing happens otherwise.
      states: of its sites, as arrays or as shapes and types.
      put: gives a leaf a sharding.
    """
    weights = dict(zip(param_names(net), jax.tree.leaves(net.params), strict=True))

    def placed(a: Any, w: Any) -> Any:
        sharding = cut_with(a, w)
        return a if sharding is None else put(a, sharding)

    return {
        name: jax.tree.map(lambda a, w=weights[name]: placed(a, w), state)
        if name in weights
        else state
        for name, state in states.items()
    }


@jax.jit
def _calibrate(chip: Network, arguments: Parts) -> dict[str, State]:
    """Every transformed site's state after its ranges have seen the arguments."""
    traced = _trace_call(chip, arguments)
    walk = Walk(chip.cores, "stored", None, calibrating=True)
    _, states = walk.run(traced.plan, traced.values, chip.states, ())
    return states


def call_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Parts:
    """Arguments of a call, arrays apart from what is static."""
    return Parts.of((tuple(args), dict(kwargs)), is_array)


def abstract_arguments(arguments: Parts) -> Parts:
    """Arguments of a call as shapes."""
    shapes = tuple(jax.ShapeDtypeStruct(np.shape(a), a.dtype) for a in arguments.arrays)
    return dataclasses.replace(arguments, arrays=shapes)


def _apply(arguments: Parts, fn: Callable[..., Any], *leading: Any, **more: Any) -> Any:
    args, kwargs = arguments.whole()
    return fn(*leading, *args, **kwargs, **more)


def _shapes(arguments: Parts) -> str:
    return "(" + ", ".join(f"{a.dtype}{list(np.shape(a))}" for a in arguments.arrays) + ")"


def _count(mask: Array) -> int:
    return mask.size if is_traced(mask) else int(jnp.sum(mask))


def _matching(sites: Sequence[Site], pattern: str, *, dynamic: bool) -> set[str]:
    if pattern.startswith("re:"):
        try:
            match = re.compile(pattern[3:]).fullmatch
        except re.error as error:
            raise ValueError(f"sites={pattern!r} is not a regular expression: {error}") from None
    else:
        match = re.compile(fnmatch.translate(pattern)).fullmatch
    dynamic = dynamic or pattern.removeprefix("re:").startswith("dynamic")
    return {
        s.name
        for s in sites
        if (s.kind != "dynamic" or dynamic) and (match(s.name) or (s.param and match(s.param)))
    }


def check_like(mine: PyTree, given: PyTree) -> None:
    """Checks that parameters can take the place of others.

    Args:
      mine: the network's own.
      given: those that are to replace them.

    Raises:
      ValueError: another structure or shape, or numbers that are no floats, by the first path.
    """
    own, other = (
        {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (mine, given)
    )
    if own.keys() != other.keys() or jax.tree.structure(mine) != jax.tree.structure(given):
        missing, more = (sorted(a.keys() - b.keys()) for a, b in ((own, other), (other, own)))
        what = "of another type"
        if missing or more:
            what = f"without {missing[0]}" if missing else f"with {more[0]}"
        raise ValueError(f"params: not the tree that the network's parameters are, but one {what}")
    for name, a in own.items():
        b = other[name]
        if np.shape(a) != np.shape(b):
            raise ValueError(
                f"params: {name} is {list(np.shape(b))}, the network's is {list(np.shape(a))}"
            )
        trained = jnp.issubdtype(jnp.result_type(a), jnp.inexact)
        if trained and not jnp.issubdtype(jnp.result_type(b), jnp.inexact):
            raise ValueError(f"params: {name} is {jnp.result_type(b)} and has no gradient")


def _check_params(params: PyTree, only: Collection[str] | None = None) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        if only is not None and name not in only:
            continue
        if not is_array(leaf):
            raise ValueError(f"variables: {name}={leaf!r} is not an array")
        if is_traced(leaf) or isinstance(leaf, jax.ShapeDtypeStruct):
            continue
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"variables: {name} holds NaN or infinite values")


def param_names(net: Network) -> list[str]:
    """Paths of the leaves of a network's parameters."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(net.params)]


def params_read(net: Network) -> set[str]:
    """Paths of the parameters that calls read; a deployed site reads its state instead.

    Found for the arguments the network was traced with. A parameter that a loop around a site
    carries counts as read.
    """
    shapes = jax.eval_shape(lambda: (net.params, net.buffers))
    plan = trace_plan(net.fn, shapes[0], shapes[1], net.example, net.example, net.weights).plan
    live = _live(plan, set(net.states))
    return {name for name, is_read in zip(param_names(net), live, strict=False) if is_read}


def _live(plan: Plan, written: set[str]) -> list[bool]:
    """Which inputs of a plan its outputs depend on, where written sites read no weight."""
    live = {v for v in plan.jaxpr.outvars if isinstance(v, jex.Var)}
    for eqn, entry in zip(reversed(plan.jaxpr.eqns), reversed(plan.entries), strict=True):
        if not (eqn.effects or any(v in live for v in eqn.outvars)):
            continue
        needed = [True] * len(eqn.invars)
        if isinstance(entry, Contraction) and entry.site.name in written:
            needed[entry.w_at] = False
        elif isinstance(entry, Inner) and len(entry.plans) == 1:
            needed = _live(entry.plans[0], written)
        used = (v for v, need in zip(eqn.invars, needed, strict=True) if need)
        live.update(v for v in used if isinstance(v, jex.Var))
    return [v in live for v in plan.jaxpr.invars]


def check_sites(net: Network, plan: Plan) -> None:
    """Checks that a call runs the sites that were traced: any other would silently stay float."""
    known = {site.name: site for site in net.sites}
    for contraction in contractions(plan):
        site = contraction.site
        if site.kind == "dynamic":
            continue
        if site.name not in known:
            raise ValueError(
                f"args: {site.name} runs for these arguments and did not when the model was "
                "traced; trace it with arguments of the same kind"
            )
        if net.deployed and site.name in net.cores and site.w_shape != known[site.name].w_shape:
            raise ValueError(
                f"args: the weight of {site.name} was written as {list(known[site.name].w_shape)} "
                f"and these arguments make it {list(site.w_shape)}"
            )


def check_key(key: Any) -> None:
    """Checks that a key is one, or None."""
    if key is None:
        return
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32):
        raise ValueError(f"key={key!r}: must come from jax.random.key")


class _Known(NamedTuple):
    """Provenance of a value that no input reaches.

    Attributes:
      param: path of the largest weight it comes from, "" if from buffers and constants alone.
      size: entries of that weight.
      mapped: depths of the scans that hand it out slice by slice.
      sources: paths of all parameters and buffers it comes from.
      parts: paths of the weights whose zeros are zeros of it, by moving or scaling entries; none
        if it is computed in another way.
    """

    param: str = ""
    size: int = 0
    mapped: frozenset[int] = frozenset()
    sources: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()


class Contraction(NamedTuple):
    """An equation that is a site: its op, abstract operands and where they stand."""

    site: Site
    op: Op
    x: jax.ShapeDtypeStruct
    w: jax.ShapeDtypeStruct
    x_at: int
    w_at: int


class Inner(NamedTuple):
    """An equation whose inner jaxprs hold sites or pass known values on."""

    plans: tuple[Plan, ...]
    names: frozenset[str]


Entry = Contraction | Inner | None


class Plan(NamedTuple):
    """A jaxpr, and for each of its equations what the walk does there (None: bind it)."""

    jaxpr: Any
    consts: Sequence[Any]
    entries: tuple[Entry, ...]
    known: tuple[_Known | None, ...]


class Traced(NamedTuple):
    """A call, traced.

    Attributes:
      plan: what each equation is.
      values: what the plan takes.
      out_tree: structure of what it returns.
      readers: for each parameter and buffer the sites and primitives that read it.
      miscomputed: convolutions that XLA's CPU backend of JAX below 0.12 gets wrong, by parameter.
    """

    plan: Plan
    values: list[Any]
    out_tree: Any
    readers: dict[str, tuple[str, ...]]
    miscomputed: tuple[str, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in order of execution, with what else reads their weights."""
        return tuple(
            dataclasses.replace(c.site, shared=self._shared(c.site))
            for c in contractions(self.plan)
        )

    @property
    def unreached(self) -> tuple[str, ...]:
        """What is contracted with inputs and is no site, each in a phrase."""
        found: list[str] = []
        for source, readers in self.readers.items():
            others = [r for r in readers if r.partition(" ")[0] in _CONTRACTIONS]
            typed = [r.partition(" of ")[2] for r in others if " of " in r]
            if others and source.startswith(BUFFERS):
                name = source.removeprefix(BUFFERS)
                found.append(f"{name} is a buffer ({', '.join(others)}): weights=… makes it a site")
            elif typed:
                found.append(f"{source} has dtype {typed[0]}; a weight must be a float")
            elif others:
                found.append(f"{source} is contracted as no site is ({', '.join(others)})")
        return tuple(found)

    def _shared(self, site: Site) -> tuple[str, ...]:
        readers = (self.readers.get(source, ()) for source in site.sources)
        return tuple(dict.fromkeys(r for names in readers for r in names if r != site.name))


def trace_plan(
    fn: Callable[..., Any],
    params: PyTree,
    buffers: PyTree,
    arguments: Parts,
    example: Parts,
    weights: Sequence[str] = (),
    masked: Collection[str] = (),
) -> Traced:
    """Traces a call of a model and plans it; arrays may be shapes.

    Args:
      fn: The model, `(params, buffers, *args, **kwargs) -> outputs`.
      params: Its parameters.
      buffers: What else it reads.
      arguments: Those of the call.
      example: Those it was traced with first, for errors.
      weights: Paths of the buffers that count as weights.
      masked: Paths of the weights that are pruned, which the ops of their sites say.

    Raises:
      ValueError: The model rejects the arguments.
    """

    def flat(params: PyTree, buffers: PyTree, arguments: Parts) -> Any:
        return _apply(arguments, fn, params, buffers)

    with _explained(example, arguments):
        closed, out = jax.make_jaxpr(flat, return_shape=True)(params, buffers, arguments)
    tags = [_weight(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    constant = [
        _weight(path, leaf)
        if path_name(path) in weights
        else _Known(sources=frozenset([BUFFERS + path_name(path)]))
        for path, leaf in jax.tree_util.tree_leaves_with_path(buffers)
    ]
    unknown = [None] * len(arguments.arrays)
    planner = _Planner(masked)
    plan = planner.plan(closed.jaxpr, closed.consts, [*tags, *constant, *unknown], ())
    for t in plan.known:
        planner.read(t, "output")
    readers = {source: tuple(names) for source, names in planner.readers.items()}
    values = jax.tree.leaves((params, buffers, arguments.arrays))
    return Traced(plan, values, jax.tree.structure(out), readers, tuple(planner.miscomputed))


_CONTRACTIONS = ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general")

BUFFERS = "buffers/"
"""What paths of buffers begin with among the sources of a weight."""


def _weight(path: Sequence[Any], leaf: Any) -> _Known:
    name = path_name(path)
    own = frozenset([name])
    return _Known(name, int(np.prod(np.shape(leaf))), sources=own, parts=own)


def _trace_call(net: Network, arguments: Parts) -> Traced:
    """A call of a network, traced; its sites are those the network knows."""
    traced = trace_plan(
        net.fn, net.masked_params(), net.buffers, arguments, net.example, net.weights, net.masks
    )
    check_sites(net, traced.plan)
    return traced


@contextlib.contextmanager
def _explained(example: Parts, arguments: Parts) -> Generator[None]:
    from flax.errors import FlaxError

    try:
        yield
    except jax.errors.JAXTypeError:
        raise
    except (FlaxError, TypeError, ValueError) as error:
        given, traced = _shapes(arguments), _shapes(example)
        was = "" if given == traced else f" (it was traced with {traced})"
        raise ValueError(f"args={given}{was}: the model raised: {error}") from error


def contractions(plan: Plan) -> Iterator[Contraction]:
    """The sites of a plan, in order."""
    for entry in plan.entries:
        if isinstance(entry, Contraction):
            yield entry
        elif entry is not None:
            for inner in entry.plans:
                yield from contractions(inner)


class _Planner:
    """Names the sites of a jaxpr by following where its values come from.

    Attributes:
      uses: how many sites each weight has so far.
      readers: for each parameter and buffer what reads it together with inputs: names of sites,
        and of primitives where the equation is none.
    """

    def __init__(self, masked: Collection[str]):
        self.masked = masked
        self.uses: dict[str, int] = {}
        self.readers: dict[str, list[str]] = {}
        self.miscomputed: list[str] = []

    def read(self, tag: _Known | None, reader: str) -> None:
        """Notes that a value is read beside inputs, or leaves what is followed."""
        for source in () if tag is None else tag.sources:
            readers = self.readers.setdefault(source, [])
            if reader not in readers:
                readers.append(reader)

    def plan(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        tags: Sequence[_Known | None],
        lengths: tuple[int, ...],
    ) -> Plan:
        known: dict[Any, _Known | None] = dict(zip(jaxpr.invars, tags, strict=True))
        known.update(dict.fromkeys(jaxpr.constvars, _Known()))

        def tag(atom: Any) -> _Known | None:
            return _Known() if isinstance(atom, jex.Literal) else known[atom]

        entries: list[Entry] = []
        for eqn in jaxpr.eqns:
            ins = [tag(atom) for atom in eqn.invars]
            entry, outs = None, [None] * len(eqn.outvars)
            sources = [t for t in ins if t is not None]
            inner = inner_jaxprs(eqn)
            if len(sources) == len(ins) and len(inner) == 1 and eqn.primitive is not prims.scan_p:
                outs = list(self.plan(*inner[0], ins, lengths).known)
            elif len(sources) == len(ins):
                tag_of = _merged(sources)._replace(parts=_parts(eqn, sources))
                outs = [tag_of] * len(eqn.outvars)
            elif inner:
                plans, outs = self.inner(eqn, inner, ins, lengths)
                names = frozenset(c.site.name for p in plans for c in contractions(p))
                if names or any(t is not None for t in outs):
                    entry = Inner(plans, names)
            else:
                entry = self.contraction(eqn, ins, lengths)
                for i, t in enumerate(ins):
                    here = entry is not None and i == entry.w_at
                    self.read(t, entry.site.name if entry and here else _reader(eqn, i))
            entries.append(entry)
            known.update(zip(eqn.outvars, outs, strict=True))
        return Plan(jaxpr, consts, tuple(entries), tuple(tag(atom) for atom in jaxpr.outvars))

    def inner(
        self,
        eqn: Any,
        inner: list[tuple[Any, Sequence[Any]]],
        ins: list[_Known | None],
        lengths: tuple[int, ...],
    ) -> tuple[tuple[Plan, ...], list[_Known | None]]:
        """Plans of an equation's jaxprs, and what is known of its outputs."""
        if eqn.primitive is prims.scan_p:
            (jaxpr, consts), loop, depth = inner[0], internals.scan(eqn), len(lengths)
            carry = _unchanged(jaxpr, ins, loop.consts, loop.carry)
            mapped = [
                None if t is None else t._replace(mapped=t.mapped | {depth})
                for t in ins[loop.first_slice :]
            ]
            plan = self.plan(
                jaxpr, consts, [*ins[: loop.consts], *carry, *mapped], (*lengths, loop.length)
            )
            self.read_carry(eqn, ins[loop.consts : loop.first_slice], carry, plan)
            for t in plan.known[loop.carry :]:
                self.read(t, eqn.primitive.name)
            return (plan,), [*carry, *[None] * (len(eqn.outvars) - loop.carry)]
        if eqn.primitive is prims.while_p:
            loop = internals.while_loop(eqn)
            test, body = ins[: loop.test_consts], ins[loop.test_consts : loop.first_carry]
            start = ins[loop.first_carry :]
            carry = _unchanged(inner[1][0], [*body, *start], len(body), len(start))
            plans = (
                self.plan(*inner[0], [*test, *carry], (*lengths, 1)),
                self.plan(*inner[1], [*body, *carry], (*lengths, 1)),
            )
            self.read_carry(eqn, start, carry, plans[1])
            return plans, carry
        operands = ins[1:] if eqn.primitive is prims.cond_p else ins
        plans = tuple(self.plan(*j, operands, lengths) for j in inner)
        if len(plans) == 1:
            return plans, list(plans[0].known)
        self.read(ins[0], eqn.primitive.name)
        for t in (t for plan in plans for t in plan.known):
            self.read(t, eqn.primitive.name)
        return plans, [None] * len(eqn.outvars)

    def read_carry(
        self,
        eqn: Any,
        start: Sequence[_Known | None],
        carry: Sequence[_Known | None],
        body: Plan,
    ) -> None:
        """Notes what a loop's carry holds at first or later and is not followed through it."""
        for before, kept, after in zip(start, carry, body.known, strict=False):
            if kept is None:
                self.read(before, eqn.primitive.name)
                self.read(after, eqn.primitive.name)

    def contraction(
        self, eqn: Any, ins: list[_Known | None], lengths: tuple[int, ...]
    ) -> Contraction | None:
        """The site an equation is, if it is one."""
        from_params = [i for i, t in enumerate(ins) if t is not None and t.param]
        if eqn.primitive is prims.dot_general_p:
            dynamic = all(t is None for t in ins)
            if not dynamic and not from_params:
                return None
            w_at = 1 if dynamic else from_params[0]
            geometry = _dot(eqn, w_at)
            kind = "dynamic" if dynamic else "dot"
        elif eqn.primitive is prims.conv_general_dilated_p:
            ends = [end for pair in parameters(eqn)["padding"] for end in pair]
            floats = jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.floating)
            if floats and min(ends, default=0) < 0 < max(ends, default=0):
                name = next((t.param for t in ins if t is not None and t.param), "")
                self.miscomputed.append(name or eqn.primitive.name)
            if from_params != [1] or parameters(eqn)["batch_group_count"] != 1:
                return None
            w_at, kind, geometry = 1, "conv", _conv(eqn)
        else:
            return None
        x, w = (_abstract(eqn.invars[i]) for i in (1 - w_at, w_at))
        if kind != "dynamic" and not jnp.issubdtype(w.dtype, jnp.floating):
            return None
        source = ins[w_at] or _Known()
        use = self.uses[source.param] = self.uses.get(source.param, 0) + 1
        if kind == "dynamic":
            name = f"dynamic/{use - 1}"
        else:
            name = source.param if use == 1 else f"{source.param}#{use}"
        site = Site(
            name=name,
            param=source.param or None,
            kind=kind,
            x_shape=x.shape,
            w_shape=w.shape,
            dtype=str(w.dtype),
            macs=math.prod(eqn.outvars[0].aval.shape) * Op(geometry).depth,
            lengths=lengths,
            stacked=tuple(depth in source.mapped for depth in range(len(lengths))),
            sources=tuple(sorted(source.sources)),
            parts=tuple(sorted(source.parts)),
        )
        op = Op(geometry, masked=any(part in self.masked for part in site.parts))
        return Contraction(site, op, x, w, 1 - w_at, w_at)


def _reader(eqn: Any, i: int) -> str:
    """The name of an equation that is no site, with the dtype of a weight that no site may have."""
    name, dtype = eqn.primitive.name, eqn.invars[i].aval.dtype
    if name not in _CONTRACTIONS or jnp.issubdtype(dtype, jnp.floating):
        return name
    return f"{name} of {dtype}"


def _merged(sources: Sequence[_Known]) -> _Known:
    largest = max(sources, key=lambda t: (bool(t.param), t.size), default=_Known())
    return largest._replace(
        mapped=frozenset().union(*(t.mapped for t in sources)),
        sources=frozenset().union(*(t.sources for t in sources)),
        parts=frozenset(),
    )


def _parts(eqn: Any, ins: Sequence[_Known]) -> frozenset[str]:
    """Weights whose zeros an equation hands on, of operands that no input reaches."""
    name = eqn.primitive.name
    if name == "concatenate":
        joined = [t.parts for t in ins]
        return frozenset().union(*joined) if all(joined) else frozenset()
    if name == "mul":
        return max(ins, key=lambda t: (bool(t.parts), t.size)).parts
    if name in _ZERO_STAYS_ZERO and not any(t.parts for t in ins[1:]):
        return ins[0].parts
    return frozenset()


_ZERO_STAYS_ZERO = {
    *("reshape", "transpose", "squeeze", "broadcast_in_dim", "slice", "dynamic_slice", "gather"),
    *("rev", "split", "convert_element_type", "reduce_precision", "copy", "copy_p", "device_put"),
    *("sharding_constraint", "stop_gradient", "name", "neg", "abs", "sign", "tanh", "div"),
}
"""Primitives that move entries of their first operand, or map each so that zero stays zero."""


def _unchanged(jaxpr: Any, ins: Sequence[_Known | None], first: int, count: int) -> list[Any]:
    """Tags of a loop's carry: known only where the body hands its input back unchanged."""
    loop = zip(
        jaxpr.invars[first:], jaxpr.outvars[:count], ins[first : first + count], strict=False
    )
    return [t if before is after else None for before, after, t in loop]


def _abstract(atom: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)


def _dot(eqn: Any, w_at: int) -> Dot:
    params = parameters(eqn)
    contract, batch = params["dimension_numbers"]
    x_at = 1 - w_at
    return Dot(
        x_contract=tuple(contract[x_at]),
        x_batch=tuple(batch[x_at]),
        w_contract=tuple(contract[w_at]),
        w_batch=tuple(batch[w_at]),
        x_ndim=eqn.invars[x_at].aval.ndim,
        w_shape=tuple(eqn.invars[w_at].aval.shape),
        weight_first=w_at == 0,
        precision=params["precision"],
        dtype=params["preferred_element_type"],
    )


def _conv(eqn: Any) -> Conv:
    params = parameters(eqn)
    numbers = params["dimension_numbers"]
    return Conv(
        strides=tuple(params["window_strides"]),
        padding=tuple((int(lo), int(hi)) for lo, hi in params["padding"]),
        lhs_dilation=tuple(params["lhs_dilation"]),
        rhs_dilation=tuple(params["rhs_dilation"]),
        groups=params["feature_group_count"],
        x_spec=tuple(numbers.lhs_spec),
        w_spec=tuple(numbers.rhs_spec),
        y_spec=tuple(numbers.out_spec),
        w_shape=tuple(eqn.invars[1].aval.shape),
        precision=params["precision"],
        dtype=params["preferred_element_type"],
    )


def _evaluate(
    plan: Plan,
    values: Sequence[Any],
    step: Callable[[Any, Entry, list[Any]], Sequence[Any]],
) -> list[Any]:
    """The outputs of a jaxpr whose equations `step(equation, entry, operands)` computes."""
    env = dict(zip(plan.jaxpr.invars, values, strict=True))
    env.update(zip(plan.jaxpr.constvars, plan.consts, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else env[atom]

    for eqn, entry in zip(plan.jaxpr.eqns, plan.entries, strict=True):
        outs = step(eqn, entry, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in plan.jaxpr.outvars]


def _site_key(key: Key[Array, ""] | None, name: str, indices: Iterable[Any]) -> Any:
    if key is None:
        return None
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key


class _Writer:
    """Evaluates what the parameters alone determine, and writes each site's weight."""

    def __init__(self, cores: Mapping[str, tuple[Wrapper, ...]], key: Key[Array, ""] | None):
        self.cores = cores
        self.key = key

    def run(
        self, plan: Plan, values: Sequence[Any], indices: tuple[Any, ...]
    ) -> tuple[list[Any], dict[str, State]]:
        """Known outputs (None elsewhere) and the states written inside.

        `values` holds None for what is not known, `indices` the iteration of each loop around.
        """
        states: dict[str, State] = {}

        def step(eqn: Any, entry: Entry, ins: list[Any]) -> Sequence[Any]:
            outs: Sequence[Any] = [None] * len(eqn.outvars)
            if isinstance(entry, Contraction):
                self.write(entry, ins, indices, states)
            elif entry is not None:
                outs, written = self.inner(eqn, entry, ins, indices)
                states.update(written)
            elif all(value is not None for value in ins):
                outs = bind(eqn, ins)
            return outs

        return _evaluate(plan, values, step), states

    def write(
        self,
        entry: Contraction,
        ins: list[Any],
        indices: tuple[Any, ...],
        states: dict[str, State],
    ) -> None:
        site = entry.site
        if site.name in self.cores and site.kind != "dynamic":
            over = [i for i, stacked in zip(indices, site.stacked, strict=True) if stacked]
            key = _site_key(self.key, site.name, over)
            op = dataclasses.replace(entry.op, integer=True, at=tuple(over))
            with own_promotion():
                states[site.name] = build(self.cores[site.name]).write(op, ins[entry.w_at], key)

    def inner(
        self, eqn: Any, entry: Inner, ins: list[Any], indices: tuple[Any, ...]
    ) -> tuple[Sequence[Any], dict[str, State]]:
        plans = entry.plans
        if eqn.primitive is prims.scan_p:
            return self.scan(eqn, entry, ins, indices)
        if eqn.primitive is prims.while_p:
            loop = internals.while_loop(eqn)
            carry = [
                value if tag is not None else None
                for value, tag in zip(ins[loop.first_carry :], plans[1].known, strict=True)
            ]
            test, body = ins[: loop.test_consts], ins[loop.test_consts : loop.first_carry]
            within = (*indices, 0)
            _, states = self.run(plans[0], [*test, *carry], within)
            _, more = self.run(plans[1], [*body, *carry], within)
            return carry, {**states, **more}
        if eqn.primitive is prims.cond_p:
            runs = [self.run(plan, ins[1:], indices) for plan in plans]
            merged = {name: state for _, states in runs for name, state in states.items()}
            return [None] * len(eqn.outvars), merged
        return self.run(plans[0], ins, indices)

    def scan(
        self, eqn: Any, entry: Inner, ins: list[Any], indices: tuple[Any, ...]
    ) -> tuple[Sequence[Any], dict[str, State]]:
        """Writes inside a scan: one for each slice of a stacked weight, one for the others."""
        loop, (plan,) = internals.scan(eqn), entry.plans
        carry = [
            value if tag is not None else None
            for value, tag in zip(ins[loop.consts :], plan.known, strict=False)
        ][: loop.carry]
        fixed, xs = [*ins[: loop.consts], *carry], ins[loop.first_slice :]
        sites = {c.site.name: c.site for c in contractions(plan) if c.site.name in self.cores}
        axes = {
            name: 0 if site.stacked[len(indices)] else None
            for name, site in sites.items()
            if site.kind != "dynamic"
        }

        def one(index: Any, xs: list[Any]) -> dict[str, State]:
            _, states = self.run(plan, [*fixed, *xs], (*indices, index))
            return states

        states = jax.vmap(one, in_axes=(0, 0), out_axes=axes)(jnp.arange(loop.length), xs)
        return [*carry, *[None] * (len(eqn.outvars) - len(carry))], states


class Walk:
    """Evaluates a plan, handing each transformed site to its core.

    Every method threads the states of the sites inside: unchanged when reading, updated when
    calibrating.
    """

    def __init__(
        self,
        cores: Mapping[str, tuple[Wrapper, ...]],
        ranges: Literal["batch", "stored", "missing"],
        key: Key[Array, ""] | None,
        *,
        calibrating: bool = False,
        part: Any = None,
    ):
        """Prepares to evaluate; `part` tells apart the read noise of parts of one call."""
        self.cores = cores
        self.ranges: Literal["batch", "stored", "missing"] = ranges
        self.key = key
        self.read_key = key if key is None or part is None else jax.random.fold_in(key, part)
        self.calibrating = calibrating

    def run(
        self,
        plan: Plan,
        values: Sequence[Any],
        states: Mapping[str, State],
        indices: tuple[Any, ...],
    ) -> tuple[list[Any], dict[str, State]]:
        """Outputs and states; `indices` holds the iteration of each loop around."""
        states = dict(states)

        def step(eqn: Any, entry: Entry, ins: list[Any]) -> Sequence[Any]:
            if isinstance(entry, Contraction) and entry.site.name in self.cores:
                y, state = self.site(entry, ins, states.get(entry.site.name), indices)
                if state is not None:
                    states[entry.site.name] = state
                return [y.astype(eqn.outvars[0].aval.dtype)]
            if isinstance(entry, Inner) and not entry.names.isdisjoint(self.cores):
                outs, updated = self.inner(eqn, entry, ins, states, indices)
                states.update(updated)
                return outs
            return bind(eqn, ins)

        return _evaluate(plan, values, step), states

    def site(
        self, entry: Contraction, ins: list[Any], state: State | None, indices: tuple[Any, ...]
    ) -> tuple[Array, State | None]:
        """The site's output as its core computes it, and its state."""
        site, wrappers = entry.site, self.cores[entry.site.name]
        x, w = ins[entry.x_at], ins[entry.w_at]
        read_key = _site_key(self.read_key, site.name + ":read", indices)
        at = tuple(i for i, stacked in zip(indices, site.stacked, strict=True) if stacked)
        if state is None:
            over = indices if site.kind == "dynamic" else at
            write_key = _site_key(self.key, site.name, over)
            ranges = "batch"
            state_of = _written
        else:
            w, write_key, ranges, state_of = state, None, self.ranges, _stored

        def read(integer: bool) -> Callable[..., Array]:
            quiet = self.calibrating
            still = dataclasses.replace(entry.op, integer=integer, ranges=ranges, quiet=quiet)

            def run(
                wrappers: Any, w: Any, x: Array, at: Any, write_key: Any, read_key: Any
            ) -> Array:
                core, op = build(wrappers), dataclasses.replace(still, at=at)
                with own_promotion():
                    return core.read(op, state_of(core, op, w, write_key), x, read_key)

            return run

        if self.calibrating and state is not None:
            op = dataclasses.replace(entry.op, integer=True, ranges="stored", at=at)
            with own_promotion():
                w = state = build(wrappers).calibrate(op, state, x)
        y = straight_through(read(True), read(False))(wrappers, w, x, at, write_key, read_key)
        return y, state

    def inner(
        self,
        eqn: Any,
        entry: Inner,
        ins: list[Any],
        states: Mapping[str, State],
        indices: tuple[Any, ...],
    ) -> tuple[list[Any], dict[str, State]]:
        """Outputs and states of an equation that holds transformed sites."""
        plans = entry.plans
        inside = {name: states[name] for name in entry.names if name in states}
        match eqn.primitive:
            case prims.scan_p:
                return self.scan(eqn, entry, ins, inside, indices)
            case prims.while_p:
                return self.loop(eqn, entry, ins, inside, indices)
            case prims.cond_p:
                branches = [partial(self.branch, plan, inside, indices) for plan in plans]
                return lax.switch(ins[0], branches, *ins[1:])
            case prims.remat_p:
                params = parameters(eqn)
                run = jax.checkpoint(
                    partial(self.branch, plans[0], inside, indices),
                    prevent_cse=params["prevent_cse"],
                    policy=params["policy"],
                )
                return run(*ins)
            case _:
                return self.run(plans[0], ins, inside, indices)

    def branch(
        self, plan: Plan, states: Mapping[str, State], indices: tuple[Any, ...], *ins: Any
    ) -> tuple[list[Any], dict[str, State]]:
        """`run`, with the operands last."""
        return self.run(plan, ins, states, indices)

    def scan(
        self,
        eqn: Any,
        entry: Inner,
        ins: list[Any],
        states: dict[str, State],
        indices: tuple[Any, ...],
    ) -> tuple[list[Any], dict[str, State]]:
        """A scan: stacked states go in (and, calibrated, come out) slice by slice."""
        loop, (plan,) = internals.scan(eqn), entry.plans
        carried = loop.carry
        sites = {c.site.name: c.site for c in contractions(plan)}
        stacked = {k: s for k, s in states.items() if sites[k].stacked[len(indices)]}
        fixed = {k: s for k, s in states.items() if k not in stacked}

        def body(carry: Any, slices: Any) -> Any:
            values, fixed_now = carry
            index, xs, stacked_now = slices
            outs, after = self.run(
                plan,
                [*ins[: loop.consts], *values, *xs],
                {**fixed, **fixed_now, **stacked_now},
                (*indices, index),
            )
            changed = {k: after[k] for k in stacked} if self.calibrating else {}
            return (outs[:carried], {k: after[k] for k in fixed_now}), (outs[carried:], changed)

        (carry, fixed_after), (ys, stacked_after) = lax.scan(
            body,
            (ins[loop.consts : loop.first_slice], fixed if self.calibrating else {}),
            (jnp.arange(loop.length), ins[loop.first_slice :], stacked),
            length=loop.length,
            reverse=loop.reverse,
            unroll=loop.unroll,
        )
        return [*carry, *ys], {**states, **fixed_after, **stacked_after}

    def loop(
        self,
        eqn: Any,
        entry: Inner,
        ins: list[Any],
        states: dict[str, State],
        indices: tuple[Any, ...],
    ) -> tuple[list[Any], dict[str, State]]:
        """A while loop; its iterations are counted so that each draws its own noise.

        The test runs at the end of each step, where what it calibrates can be carried on.
        """
        numbers, (test, body) = internals.while_loop(eqn), entry.plans
        test_consts = ins[: numbers.test_consts]
        body_consts = ins[numbers.test_consts : numbers.first_carry]

        def tested(index: Array, values: list[Any], states_now: dict[str, State]) -> Any:
            (go_on,), after = self.run(test, [*test_consts, *values], states_now, (*indices, index))
            return go_on, index, values, after

        def step(carry: Any) -> Any:
            _, index, values, states_now = carry
            outs, after = self.run(body, [*body_consts, *values], states_now, (*indices, index))
            return tested(index + 1, outs, after)

        start = tested(jnp.zeros((), jnp.int32), ins[numbers.first_carry :], states)
        _, _, outs, after = lax.while_loop(lambda carry: carry[0], step, start)
        return outs, after


def _written(core: Core, op: Op, w: Array, key: Any) -> State:
    return core.write(op, w, key)


def _stored(core: Core, op: Op, state: State, key: Any) -> State:
    return state
