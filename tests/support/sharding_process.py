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
        "parts": parts(),
        "gathered": gathered(),
        "counted": counted(),
    }
    print(json.dumps(report))


CHIPS = {
    "codes": (js.quantize(4, 8),),
    "vectors": (js.quantize(js.Codebook(size=17, length=2), 8),),
    "tiles": (js.quantize(4, 8), js.analog(rows=8)),
    "cells": (
        js.quantize(4, 8),
        js.analog(cells=js.cells.proportional(0.1, noise=0.1), rows=8),
    ),
}


TYPED = {
    "slices of cells": (
        js.quantize(4, 8),
        js.slice_bits(2),
        js.analog(cells=js.cells.proportional(0.1, on_off=20.0, noise=0.1), mapping="offset"),
    ),
    "stored": (js.quantize(4, None),),
    "pruned": (js.prune(0.5), js.quantize(4, 8), js.block(2)),
    "scaled": (js.quantize(4, 8), js.smooth(np.ones((8, 8), np.float32))),
    "rounded": (
        js.quantize(4, 8),
        js.round_weights(js.rounding.gptq(), np.ones((8, 8), np.float32)),
    ),
}


def held(chip):
    """The part that one device holds of each large array of a deployed network, codebooks aside."""
    return {
        path_name(path): a.addressable_shards[0].data.size / a.size
        for path, a in jax.tree_util.tree_leaves_with_path(chip.states)
        if 4 * a.size > chip.params[path_name(path)[0]].size
        and not path_name(path).endswith("levels")
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
        shares = [held(c) for c in (chip, loaded)]
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
        plain, deployed = chip_of(net, transforms, ones)
        expected = deployed(ones, key=key)
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
            slope = jax.grad(run, 1)(composed, composed.params, x)
            off = np.abs(np.asarray(loaded(x, key=key)) - np.asarray(expected)).max()
        if name in ("cells", "slices of cells"):
            whole = jax.grad(run, 1)(plain, jax.tree.map(np.asarray, plain.params), ones)
            for path, a in whole.items():
                wrong = np.abs(np.asarray(slope[path]) - np.asarray(a)).max()
                off = max(off, wrong / np.abs(a).max())
        shares = [held(c) for c in (chip, loaded)]
        yield name, [cut(composed.params), cut(composed.masks), cut(slope), shares, float(off)]


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
        f"{when} {name}": codes.addressable_shards[0].data.size / codes.size
        for when, c in (("deployed", chip), ("loaded", loaded))
        for name, state in c.states.items()
        for codes in jax.tree.leaves(state.inner)
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


def parts():
    """Layers whose columns, and then rows, two devices of four share, beside the same by hand.

    A loop reads its layers by a counter outside of what each device runs. Rows of the inputs are
    cut over the other two devices.
    """
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("d", "m"))
    rng = np.random.default_rng(2)
    shapes = {"a": (2, 8, 8), "b": (2, 8, 8), "c": (8, 3)}
    params = {n: jnp.asarray(rng.normal(size=s) / 3, jnp.float32) for n, s in shapes.items()}
    x = jnp.asarray(rng.normal(size=(4, 8)), jnp.float32)
    cuts = (PartitionSpec(None, "m"), PartitionSpec("m"), PartitionSpec("d"))

    def local(a, b, x):
        return jax.lax.psum(jnp.tanh(x @ a) @ b, "m")

    def fn(p, x):
        layer = jax.shard_map(local, mesh=mesh, in_specs=cuts, out_specs=cuts[2])
        return jax.lax.fori_loop(0, 2, lambda i, x: layer(p["a"][i], p["b"][i], x), x) @ p["c"]

    def by_hand(p, x):
        for a, b in zip(p["a"], p["b"], strict=True):
            halves = zip((a[:, :4], a[:, 4:]), (b[:4], b[4:]), strict=True)
            x = sum(jnp.tanh(x @ a) @ b for a, b in halves)
        return x @ p["c"]

    def loss(net):
        return lambda p: jnp.sum(js.quantize(None, 8, sites="c")(net).with_params(p)(x) ** 2)

    net, other = js.trace(fn, params, x), js.trace(by_hand, params, x)
    chip, plain = (js.deploy(js.quantize(4, 8)(n), calibrate=x) for n in (net, other))
    off = {}
    for name in ("a", "b"):
        for leaf, whole in enumerate(jax.tree.leaves(chip.states[name])):
            each = [
                jax.tree.leaves(plain.states[f"{name}{use}"])[leaf]
                for use in ("", "#2", "#3", "#4")
            ]
            expected = np.stack(each).reshape(whole.shape)
            off[f"{name}/{leaf}"] = float(np.abs(np.asarray(whole, "f4") - expected).max())
    with tempfile.TemporaryDirectory() as folder:
        js.save(f"{folder}/chip", chip)
        loaded = js.load(f"{folder}/chip", js.quantize(4, 8)(net))
    slopes = jax.jit(lambda p: (jax.grad(loss(net))(p), jax.grad(loss(other))(p)))(params)
    return {
        "sites": {
            s.name: [s.lengths, s.stack, s.axes, s.w_shape, s.x_shape, s.layers] for s in net.sites
        },
        "codes and ranges": off,
        "outputs": float(jnp.abs(chip(x) - plain(x)).max()),
        "noise": float(jnp.abs(chip(x) - net(x)).max()),
        "loaded": float(jnp.abs(chip(x) - loaded(x)).max()),
        "slopes": [
            float(jnp.abs(a - b).max() / jnp.abs(b).max())
            for a, b in zip(*map(jax.tree.leaves, slopes), strict=True)
        ],
        "cut": [chip.states["a"].inner.addressable_shards[0].data.size / params["a"].size],
        "pruned": [
            bool((m == js.prune(pattern=sp.n_of_m(2, 4))(other).masks[name]).all())
            for name, m in js.prune(pattern=sp.n_of_m(2, 4), sites="b")(net).masks.items()
        ],
        "macs": [n.cost().total("macs") for n in (net, other)],
    }


