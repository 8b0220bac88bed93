"""What jaxsim reads of JAX that JAX does not promise, in one place for every supported version.

Parameters of primitives, jaxprs inside equations, how an equation is bound and how often a function
was compiled have changed between releases and will again. The rest of the package asks here and
sees one form. An unknown one ends in a sentence that names both versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util
from jax.sharding import PartitionSpec

TESTED = ("0.10.0", "0.12.0.1")
"""Oldest and newest JAX that jaxsim is tested with."""


Atom = jex.Var | jex.Literal
"""An operand of an equation: a variable or a literal."""


class UnknownPrimitiveError(ValueError):
    """An equation that this version of JAX writes in a form that jaxsim does not know."""


class Parameters(dict[str, Any]):
    """Parameters of an equation by name; a missing one is an error that names the versions."""

    def __init__(self, eqn: jex.JaxprEqn):
        """Holds the parameters of an equation."""
        super().__init__(eqn.params)
        self.primitive = eqn.primitive.name

    def __missing__(self, name: str) -> Any:
        raise UnknownPrimitiveError(
            f"jax=={jax.__version__}: the primitive {self.primitive} has no parameter {name!r} "
            f"(it has {', '.join(sorted(self)) or 'none'}); jaxsim {metadata.version('jaxsim')} is "
            f"tested with jax {TESTED[0]} to {TESTED[1]}: use one of these, or a newer jaxsim"
        )


def parameters(eqn: jex.JaxprEqn) -> Parameters:
    """The parameters of an equation, to be read by name."""
    return Parameters(eqn)


class Scan(NamedTuple):
    """What a `scan` is told; its operands are constants, then the carry, then what is scanned.

    Attributes:
      consts: number of operands that every iteration reads whole, at least 0.
      carry: number of operands that each iteration hands to the next, at least 0.
      length: number of iterations.
      reverse: whether the last slice comes first.
      unroll: iterations in one step of the compiled loop.
    """

    consts: int
    carry: int
    length: int
    reverse: bool
    unroll: int | bool

    @property
    def first_slice(self) -> int:
        """Position of the first scanned operand."""
        return self.consts + self.carry


def scan(eqn: jex.JaxprEqn) -> Scan:
    """What a `scan` equation is told.

    Raises:
      UnknownPrimitiveError: this JAX writes scans in another form.
    """
    params = parameters(eqn)
    if "num_consts" in params:  # up to jax 0.10
        consts, carry = params["num_consts"], params["num_carry"]
    else:  # since jax 0.11
        consts, carry, _ = map(len, params["ft_in"].unpack())
    return Scan(consts, carry, params["length"], params["reverse"], params["unroll"])


def scan_of_length(
    eqn: jex.JaxprEqn, length: int, invars: Sequence[Atom], outvars: Sequence[jex.Var]
) -> jex.JaxprEqn:
    """A `scan` equation of as many iterations, with other operands and results.

    Args:
      eqn: Equation of the scan.
      length: Number of iterations, at least 1.
      invars: Operands: constants, the carry, then what is scanned, of this length.
      outvars: Results: the carry, then what is stacked, of this length.
    """
    # a loop of one iteration cannot be unrolled by two
    unroll = max(min(parameters(eqn)["unroll"], length), 1)
    params = {**eqn.params, "length": length, "unroll": unroll}
    return eqn.replace(params=params, invars=list(invars), outvars=list(outvars))


class While(NamedTuple):
    """What a `while` is told; its operands are the test's, the body's, and the carry.

    Attributes:
      test_consts: number of operands that only the test reads.
      body_consts: number of operands that only the body reads.
    """

    test_consts: int
    body_consts: int

    @property
    def first_carry(self) -> int:
        """Position of the first carried operand."""
        return self.test_consts + self.body_consts


def while_loop(eqn: jex.JaxprEqn) -> While:
    """What a `while` equation is told.

    Raises:
      UnknownPrimitiveError: this JAX writes loops in another form.
    """
    params = parameters(eqn)
    return While(params["cond_nconsts"], params["body_nconsts"])


class RaggedDot(NamedTuple):
    """What a `ragged_dot_general` is told; its operands are the rows, the groups and their sizes.

    Attributes:
      contract, batch: dimension numbers of both operands, as in `lax.dot_general`.
      rows: axis of the left operand that the groups divide.
      group: axis of the right operand that runs over the groups, None if there is none.
      offset: whether the first group is another than the first of the right operand.
    """

    contract: tuple[tuple[int, ...], tuple[int, ...]]
    batch: tuple[tuple[int, ...], tuple[int, ...]]
    rows: int
    group: int | None
    offset: bool


def ragged_dot(eqn: jex.JaxprEqn) -> RaggedDot:
    """What a `ragged_dot_general` equation is told.

    Raises:
      UnknownPrimitiveError: this JAX writes ragged products in another form.
    """
    params = parameters(eqn)
    numbers = params["ragged_dot_dimension_numbers"]
    contract, batch = numbers.dot_dimension_numbers
    (rows,) = numbers.lhs_ragged_dimensions
    groups = tuple(numbers.rhs_group_dimensions)
    group = groups[0] if len(groups) == 1 else None
    return RaggedDot(contract, batch, rows, group, params["group_offset"] is not None)


def as_call(eqn: jex.JaxprEqn, operands: Sequence[Atom], run: Callable[..., Any]) -> jex.JaxprEqn:
    """An equation that calls a function and has the results of another equation.

    Args:
      eqn: the other equation.
      operands: operands of the call.
      run: function of their values that returns the results in a list.
    """
    shapes = [jax.ShapeDtypeStruct(**_described(atom)) for atom in operands]
    with jax.disable_jit(False):
        closed = jax.make_jaxpr(jax.jit(run))(*shapes)
    (call,) = closed.jaxpr.eqns
    return call.replace(
        invars=list(operands), outvars=list(eqn.outvars), source_info=eqn.source_info
    )


def _described(atom: Atom) -> dict[str, Any]:
    """Shape and dtype of an operand, and its sharding where axes of a mesh are explicit."""
    aval: Any = atom.aval
    sharding = aval.sharding if aval.sharding.mesh.explicit_axes else None
    return {"shape": aval.shape, "dtype": aval.dtype, "sharding": sharding}


def inner_jaxprs(eqn: jex.JaxprEqn) -> list[tuple[jex.Jaxpr, Sequence[Any]]]:
    """The jaxprs an equation runs, with their constants; none for opaque primitives.

    Those of a `while` are its test and its body, those of a `cond` its branches.

    Raises:
      UnknownPrimitiveError: this JAX writes the equation in another form.
    """
    params = parameters(eqn)
    match eqn.primitive:
        case prims.jit_p | prims.closed_call_p | prims.remat_p | prims.scan_p:
            found = [params["jaxpr" if "jaxpr" in params else "call_jaxpr"]]
        case prims.custom_jvp_call_p | prims.custom_vjp_call_p:
            found = [params["call_jaxpr"]]
        case prims.while_p:
            found = [params["cond_jaxpr"], params["body_jaxpr"]]
        case prims.cond_p:
            found = list(params["branches"])
        case _:
            found = []
    # Up to jax 0.10 an open jaxpr has no constants; since then there is one class for both.
    return [(j.jaxpr, j.consts) if hasattr(j, "consts") else (j, ()) for j in found]


def with_parameters(eqn: jex.JaxprEqn, **changes: Any) -> jex.JaxprEqn:
    """The equation, told something else.

    Args:
      eqn: Equation.
      **changes: Parameters by name.
    """
    return eqn.replace(params={**eqn.params, **changes})


def with_inner(eqn: jex.JaxprEqn, jaxpr: jex.Jaxpr) -> jex.JaxprEqn | None:
    """The equation, running another jaxpr; None if it does not run just one, or not in this way.

    Args:
      eqn: Equation.
      jaxpr: Jaxpr with the constants of the one it runs.
    """
    match eqn.primitive:
        case prims.jit_p | prims.closed_call_p | prims.remat_p | prims.scan_p:
            name = "jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"
        case prims.custom_jvp_call_p | prims.custom_vjp_call_p:
            name = "call_jaxpr"
        case _:
            return None
    held = eqn.params[name]
    closed = not isinstance(held, jex.Jaxpr)  # up to jax 0.10; there is one class since
    return with_parameters(eqn, **{name: held.replace(jaxpr=jaxpr) if closed else jaxpr})


def of_shape(v: jex.Var, shape: Sequence[int]) -> jex.Var:
    """A new variable of the type of another, but for its shape.

    Args:
      v: Variable.
      shape: Shape of the new one.
    """
    aval: Any = v.aval
    return jex.Var(aval.update(shape=tuple(shape)))


class ShardMap(NamedTuple):
    """What a `shard_map` is told.

    Attributes:
      body: What each device runs, and its constants.
      mesh: Devices.
      axes: Names of the axes of the mesh that the body sees, in the mesh's order.
      sizes: Their sizes.
      in_specs, out_specs: Axes of the mesh that cut each axis of an operand or a result.
      check: Whether types tell what varies from device to device.
    """

    body: tuple[jex.Jaxpr, Sequence[Any]]
    mesh: Any
    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    in_specs: tuple[Any, ...]
    out_specs: tuple[Any, ...]
    check: bool

    def run(
        self, body: Callable[..., Any], in_specs: Sequence[Any], out_specs: Any, *operands: Any
    ) -> Any:
        """Maps another function over the same devices.

        Args:
          body: The function, `(places, *operands) -> results`: of each device its place along
            each of the axes, and its parts.
          in_specs: How each operand is cut.
          out_specs: How the results are joined.
          *operands: The operands.
        """
        # places along axes are operands, so that they are traced wherever the body is
        places = tuple(jnp.arange(size) for size in self.sizes)
        cuts = tuple(PartitionSpec(axis) for axis in self.axes)

        def local(places: tuple[Any, ...], *parts: Any) -> Any:
            return body(tuple(place[0] for place in places), *parts)

        mapped = jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(cuts, *in_specs),
            out_specs=out_specs,
            axis_names=set(self.axes),
            check_vma=self.check,
        )
        return mapped(places, *operands)


def shard_map(eqn: jex.JaxprEqn) -> ShardMap | None:
    """What a `shard_map` equation is told, None for any other equation.

    Raises:
      UnknownPrimitiveError: this JAX writes it in another form.
    """
    if eqn.primitive.name != "shard_map":
        return None
    params = parameters(eqn)
    mesh, body, own = params["mesh"], params["jaxpr"], params["newly_manual_axes"]
    axes = tuple(name for name in mesh.axis_names if name in own)
    return ShardMap(
        (body.jaxpr, body.consts) if hasattr(body, "consts") else (body, ()),
        mesh,
        axes,
        tuple(mesh.shape[name] for name in axes),
        tuple(params["in_specs"]),
        tuple(params["out_specs"]),
        params["check_vma"],
    )


def varying_axes(value: Any) -> frozenset[str]:
    """The axes of a mesh along which a type says that devices hold different values."""
    return getattr(getattr(jax.typeof(value), "manual_axis_type", None), "varying", frozenset())


def evaluate_size(size: Any, values: Mapping[str, Any]) -> Any:
    """What a size that is made of symbols is, for values of the symbols.

    Args:
      size: Symbolic size of `jax.export`.
      values: For each symbol a number, or anything that adds and multiplies.
    """
    return size._evaluate(dict(values))


def symbols_of(size: Any) -> frozenset[str]:
    """The symbols that a symbolic size of `jax.export` is made of."""
    return frozenset(size.get_vars())


def shape_of(atom: Atom) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an operand.

    Args:
      atom: Operand or result of an equation that is an array or an array of keys.
    """
    aval: Any = atom.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def sharding_of(atom: Atom) -> jax.sharding.PartitionSpec:
    """How an operand is cut over the explicit axes of a mesh.

    Args:
      atom: Operand or result of an equation that is an array.
    """
    aval: Any = atom.aval
    return aval.sharding.spec


