"""Planner: finds the sites of a model by following what is derived from parameters alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsim import internals
from jaxsim.cores.conv import Conv
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.partition import Partitioned
from jaxsim.internals import Atom, bind, inner_jaxprs, jaxpr_of, parameters, shape_of, source_line
from jaxsim.network.arguments import apply_call, explained_call
from jaxsim.network.experts import products
from jaxsim.network.inlining import inline_slices
from jaxsim.network.integers import evaluate, integers
from jaxsim.network.leaves import PyTree, path_name
from jaxsim.network.lookups import looked_up_axis, rows_as_outputs
from jaxsim.network.loops import as_scans
from jaxsim.network.moves import ALIKE, SEVERAL
from jaxsim.network.plan import (
    BUFFERS,
    CONTRACTIONS,
    OPAQUE,
    Contraction,
    Entry,
    Inner,
    Place,
    Plan,
    Provenance,
    Traced,
    contractions,
)
from jaxsim.network.rewrites import (
    branch_results,
    in_other_words,
    is_choice,
    is_gathered,
    is_taken,
    multiplied_slices,
)
from jaxsim.network.routes import Routes, chosen_branch, taken_slices
from jaxsim.network.site import Kind, Site
from jaxsim.numerics.arrays import own_promotion, traced_for_auto_axes


def trace_plan(
    fn: Callable[..., Any],
    params: PyTree,
    buffers: PyTree,
    arguments: Partitioned,
    example: Partitioned,
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

    def flat(params: PyTree, buffers: PyTree, arguments: Partitioned) -> Any:
        return apply_call(arguments, fn, params, buffers)

    with explained_call(example, arguments):
        closed, out = jax.make_jaxpr(flat, return_shape=True)(params, buffers, arguments)
    tags = [_weight(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    constant = [
        _weight(path, leaf)
        if path_name(path) in weights
        else Provenance(sources=frozenset([BUFFERS + path_name(path)]))
        for path, leaf in jax.tree_util.tree_leaves_with_path(buffers)
    ]
    unknown = [None] * len(arguments.arrays)
    lookups: frozenset[Place] = frozenset()
    while True:
        planner = _Planner(masked, lookups)
        plan = planner.plan(closed.jaxpr, closed.consts, [*tags, *constant, *unknown], ())
        for t in plan.known:
            planner.read(t, "output")
        if planner.added <= planner.multiplied:
            break
        lookups |= planner.added - planner.multiplied
    readers = {source: tuple(names) for source, names in planner.readers.items()}
    values = jax.tree.leaves((params, buffers, arguments.arrays))
    return Traced(
        plan,
        values,
        jax.tree.structure(out),
        readers,
        planner.lines,
        tuple(planner.miscomputed),
    )


def _weight(path: Sequence[Any], leaf: Any) -> Provenance:
    name = path_name(path)
    own = frozenset([name])
    return Provenance(name, int(np.prod(np.shape(leaf))), sources=own, parts=own)


class _Planner:
    """Finds the sites of a jaxpr and names them, by following where its values come from.

    Attributes:
      uses: Number of sites so far, by weight.
      readers: For each parameter and buffer what reads it together with inputs: names of sites, and
        of primitives where the equation is not one.
      lines: Line of the model in which each reader that is a primitive first does so; where JAX
        knows none, that of the equation around it.
      around: Equations whose inner jaxprs are being planned, outermost first.
      devices: Axes of meshes along which the devices are that run what is being planned, by depth.
      multiplied: Gathers of known rows that are, or are part of, the weight of a site.
      added: Those whose rows are read beside inputs in another way.
      choice: While experts are planned, how their weights are chosen and how many multiplications
        and additions the model makes with all of them.
      row_counts: Within their scan, how often each row is multiplied by the expert at hand.
    """

    def __init__(self, masked: Collection[str], lookups: frozenset[Place]):
        """Prepares to plan.

        Args:
          masked: Paths of the weights that are pruned.
          lookups: Gathers of known rows that are sites, as no site multiplies what they give.
        """
        self.masked = masked
        self.lookups = lookups
        self.place: Place = ()
        self.multiplied: set[Place] = set()
        self.added: set[Place] = set()
        self.uses: dict[str, int] = {}
        self.readers: dict[str, list[str]] = {}
        self.lines: dict[tuple[str, str], str] = {}
        self.around: list[jex.JaxprEqn] = []
        self.devices: dict[int, str] = {}
        self.miscomputed: list[str] = []
        self.choice: tuple[Kind, int] | None = None
        self.row_counts: jex.Var | None = None

    def read(self, tag: Provenance | None, reader: str, eqn: jex.JaxprEqn | None = None) -> None:
        """Notes that a value is read beside inputs, or leaves what is followed."""
        if tag is not None:
            self.added |= tag.rows
        self._note(tag, reader, eqn)

    def multiply(self, tag: Provenance, site: str, eqn: jex.JaxprEqn) -> None:
        """Notes that a value is the weight of a site."""
        self.multiplied |= tag.rows
        self._note(tag, site, eqn)

    def _note(self, tag: Provenance | None, reader: str, eqn: jex.JaxprEqn | None) -> None:
        for source in () if tag is None else tag.sources:
            readers = self.readers.setdefault(source, [])
            if reader not in readers:
                readers.append(reader)
                places = [] if eqn is None else [eqn, *reversed(self.around)]
                lines = (line for place in places if (line := source_line(place)))
                self.lines[source, reader] = next(lines, "")

    def plan(
        self,
        jaxpr: jex.Jaxpr,
        consts: Sequence[Any],
        tags: Sequence[Provenance | None],
        lengths: tuple[int, ...],
    ) -> Plan:
        jaxpr, consts = inline_slices(jaxpr, consts)
        known: dict[Any, Provenance | None] = dict(zip(jaxpr.invars, tags, strict=True))
        routes = Routes()
        returned: dict[tuple[int, int], Sequence[Provenance | None]] = {}
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        known.update({v: Provenance(integers=integers(c)) for v, c in values.items()})
        stands_for: dict[Atom, Atom] = {}

        def tag(atom: Atom) -> Provenance | None:
            if isinstance(atom, jex.Literal):
                return Provenance(integers=integers(np.asarray(atom.val, shape_of(atom).dtype)))
            return known[atom]

        def current(atom: Atom) -> Atom:
            return atom if isinstance(atom, jex.Literal) else stands_for.get(atom, atom)

        entries: list[Entry] = []
        eqns: list[jex.JaxprEqn] = []
        waiting = list(reversed(jaxpr.eqns))
        around = self.place
        while waiting:
            at = len(eqns)
            self.place = (*around, at)
            eqn = waiting.pop()
            if stands_for:
                eqn = eqn.replace(invars=[current(v) for v in eqn.invars])
            ins = [tag(atom) for atom in eqn.invars]
            known_or_local = None not in ins or self.devices
            scans = None if known_or_local else as_scans(eqn, ins)
            if scans is not None:
                waiting += reversed(scans.eqns)
                stands_for.update(zip(eqn.outvars, scans.outvars, strict=True))
                values.update(scans.consts)
                known.update({v: Provenance(integers=integers(c)) for v, c in scans.consts.items()})
                continue
            entry, outs = None, [None] * len(eqn.outvars)
            sources = [t for t in ins if t is not None]
            inner = inner_jaxprs(eqn)
            self.around.append(eqn)
            constant = len(sources) == len(ins)
            if constant and len(inner) == 1 and eqn.primitive is not prims.scan_p:
                within = self.plan(*inner[0], ins, lengths)
                outs = list(within.known)
                if names := frozenset(c.site.name for c in contractions(within)):
                    entry = Inner((within,), names)
            elif sources and eqn.primitive.name in SEVERAL:
                routes.leave([v for v, t in zip(eqn.invars, ins, strict=True) if t is None])
                outs = list(ins)
            elif constant and self.place not in self.lookups:
                tag_of = _join_provenance(sources)._replace(
                    parts=_parts(eqn, sources), integers=_integers(eqn, sources)
                )
                if is_gathered(eqn, ins):
                    tag_of = tag_of._replace(rows=tag_of.rows | {self.place})
                if eqn.primitive is prims.axis_index_p:
                    tag_of = tag_of._replace(scanned=self.along(parameters(eqn)["axis_name"]))
                outs = [tag_of] * len(eqn.outvars)
            elif routes.move(eqn):
                pass
            elif inner or eqn.primitive.name == "shard_map":
                routes.leave(eqn.invars)
                plans, outs = self.inner(eqn, inner, ins, lengths)
                names = frozenset(c.site.name for p in plans for c in contractions(p))
                if names or any(t is not None for t in outs):
                    entry = Inner(plans, names)
                if eqn.primitive is prims.cond_p:
                    for j, variable in enumerate(eqn.outvars):
                        returned[at, j] = [plan.known[j] for plan in plans]
                        if is_choice(variable, returned[at, j]):
                            weights = branch_results(plans, j)
                            routes.begin(variable, chosen_branch(eqn, (at, j), weights))
                        else:
                            routes.otherwise.add((at, j))
            elif (choice := multiplied_slices(eqn, ins, routes)) is not None:
                route, run = choice
                routes.leave(eqn.invars, multiplied=route)
                operands = [*eqn.invars, *route.operands]
                tags = list(map(tag, operands))
                eqn, entry = self.rewrite(eqn, run, operands, tags, lengths, "routed")
            else:
                routes.leave(eqn.invars)
                taken = taken_slices(eqn, at) if not constant and is_taken(eqn, ins) else None
                if taken is None:
                    eqn, entry = self.equation(eqn, ins, lengths)
                else:
                    routes.begin(eqn.outvars[0], taken)
            self.around.pop()
            entries.append(entry)
            eqns.append(eqn)
            known.update(zip(eqn.outvars, outs, strict=True))
        outvars = [current(v) for v in jaxpr.outvars]
        routes.leave(outvars)
        for at, j in sorted(routes.otherwise):
            eqn, self.place = eqns[at], (*around, at)
            if eqn.primitive is prims.cond_p:
                for t in returned[at, j]:
                    self.read(t, eqn.primitive.name, eqn)
            else:
                eqns[at], entries[at] = self.equation(eqn, list(map(tag, eqn.invars)), lengths)
        self.place = around
        if stands_for:
            jaxpr, consts = jaxpr_of(values, jaxpr.invars, outvars, eqns, jaxpr), [*values.values()]
        elif any(a is not b for a, b in zip(eqns, jaxpr.eqns, strict=True)):
            jaxpr = jaxpr.replace(eqns=eqns)
        return Plan(jaxpr, consts, tuple(entries), tuple(tag(atom) for atom in jaxpr.outvars))

    def equation(
        self, eqn: jex.JaxprEqn, ins: list[Provenance | None], lengths: tuple[int, ...]
    ) -> tuple[jex.JaxprEqn, Entry]:
        """Plans an equation without inner jaxprs that inputs reach, and notes what it reads."""
        entry = self.contraction(eqn, ins, lengths)
        if entry is not None and entry.site.chosen and self.row_counts is not None:
            operands = [*eqn.invars, self.row_counts]
            product = eqn
            eqn = internals.as_call(eqn, operands, lambda *values: bind(product, values[:-1]))
            entry = entry._replace(rows_at=len(ins))
        if entry is None and (said := in_other_words(eqn, ins)) is not None:
            kind, run = said
            return self.rewrite(eqn, run, eqn.invars, ins, lengths, kind)
        for i, t in enumerate(ins):
            if entry is not None and i == entry.w_at and t is not None:
                self.multiply(t, entry.site.name, eqn)
            else:
                self.read(t, _reader(eqn, i), eqn)
        return eqn, entry

    def rewrite(
        self,
        eqn: jex.JaxprEqn,
        run: Callable[..., Array],
        operands: Sequence[Atom],
        tags: Sequence[Provenance | None],
        lengths: tuple[int, ...],
        kind: Kind,
    ) -> tuple[jex.JaxprEqn, Inner]:
        """Plans an equation as a function that says the same by equations that are sites.

        The new equation runs the one it stands for, where no site inside is transformed.
        """
        with own_promotion(), traced_for_auto_axes():
            closed = jax.make_jaxpr(run)(*map(shape_of, operands))
        around = self.choice, self.row_counts
        if kind != "lookup":
            self.choice = (kind, products(eqn))
        plan = self.plan(closed.jaxpr, closed.consts, tags, lengths)
        self.choice, self.row_counts = around
        count = len(eqn.invars)
        call = internals.as_call(eqn, operands, lambda *values: bind(eqn, values[:count]))
        names = frozenset(c.site.name for c in contractions(plan))
        return call, Inner((plan,), names, rewritten=True)

    def inner(
        self,
        eqn: jex.JaxprEqn,
        inner: list[tuple[jex.Jaxpr, Sequence[Any]]],
        ins: list[Provenance | None],
        lengths: tuple[int, ...],
    ) -> tuple[tuple[Plan, ...], list[Provenance | None]]:
        """Plans the jaxprs inside an equation, and follows its outputs."""
        if (local := internals.shard_map(eqn)) is not None:
            return self.on_devices(local, ins, lengths)
        if eqn.primitive is prims.scan_p:
            (jaxpr, consts), loop, depth = inner[0], internals.scan(eqn), len(lengths)
            if self.choice is not None:  # of experts, whose scan reads it last
                self.row_counts = jaxpr.invars[-1]
            carry = _loop_invariant(jaxpr, ins, loop.consts, loop.carry)
            scanned = [
                None if t is None else t._replace(scanned=t.scanned | {depth}, integers=None)
                for t in ins[loop.first_slice :]
            ]
            plan = self.plan(
                jaxpr, consts, [*ins[: loop.consts], *carry, *scanned], (*lengths, loop.length)
            )
            self.read_carry(eqn, ins[loop.consts : loop.first_slice], carry, plan)
            for t in plan.known[loop.carry :]:
                self.read(t, eqn.primitive.name, eqn)
            return (plan,), [*carry, *[None] * (len(eqn.outvars) - loop.carry)]
        if eqn.primitive is prims.while_p:
            loop = internals.while_loop(eqn)
            test, body = ins[: loop.test_consts], ins[loop.test_consts : loop.first_carry]
            start = ins[loop.first_carry :]
            carry = _loop_invariant(inner[1][0], [*body, *start], len(body), len(start))
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
        self.read(ins[0], eqn.primitive.name, eqn)
        return plans, [None] * len(eqn.outvars)

    def on_devices(
        self,
        local: internals.ShardMap,
        ins: Sequence[Provenance | None],
        lengths: tuple[int, ...],
    ) -> tuple[tuple[Plan, ...], list[Provenance | None]]:
        """Plans what each device runs: what is cut over devices is to them as slices to a loop."""
        first = len(lengths)
        here = dict(enumerate(local.axes, first))
        self.devices.update(here)
        parts = [
            None
            if t is None
            else t._replace(scanned=t.scanned | self.along(_mesh_axes(spec)), integers=None)
            for t, spec in zip(ins, local.in_specs, strict=True)
        ]
        plan = self.plan(*local.body, parts, (*lengths, *local.sizes))
        for depth in here:
            del self.devices[depth]
        outs = [
            None if t is None else t._replace(scanned=t.scanned - here.keys(), integers=None)
            for t in plan.known
        ]
        return (plan,), outs

    def along(self, names: Any) -> frozenset[int]:
        """Finds the depths of axes of a mesh."""
        names = names if isinstance(names, tuple) else (names,)
        return frozenset(depth for depth, name in self.devices.items() if name in names)

    def read_carry(
        self,
        eqn: jex.JaxprEqn,
        start: Sequence[Provenance | None],
        carry: Sequence[Provenance | None],
        body: Plan,
    ) -> None:
        """Notes what a loop's carry holds at first or later and is not followed through it."""
        for before, kept, after in zip(start, carry, body.known, strict=False):
            if kept is None:
                self.read(before, eqn.primitive.name, eqn)
                self.read(after, eqn.primitive.name, eqn)

    def contraction(
        self, eqn: jex.JaxprEqn, ins: list[Provenance | None], lengths: tuple[int, ...]
    ) -> Contraction | None:
        """Builds the site that an equation is, None if it is not one."""
        from_params = [i for i, t in enumerate(ins) if t is not None and t.param]
        if eqn.primitive is prims.dot_general_p:
            dynamic = all(t is None for t in ins)
            if not dynamic and not from_params:
                return None
            w_at = 1 if dynamic else from_params[0]
            geometry = _dot(eqn, w_at)
            kind: Kind = "dynamic" if dynamic else "dot"
        elif eqn.primitive is prims.conv_general_dilated_p:
            ends = [end for pair in parameters(eqn)["padding"] for end in pair]
            floats = jnp.issubdtype(shape_of(eqn.invars[0]).dtype, jnp.floating)
            if floats and min(ends, default=0) < 0 < max(ends, default=0):
                name = next((t.param for t in ins if t is not None and t.param), "")
                self.miscomputed.append(name or eqn.primitive.name)
            if from_params != [1] or parameters(eqn)["batch_group_count"] != 1:
                return None
            w_at, kind, geometry = 1, "conv", _conv(eqn)
        elif from_params == [0] and (axis := looked_up_axis(eqn, ins)) is not None:
            w_at, kind = 0, "lookup"
            geometry = rows_as_outputs(shape_of(eqn.invars[0]).shape, axis)
        else:
            return None
        x_at = 1 if kind == "lookup" else 1 - w_at
        x, w = (shape_of(eqn.invars[i]) for i in (x_at, w_at))
        if kind != "dynamic" and not jnp.issubdtype(w.dtype, jnp.floating):
            return None
        if any(jnp.issubdtype(a.dtype, jnp.complexfloating) for a in (x, w)):
            return None
        source = ins[w_at] or Provenance()
        called = f"{source.param}:lookup" if kind == "lookup" else source.param
        use = self.uses[called] = self.uses.get(called, 0) + 1
        if kind == "dynamic":
            name = f"dynamic/{use - 1}"
        else:
            name = called if use == 1 else f"{called}#{use}"
        macs = 0 if kind == "lookup" else shape_of(eqn.outvars[0]).size * Op(geometry).depth
        if self.choice is not None and kind == "dot":
            kind, macs = self.choice
        site = Site(
            name=name,
            param=source.param or None,
            kind=kind,
            x_shape=x.shape[:-1] if eqn.primitive is prims.gather_p else x.shape,
            w_shape=w.shape,
            dtype=str(w.dtype),
            macs=macs,
            lengths=lengths,
            stacked=tuple(depth in source.scanned for depth in range(len(lengths))),
            sources=tuple(sorted(source.sources)),
            parts=tuple(sorted(source.parts)),
            axes=tuple(self.devices.get(depth, "") for depth in range(len(lengths)))
            if self.devices
            else (),
        )
        op = Op(geometry, masked=any(part in self.masked for part in site.parts))
        return Contraction(site, op, x, w, x_at, w_at)


