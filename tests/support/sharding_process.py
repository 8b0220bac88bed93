"""What is made beside parameters on a mesh of four devices, printed as shardings."""

import dataclasses
import json
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxsim as js
from jaxsim import sparsity as sp
from jaxsim.network.leaves import path_name

MESH = Mesh(np.array(jax.devices()), ("m",))
SPECS = {"a": PartitionSpec(None, "m"), "b": PartitionSpec("m", None)}


def put(a, spec):
    return jax.device_put(jnp.asarray(a, jnp.float32), NamedSharding(MESH, spec))


def fn(p, x):
    return jax.nn.relu(x @ p["a"]) @ p["b"]


def cut(tree):
    """Which axis of each array is cut over the devices, None for none."""
    found = {}
    for path, a in jax.tree_util.tree_leaves_with_path(tree):
        local = a.addressable_shards[0].data.shape
        cuts = [i for i, (n, m) in enumerate(zip(a.shape, local, strict=True)) if n != m]
        found[path_name(path)] = cuts[0] if cuts else None
    return found


def main():
    rng = np.random.default_rng(0)
    params = {n: put(rng.normal(size=s), SPECS[n]) for n, s in (("a", (8, 16)), ("b", (16, 4)))}
    x = put(rng.normal(size=(8, 8)), PartitionSpec())
    net = js.trace(fn, params, x)
    adam, pruned, coded = optax.adam(1e-2), js.prune(0.5)(net), js.quantize(4, 8)(net)
    cubic = sp.cubic(0.5, begin=0, every=1, updates=2)
    chip = js.deploy(coded, calibrate=x)
    made = {
        "prune": pruned.masks,
        "prune again": js.prune(0.75)(pruned).masks,
        "pattern": js.prune(pattern=sp.n_of_m(2, 4))(net).masks,
        "fixed": sp.fixed(adam, pruned).init(params).masks,
        "rigl": sp.rigl(adam, pruned, every=2, until=9).init(params).masks,
        "gradual": sp.gradual(adam, net, cubic).init(params).masks,
        "prune_layers": js.prune_layers(x, 0.5)(net).masks,
        "round_weights": js.round_weights(js.rounding.gptq(), x)(coded).params,
        "equalize": js.equalize(x)(net).params,
        "shrink": js.shrink(0.5)(net).params,
        "shrunk masks": js.shrink(keep={"a:1": range(8)})(pruned).masks,
        "codes": {name: state.inner for name, state in chip.states.items()},
    }
    found = {name: cut(tree) for name, tree in made.items()}
    report = {
        "parameters": found,
        "states": dict(chips(net, x)),
        "tables": tables(),
        "experts": experts(),
        "explicit": dict(explicit(net)),
    }
    print(json.dumps(report))


CHIPS = {
    "codes": (js.quantize(4, 8),),
    "vectors": (js.quantize(js.Codebook(size=4, length=2), 8),),
    "tiles": (js.quantize(4, 8), js.analog(rows=8)),
    "cells": (
        js.quantize(4, 8),
        js.analog(cells=js.cells.proportional(0.1, noise=0.1), rows=8),
    ),
}


TYPED = {
    "pruned": (js.prune(0.5), js.quantize(4, 8), js.block(2)),
    "scaled": (js.quantize(4, 8), js.smooth(np.ones((8, 8), np.float32))),
    "rounded": (
        js.quantize(4, 8),
        js.round_weights(js.rounding.gptq(), np.ones((8, 8), np.float32)),
    ),
}


def chips(net, x):
    """Elements on one device, of each large array of a deployed and of a loaded network."""
    for name, transforms in CHIPS.items():
        composed = js.compose(*transforms)(net)
        chip = js.deploy(composed, key=jax.random.key(0), calibrate=x)
        plain = js.deploy(
            dataclasses.replace(composed, params=jax.tree.map(np.asarray, composed.params)),
            key=jax.random.key(0),
            calibrate=np.asarray(x),
        )
        with tempfile.TemporaryDirectory() as folder:
            js.save(f"{folder}/chip", chip)
            loaded = js.load(f"{folder}/chip", composed)
        shares = [
            {
                path_name(path): a.addressable_shards[0].data.size / a.size
                for path, a in jax.tree_util.tree_leaves_with_path(c.states)
                if 4 * a.size > net.params[path_name(path)[0]].size
            }
            for c in (chip, loaded)
        ]
        key = jax.random.key(1)
        off = float(jnp.abs(loaded(x, key=key) - plain(x, key=key)).max())
        yield name, [shares, off]


