"""Cascades on networks: simulate them, learn the network from them, pick the seeds that matter."""

from jaxsim.cascades.cover import Cover, coverage, max_cover
from jaxsim.cascades.exact import exact_influence
from jaxsim.cascades.graph import (
    ICGraph,
    from_edges,
    from_scipy,
    trivalency,
    uniform,
    weighted_cascade,
)
from jaxsim.cascades.ims import IMSResult, ims
from jaxsim.cascades.infer import (
    Diagnosis,
    NetworkEstimate,
    diagnose,
    infer_network,
    mle_refine,
    required_cascades,
)
from jaxsim.cascades.labeled import LabeledGraph, from_networkx, load_edgelist
from jaxsim.cascades.maximize import IMResult, maximize_influence
from jaxsim.cascades.plot import plot_influence
from jaxsim.cascades.reverse import rr_sample
from jaxsim.cascades.sample import (
    Cascades,
    LabeledCascades,
    from_arrays,
    from_events,
    from_steps,
    load_cascades,
    sample_cascades,
)
from jaxsim.cascades.sets import RRSets
from jaxsim.cascades.simulate import Spread, influence, simulate_ic
from jaxsim.cascades.threshold import simulate_lt
from jaxsim.numerics.renamed import old_names

__all__ = [
    # graphs
    "ICGraph",
    "LabeledGraph",
    "from_edges",
    "from_networkx",
    "from_scipy",
    "load_edgelist",
    "weighted_cascade",
    "uniform",
    "trivalency",
    # simulation
    "Spread",
    "simulate_ic",
    "simulate_lt",
    "influence",
    "exact_influence",
    # observed cascades
    "Cascades",
    "LabeledCascades",
    "sample_cascades",
    "from_steps",
    "from_arrays",
    "from_events",
    "load_cascades",
    # inference
    "NetworkEstimate",
    "Diagnosis",
    "infer_network",
    "diagnose",
    "mle_refine",
    "required_cascades",
    # maximization
    "RRSets",
    "rr_sample",
    "Cover",
    "max_cover",
    "coverage",
    "IMResult",
    "maximize_influence",
    "plot_influence",
    # both
    "IMSResult",
    "ims",
]

__getattr__ = old_names(
    __name__, {"LabelledGraph": LabeledGraph, "LabelledCascades": LabeledCascades}
)