def _mesh_axes(spec: Any) -> tuple[str, ...]:
    """Lists the axes of a mesh that cut an operand of a `shard_map`."""
    entries = (e if isinstance(e, tuple) else (e,) for e in spec if e is not None)
    return tuple(name for names in entries for name in names)


def _reader(eqn: jex.JaxprEqn, i: int) -> str:
    """Names an equation that is not a site: with a dtype that no site has, or opaque."""
    name, dtype = eqn.primitive.name, shape_of(eqn.invars[i]).dtype
    if name in OPAQUE:
        return f"{name} (opaque)"
    if name not in CONTRACTIONS:
        return name
    if not jnp.issubdtype(dtype, jnp.floating):
        return f"{name} of {dtype}"
    others = (shape_of(v).dtype for v in eqn.invars)
    imaginary = [d for d in others if jnp.issubdtype(d, jnp.complexfloating)]
    return f"{name} by {imaginary[0]}" if imaginary else name


def _join_provenance(sources: Sequence[Provenance]) -> Provenance:
    largest = max(sources, key=lambda t: (bool(t.param), t.size), default=Provenance())
    return largest._replace(
        scanned=frozenset().union(*(t.scanned for t in sources)),
        sources=frozenset().union(*(t.sources for t in sources)),
        parts=frozenset(),
        rows=frozenset().union(*(t.rows for t in sources)),
    )


