"""`python -m tests.support.nac_process PORT PROCESSES INDEX`: one process of several.

Together they meta-train.

Two devices in all; the collectives go over loopback. Prints the objective and a digest of the
parameters. A process alone compares its first gradient with that of one device.
"""

import sys

import jax
import numpy as np

from tests.support.processes import joined, report


def main(*where: str) -> None:
    """Two steps, the games divided over the devices."""
    joined(*where)
    from tests.solvers.test_nac import NETWORKS, training

    net = NETWORKS["conv"]
    states, values = training(net, steps=2, mesh=jax.make_mesh((2,), ("games",)))
    if int(where[1]) == 1:
        # the moments are the gradient; Adam's first step would take rounding errors for signs
        ours, theirs = (jax.tree.leaves(s[1].moments) for s in (states, training(net, 1)[0]))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-7)
    report(values[-1], [leaf.addressable_data(0) for leaf in jax.tree.leaves(states[-1].params)])


if __name__ == "__main__":
    main(*sys.argv[1:])
