"""Weights written once and ranges set, as in a programmed chip."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxsim.cores.core import State
from jaxsim.cores.partition import Partitioned
from jaxsim.formats.grid import Range
from jaxsim.inputs.batches import batches
from jaxsim.internals import live_operands
from jaxsim.network.arguments import call_arguments, check_key
from jaxsim.network.interpreter import Walk
from jaxsim.network.leaves import check_params
from jaxsim.network.lookups import Transposed
from jaxsim.network.network import Net, Network, run_network, trace_call
from jaxsim.network.params import param_names
from jaxsim.network.plan import Traced
from jaxsim.network.planner import trace_plan
from jaxsim.network.stepwise import Stepwise, mostly_alike
from jaxsim.network.unheld import Absent, live_inputs, without_value, without_values
from jaxsim.network.writer import shard_like_weights, write_states
from jaxsim.numerics.checks import is_traced

NUMBERS = 64
"""Entries of a core's setting up to which it is held whether or not it is read: it says what the
hardware is."""

FEW = 8
"""Transformed sites below which one program calibrates all of them."""


def deploy(
    net: Net,
    *,
    key: Key[Array, ""] | None = None,
    calibrate: Any = None,
    keep_floats: bool = True,
    **kwargs: Any,
) -> Net:
    """Writes the weights once and sets the ranges, as a chip is programmed.

    Args:
      net: Network with at least one transformed site.
      key: Random key for cores that draw when they write. Site `name` uses `fold_in(key,
        crc32(name))`, so adding a transform elsewhere does not change its draw.
      calibrate: Inputs for which to set input and ADC ranges: one batch (an array, a tuple of
        positional arguments, or a dict of keyword arguments), or any iterable of batches, of which
        one at a time is in memory. Ranges widen from batch to batch.
      keep_floats: If False, parameters that calls do not read any more, since their sites read what
        was written, are not held beside it: they are NaN, and take no memory. Which these are is
        found parameter by parameter (`chip.unheld`), for the arguments the network was traced with.
      **kwargs: Further keyword arguments of the model, for every batch.

    Returns:
      A network whose calls read what was written: codes of four bits, where reads make floats of
      them, two in a byte. Gradients with respect to its inputs and its
      states pass straight through rounding.

    Raises:
      ValueError: Nothing to deploy, already deployed, weights that became NaN or infinite, a core
        needs `key` or `calibrate`, or what `widen_ranges` raises.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jax.random.normal(jax.random.key(0), (8, 4))
      >>> net = js.trace(lambda params, x: x @ params["w"], {"w": jnp.eye(4)}, x)
      >>> chip = js.deploy(js.quantize(8, 8)(net), calibrate=x)
      >>> chip.deployed, chip.calibrated
      (True, True)
      >>> bool(jnp.abs(chip(x) - x).max() < 0.05)
      True
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
    chip = write_chip(net, key)
    if inputs is None:
        any_key = jax.eval_shape(lambda: jax.random.key(0))
        jax.eval_shape(run_network, chip, net.example, any_key)
    else:
        chip = widen_ranges(chip, inputs, **kwargs)
    return share_tables(chip if keep_floats else _without_floats(chip))


def share_tables(chip: Net) -> Net:
    """Lets a table that is looked up and multiplied too, as a tied head's, be held once.

    Arrays of a lookup's state become those of another site of the same parameter that hold the
    same. Where the two lie transposed (codes without groups) the product's is held: to take a few
    rows along its other axis is little work, to turn a wide table in each product is much.

    Args:
      chip: Network.
    """
    states = dict(chip.states)
    for site in chip.sites:
        if site.kind != "lookup" or site.name not in states:
            continue
        others = [a for name in site.shared for a in jax.tree.leaves(states.get(name))]
        states[site.name] = jax.tree.map(lambda a, held=others: _held(a, held), states[site.name])
    return dataclasses.replace(chip, states=states)


def _held(a: Any, others: list[Any]) -> Any:
    """The one of other arrays that holds the same, else the array itself."""
    if np.size(a) <= NUMBERS or is_traced(a) or not isinstance(a, jax.Array):
        return a
    for other in others:
        if is_traced(other) or not isinstance(other, jax.Array):
            continue
        if (a.dtype, a.sharding) != (other.dtype, other.sharding):
            continue
        if a.shape == other.shape and bool(jnp.array_equal(a, other)):
            return other
        turned = a.ndim == 2 and a.shape == other.shape[::-1] and len(a.sharding.device_set) == 1
        if turned and bool(jnp.array_equal(a, other.T)):
            return Transposed(other)
    return a


def write_chip(net: Net, key: Key[Array, ""] | None) -> Net:
    """Writes the weights of a network that is not deployed; ranges are not set.

    Args:
      net: Network with transformed sites.
      key: Random key for cores that draw when they write, or None.

    Raises:
      ValueError: Weights that are or become NaN or infinite, or a core that needs `key`.
    """
    check_params(net.params)
    states = shard_like_weights(net, write_states(net, key, layout="lean"), jax.device_put)
    return dataclasses.replace(net, states=states, deployed=True)


def _without_floats(chip: Net) -> Net:
    """A network without the parameters and settings that its calls do not read."""
    read = find_read_params(chip)
    names = tuple(name for name in param_names(chip) if name not in read)
    return dataclasses.replace(
        without_unread_settings(chip),
        params=without_values(chip.params, names),
        absent=Absent(names),
    )


