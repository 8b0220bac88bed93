"""The network: a model whose contractions can be given other meanings, and called."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxsim.console.table import shown_as_table
from jaxsim.cores.core import State
from jaxsim.cores.partition import Partitioned
from jaxsim.cores.wrapper import Wrapper, first_of
from jaxsim.network.arguments import (
    abstract_arguments,
    apply_call,
    call_arguments,
    check_key,
    explained_call,
)
from jaxsim.network.calls import NnxCall, calls_within
from jaxsim.network.changes import update_buffers
from jaxsim.network.cost import Cost, SiteCost, SiteCounts, site_cost
from jaxsim.network.coverage import Coverage, cover
from jaxsim.network.interpreter import Walk
from jaxsim.network.leaves import PyTree, check_like, is_array, path_name
from jaxsim.network.plan import Plan, Traced, contractions
from jaxsim.network.planner import trace_plan
from jaxsim.network.portions import Portion
from jaxsim.network.site import Site, matching_names
from jaxsim.network.tables import sites_table
from jaxsim.network.unheld import Absent, as_constants, memory_of, require_held
from jaxsim.numerics.checks import is_traced
from jaxsim.values.value import PytreeValue

DATA = ("params", "buffers", "masks", "cores", "states")
"""Fields of a network that hold arrays; every other field is static."""


META = (
    *("fn", "sites", "defaults", "example", "weights", "unreached"),
    *("focus", "deployed", "calibrated", "absent"),
)
"""Fields of a network that are static."""


@shown_as_table
@partial(jax.tree_util.register_dataclass, data_fields=[*DATA], meta_fields=[*META])
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Network(PytreeValue):
    """Model whose contractions can be given other meanings. Calling it is a pure function.

    Attributes:
      params: Trainable parameters, nested as the model holds them.
      buffers: All other variables that the model reads (batch statistics, …).
      masks: Masks by path of the pruned parameters, nonzero where an entry remains.
      cores: Wrappers by name of the transformed sites, outermost first.
      states: Written states by name of the transformed sites; empty before `deploy`.
      fn: Model as a function, `(params, buffers, *args, **kwargs) -> outputs`.
      sites: All contractions found, in order of execution.
      defaults: Keyword arguments fixed at `trace`.
      example: Shapes of the arguments it was traced with.
      weights: Paths of the buffers that count as weights.
      unreached: Contractions with inputs that are not sites, each in a phrase.
      focus: Names of the only sites that transforms may touch; None for all. Set by `rules`.
      deployed: True if weights are written; `params` of transformed sites are then not read any
        more.
      calibrated: True if ranges are stored.
      absent: Parameters that no call reads and whose values are not held; see `unheld`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.ones((2, 3))
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(3)}, x)
      >>> net
      Network(1 sites, 0 transformed, 0 pruned, 9 parameters)
      >>> js.quantize(8, 8)(net)(x).shape
      (2, 3)
    """

    params: PyTree
    buffers: PyTree
    masks: dict[str, Array]
    cores: dict[str, tuple[Wrapper, ...]]
    states: dict[str, State]
    fn: Callable[..., Any]
    sites: tuple[Site, ...]
    defaults: Partitioned
    example: Partitioned
    weights: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    focus: tuple[str, ...] | None = None
    deployed: bool = False
    calibrated: bool = False
    absent: Absent = Absent()  # noqa: RUF009

    @property
    def unheld(self) -> tuple[str, ...]:
        """Paths of the parameters that no call reads and whose values are not held."""
        return self.absent.names

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that it holds in memory, an array that stands twice counted once.

        Examples:
          >>> import jax.numpy as jnp
          >>> import jaxsim as js
          >>> x = jnp.ones((2, 3))
          >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(3)}, x)
          >>> net.nbytes
          36
        """
        return sum({id(leaf): memory_of(leaf) for leaf in jax.tree.leaves(self)}.values())

    def __call__(self, *args: Any, key: Key[Array, ""] | None = None, **kwargs: Any) -> Any:
        """Runs the model on its hardware.

        Args:
          *args: Inputs of the model; batch and other free sizes may differ from the traced ones.
          key: Random key, needed where cores draw at every call; random streams of an NNX module
            (dropout) are drawn anew for each key, too.
          **kwargs: Keyword arguments of the model.

        Returns:
          What the model returns.

        Raises:
          ValueError: The model rejects the arguments, or a core needs a key.
        """
        arguments = self.arguments(args, kwargs, key)
        if not self.cores:
            with explained_call(self.example, arguments):
                return apply_call(arguments, self.fn, self.masked_params(), self.buffers)
        return run_network(held_alone(self), arguments, key)

    def arguments(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], key: Key[Array, ""] | None
    ) -> Partitioned:
        """Builds the arguments of a call, with defaults of `trace` and a key for random streams.

        Args:
          args: Positional arguments.
          kwargs: Keyword arguments by name.
          key: Random key of the call, or None.

        Raises:
          ValueError: `key` is not a random key.
        """
        check_key(key)
        kwargs = {**self.defaults.combine(), **kwargs}
        *_, model = calls_within(self.fn)
        if key is not None and isinstance(model, NnxCall) and model.streams:
            kwargs.setdefault("rngs", jax.random.fold_in(key, zlib.crc32(b"rngs")))
        return call_arguments(args, kwargs)

    @property
    def ranges(self) -> Literal["batch", "stored", "missing"]:
        """Source of the ranges that calls use."""
        return "batch" if not self.deployed else "stored" if self.calibrated else "missing"

    def masked_params(self) -> PyTree:
        """Sets pruned entries of the parameters to zero."""
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
        """Collects the masks of a site's weight, in one array or more that hold it together.

        Args:
          site: One of this network's sites.

        Returns:
          The masks, of the weight's or its parameters' shapes; empty where nothing is pruned.
        """
        here = [w.settings["mask"] for w in self.cores.get(site.name, ()) if w.role == "mask"]
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
        """Computes the fraction of a site's weight that pruning left.

        Args:
          site: A site of this network.

        Returns:
          The fraction, in [0, 1]; None while masks are traced.
        """
        masks = self.site_masks(site)
        if any(map(is_traced, masks)):
            return None
        return sum(map(_count_kept, masks)) / sum(m.size for m in masks) if masks else 1.0

    def select(self, patterns: str | Sequence[str], *, lookups: bool = False) -> tuple[Site, ...]:
        """Selects the sites that glob or `re:` patterns name, within the focus.

        Args:
          patterns: Globs (`Conv_*`), or regular expressions (`re:Conv_[12]/kernel`), matched to a
            site's name or its parameter's path. Dynamic sites need a pattern that begins with
            `dynamic` or a focus that holds them, lookups one that holds `:lookup` or a focus that
            holds nothing else, and matches their name.
          lookups: If True, any pattern may match a lookup.

        Returns:
          The sites, in order of execution.

        Raises:
          ValueError: No pattern, or one that matches nothing within the focus.
        """
        patterns = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
            raise ValueError(f"sites={patterns!r}: give a pattern or a list of patterns")
        if not patterns:
            raise ValueError("sites=[]: give at least one pattern")
        focus, asked = self.focus, self.focus is not None
        sites = self.sites if focus is None else [s for s in self.sites if s.name in focus]
        lookups = lookups or (asked and all(s.kind == "lookup" for s in sites))
        hits = {
            pattern: matching_names(sites, pattern, dynamic=asked, lookups=lookups)
            for pattern in patterns
        }
        for pattern, names in hits.items():
            if not names:
                known = ", ".join(s.name for s in sites)
                within = " of its rule" if asked else ""
                raise ValueError(
                    f"sites={pattern!r} matches no site{within}; the sites are: {known}"
                )
        chosen = set[str]().union(*hits.values())
        return tuple(s for s in sites if s.name in chosen)

    def with_state(self, updates: PyTree) -> Self:
        """Replaces what the model reads beside its parameters.

        Args:
          updates: Tree of buffers or a part of one, as a call with `mutable=` returned it beside
            its outputs. Shapes and dtypes are those of before.

        Raises:
          ValueError: A path that no buffer has, or an array of another shape or dtype.

        Examples:
          >>> y, updates = net(x, mutable=["batch_stats"])  # doctest: +SKIP
          >>> net = net.with_state(updates)  # doctest: +SKIP
        """
        return dataclasses.replace(self, buffers=update_buffers(self.buffers, updates))

    def wrap(self, names: Iterable[str], wrapper: Wrapper) -> Self:
        """Places a wrapper innermost at each named site.

        Args:
          names: Names of sites.
          wrapper: Wrapper to add.

        Raises:
          ValueError: The network is deployed, or has no site of that name, or one that runs sparse.
        """
        names = list(names)
        if self.deployed:
            raise ValueError(f"{wrapper!r} cannot follow deploy: the weights are written already")
        if unknown := set(names) - {site.name for site in self.sites}:
            raise ValueError(f"names={sorted(unknown)}: no such sites")
        for name in names:
            require_dense(self, name, repr(wrapper))
        added = {name: (*self.cores.get(name, ()), wrapper) for name in names}
        return dataclasses.replace(self, cores={**self.cores, **added})

    def cost(self, *args: Any, **kwargs: Any) -> Cost:
        """Counts what one call spends, by site.

        Args:
          *args: Inputs (only shapes count); without any array, those of the traced example.
          **kwargs: Keyword arguments, as in a call.

        Returns:
          Parameters, stored bits, multiply-accumulates and whatever the cores count. Loops of
          unknown length count once, and traced masks as if nothing were pruned.
        """
        return self.cost_of(self.traced(*args, **kwargs).plan)

    def traced(self, *args: Any, **kwargs: Any) -> Traced:
        """Traces and plans a call, from shapes alone; the masks of the call are traced as kept.

        Args:
          *args: Inputs (only shapes count); without any array, those of the traced example.
          **kwargs: Keyword arguments, as in a call.

        Raises:
          ValueError: The model rejects the arguments.
        """
        defaults = self.defaults.combine()
        if not any(map(is_array, jax.tree.leaves((args, kwargs)))):
            args, defaults = self.example.combine()
        arguments = abstract_arguments(call_arguments(args, {**defaults, **kwargs}))
        params, buffers = jax.eval_shape(lambda net: (net.params, net.buffers), self)
        more = (self.example, self.weights, self.masks)
        return trace_plan(self.fn, params, buffers, arguments, *more)

    def portions(
        self, *args: Any, key: Key[Array, ""] | None = None, **kwargs: Any
    ) -> tuple[Portion, ...]:
        """Finds the equations that a call runs for the same rows: all of them, in a network uncut.

        Args:
          *args: Inputs (only shapes count); without any array, those of the traced example.
          key: Random key; without effect where all rows run to the end.
          **kwargs: Keyword arguments, as in a call.
        """
        del key
        fixed = len(jax.tree.leaves((self.params, self.buffers)))
        return (Portion(self.traced(*args, **kwargs).plan, fixed),)

    def cost_of(self, plan: Plan) -> Cost:
        """Counts what the sites of one call spend; see `cost`.

        Args:
          plan: Equations of the call, or some of them.
        """
        flat = {path_name(path): p for path, p in jax.tree_util.tree_leaves_with_path(self.params)}
        total = sum(int(np.prod(p.shape)) for p in flat.values())
        for path, b in jax.tree_util.tree_leaves_with_path(self.buffers):
            if path_name(path) in self.weights:
                flat[path_name(path)] = b
        rows: list[SiteCost] = []
        counted, planned = set[str](), list(contractions(plan))
        multiplied = {p for c in planned if c.site.kind != "lookup" for p in c.site.sources}
        counts = SiteCounts()
        for contraction in planned:
            site = contraction.site
            elsewhere = counted | multiplied if site.kind == "lookup" else counted
            new = [p for p in site.sources if p in flat and p not in elsewhere]
            counted.update(new)
            size = sum(int(np.prod(flat[p].shape)) for p in new)
            zeros = (
                sum(mask.size - _count_kept(mask) for mask in self.site_masks(site)) if size else 0
            )
            counted_once = counts(
                dataclasses.replace(contraction.op, scan_index=(0,) * len(site.stack)),
                self.cores.get(site.name, ()),
                contraction.x,
                contraction.w,
                looks_up=site.kind == "lookup",
            )
            rows.append(
                site_cost(
                    counted_once,
                    name=site.name,
                    params=size,
                    nonzero=size - zeros,
                    copies=0 if site.kind == "dynamic" else math.prod(site.stack),
                    runs=contraction.runs,
                )
            )
        pruned = sum(mask.size - _count_kept(mask) for mask in self.masks.values())
        return Cost(tuple(rows), params=total, nonzero=total - pruned)

    def coverage(self) -> Coverage:
        """Tells of each parameter whether transforms have reached it, and why not.

        Returns:
          A row a parameter with its entries and multiply-accumulates; printing shows a table.

        Examples:
          >>> import jax.numpy as jnp
          >>> import jaxsim as js
          >>> params = {"w": jnp.eye(3), "b": jnp.ones(3)}
          >>> net = js.trace(lambda p, x: x @ p["w"] + p["b"], params, jnp.ones((2, 3)))
          >>> coverage = js.quantize(8, 8)(net).coverage()
          >>> [(row.name, row.reach) for row in coverage.rows], coverage.share("transformed")
          ([('b', 'no site'), ('w', 'transformed')], 0.75)
        """
        params, buffers = jax.eval_shape(lambda net: (net.params, net.buffers), self)
        traced = trace_plan(
            self.fn, params, buffers, self.example, self.example, self.weights, self.masks
        )
        phrases = {
            source: [
                f"{name} at {line}" if (line := traced.lines[source, name]) else name
                for name in names
            ]
            for source, names in traced.readers.items()
        }
        return self._cover(phrases)

    def _cover(self, readers: Mapping[str, Sequence[str]]) -> Coverage:
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        sizes = {path_name(path): math.prod(np.shape(p)) for path, p in leaves}
        for path, b in jax.tree_util.tree_leaves_with_path(self.buffers):
            if path_name(path) in self.weights:
                sizes[path_name(path)] = math.prod(np.shape(b))
        return cover(sizes, self.sites, self.cores, self.masks, self.weights, readers)

    def with_params(self, params: PyTree) -> Self:
        """Replaces the parameters, as a training loop does.

        Args:
          params: Tree like `params`, of the same shapes.

        Raises:
          ValueError: Another structure, another shape, integers in place of floats, or a deployed
            network, whose calls do not read its parameters any more.
        """
        if self.deployed:
            raise ValueError("net is deployed: its calls do not read the parameters any more")
        check_like(self.params, params)
        return dataclasses.replace(self, params=params)

    @property
    def cut_by(self) -> tuple[str, ...]:
        """Names of the transforms that cut it; none of one that is whole."""
        return ()

    @property
    def cut_lines(self) -> tuple[str, ...]:
        """Lines that name the cuts at which this network holds arrays, for checkpoints."""
        return ()

    def __repr__(self) -> str:
        size = sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(self.params))
        stage = ("calibrated, " if self.calibrated else "deployed, ") if self.deployed else ""
        counts = f"{len(self.sites)} sites, {len(self.cores)} transformed, {len(self.masks)} pruned"
        return f"{type(self).__name__}({stage}{counts}, {size} parameters)"

    def __rich__(self) -> Any:
        rows = [
            (
                s.name,
                s.kind,
                s.w_shape,
                s.stack,
                s.x_shape,
                s.macs * s.runs,
                self.cores.get(s.name, ()),
                self.density(s),
            )
            for s in self.sites
        ]
        return sites_table(
            rows,
            self.unreached,
            self._cover({}).line,
            deployed=self.deployed,
            calibrated=self.calibrated,
        )