def explicit(net):
    """Which axes are cut on a mesh of explicit axes, and how far outputs are from the other's."""
    key, ones = jax.random.key(1), np.ones((8, 8), np.float32)

    def said(p, x):
        h = jax.nn.relu(x @ p["a"])
        return jnp.einsum("bi,io->bo", h, p["b"], out_sharding=PartitionSpec())

    for name, transforms in (*CHIPS.items(), *TYPED.items()):
        expected = chip_of(net, transforms, ones)[1](ones, key=key)
        mesh = Mesh(MESH.devices, ("m",), axis_types=(AxisType.Explicit,))
        with jax.set_mesh(mesh):
            params = {
                name: jax.device_put(np.asarray(net.params[name]), NamedSharding(mesh, spec))
                for name, spec in SPECS.items()
            }
            x = jax.device_put(ones, NamedSharding(mesh, PartitionSpec()))
            composed, chip = chip_of(js.trace(said, params, x), transforms, x)
            with tempfile.TemporaryDirectory() as folder:
                js.save(f"{folder}/chip", chip)
                loaded = js.load(f"{folder}/chip", composed)
            run = jax.jit(lambda c, p, x: c.with_params(p)(x, key=key).sum())
            # JAX cannot yet transpose what noise of cells draws there
            slope = (
                composed.params
                if name == "cells"
                else jax.grad(run, 1)(composed, composed.params, x)
            )
            off = np.abs(np.asarray(loaded(x, key=key)) - np.asarray(expected)).max()
        yield name, [cut(composed.params), cut(composed.masks), cut(slope), float(off)]


def chip_of(net, transforms, x):
    """A network composed, and deployed."""
    composed = js.compose(*transforms)(net)
    return composed, js.deploy(composed, key=jax.random.key(0), calibrate=x)


def tables():
    """The same of a table that is looked up and is the head as well; and how far rows are off."""
    table = put(np.random.default_rng(1).normal(size=(16, 8)), PartitionSpec("m", None))
    ids = jnp.array([[3, 0, 15], [7, 7, 5]])
    net = js.trace(lambda p, ids: p["t"][ids] @ p["t"].T, {"t": table}, ids)
    coded = js.quantize(4, None)(net)
    chip = js.deploy(coded)
    plain = js.deploy(dataclasses.replace(coded, params={"t": np.asarray(table)}))
    with tempfile.TemporaryDirectory() as folder:
        js.save(f"{folder}/chip", chip)
        loaded = js.load(f"{folder}/chip", coded)
    shares = {
        f"{when} {name}": state.inner.addressable_shards[0].data.size / state.inner.size
        for when, c in (("deployed", chip), ("loaded", loaded))
        for name, state in c.states.items()
    }
    return shares, float(jnp.abs(loaded(ids) - plain(ids)).max())


def experts():
    """Which axis is cut of masks and codes of a stack of experts; how far a product is off."""
    rng = np.random.default_rng(2)
    stack = put(rng.normal(size=(4, 8, 8)), PartitionSpec("m"))
    x, sizes = jnp.asarray(rng.normal(size=(6, 8)), jnp.float32), jnp.array([2, 1, 0, 3])
    ids = jnp.array([0, 0, 1, 3, 3, 3])

    def fn(p, x, sizes, ids):
        h = jax.lax.ragged_dot(x, p["w"], sizes)
        return jnp.einsum("td,tdf->tf", h, p["w"][ids])

    net = js.trace(fn, {"w": stack}, x, sizes, ids)
    coded = js.quantize(4, 8)(net)
    chip = js.deploy(coded, calibrate=(x, sizes, ids))
    plain = js.deploy(
        dataclasses.replace(coded, params={"w": np.asarray(stack)}), calibrate=(x, sizes, ids)
    )
    with tempfile.TemporaryDirectory() as folder:
        js.save(f"{folder}/chip", chip)
        loaded = js.load(f"{folder}/chip", coded)
    axes = [
        *cut({"mask": js.prune(0.5)(net).masks}).values(),
        *(
            cut({"codes": state.inner})["codes"]
            for c in (chip, loaded)
            for state in c.states.values()
        ),
    ]
    off = jnp.abs(loaded(x, sizes, ids) - plain(x, sizes, ids)).max()
    return axes, float(off), float(np.abs(explicit_experts(stack, x, ids)).max())


def explicit_experts(stack, x, ids):
    """How far a product is off where the stack is cut over an explicit axis."""

    def said(p, x, ids):
        w = p["w"].at[ids].get(out_sharding=PartitionSpec())
        return jnp.einsum("td,tdf->tf", x, w, out_sharding=PartitionSpec())

    def plain(p, x, ids):
        return jnp.einsum("td,tdf->tf", x, p["w"][ids])

    coded = js.quantize(4, 8)(js.trace(plain, {"w": np.asarray(stack)}, x, ids))
    expected = js.deploy(coded, calibrate=(x, ids))(x, ids)
    mesh = Mesh(MESH.devices, ("m",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        w = jax.device_put(np.asarray(stack), NamedSharding(mesh, PartitionSpec("m")))
        x, ids = (jax.device_put(a, NamedSharding(mesh, PartitionSpec())) for a in (x, ids))
        net = js.quantize(4, 8)(js.trace(said, {"w": w}, x, ids))
        assert net.sites[0].kind == "routed"
        found = js.deploy(net, calibrate=(x, ids))(x, ids)
    return np.asarray(found) - np.asarray(expected)


if __name__ == "__main__":
    main()
