"""`python -m tests.nac_process PORT PROCESSES INDEX`: one process of a meta-training of several.

Two devices in all; the collectives go over loopback. Prints the objective and a digest of the
parameters, exact to the bit.
"""

import hashlib
import sys

import jax
import numpy as np


def main(port: str, processes: int, index: int) -> None:
    """Three steps, the games divided over the devices."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, index)

    from tests.solvers.test_nac import NETWORKS, training

    assert len(jax.devices()) == 2
    state, values = training(NETWORKS["equivariant"], mesh=jax.make_mesh((2,), ("games",)))
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state.params):
        digest.update(np.asarray(leaf.addressable_data(0)).tobytes())
    print("result", values[-1], digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