Net = TypeVar("Net", bound=Network)
"""A network of whatever kind it is, such as one that is cut into stages."""


def base_network(net: Network) -> Network:
    """Returns the whole network of one that was cut for exits or a pipeline; any other as it is.

    Args:
      net: Network of any kind.
    """
    return Network(**{f.name: getattr(net, f.name) for f in dataclasses.fields(Network)})


def require_uncut(
    net: Network,
    transform: str,
    *,
    allowed: Collection[str] = (),
    reason: str = "the network is cut",
    **others: str,
) -> None:
    """Refuses a network that was cut in a way that a transform cannot follow.

    Args:
      net: Network of any kind.
      transform: Name of the transform that is to be applied.
      allowed: Names in `cut_by` that the transform can follow.
      reason: Why it cannot follow the others.
      **others: Why it cannot follow one of them, by its name, where that is another reason.

    Raises:
      ValueError: The network is cut in another way.
    """
    if refused := [name for name in net.cut_by if name not in allowed]:
        raise ValueError(
            f"{transform} cannot follow {refused[0]}: {others.get(refused[0], reason)}"
        )


def require_dense(net: Network, name: str, what: str) -> None:
    """Refuses to put something behind what holds a weight without its zeros.

    Args:
      net: Network of any kind.
      name: Name of a site.
      what: What is to be put there, for the error.

    Raises:
      ValueError: The site runs sparse.
    """
    if (sparse := first_of(net.cores.get(name, ()), "sparse")) is not None:
        raise ValueError(
            f"{what} cannot follow {sparse.name} at {name}: run_sparse is this machine's own way "
            "to multiply, and leaves nothing inside that a core could change"
        )