def is_value(atom: Atom) -> bool:
    """If an operand is an array or an array of keys, and no reference that equations write to."""
    return hasattr(atom.aval, "weak_type")


def on_explicit_axes(atom: Atom) -> bool:
    """If an operand lies on a mesh with explicit axes, of which every operation is to know."""
    aval: Any = atom.aval
    return bool(aval.sharding.mesh.explicit_axes)


def abstract(atom: Atom) -> jax.ShapeDtypeStruct:
    """An operand as what a function is traced with in its place.

    Args:
      atom: Operand or result of an equation that is an array or an array of keys.
    """
    aval: Any = atom.aval
    where = {"sharding": aval.sharding} if on_explicit_axes(atom) else {}
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type, **where)


def bind(eqn: jex.JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """The outputs of an equation on these operands, traced as of the line it comes from."""
    with source_info_util.user_context(eqn.source_info.traceback), eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def equation_key(eqn: jex.JaxprEqn) -> Any:
    """What an equation does, as a key: equal keys say that the same is done to other operands.

    Equations of which a parameter cannot be compared are like no other.
    """
    literals = tuple(_literal(atom) for atom in eqn.invars)
    params = tuple((name, type(value), value) for name, value in sorted(eqn.params.items()))
    key = (eqn.primitive, repr(eqn.ctx), literals, params)
    try:
        hash(key)
    except TypeError:
        return eqn
    return key


def _literal(atom: Atom) -> Any:
    """The value and type of a literal, to the bit; None for a variable."""
    if not isinstance(atom, jex.Literal):
        return None
    value = np.asarray(atom.val)
    return value.dtype.str, value.tobytes(), getattr(atom.aval, "weak_type", None)


def source_line(eqn: jex.JaxprEqn) -> str:
    """File and line of the model that an equation comes from, empty where JAX knows none."""
    return source_info_util.summarize(eqn.source_info).strip()


def live_operands(jaxpr: jex.Jaxpr, outputs: Sequence[bool] | None = None) -> list[bool]:
    """Whether each operand of a jaxpr is read for its outputs, in loops and calls too.

    A `while`, a `cond` and what is opaque read all of theirs.

    Args:
      jaxpr: Jaxpr without effects.
      outputs: Which of its outputs count; None for all.
    """
    wanted = [True] * len(jaxpr.outvars) if outputs is None else outputs
    live = {
        v for v, one in zip(jaxpr.outvars, wanted, strict=True) if one and isinstance(v, jex.Var)
    }
    for eqn in reversed(jaxpr.eqns):
        used = [v in live for v in eqn.outvars]
        if any(used):
            read = _live_operands(eqn, used)
            operands = zip(eqn.invars, read, strict=True)
            live |= {v for v, one in operands if one and isinstance(v, jex.Var)}
    return [v in live for v in jaxpr.invars]


def _live_operands(eqn: jex.JaxprEqn, used: list[bool]) -> list[bool]:
    """Whether each operand of an equation is read for those of its results."""
    inner = inner_jaxprs(eqn)
    if len(inner) != 1 or len(inner[0][0].invars) != len(eqn.invars):
        return [True] * len(eqn.invars)
    jaxpr = inner[0][0]
    if eqn.primitive is not prims.scan_p:
        return live_operands(jaxpr, used)
    told = scan(eqn)
    carried = slice(told.consts, told.first_slice)
    while True:  # what a turn reads of the carry, the turn before has to make
        read = live_operands(jaxpr, used)
        again = [a or b for a, b in zip(read[carried], used[: told.carry], strict=True)]
        if again == used[: told.carry]:
            return [*read[: told.consts], *again, *read[told.first_slice :]]
        used = [*again, *used[told.carry :]]


def compile_count(*jitted: Callable[..., Any]) -> int:
    """How many programs jitted functions have compiled."""
    return sum(function._cache_size() for function in jitted)  # pyright: ignore


def jaxpr_of(
    consts: Mapping[jex.Var, Any],
    invars: Sequence[jex.Var],
    outvars: Sequence[Any],
    eqns: Sequence[jex.JaxprEqn],
    like: jex.Jaxpr,
) -> jex.Jaxpr:
    """A jaxpr of some equations of another.

    Args:
      consts: The values of its constants, by variable.
      invars: Its inputs.
      outvars: Its outputs.
      eqns: Its equations, in order of execution.
      like: The other one, whose effects and names it has.
    """
    # Since jax 0.11 a constant is one only where its value is given.
    values: dict[str, Any] = {}
    if hasattr(jex.Jaxpr, "consts"):
        values["consts"] = list(consts.values())
    return jex.Jaxpr(
        constvars=list(consts),
        invars=list(invars),
        outvars=list(outvars),
        eqns=list(eqns),
        effects=like.effects,
        debug_info=like.debug_info,
        **values,
    )