def gathered():
    """A layer whose rows devices gather; two of four compute the same, and draw the same noise."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("d", "m"))
    rng = np.random.default_rng(3)
    params = {"a": jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)}
    x, rows = jnp.asarray(rng.normal(size=(4, 8)), jnp.float32), PartitionSpec("d")

    def local(a, x):
        return x @ jax.lax.all_gather(a, "d", axis=0, tiled=True)

    def fn(p, x):
        return jax.shard_map(local, mesh=mesh, in_specs=(rows, rows), out_specs=rows)(p["a"], x)

    net, whole = js.trace(fn, params, x), js.trace(lambda p, x: x @ p["a"], params, x)
    coded = js.quantize(4, 8)
    # each device has rows of inputs and a range of its own for them
    plain = [js.deploy(coded(whole), calibrate=x[i : i + 2])(x[i : i + 2]) for i in (0, 2)]
    noisy = js.compose(coded, js.analog(cells=js.cells.proportional(0.0, noise=0.1)))(net)
    key = jax.random.key(1)
    drawn = js.deploy(noisy, calibrate=x, key=key)(jnp.tile(x[:2], (2, 1)), key=key)
    return {
        "site": [net.sites[0].parts, net.sites[0].stack],
        "off": float(jnp.abs(js.deploy(coded(net), calibrate=x)(x) - jnp.concatenate(plain)).max()),
        "rows apart": float(jnp.abs(drawn[:2] - drawn[2:]).max()),
    }


def counted():
    """Layers by a counter and by a scan, of inputs whose rows are cut over explicit axes."""
    mesh = Mesh(MESH.devices, ("m",), axis_types=(AxisType.Explicit,))
    rng = np.random.default_rng(4)

    def by_counter(p, x):
        return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ p["w"][i]), x)

    def by_scan(p, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]

    with jax.set_mesh(mesh):
        whole, rows = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("m")))
        params = {"w": jax.device_put(np.float32(rng.normal(size=(3, 8, 8))), whole)}
        x = jax.device_put(np.float32(rng.normal(size=(4, 8))), rows)
        first, second = (
            js.quantize(4, 8)(js.trace(fn, params, x))(x) for fn in (by_counter, by_scan)
        )
    return float(jnp.abs(first - second).max()), str(first.sharding.spec[0])


if __name__ == "__main__":
    main()