def data_fields(net: Network) -> dict[str, Any]:
    """Lists the fields of a network that hold arrays.

    Args:
      net: Network of any kind.

    Returns:
      Their values by name.
    """
    children, _ = jax.tree_util.tree_flatten_with_path(net, is_leaf=lambda x: x is not net)
    return {path[0].name: value for path, value in children}


def held_alone(net: Network) -> Network:
    """A network in a call that is being traced, its parameters that are not held as constants.

    Args:
      net: Network.
    """
    if not net.unheld:
        return net
    return dataclasses.replace(net, params=as_constants(net.params, net.unheld))


@jax.jit
def run_network(net: Network, arguments: Partitioned, key: Any) -> Any:
    """Runs a transformed network as one compiled program, even where the caller does not compile.

    Args:
      net: Network.
      arguments: Arguments of the call.
      key: Random key of the call, or None.
    """
    traced = trace_call(net, arguments)
    walk = Walk(net.cores, net.ranges, key)
    outputs, _ = walk.run(traced.plan, traced.values, net.states, ())
    return jax.tree.unflatten(traced.out_tree, outputs)


def _count_kept(mask: Array) -> int:
    return mask.size if is_traced(mask) else int(jnp.sum(mask))


def trace_call(net: Network, arguments: Partitioned) -> Traced:
    """Traces a call of a network and checks that it runs no other sites.

    Args:
      net: Network.
      arguments: Arguments of the call; they may be shapes.

    Raises:
      ValueError: The model rejects the arguments, they bring sites that the network lacks, or they
        have it read a parameter that is not held.
    """
    traced = trace_plan(
        net.fn, net.masked_params(), net.buffers, arguments, net.example, net.weights, net.masks
    )
    check_sites(net, traced.plan)
    if net.unheld:
        leaves = jax.tree_util.tree_leaves_with_path(net.params)
        names = [path_name(path) for path, _ in leaves]
        require_held(net.unheld, names, traced.plan, net.states)
    return traced


def check_sites(net: Network, plan: Plan) -> None:
    """Checks that a call runs the sites that were traced: any other would silently stay float.

    Args:
      net: Network.
      plan: Plan of the call.

    Raises:
      ValueError: It runs another site, or one whose weight was written in another shape.
    """
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
