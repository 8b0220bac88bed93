"""Low-rank adapters: a few numbers beside each weight, which train while the weight stays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxsim.cores.adapted import adapted
from jaxsim.cores.op import Op
from jaxsim.cores.role import WEIGHT
from jaxsim.cores.site_weight import shifted
from jaxsim.cores.trained import adapter_place, adapters_of, with_adapters_in
from jaxsim.cores.wrapper import Wrapper
from jaxsim.network.arguments import require_key
from jaxsim.network.network import Net, Network, trace_call
from jaxsim.network.plan import contractions
from jaxsim.network.transform import Transform, require_network, transformable
from jaxsim.numerics.checks import checked_int
from jaxsim.values.calls import shown_as_called


@shown_as_called
def lora(rank: int, key: Key[Array, ""], *, sites: str | Sequence[str] = "*") -> Transform:
    """Adds to each site a product of low rank that begins at zero: LoRA, or over codes QLoRA.

    A site's output becomes that of its weight, however it is stored, plus x · down · up in floats.
    `down` is drawn with variance 1 / inputs, `up` is zero, so the network computes what it did (in
    floats up to the order in which XLA sums).
    Adapters belong to the network's cores: `adapters` lists them, and `jaxsim.train.fit` trains
    them, beside the parameters (see `jaxsim.train.adapter_marks` for adapters alone) or, of a
    deployed network, while its codes stay as they were written.

    Args:
      rank: Numbers between the two products, at least 1.
      key: Random key of the draw; site `name` of the i-th uses `fold_in(key, i)`.
      sites: Patterns of the sites.

    Raises:
      ValueError: An argument out of range; when applied, a deployed network, or a site that
        multiplies by no weight or has an adapter already.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.ones((2, 3))
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(3)}, x)
      >>> adapted = js.lora(1, jax.random.key(0))(js.quantize(4, None)(net))
      >>> {name: a.shape for name, a in js.adapters(adapted).items()}
      {'w down': (1, 3, 1), 'w up': (1, 1, 3)}

    Source: Hu et al. (2021), arXiv 2106.09685; Dettmers et al. (2023), arXiv 2305.14314, over
    codes.
    """
    rank = checked_int("rank", rank, 1)
    require_key(key, "adapters")

    def apply(net: Net) -> Net:
        chosen = transformable(net, "lora", sites)
        for site in chosen:
            if not site.multiplies:
                raise ValueError(
                    f"lora at {site.name}: it contracts two inputs and has no weight to add to"
                )
            if adapter_place(net.cores.get(site.name, ())) is not None:
                raise ValueError(f"lora at {site.name}: it has an adapter already")
        ops = {c.site.name: c.op for c in contractions(trace_call(net, net.example).plan)}
        cores = dict(net.cores)
        for i, site in enumerate(chosen):
            B, K, N = ops[site.name].geometry.as_matmul().geometry.w_shape
            own = jax.random.fold_in(key, i)
            down = jax.random.normal(own, (*site.stack, B, K, rank)) / jnp.sqrt(K)
            up = jnp.zeros((*site.stack, B, rank, N))
            wrapper = Wrapper.of(adapted, down=down, up=up)
            cores[site.name] = (wrapper, *cores.get(site.name, ()))
        return dataclasses.replace(net, cores=cores)

    return apply


def adapters(net: Network) -> dict[str, Array]:
    """Lists the numbers of a network's adapters: `site down` and `site up` by name.

    Args:
      net: Network, deployed or not; it has some after `lora`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(3)}, jnp.ones((2, 3)))
      >>> js.adapters(net), sorted(js.adapters(js.lora(1, jax.random.key(0))(net)))
      ({}, ['w down', 'w up'])
    """
    return adapters_of(net.cores)


def with_adapters(net: Net, values: Mapping[str, Array]) -> Net:
    """Replaces the numbers of a network's adapters.

    Args:
      net: Network with adapters.
      values: Numbers by name, as `adapters` lists them.

    Raises:
      ValueError: Names that are not those of its adapters.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.ones((2, 3))
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(3)}, x)
      >>> net = js.lora(1, jax.random.key(0))(net)
      >>> ones = jax.tree.map(jnp.ones_like, js.adapters(net))
      >>> js.with_adapters(net, ones)(x).tolist()
      [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
    """
    if values.keys() != adapters(net).keys():
        raise ValueError(f"values: expected {sorted(adapters(net))}, got {sorted(values)}")
    return dataclasses.replace(net, cores=with_adapters_in(net.cores, values))


def merge_adapters(net: Net) -> Net:
    """Adds the adapters of a float network to the weights of their sites, at these sites alone.

    Parameters stay as they are: what is added stands at the site, before whatever stores the weight
    later.

    Args:
      net: Network with adapters, not deployed.

    Raises:
      ValueError: No adapters, a deployed network, or an adapter of a site whose weights are stored
        in another way than as floats, which would round the sum.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.ones((2, 3))
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(3)}, x)
      >>> net = js.lora(1, jax.random.key(0))(net)
      >>> net = js.with_adapters(net, jax.tree.map(jnp.ones_like, js.adapters(net)))
      >>> merged = js.merge_adapters(net)
      >>> merged(x).tolist()[0], merged.cores["w"][0].name
      ([4.0, 4.0, 4.0], 'shifted')
    """
    require_network(net, "merge_adapters")
    if net.deployed:
        raise ValueError("merge_adapters cannot follow deploy: the weights are written already")
    if not adapters(net):
        raise ValueError("merge_adapters: the network has no adapters; js.lora adds some")
    ops = {c.site.name: c.op for c in contractions(trace_call(net, net.example).plan)}
    cores = dict(net.cores)
    for name, chain in net.cores.items():
        if (place := adapter_place(chain)) is None:
            continue
        rest = (*chain[:place], *chain[place + 1 :])
        if others := [w for w in rest if w.role not in WEIGHT]:
            raise ValueError(
                f"merge_adapters at {name}: {others[0].name} holds its weights, and the sum would "
                "be held otherwise; merge before it, or keep the adapter"
            )
        down, up = (chain[place].settings[which] for which in ("down", "up"))
        shift = (down @ up).astype(jnp.float32)
        as_weight = partial(_as_weight, ops[name])
        for _ in range(shift.ndim - 3):
            as_weight = jax.vmap(as_weight)
        cores[name] = (*rest, Wrapper.of(shifted, shift=as_weight(shift)))
    return dataclasses.replace(net, cores=cores)


def _as_weight(op: Op, matrix: Array) -> Array:
    """A batch of matrices in the shape of the weight, whose entries they are in another order."""
    shape = jax.ShapeDtypeStruct(op.geometry.w_shape, matrix.dtype)
    return jax.linear_transpose(op.geometry.as_matmul().w, shape)(matrix)[0]