def without_unread_settings(chip: Net) -> Net:
    """Replaces arrays of cores that neither calls nor calibration read by ones without memory.

    Such are ranges and scales by which weights were written, and that their states hold too. A
    few numbers stay.

    Args:
      chip: Deployed network.
    """
    settings, structure = jax.tree.flatten(chip.cores)
    if all(np.size(setting) <= NUMBERS for setting in settings):
        return chip
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(lambda: (chip.states, chip.params, chip.buffers, chip.masks))

    def read(settings: list[Any], held: Any, key: Any) -> Any:
        states, params, buffers, masks = held
        net = dataclasses.replace(
            chip,
            cores=jax.tree.unflatten(structure, settings),
            states=states,
            params=params,
            buffers=buffers,
            masks=masks,
        )
        traced = trace_call(net, net.example)
        walk = Walk(net.cores, "stored", None, calibrating=True)
        seen = walk.run(traced.plan, traced.values, net.states, ()) if chip.calibrated else ()
        return run_network(net, net.example, key), seen

    arguments = jax.eval_shape(lambda: settings), shapes, key
    live = live_operands(jax.make_jaxpr(read)(*arguments).jaxpr)
    kept = [
        setting if used or np.size(setting) <= NUMBERS else without_value(setting)
        for setting, used in zip(settings, live, strict=False)
    ]
    return dataclasses.replace(chip, cores=jax.tree.unflatten(structure, kept))


def widen_ranges(chip: Net, *args: Any, **kwargs: Any) -> Net:
    """Calibrates a deployed network on more inputs: its ranges widen to include them.

    Args:
      chip: Deployed network.
      *args: Inputs: a batch or an iterable of batches, as `calibrate` of `deploy`. Several are one
        batch of positional arguments.
      **kwargs: Further keyword arguments of the model, for every batch.

    Raises:
      ValueError: Not deployed; no batch; inputs that hold NaN or infinite values; or a site whose
        range is to be stored did not run (a branch not taken).

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.array([[-1.0, 1.0]])
      >>> net = js.quantize(8, 8)(js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, x))
      >>> chip = js.deploy(net, calibrate=x)
      >>> [round(float(y[0, 1]), 1) for y in (chip(3 * x), js.widen_ranges(chip, 3 * x)(3 * x))]
      [1.0, 3.0]
    """
    if not chip.deployed:
        raise ValueError(
            "chip is not deployed: deploy(net, calibrate=inputs) sets its first ranges"
        )
    inputs = args[0] if len(args) == 1 else args
    if not args:
        inputs, kwargs = kwargs, {}
    chip, fixed = dataclasses.replace(chip, calibrated=True), {**chip.defaults.combine(), **kwargs}
    states = chip.states
    calibrate = _Calibration(chip)
    for batch in batches(inputs, "calibrate"):
        states = calibrate(states, call_arguments(batch.args, {**fixed, **batch.kwargs}))
        states = shard_like_weights(chip, states, jax.device_put)
    for name, state in states.items():
        for r in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Range)):
            if not isinstance(r, Range) or is_traced(r.lo):
                continue
            if np.any((r.lo == np.inf) & (r.hi == -np.inf)):
                raise ValueError(f"calibrate: {name} did not run on it and has no range to store")
            if not (np.isfinite(r.lo).all() and np.isfinite(r.hi).all()):
                raise ValueError(f"calibrate: NaN or infinite values reach {name}")
    return dataclasses.replace(chip, states=states)


class _Calibration:
    """Updates ranges batch by batch; where many sites are alike by a program for each kind."""

    def __init__(self, chip: Network):
        self.chip = chip
        self.shapes: Any = None
        self.traced: Traced | None = None

    def __call__(self, states: dict[str, State], arguments: Partitioned) -> dict[str, State]:
        """The states after their ranges have seen the arguments."""
        chip = dataclasses.replace(self.chip, states=states)
        leaves, structure = jax.tree.flatten((chip, arguments))
        shapes = (structure, tuple((np.shape(a), jnp.result_type(a)) for a in leaves))
        if shapes != self.shapes:
            self.shapes, self.traced = shapes, None
            known = not any(is_traced(a) or _on_explicit_axes(a) for a in leaves)
            if known and len(chip.cores) >= FEW:
                traced = trace_call(chip, arguments)
                self.traced = traced if mostly_alike(traced.plan, chip.cores) else None
        if self.traced is None:
            return _calibrate(chip, arguments)
        held = len(self.traced.values) - len(arguments.arrays)
        values = [*self.traced.values[:held], *arguments.arrays]
        walk = Stepwise(chip.cores, "stored", None, calibrating=True)
        return walk.run(self.traced.plan, values, states, ())[1]


def _on_explicit_axes(a: Any) -> bool:
    return isinstance(a, jax.Array) and bool(jax.typeof(a).sharding.mesh.explicit_axes)


@jax.jit
def _calibrate(chip: Network, arguments: Partitioned) -> dict[str, State]:
    """Every transformed site's state after its ranges have seen the arguments."""
    traced = trace_call(chip, arguments)
    walk = Walk(chip.cores, "stored", None, calibrating=True)
    _, states = walk.run(traced.plan, traced.values, chip.states, ())
    return states


def find_read_params(net: Network) -> set[str]:
    """Finds the parameters that calls read; a deployed site reads its state instead.

    Found for the arguments the network was traced with. A parameter that a loop around a site
    carries counts as read.

    Args:
      net: Network, deployed or not.

    Returns:
      Their paths.
    """
    shapes = jax.eval_shape(lambda: (net.params, net.buffers))
    plan = trace_plan(net.fn, shapes[0], shapes[1], net.example, net.example, net.weights).plan
    live = live_inputs(plan, net.states)
    return {name for name, is_read in zip(param_names(net), live, strict=False) if is_read}
