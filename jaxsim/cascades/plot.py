"""A picture of what each further seed adds."""

from os import PathLike

import numpy as np

from jaxsim.cascades.maximize import IMResult
from jaxsim.cascades.simulate import Spread
from jaxsim.files import atomic


def plot_influence(path: str | PathLike[str], prefixes: Spread, result: IMResult) -> None:
    """Draw spread against number of seeds, with the certificate's bounds.

    Args:
        path: image file; its ending picks the format.
        prefixes: spread of the first 1, 2, ..., k seeds, from `influence`.
        result: the seeds' certificate.
    """
    from matplotlib.figure import Figure  # not needed to compute, slow to import

    mean, sem = np.asarray(prefixes.mean), np.asarray(prefixes.sem)
    count = np.arange(1, len(mean) + 1)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(count, mean, color="C0", label="simulated spread")
    axes.fill_between(count, mean - 3 * sem, mean + 3 * sem, color="C0", alpha=0.25)
    axes.axhline(result.lower, color="C2", ls="--", label="certified lower bound, all seeds")
    axes.axhline(result.upper, color="C3", ls=":", label="upper bound on any seeds")
    axes.set(xlabel="seeds", ylabel="active nodes", xlim=(1, max(2, len(mean))), ylim=(0, None))
    axes.legend(loc="lower right", frameon=False)
    with atomic.whole(path) as part:
        figure.savefig(part)
