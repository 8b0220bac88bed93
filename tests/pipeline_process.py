"""`python -m tests.pipeline_process PORT PROCESSES INDEX`: one process of a pipeline of several.

Each has one device; the collectives go over loopback. Prints the loss and a digest of the
gradients, exact to the bit.
"""

import hashlib
import sys

import jax
import numpy as np


def main(port: str, processes: int, index: int) -> None:
    """Two stages, two micro-batches, on as many processes as there are."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, index)

    import jaxsim as js
    from tests import pipelines

    assert len(jax.devices()) == 2
    case = pipelines.mlp()
    # without x64, sums over the devices are the only thing that could differ
    pipe = js.pipeline_shard(2, 4, engine="auto" if processes > 1 else "spmd")(case.net)
    step = js.pipeline_value_and_grad(pipe, case.loss)
    loss, grads = step(case.net.params, case.batch)
    outputs = pipe(case.batch[0]).addressable_data(0)
    expected = pipelines.plain(case)
    assert pipelines.furthest(grads, expected[1]) < 1e-6
    assert np.abs(outputs - np.asarray(case.net(case.batch[0]))).max() < 1e-6
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((loss.addressable_data(0), grads)):
        digest.update(np.asarray(leaf).tobytes())
    print("result", float(loss.addressable_data(0)), digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
