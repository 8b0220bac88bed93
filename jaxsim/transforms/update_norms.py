"""Running statistics of batch norms, measured anew on what reaches them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxsim.cores.partition import Partitioned
from jaxsim.inputs.batches import batches, reusable_batches, row_count
from jaxsim.network.arguments import call_arguments, check_key
from jaxsim.network.leaves import PyTree, path_name
from jaxsim.network.network import Net, Network
from jaxsim.network.transform import Transform, require_network
from jaxsim.values.calls import shown_as_called


@shown_as_called
def update_norms(
    inputs: Any,
    *,
    reference: Network | None = None,
    mutable: str | Sequence[str] = "batch_stats",
    key: Key[Array, ""] | None = None,
    **kwargs: Any,
) -> Transform:
    """Measures the running statistics of batch norms anew, as hardware has changed what they see.

    Rounded, pruned or misprogrammed weights shift the means and variances that reach a norm, and
    the shifts add up from norm to norm. Nothing is trained, and labels are not needed. With a
    `reference` each mean moves by what the means of the same inputs differ from the reference's,
    and each variance by their ratio: statistics of few inputs, or of other inputs than the model
    was trained on, then do no harm. Without one, statistics become those of the inputs.

    On a deployed network it accounts for the errors of that chip. Its ranges stay; where a
    converter's range is to fit what will reach it, calibrate in training mode, whose norms see what
    this function makes of them: `js.deploy(net, calibrate=x, train=True, mutable="batch_stats")`.

    Args:
      inputs: one batch or an iterable of batches; means and variances of a batch are averaged over
        batches, so each should hold a hundred values a channel or more.
      reference: network that the statistics belong to, usually the untransformed one, measured
        here, once; None to take those of the inputs.
      mutable: collections of a Linen model that hold the statistics, or types of an NNX module's
        variables ("BatchStat").
      key: random key for cores that draw at every call, or None.
      **kwargs: keyword arguments that put the model in training mode (`train=True`).

    Raises:
      ValueError: no batch, or no network as a reference; when applied, and of the reference at
        once, no statistic that the calls change, one that is not a running average, one of a
        reference whose name is neither `mean` nor `var`, statistics that the other does not have,
        or values that become NaN or infinite.

    Examples:
      >>> import flax.linen as nn
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> class Model(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, train=False):
      ...         return nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
      >>> x = jax.random.normal(jax.random.key(0), (256, 8))
      >>> net = js.trace(Model(), jax.jit(Model().init)(jax.random.key(1), x), x)
      >>> net = js.update_norms(x, train=True)(net)
      >>> chip = js.compose(js.quantize(3, 8), js.update_norms(x, reference=net, train=True))(net)
      >>> [bool(jnp.allclose(n(x).mean(0), 0, atol=1e-4)) for n in (net, chip)]
      [True, True]

    Source: Shomron and Weiser (2020), arXiv 2010.05625, for statistics of the inputs; moving them
      by a reference's is this project's.
    """
    check_key(key)
    data = reusable_batches(inputs)
    if reference is None:
        exact = None
    else:
        require_network(reference, "update_norms(reference=…)")
        exact = _measured(reference, data, mutable, kwargs, key)

    def apply(net: Net) -> Net:
        require_network(net, "update_norms")
        measured = _measured(net, data, mutable, kwargs, key)
        if exact is not None:
            if set(exact) != set(measured):
                raise ValueError(
                    f"reference: its calls change {sorted(exact)}, those of net {sorted(measured)}"
                )
            held = _named(net.buffers)
            measured = {
                name: _moved(name, held[name], value, exact[name])
                for name, value in measured.items()
            }
        _require_finite(measured)
        return _with_buffers(net, measured)

    return apply


def _moved(name: str, held: Array, found: Array, exact: Array) -> Array:
    """A statistic that has moved as the inputs' has from the reference's."""
    kind = name.rsplit("/", 1)[-1]
    if kind == "mean":
        return held + found - exact
    if kind != "var":
        raise ValueError(
            f"reference: {name} is neither a mean nor a var, so what moves it is unknown"
        )
    return jnp.where(exact > 0, held * found / jnp.where(exact > 0, exact, 1), held + found)


def _measured(
    net: Network,
    inputs: Any,
    mutable: str | Sequence[str],
    kwargs: Mapping[str, Any],
    key: Key[Array, ""] | None,
) -> dict[str, Array]:
    """The statistics that the batches have themselves, averaged over rows."""
    fixed = {**net.defaults.combine(), **kwargs, "mutable": mutable}
    sums: dict[str, Array] = {}
    shares: dict[str, float] = {}
    zeroed, rows = net, 0
    for number, batch in enumerate(batches(inputs, "inputs")):
        arguments = call_arguments(batch.args, {**fixed, **batch.kwargs})
        count = row_count(batch, "inputs")
        if number == 0:
            shares, zeroed = _shares(net, arguments, key)
        found = _named(_updates(zeroed, arguments, key))
        for name in shares:
            sums[name] = sums.get(name, jnp.zeros(())) + count * found[name].astype(jnp.float32)
        rows += count
    return {name: sums[name] / (rows * share) for name, share in shares.items()}


def _shares(
    net: Network, arguments: Partitioned, key: Key[Array, ""] | None
) -> tuple[dict[str, float], Network]:
    """What a call adds of its batch to each statistic, and the network whose statistics are zero.

    A running average becomes m · old + (1 - m) · batch: with an old of zero and of one, two calls
    tell both. A third, with the own values, tells whether it is one.
    """
    held, own = _named(net.buffers), _named(_updates(net, arguments, key))
    # a statistic may stand still at what the batch has, but not at another value too
    shifted = {name: held[name] + 1 for name in own}
    other = _named(_updates(_with_buffers(net, shifted), arguments, key))
    changed = [
        name
        for name in own
        if not (
            jnp.array_equal(own[name], held[name]) and jnp.array_equal(other[name], shifted[name])
        )
    ]
    if not changed:
        raise ValueError(
            "net: its calls change no statistics; give the keyword arguments of its training mode, "
            "such as train=True"
        )
    _require_finite({name: own[name] for name in changed})
    for name in changed:
        if not jnp.issubdtype(held[name].dtype, jnp.floating):
            raise ValueError(f"mutable: {name} is {held[name].dtype}, so no running average")
    zeroed, ones = (
        _with_buffers(net, {name: jnp.full_like(held[name], fill) for name in changed})
        for fill in (0, 1)
    )
    of_zero, of_one = (_named(_updates(n, arguments, key)) for n in (zeroed, ones))
    shares: dict[str, float] = {}
    for name in changed:
        at = jnp.argmin(jnp.abs(of_zero[name]))
        kept = float((of_one[name] - of_zero[name]).ravel()[at])
        expected = kept * held[name] + of_zero[name]
        near = jnp.allclose(own[name], expected, rtol=1e-3, atol=1e-3 * jnp.abs(expected).max())
        if not (math.isfinite(kept) and -1e-6 <= kept < 1 - 1e-6 and bool(near)):
            raise ValueError(
                f"mutable: {name} is no running average of what its calls see; name only the "
                "collections of the norms"
            )
        shares[name] = 1 - kept
    return shares, zeroed


def _require_finite(values: Mapping[str, Array]) -> None:
    for name, value in values.items():
        if not bool(jnp.isfinite(value).all()):
            raise ValueError(f"inputs: {name} becomes NaN or infinite")


@jax.jit
def _updates(net: Network, arguments: Partitioned, key: Key[Array, ""] | None) -> PyTree:
    """What a call hands back beside its outputs."""
    args, kwargs = arguments.combine()
    _, updates = net(*args, key=key, **kwargs)
    return updates


def _named(tree: PyTree) -> dict[str, Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): jnp.asarray(leaf) for path, leaf in leaves}


def _with_buffers(net: Net, values: dict[str, Array]) -> Net:
    """The network with some buffers replaced, in their own types."""
    replaced = jax.tree_util.tree_map_with_path(
        lambda path, b: values[path_name(path)].astype(b.dtype) if path_name(path) in values else b,
        net.buffers,
    )
    return net.with_state(replaced)
