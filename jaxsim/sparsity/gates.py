"""Trained reparametrizations of weights with a penalty, which end in masks."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxsim.network.leaves import path_name
from jaxsim.network.network import Net, Network
from jaxsim.network.params import by_name, stacks_of
from jaxsim.network.tracing import retrace
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_called, check_range
from jaxsim.sparsity.distribution import Distribution, global_
from jaxsim.sparsity.masks import check_sparsity, make_masks, require_alone, stacks
from jaxsim.sparsity.pattern import unstructured

if TYPE_CHECKING:
    from optax import GradientTransformation

Weights = dict[str, Array]
"""The gated parameters, by path."""


class Gates(NamedTuple):
    """Reparametrization of weights by trained gates.

    Attributes:
      init: Function `weights -> gates`, the start of what is trained beside the weights.
      apply: Function `(weights, gates, key) -> weights` that the model reads; without a key, their
        mean.
      penalty: Function `(weights, gates) -> number`, which a loss adds for weights that stay.
      score: Function `(weights, gates) -> scores` of weights, the lowest of which go.
      stays: Function `(weights, gates) -> masks` of the weights that the gates leave.

    Examples:
      >>> import jaxsim as js
      >>> gates = js.sparsity.soft_threshold()
      >>> isinstance(gates, js.sparsity.Gates)
      True
    """

    init: Callable[[Weights], Any]
    apply: Callable[[Weights, Any, Key[Array, ""] | None], Weights]
    penalty: Callable[[Weights, Any], Float[Array, ""]]
    score: Callable[[Weights, Any], Weights]
    stays: Callable[[Weights, Any], Weights]


_LOW, _HIGH, _TEMPERATURE = -0.1, 1.1, 2 / 3
"""Ends that the concrete distribution is stretched to, and its temperature."""


def hard_concrete(start: float = 2.0) -> Gates:
    """Makes gates for L0 regularization: random factors in [0, 1] that are often exactly 0 or 1.

    The penalty is the expected number of gates that are not zero.

    Args:
      start: Initial log α of every gate; a gate is open with probability σ(log α + 1.6).

    Raises:
      ValueError: `start` is not a finite number.

    Source: Louizos, Welling and Kingma (2018), arXiv 1712.01312, eq. 10–13.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> gates, w = js.sparsity.hard_concrete(start=2.0), {"w": jnp.ones(3)}
      >>> gates.stays(w, gates.init(w))["w"].tolist()
      [True, True, True]
    """
    _check_number("start", start)

    def gate(log_alpha: Array, key: Key[Array, ""] | None) -> Array:
        if key is None:
            s = jax.nn.sigmoid(log_alpha)
        else:
            u = jax.random.uniform(key, log_alpha.shape, minval=1e-6, maxval=1 - 1e-6)
            noise = jnp.log(u) - jnp.log1p(-u)
            s = jax.nn.sigmoid((noise + log_alpha) / _TEMPERATURE)
        return jnp.clip(s * (_HIGH - _LOW) + _LOW, 0, 1)

    def gates_of(gates: Any, key: Key[Array, ""] | None) -> Weights:
        return {n: gate(a, k) for (n, a), k in zip(gates.items(), _keys(key, gates), strict=True)}

    def apply(w: Weights, gates: Any, key: Key[Array, ""] | None) -> Weights:
        return jax.tree.map(jnp.multiply, w, gates_of(gates, key))

    def penalty(w: Weights, gates: Any) -> Array:
        shift = _TEMPERATURE * math.log(-_LOW / _HIGH)
        return _total(jax.nn.sigmoid(a - shift) for a in gates.values())

    return Gates(
        init=lambda w: {n: jnp.full(a.shape, start) for n, a in w.items()},
        apply=apply,
        penalty=penalty,
        score=lambda w, gates: {n: jnp.abs(a) for n, a in apply(w, gates, None).items()},
        stays=lambda w, gates: {n: z > 0 for n, z in gates_of(gates, None).items()},
    )


def soft_threshold(start: float = -5.0) -> Gates:
    """Makes gates sgn(w) relu(|w| - σ(s)), with one trained s for each layer (STR).

    The penalty is half the sum of squares of weights and thresholds; it draws s to 0, where the
    threshold is a half, and weights below it.

    Args:
      start: Initial s of every layer.

    Raises:
      ValueError: `start` is not a finite number.

    Source: Kusupati et al. (2020), arXiv 2002.03231, eq. 4.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> gates, w = js.sparsity.soft_threshold(start=0.0), {"w": jnp.array([1.5, -0.25])}
      >>> gates.apply(w, gates.init(w), None)["w"].tolist()
      [1.0, -0.0]
    """
    _check_number("start", start)

    def apply(w: Weights, gates: Any, key: Key[Array, ""] | None) -> Weights:
        return {
            n: jnp.sign(a) * jax.nn.relu(jnp.abs(a) - jax.nn.sigmoid(gates[n]))
            for n, a in w.items()
        }

    return Gates(
        init=lambda w: {n: jnp.float32(start) for n in w},
        apply=apply,
        penalty=lambda w, gates: _total(a**2 / 2 for a in (*w.values(), *gates.values())),
        # by how far a weight is above its threshold, or below it
        score=lambda w, gates: {n: jnp.abs(a) - jax.nn.sigmoid(gates[n]) for n, a in w.items()},
        stays=lambda w, gates: {n: jnp.abs(a) > jax.nn.sigmoid(gates[n]) for n, a in w.items()},
    )


def variational_dropout(start: float = -10.0, *, most: float = 3.0) -> Gates:
    """Makes every weight normal about w with a trained variance; noisy weights are left out.

    With α = σ² / w², weights stay whose log α is below a bound. The penalty is the paper's
    approximation of the divergence from the log-uniform prior.

    Args:
      start: Initial log σ² of every weight.
      most: Largest log α of a weight that stays.

    Raises:
      ValueError: An argument is not a finite number.

    Source: Molchanov, Ashukha and Vetrov (2017), arXiv 1701.05369, eq. 14.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> gates, w = js.sparsity.variational_dropout(start=-2.0), {"w": jnp.array([1.0, 0.01])}
      >>> gates.stays(w, gates.init(w))["w"].tolist()
      [True, False]
    """
    _check_number("start", start)
    _check_number("most", most)

    def log_alpha(w: Weights, gates: Any) -> Weights:
        return {n: jnp.clip(gates[n] - jnp.log(a**2 + 1e-16), -10, 10) for n, a in w.items()}

    def apply(w: Weights, gates: Any, key: Key[Array, ""] | None) -> Weights:
        if key is None:
            return w
        return {
            n: a + jnp.exp(gates[n] / 2) * jax.random.normal(k, (a.size,)).reshape(a.shape)
            for (n, a), k in zip(w.items(), _keys(key, w), strict=True)
        }

    def penalty(w: Weights, gates: Any) -> Array:
        k1, k2, k3 = 0.63576, 1.87320, 1.48695
        return _total(
            k1 - k1 * jax.nn.sigmoid(k2 + k3 * a) + jnp.log1p(jnp.exp(-a)) / 2
            for a in log_alpha(w, gates).values()
        )

    return Gates(
        init=lambda w: {n: jnp.full(a.shape, start) for n, a in w.items()},
        apply=apply,
        penalty=penalty,
        score=lambda w, gates: {n: -a for n, a in log_alpha(w, gates).items()},
        stays=lambda w, gates: {n: a < most for n, a in log_alpha(w, gates).items()},
    )


@own_promotion()
def gated(net: Net, gates: Gates, *, sites: str | Sequence[str] = "*") -> Net:
    """Adds trained gates to a network's weights.

    Its parameters are `{"params": …, "gates": …}`. Training draws the gates anew at every step when
    `fit` is given `rngs=("gates",)`; other calls read their mean. `closed` ends in masks. Layers
    that a scan stacks have gates each, along the first axes.

    Args:
      net: Float network, not pruned.
      gates: Gates: `hard_concrete()`, `soft_threshold()` or `variational_dropout()`.
      sites: Patterns of the sites whose weights are gated.

    Raises:
      ValueError: A network that is transformed or pruned already, or patterns without a site.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, jnp.ones((1, 2)))
      >>> sorted(js.sparsity.gated(net, js.sparsity.hard_concrete()).params)
      ['gates', 'params']
    """
    check_called("gates", gates)
    if net.cores or net.masks or net.deployed:
        raise ValueError("net: give the float network, before any transform")
    gates = _of_layers(gates, stacks(net, sites))
    names = tuple(stacks(net, sites))
    require_alone(net, sites, "gated")
    read = net.fn

    def fn(params: Any, buffers: Any, *args: Any, rngs: Any = None, **kwargs: Any) -> Any:
        streams = dict(rngs or {})
        key = streams.pop("gates", None)
        inner = params["params"]
        w = gates.apply(_part(inner, names), params["gates"], key)
        if streams:
            kwargs["rngs"] = streams
        return read(_put(inner, w), buffers, *args, **kwargs)

    params = {"params": net.params, "gates": gates.init(_part(net.params, names))}
    return retrace(dataclasses.replace(net, params=params), fn)


def penalized(gates: Gates, strength: float | Array) -> GradientTransformation:
    """Adds the gradient of the gates' penalty to that of the loss, as weight decay does.

    Put it before the optimizer: `optax.chain(penalized(gates, 1e-5), optax.adam(1e-3))`.

    Args:
      gates: Gates of the network.
      strength: Factor of the penalty, at least 0. Traced.

    Raises:
      ValueError: A strength out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, jnp.ones((1, 2)))
      >>> gates = js.sparsity.soft_threshold()
      >>> params = js.sparsity.gated(net, gates).params
      >>> decay = js.sparsity.penalized(gates, 0.5)
      >>> zero = jax.tree.map(jnp.zeros_like, params)
      >>> updates, _ = decay.update(zero, decay.init(params), params)
      >>> updates["params"]["w"].tolist()
      [[0.5, 0.0], [0.0, 0.5]]
    """
    import optax

    check_called("gates", gates)
    check_range("strength", strength, 0)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def cost(params: Any) -> Array:
            w = _part(params["params"], tuple(params["gates"]))
            return strength * gates.penalty(w, params["gates"])

        return jax.tree.map(jnp.add, updates, jax.grad(cost)(params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@own_promotion()
def closed(
    trained: Network,
    net: Network,
    gates: Gates,
    *,
    sparsity: float | Array | None = None,
    distribution: Distribution | None = None,
) -> Network:
    """Removes the gates of a trained network: its weights are their mean, with masks.

    Args:
      trained: Network after training, as `gated` made it.
      net: Network before `gated`.
      gates: Gates that `gated` was given.
      sparsity: Fraction to leave out, those of the lowest scores; None leaves it to the gates.
      distribution: How many each layer loses then; `global_()` if None.

    Raises:
      ValueError: A sparsity out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, jnp.ones((1, 2)))
      >>> gates = js.sparsity.soft_threshold()
      >>> trained = js.sparsity.gated(net, gates)
      >>> js.sparsity.closed(trained, net, gates).masks["w"].tolist()
      [[True, False], [False, True]]
    """
    inner, gate = trained.params["params"], trained.params["gates"]
    names = tuple(gate)
    gates = _of_layers(gates, stacks_of(net))
    w = _part(inner, names)
    read = dataclasses.replace(
        net, params=_put(inner, gates.apply(w, gate, None)), buffers=trained.buffers
    )
    if sparsity is None:
        return dataclasses.replace(read, masks=gates.stays(w, gate))
    check_sparsity(sparsity, unstructured())
    masks = make_masks(
        read,
        _put(inner, gates.score(w, gate)),
        sparsity,
        pattern=unstructured(),
        distribution=global_() if distribution is None else distribution,
        sites=["re:" + "|".join(map(re.escape, names))],
    )
    return dataclasses.replace(read, masks=masks)


def _of_layers(gates: Gates, stacks: Mapping[str, tuple[int, ...]]) -> Gates:
    """Gates that take each layer of a stack by itself."""

    def each(function: Callable[..., Weights], *trees: Weights, key: Any = None) -> Weights:
        whole = [name for name in trees[0] if not stacks.get(name)]
        found = dict(function(*({n: tree[n] for n in whole} for tree in trees), key))
        for i, name in enumerate(name for name in trees[0] if stacks.get(name)):

            def layer(key: Any, *arrays: Array, name: str = name) -> Array:
                return function(*({name: a} for a in arrays), key)[name]

            keys = key
            if key is not None:
                keys = jax.random.split(jax.random.fold_in(key, len(whole) + i), stacks[name])
            for _ in stacks[name]:
                layer = jax.vmap(layer)
            found[name] = layer(keys, *(tree[name] for tree in trees))
        return found

    return gates._replace(
        init=lambda w: each(lambda w, _: gates.init(w), w),
        apply=lambda w, gate, key: each(gates.apply, w, gate, key=key),
        score=lambda w, gate: each(lambda w, gate, _: gates.score(w, gate), w, gate),
        stays=lambda w, gate: each(lambda w, gate, _: gates.stays(w, gate), w, gate),
    )


def _part(params: Any, names: Sequence[str]) -> Weights:
    flat = by_name(params)
    return {name: flat[name] for name in names}


def _put(params: Any, weights: Mapping[str, Array]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, p: weights.get(path_name(path), p), params)


def _keys(key: Key[Array, ""] | None, of: Mapping[str, Any]) -> list[Any]:
    return [None if key is None else jax.random.fold_in(key, i) for i in range(len(of))]


def _total(parts: Any) -> Array:
    return sum((jnp.sum(a) for a in parts), jnp.float32(0))


def _check_number(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name}={value}: must be a finite number")
