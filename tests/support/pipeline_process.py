"""`python -m tests.support.pipeline_process PORT PROCESSES INDEX`: one process of several.

Together they are a pipeline.

Each has one device; the collectives go over loopback. Prints the loss and a digest of the
gradients.
"""

import sys

import numpy as np

from tests.support.processes import joined, report


def main(*where: str) -> None:
    """Two stages, two micro-batches, on as many processes as there are."""
    joined(*where)
    import jaxsim as js
    from tests.support import pipelines

    case = pipelines.mlp()
    # without x64, sums over the devices are the only thing that could differ
    pipe = js.pipeline_shard(2, 4, engine="auto" if int(where[1]) > 1 else "spmd")(case.net)
    step = js.pipeline_value_and_grad(pipe, case.loss)
    loss, grads = step(case.net.params, case.batch)
    outputs = pipe(case.batch[0]).addressable_data(0)
    expected = pipelines.plain(case)
    assert pipelines.furthest(grads, expected[1]) < 1e-6
    assert np.abs(outputs - np.asarray(case.net(case.batch[0]))).max() < 1e-6
    report(loss.addressable_data(0), (loss.addressable_data(0), grads))


if __name__ == "__main__":
    main(*sys.argv[1:])