def _integers(eqn: jex.JaxprEqn, ins: Sequence[Provenance]) -> np.ndarray | None:
    """Evaluates an equation of integers that constants determine."""
    known = [t.integers for t in ins if t.integers is not None]
    return evaluate(eqn, known, 0) if len(known) == len(ins) else None


def _parts(eqn: jex.JaxprEqn, ins: Sequence[Provenance]) -> frozenset[str]:
    """Finds the weights whose zeros an equation hands on, of operands that no input reaches."""
    name = eqn.primitive.name
    if name in ("concatenate", "stack"):
        joined = [t.parts for t in ins]
        return frozenset().union(*joined) if all(joined) else frozenset()
    if name == "mul":
        return max(ins, key=lambda t: (bool(t.parts), t.size)).parts
    if name in _ZERO_STAYS_ZERO and not any(t.parts for t in ins[1:]):
        return ins[0].parts
    return frozenset()


_ZERO_STAYS_ZERO = {
    *("reshape", "transpose", "squeeze", "broadcast_in_dim", "slice", "dynamic_slice", "gather"),
    *("rev", "split", "tile", "unstack", "abs", "sign", "tanh", "div"),
    *("all_gather", "all_gather_invariant", "ppermute", "all_to_all"),
    *(ALIKE - SEVERAL),
}
"""Primitives that move entries of their first operand, or map each so that zero stays zero."""


def _loop_invariant(
    jaxpr: jex.Jaxpr, ins: Sequence[Provenance | None], first: int, count: int
) -> list[Any]:
    """Follows a loop's carry where the body hands its input back unchanged."""
    loop = zip(
        jaxpr.invars[first:], jaxpr.outvars[:count], ins[first : first + count], strict=False
    )
    return [t if before is after else None for before, after, t in loop]


def _dot(eqn: jex.JaxprEqn, w_at: int) -> Dot:
    params = parameters(eqn)
    contract, batch = params["dimension_numbers"]
    x_at = 1 - w_at
    return Dot(
        x_contract=tuple(contract[x_at]),
        x_batch=tuple(batch[x_at]),
        w_contract=tuple(contract[w_at]),
        w_batch=tuple(batch[w_at]),
        x_ndim=len(shape_of(eqn.invars[x_at]).shape),
        w_shape=shape_of(eqn.invars[w_at]).shape,
        weight_first=w_at == 0,
        precision=params["precision"],
        dtype=params["preferred_element_type"],
    )


def _conv(eqn: jex.JaxprEqn) -> Conv:
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
        w_shape=shape_of(eqn.invars[1]).shape,
        precision=params["precision"],
        dtype=params["preferred_element_type"],
    )
