"""New weights of sites, one after the other, from what flows into each."""

from __future__ import annotations

import dataclasses
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsim.cores.core import Core, State
from jaxsim.cores.geometry import Dot
from jaxsim.cores.observers import Moments
from jaxsim.cores.op import Op
from jaxsim.cores.role import WEIGHT, role
from jaxsim.cores.wrapper import Wrapper, build
from jaxsim.inputs.batches import batches
from jaxsim.network.arguments import call_arguments
from jaxsim.network.lockstep import walk_together
from jaxsim.network.network import Network
from jaxsim.network.params import by_name
from jaxsim.network.plan import Contraction
from jaxsim.network.site import Site
from jaxsim.numerics.arrays import own_promotion
from jaxsim.transforms.observe import require_measured

Follow = Literal["float", "changed"]
"""What later sites are measured on: the inputs of the float network, or those of the network whose
weights are changed so far."""

Solve = Callable[[Site, Op, Moments], tuple[Float[Array, "B K N"] | None, Any]]
"""Function `(site, op, what was measured) -> new weights, and what else to keep of this slice`;
None for weights that stay."""


class Changed(NamedTuple):
    """New weights of one site.

    Attributes:
      param: The site's parameter with these weights, where it is the weight and nothing else reads
        it; None elsewhere, and where weights stay.
      matrices: The weights as batches of matrices, [*stack, B, K, N], where there is no `param`.
      plain: True if the weight is the site's parameter and nothing else reads it.
      kept: What else the solver said of each slice, stacked.
    """

    param: Array | None
    matrices: Array | None
    plain: bool
    kept: Any


def solve_by_site(
    net: Network,
    sites: Sequence[Site],
    probes: Mapping[str, tuple[Wrapper, ...]],
    inputs: Any,
    solve: Solve,
    *,
    follow: Follow,
    what: str,
) -> dict[str, Changed]:
    """Measures and changes weights site by site, slices of a stack one after the other.

    Of the moments of inputs, those of one slice of a site are in memory at a time.

    Args:
      net: Network, not deployed.
      sites: Sites to change, each the only one of its weight.
      probes: Chain of each, which ends in `moments`.
      inputs: Batch, or an iterable of batches of one shape; all of them are in memory together.
      solve: Finds the new weights.
      follow: What later sites are measured on.
      what: Name of the transform, for errors.

    Raises:
      ValueError: Sites that share a weight, one that did not run, or what `walk_together` raises.
    """
    names = {site.name: site for site in sites}
    for site in sites:
        if others := [name for name in site.shared if name in names]:
            raise ValueError(
                f"{what} at {site.name}: {others[0]} reads the same weight, and by_site={follow!r} "
                "fixes a weight at its first site; leave one of them out, or by_site=None"
            )
    fixed = net.defaults.combine()
    calls = [call_arguments(b.args, {**fixed, **b.kwargs}) for b in batches(inputs)]
    walk = _Solving(net, names, probes, solve, follow)
    walk_together(net, names, calls, walk.visit, what)
    for site in sites:
        if site.name not in walk.seen:
            raise ValueError(f"inputs: {site.name} did not run on them, so nothing is known of it")
    warn_of_few({name: (seen, walk.depths[name]) for name, seen in walk.seen.items()}, what)
    return {site.name: walk.changed(site) for site in sites}


def fewest(states: Mapping[str, Moments]) -> dict[str, tuple[float, int]]:
    """Counts what each site was measured on, for `warn_of_few`; experts that none chose apart.

    Args:
      states: What was measured, by site.
    """
    return {
        name: (float(state.seen[state.seen > 0].min()), state.w.shape[-2])
        for name, state in states.items()
    }


def warn_of_few(counts: Mapping[str, tuple[float, int]], what: str) -> None:
    """Warns of sites that were measured on fewer inputs than they sum over.

    Args:
      counts: For sites by name how many inputs were seen, and how many numbers an input has.
      what: Name of the transform.
    """
    few = {name: count for name, count in counts.items() if count[0] < count[1]}
    if few:
        name = max(few, key=lambda n: few[n][1] / max(few[n][0], 1))
        seen, depth = few[name]
        others = len(few) - 1
        rest = f", and so were {others} more sites" if others else ""
        warnings.warn(
            f"{what}: {name} was measured on {seen:.0f} inputs, fewer than the {depth} numbers of "
            f"each{rest}; weights that fit so few inputs are wrong for others",
            UserWarning,
            stacklevel=4,
        )


