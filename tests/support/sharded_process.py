"""`python -m tests.support.sharded_process PORT PROCESSES INDEX`: one process of several.

Together they hold one network: each a half of every weight, also after each transform, deployed and
loaded. Prints the share that is held here, and a digest of the outputs.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.support.processes import joined, report


def main(*where: str) -> None:
    """Prunes, quantizes, deploys, saves and loads a network on a mesh of two devices."""
    joined(*where)
    import jax
    from jax.experimental import multihost_utils
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    import jaxsim as js

    mesh = Mesh(np.array(jax.devices()), ("m",))
    rng = np.random.default_rng(0)

    def put(a, *spec):
        a, sharding = np.asarray(a, np.float32), NamedSharding(mesh, PartitionSpec(*spec))
        return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])

    params = {
        "a": put(rng.normal(size=(8, 16)), None, "m"),
        "b": put(rng.normal(size=(16, 8)), "m", None),
    }
    x = put(rng.normal(size=(4, 8)))
    net = js.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, x)
    made = js.compose(js.equalize(x), js.prune(0.5), js.quantize(4, 8))(net)
    chip = js.deploy(made, calibrate=x)
    folder = Path(tempfile.gettempdir()) / f"sharded_{where[0]}_{where[1]}"
    js.save(folder / "chip", chip)
    loaded = js.load(folder / "chip", made)
    held = {
        "made": (made.params, made.masks),
        "deployed": {name: state.inner for name, state in chip.states.items()},
        "loaded": {name: state.inner for name, state in loaded.states.items()},
    }
    for name, leaves in held.items():
        for leaf in jax.tree.leaves(leaves):
            each = {shard.data.size / leaf.size for shard in leaf.addressable_shards}
            assert each == {0.5}, (name, leaf.shape, each)
    y = jax.jit(lambda chip, x: chip(x), out_shardings=NamedSharding(mesh, PartitionSpec()))(
        loaded, x
    )
    whole = {n: multihost_utils.process_allgather(p, tiled=True) for n, p in made.params.items()}
    plain = dataclasses.replace(net, params=whole)
    alone = js.deploy(
        js.compose(js.prune(0.5), js.quantize(4, 8))(plain),
        calibrate=np.asarray(x.addressable_data(0)),
    )
    expected = np.asarray(alone(x.addressable_data(0)))
    y = np.asarray(y.addressable_data(0))
    assert np.abs(y - expected).max() < 1e-5 * np.abs(expected).max()
    report(0, y)


if __name__ == "__main__":
    main(*sys.argv[1:])
