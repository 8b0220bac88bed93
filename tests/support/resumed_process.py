"""`python -m tests.support.resumed_process PORT PROCESSES INDEX FOLDER KILL`: one of several.

Together they train a network whose weights are cut over them, in one folder of checkpoints, and die
behind step KILL, of 6. Prints a digest of all weights if they live.
"""

import os
import sys

import numpy as np

from tests.support.processes import joined, report


def main(port: str, processes: str, index: str, folder: str, kill: str) -> None:
    """Trains and resumes on a mesh of two devices."""
    joined(port, processes, index)
    import jax
    import optax
    from jax.experimental import multihost_utils
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    import jaxsim as js
    from jaxsim.checkpoint.resumable import resumable
    from jaxsim.train.loop import fit

    mesh = Mesh(np.array(jax.devices()), ("m",))
    rng = np.random.default_rng(0)

    def put(a, *spec):
        a, sharding = np.asarray(a), NamedSharding(mesh, PartitionSpec(*spec))
        return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])

    x, y = (put(rng.normal(size=(6, 8)).astype(np.float32)) for _ in range(2))
    params = {
        "a": put(rng.normal(size=(8, 16)).astype(np.float32), None, "m"),
        "b": put(-np.zeros((16, 8), np.float32), "m", None),
    }
    net = js.quantize(6, 8)(js.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, x))
    adam = optax.adam(1e-2)

    @jax.jit
    def advance(state, at):
        params, moments, key = state
        noise = 0.01 * jax.random.normal(jax.random.fold_in(key, at), x.shape)

        def loss(p):
            return ((net.with_params(p)(x + noise) - y) ** 2).mean()

        value, slope = jax.value_and_grad(loss)(params)
        changes, moments = adam.update(slope, moments, params)
        return (optax.apply_updates(params, changes), moments, key), value

    def step(state, at):
        if at == int(kill):
            os._exit(9)
        return advance(state, np.int32(at))

    start = (params, jax.jit(adam.init)(params), jax.random.key(7))
    options = {"steps": 6, "folder": folder, "every": 2, "label": "step", "quiet": True}
    trained, _, _ = resumable(step, start, lambda done: range(done, 6), run={"seed": 1}, **options)
    images, labels = rng.normal(size=(12, 8)).astype(np.float32), rng.integers(0, 8, 12)
    fitted = fit(
        net.with_params(trained),
        images,
        labels,
        optimizer=adam,
        key=jax.random.key(0),
        epochs=1,
        batch_size=4,
        checkpoints=f"{folder}/fit",
        quiet=True,
    )
    both = {"a": trained, "b": fitted.params}
    report(0, jax.tree.map(lambda p: multihost_utils.process_allgather(p, tiled=True), both))
    refused = ""
    try:
        resumable(step, start, range, run={"seed": 2}, **options)
    except (ValueError, OSError) as error:
        refused = str(error)
    assert ("of another run" if index == "0" else "was not opened") in refused, refused


if __name__ == "__main__":
    main(*sys.argv[1:])
