"""Figure of what each further seed adds."""

from os import PathLike

import numpy as np

from jaxsim.cascades.maximize import IMResult
from jaxsim.cascades.simulate import Spread
from jaxsim.files import atomic


def plot_influence(path: str | PathLike[str], prefixes: Spread, result: IMResult) -> None:
    """Draws spread against number of seeds, with the certificate's bounds.

    Args:
      path: Image file; its ending picks the format.
      prefixes: Spread of the first 1, 2, …, k seeds, from `influence`.
      result: Certificate of the seeds, from `maximize_influence`.

    Examples:
      >>> import pathlib, tempfile
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0, 0], [1, 2], n=10)
      >>> found = jc.maximize_influence(g, 2, jax.random.key(0))
      >>> prefixes = [[int(found.seeds[0]), -1], found.seeds.tolist()]
      >>> spread = jc.influence(g, prefixes, jax.random.key(1), 64)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "spread.png")
      ...     jc.plot_influence(path, spread, found)
      ...     path.exists()
      True
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