class _Solving:
    """Visits sites, and collects their new weights."""

    def __init__(
        self,
        net: Network,
        sites: Mapping[str, Site],
        probes: Mapping[str, tuple[Wrapper, ...]],
        solve: Solve,
        follow: Follow,
    ):
        self.sites, self.probes, self.solve, self.follow = sites, probes, solve, follow
        self.masks, self.params = net.masks, by_name(net.masked_params())
        self.plain = dict.fromkeys(sites, True)
        self.weights = dict[str, np.ndarray]()
        self.kept = dict[str, list[tuple[tuple[int, ...], Any]]]()
        self.seen, self.depths = dict[str, float](), dict[str, int]()
        self.ops = dict[str, Op]()
        self.last: _Measured | None = None

    def visit(
        self, entry: Contraction, at: tuple[int, ...], xs: list[Array], w: Array
    ) -> list[Array]:
        """Changes one slice of a site's weight; the outputs that later sites are to see."""
        site = self.sites[entry.site.name]
        chain, place = self.probes[site.name], tuple(map(jnp.int32, at))
        op = dataclasses.replace(entry.op, ranges="batch", deterministic=True)
        state = self.measure(site, op, chain, place, xs, w)
        matrices, kept = self.solve(site, op, state)
        self.kept.setdefault(site.name, []).append((at, kept))
        shape, new = (*site.stack, *op.geometry.w_shape), None
        if matrices is not None:
            self.ops[site.name] = op
            weight = as_weight(op, matrices)
            if site.name not in self.weights:
                self.weights[site.name] = np.empty(shape, np.float32)
            self.weights[site.name][at] = np.asarray(weight)
            new = weight if self.follow == "changed" else None
        param = self.params.get(site.param or "")
        alone = not site.shared and len(chain) == 1 and param is not None and param.shape == shape
        self.plain[site.name] &= alone and bool(_same(param, w, place))
        seen = float(state.seen.min())
        self.seen[site.name] = min(seen, self.seen.get(site.name, seen))
        self.depths[site.name] = state.gram.shape[-1]
        return [_multiply(op, chain[:-1], place, x, w, new) for x in xs]

    def measure(
        self,
        site: Site,
        op: Op,
        chain: tuple[Wrapper, ...],
        at: tuple[Array, ...],
        xs: list[Array],
        w: Array,
    ) -> Moments:
        """The moments of a site's inputs; those that another has just measured are taken over."""
        state = _write(op, chain, at, w)
        alike = None
        if isinstance(op.geometry, Dot) and all(wrapper.role in WEIGHT for wrapper in chain[:-1]):
            alike = (op.geometry.x_contract, op.geometry.x_batch, state.gram.shape)
        if (
            self.last is not None
            and alike == self.last.alike
            and all(a is b for a, b in zip(xs, self.last.xs, strict=True))
        ):
            return state._replace(gram=self.last.gram, size=self.last.size, seen=self.last.seen)
        self.last = None
        for x in xs:
            state = _calibrate(op, chain, at, state, x)
        require_measured(site, bool((state.seen > 0).all()), state.gram)
        if alike is not None:
            self.last = _Measured(alike, xs, state.gram, state.size, state.seen)
        return state

    def changed(self, site: Site) -> Changed:
        """The weights of a site, once all of its slices are there."""
        weights, slices = self.weights.pop(site.name, None), self.kept.pop(site.name)
        kept = [kept for _, kept in sorted(slices, key=operator.itemgetter(0))]
        stacked = jax.tree.map(
            lambda *a: np.stack(list(map(np.asarray, a))).reshape((*site.stack, *np.shape(a[0]))),
            *kept,
        )
        plain = self.plain[site.name]
        if weights is None:
            return Changed(None, None, plain, stacked)
        if not plain:
            matrices = self.ops[site.name].geometry.as_matmul().w(jnp.asarray(weights))
            return Changed(None, matrices, plain, stacked)
        assert site.param is not None
        if site.param in self.masks:
            mask, before = (np.asarray(a[site.param]) for a in (self.masks, self.params))
            weights = np.where(mask != 0, weights, before)
        return Changed(jnp.asarray(weights), None, plain, stacked)


class _Measured(NamedTuple):
    """Moments of inputs that the next site may read too."""

    alike: Any
    xs: list[Array]
    gram: Array
    size: Array
    seen: Array


@partial(jax.jit, static_argnums=0)
@own_promotion()
def _write(op: Op, chain: tuple[Wrapper, ...], at: tuple[Array, ...], w: Array) -> State:
    return build(chain).write(dataclasses.replace(op, scan_index=at), w, None)


@partial(jax.jit, static_argnums=0, donate_argnums=3)
@own_promotion()
def _calibrate(
    op: Op, chain: tuple[Wrapper, ...], at: tuple[Array, ...], state: State, x: Array
) -> State:
    return build(chain).calibrate(dataclasses.replace(op, scan_index=at), state, x)


@partial(jax.jit, static_argnums=0)
@own_promotion()
def _multiply(
    op: Op, chain: tuple[Wrapper, ...], at: tuple[Array, ...], x: Array, w: Array, new: Array | None
) -> Array:
    """The output of a slice of a site, by a new weight behind its chain if there is one."""
    op = dataclasses.replace(op, scan_index=at)
    core = build(chain if new is None else (*chain, Wrapper.of(replaced, weight=new)))
    return core.read(op, core.write(op, w, None), x, None)


@role("observer")
def replaced(core: Core, *, weight: Array) -> Core:
    """Multiplies by another weight.

    Args:
      core: Contracts it.
      weight: The weight, of the site's shape.
    """

    def write(op: Op, w: Array, key: Any) -> State:
        return core.write(op, weight.astype(w.dtype), key)

    return Core(write, core.calibrate, core.read)


@partial(jax.jit, static_argnums=0)
def as_weight(op: Op, matrices: Array) -> Array:
    """Puts matrices into the shape of the weight, whose entries they are in another order.

    Args:
      op: Contraction.
      matrices: Batch of matrices, [B, K, N].
    """
    shape = jax.ShapeDtypeStruct(op.geometry.w_shape, jnp.float32)
    return jax.linear_transpose(op.geometry.as_matmul().w, shape)(matrices)[0]


@jax.jit
def _same(param: Array, w: Array, at: tuple[Array, ...]) -> Array:
    return jnp.all(param[at] == w)
